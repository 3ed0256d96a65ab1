// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"iter"
	"slices"
)

// PartSize is how many leases a part of Leases has at most. Of 10,000 leases a
// change then copies about 15 KiB and not a megabyte.
const PartSize = 128

// Leases is a list of leases in parts, so that two lists of which one follows
// from the other share most of their memory. Nothing in it may be changed. The
// zero value is the empty list.
type Leases struct{ parts [][]Lease }

// LeasesOf returns list as Leases. It keeps list.
func LeasesOf(list ...Lease) Leases {
	return Leases{slices.Collect(slices.Chunk(list, PartSize))}
}

// LeasesIn returns the leases of parts, which have at most PartSize each; some
// may be empty. It keeps parts.
func LeasesIn(parts [][]Lease) Leases { return Leases{parts} }

// Len returns how many leases there are.
func (l Leases) Len() int {
	n := 0
	for _, p := range l.parts {
		n += len(p)
	}
	return n
}

// All yields the leases in order.
func (l Leases) All() iter.Seq[*Lease] {
	return func(yield func(*Lease) bool) {
		for _, p := range l.parts {
			for i := range p {
				if !yield(&p[i]) {
					return
				}
			}
		}
	}
}

// Slice returns a copy of the list.
func (l Leases) Slice() []Lease { return slices.Concat(l.parts...) }

// Shares yields the leases in shares of up to n, in order, one at least, which
// may be empty.
func (l Leases) Shares(n int) iter.Seq[[]Lease] {
	return func(yield func([]Lease) bool) {
		room := min(n, l.Len())
		share, some := make([]Lease, 0, room), false
		for lease := range l.All() {
			if share = append(share, *lease); len(share) >= n {
				if some = true; !yield(share) {
					return
				}
				share = make([]Lease, 0, room)
			}
		}
		if len(share) > 0 || !some {
			yield(share)
		}
	}
}

// Changed yields what is not the same in memory: stretches of both lists
// between which alone they can differ, but for their order.
func (l Leases) Changed(o Leases) iter.Seq2[[]Lease, []Lease] {
	return func(yield func(was, is []Lease) bool) {
		for i := range max(len(l.parts), len(o.parts)) {
			was, is := l.part(i), o.part(i)
			same := len(was) == len(is) && (len(was) == 0 || &was[0] == &is[0])
			if !same && !yield(was, is) {
				return
			}
		}
	}
}

// part returns the i-th part, an empty one beyond the last.
func (l Leases) part(i int) []Lease {
	if i < len(l.parts) {
		return l.parts[i]
	}
	return nil
}
