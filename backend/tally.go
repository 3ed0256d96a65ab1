// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"

	"weft.dev/weft/overlay"
)

// A tally stands for a collection of entries: how many there are, and the sum
// of a hash of each with a seed that only this process knows. Collections
// whose tallies are equal are equal, but for a chance of one in 2^64. One that
// has an entry twice and lacks another is not.
type tally struct {
	n   int
	sum uint64
}

func (t tally) plus(o tally) tally { return tally{t.n + o.n, t.sum + o.sum} }

// hasher makes tallies. Entries are hashed as bytes: their pointers, which
// netip has, would have each moved to the heap.
type hasher struct{ seed maphash.Seed }

func hash[E comparable](h hasher, e E) uint64 {
	var space [96]byte // of a route, the largest: its name, three addresses, and 7 bytes
	return maphash.Bytes(h.seed, appendEntry(space[:0], any(e)))
}

// tallyOf returns the tally of a set.
func tallyOf[E comparable](h hasher, s overlay.Set[E]) tally {
	t := tally{n: len(s)}
	for e := range s {
		t.sum += hash(h, e)
	}
	return t
}

// appendEntry appends what tells e from others of its type.
func appendEntry(b []byte, e any) []byte {
	switch e := e.(type) {
	case overlay.FDB:
		return appendName(appendAddr(append(b, e.MAC[:]...), e.Dst), e.Dev)
	case overlay.Neigh:
		return appendName(appendAddr(append(b, e.MAC[:]...), e.IP), e.Dev)
	case overlay.Route:
		b = binary.NativeEndian.AppendUint32(appendPrefix(b, e.Dst), e.Metric)
		return appendName(append(appendAddr(appendAddr(b, e.Via), e.Src), e.Proto, bit(e.Onlink)), e.Dev)
	case overlay.Node:
		return append(appendAddr(b, e.Addr), bit(e.Own))
	case overlay.Source:
		return appendPrefix(appendAddr(b, e.Outer), e.Inner)
	}
	return b
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// appendName appends a name that ends what it is in.
func appendName(b []byte, name string) []byte { return append(b, name...) }

func appendPrefix(b []byte, p netip.Prefix) []byte {
	return append(appendAddr(b, p.Addr()), byte(p.Bits()))
}

// appendAddr appends an address without zone, or none.
func appendAddr(b []byte, a netip.Addr) []byte {
	switch {
	case a.Is4():
		v := a.As4()
		return append(append(b, 4), v[:]...)
	case a.Is6():
		v := a.As16()
		return append(append(b, 6), v[:]...)
	}
	return append(b, 0)
}

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
type counting[E comparable] struct {
	hasher
	total, part tally
}

func (c *counting[E]) begin() { c.part = tally{} }
func (c *counting[E]) add(e E) bool {
	c.part.n++
	c.part.sum += hash(c.hasher, e)
	return true
}
func (c *counting[E]) end() { c.total, c.part = c.total.plus(c.part), tally{} }

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
