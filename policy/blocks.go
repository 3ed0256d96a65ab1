// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// A zone is the addresses from to to, which are in the blocks of the same
// terms: members, ascending.
type zone struct {
	from, to netip.Addr
	members  []int
}

// zones cuts the addresses that are in any block into zones: disjoint,
// ascending, neighbours with the same members made one. blocks maps a term to
// its block. What that takes is added to s; where it is too much, there are none.
func zones(blocks map[int]*Block, s *meter) ([]zone, bool) {
	type edge struct {
		at   netip.Addr
		term int
		in   int // nesting of the CIDR, +1 or -1
		out  int // nesting of the exceptions
	}
	var edges []edge
	mark := func(term int, p netip.Prefix, in, out int) {
		edges = append(edges, edge{p.Masked().Addr(), term, in, out})
		if after := Last(p).Next(); after.IsValid() && after.BitLen() == p.Addr().BitLen() {
			edges = append(edges, edge{after, term, -in, -out})
		}
	}
	for term, b := range blocks {
		mark(term, b.CIDR, 1, 0)
		for _, e := range b.Except {
			if e.Addr().BitLen() == b.CIDR.Addr().BitLen() {
				mark(term, e, 0, 1)
			}
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	depth := map[int][2]int{}
	var out []zone
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			d := depth[edges[i].term]
			d[0], d[1] = d[0]+edges[i].in, d[1]+edges[i].out
			if d == [2]int{} {
				delete(depth, edges[i].term)
			} else {
				depth[edges[i].term] = d
			}
		}
		var members []int
		s.steps += len(depth)
		for term, d := range depth {
			if d[0] > 0 && d[1] == 0 {
				members = append(members, term)
			}
		}
		s.items += len(members)
		if s.rows = 2 * len(out); s.full() {
			return nil, false
		}
		slices.Sort(members)
		to := top(at)
		if i < len(edges) && edges[i].at.BitLen() == at.BitLen() {
			to = edges[i].at.Prev()
		}
		n := len(out)
		switch {
		case len(members) == 0:
		case n > 0 && out[n-1].to.Next() == at && slices.Equal(out[n-1].members, members):
			out[n-1].to = to
		default:
			out = append(out, zone{at, to, members})
		}
		if i < len(edges) && edges[i].at.BitLen() != at.BitLen() {
			clear(depth) // what reaches to the end of a family has no edge there
		}
	}
	s.rows = 2 * len(out)
	return out, !s.full()
}

// zoneAt returns which zone a is in, -1 if it is in no block.
func zoneAt(list []zone, a netip.Addr) int {
	i, ok := slices.BinarySearchFunc(list, a, func(z zone, a netip.Addr) int { return locate(z.from, z.to, a) })
	if !ok {
		return -1
	}
	return i
}

// locate says where the range from to to lies, seen from a: before it, around
// it (0) or after it.
func locate(from, to, a netip.Addr) int {
	switch {
	case to.Less(a):
		return -1
	case a.Less(from):
		return 1
	}
	return 0
}

// Last returns the highest address of p.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // as long as it was
	return a
}

// top returns the highest address of a's family.
func top(a netip.Addr) netip.Addr { return Last(netip.PrefixFrom(a, 0)) }
