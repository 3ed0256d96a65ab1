// SPDX-License-Identifier: Apache-2.0

package backend

import "weft.dev/weft/overlay"

// A sink takes the entries of one table after the other as dumps bring them.
type sink[E comparable] interface {
	begin() // forget what has come of this table: its dump starts again
	// add takes an entry that is the sink's to keep, and reports false when it
	// knows that the table has brought the same before.
	add(e E) bool
	end() // the table is complete
}

// filling puts the entries of several tables into a set.
type filling[E comparable] struct {
	set  overlay.Set[E] // nil when there was no table
	part []E
}

func (f *filling[E]) begin() { f.part = f.part[:0] }
func (f *filling[E]) add(e E) bool {
	f.part = append(f.part, e)
	return true
}
func (f *filling[E]) end() {
	if f.set == nil {
		f.set = make(overlay.Set[E], len(f.part))
	}
	for _, e := range f.part {
		f.set.Add(e)
	}
	f.part = nil
}

// sole puts the entries of the only table there is into a set.
type sole[E comparable] struct {
	set  overlay.Set[E]
	room int // about how many there will be
}

func (s *sole[E]) begin() { s.set = make(overlay.Set[E], s.room) }
func (s *sole[E]) add(e E) bool {
	n := len(s.set)
	s.set.Add(e)
	return len(s.set) > n
}
func (s *sole[E]) end() {}

// counting only tallies them.
type counting[E overlay.Entry] struct {
	overlay.Hasher
	total, part overlay.Tally
}

func (c *counting[E]) begin() { c.part = overlay.Tally{} }
func (c *counting[E]) add(e E) bool {
	c.part = c.part.Plus(c.Tally(e))
	return true
}
func (c *counting[E]) end() { c.total, c.part = c.total.Plus(c.part), overlay.Tally{} }

// nowhere takes nothing: a table whose entries go there need not be read.
type nowhere[E comparable] struct{}

func (nowhere[E]) begin()     {}
func (nowhere[E]) add(E) bool { return true }
func (nowhere[E]) end()       {}

// wanted reports whether what goes into s needs to be read.
func wanted[E comparable](s sink[E]) bool {
	_, no := s.(nowhere[E])
	return !no
}
