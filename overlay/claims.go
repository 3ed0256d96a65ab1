// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"weft.dev/weft/subnet"
)

// programmed is what Desired asks of the kernel's present state: is a subnet
// reached at this peer already?
type programmed struct {
	devs    []string // all that there are, for an underlay may change
	neighs  Set[Neigh]
	direct  Set[hop]        // of routes on devices that are not ours
	tunnels func() Set[hop] // of neighbours, with the address that their MAC is at
	sources Set[Source]
}

// hop is a subnet's base address and the peer's address at which it is reached.
type hop struct{ base, at netip.Addr }

func indexProgrammed(have State) programmed {
	p := programmed{neighs: have.Neighs, direct: Set[hop]{}, sources: have.Sources}
	for l := range have.Links {
		p.devs = append(p.devs, l.Name)
	}
	for r := range have.Routes {
		if r.Via.IsValid() && !slices.Contains(p.devs, r.Dev) {
			p.direct.Add(hop{r.Dst.Addr(), r.Via})
		}
	}
	p.tunnels = sync.OnceValue(func() Set[hop] { return tunnels(have) })
	return p
}

func tunnels(have State) Set[hop] {
	at := make(map[fdbKey]netip.Addr, len(have.FDB))
	for f := range have.FDB {
		at[f.key()] = f.Dst
	}
	out := make(Set[hop], len(have.Neighs))
	for n := range have.Neighs {
		if dst, ok := at[fdbKey{n.Dev, n.MAC}]; ok {
			out.Add(hop{n.IP, dst})
		}
	}
	return out
}

// holds reports whether c is programmed already, on whatever device. The
// neighbour says so alone: a route may have been lost, and its holder keeps
// the subnet; a neighbour without route is deleted in the next pass. Where
// there is no neighbour, a direct route says it. A peer that has no VTEP any
// more is known by the address at which it had one.
func (p programmed) holds(c candidate) bool {
	base := c.subnet.Addr()
	if p.direct.Has(hop{base, cmp.Or(c.via, c.dst)}) {
		return true
	}
	if c.mac == (subnet.MAC{}) {
		return len(p.neighs) > 0 && p.tunnels().Has(hop{base, c.dst})
	}
	return slices.ContainsFunc(p.devs, func(dev string) bool {
		return p.neighs.Has(Neigh{Dev: dev, IP: base, MAC: c.mac})
	})
}

// admits returns from how many of the addresses of c's holder packets are let
// in as c's subnet.
func (p programmed) admits(c candidate) int {
	if len(p.sources) == 0 {
		return 0
	}
	var space [4]netip.Addr
	seen := space[:0]
	for i := range len(c.lease.Paths) + len(c.lease.Sources) {
		var a netip.Addr
		if i < len(c.lease.Paths) {
			a = c.lease.Paths[i].Underlay.Unmap()
		} else {
			a = c.lease.Sources[i-len(c.lease.Paths)].Unmap()
		}
		if !slices.Contains(seen, a) && p.sources.Has(Source{Outer: a, Inner: c.subnet}) {
			seen = append(seen, a)
		}
	}
	return len(seen)
}

// knows reports whether packets from a are let in already as one of subnets.
func (p programmed) knows(a netip.Addr, subnets []netip.Prefix) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return p.sources.Has(Source{Outer: a, Inner: s}) })
}

// claims is what the accepted candidates occupy: names, MACs and subnets.
type claims struct {
	lengths []int // prefix lengths among all candidates, ascending
	nodes   map[string]*subnet.Lease
	macs    map[fdbKey]*candidate
	subnets map[netip.Prefix]*candidate
	inside  map[netip.Prefix]*candidate // a candidate inside each wider prefix
}

func newClaims(list []candidate) *claims {
	lengths := map[int]bool{}
	for _, c := range list {
		lengths[c.subnet.Bits()] = true
	}
	return &claims{
		lengths: slices.Sorted(maps.Keys(lengths)),
		nodes:   make(map[string]*subnet.Lease, len(list)), macs: make(map[fdbKey]*candidate, len(list)),
		subnets: make(map[netip.Prefix]*candidate, len(list)), inside: map[netip.Prefix]*candidate{},
	}
}

// contested returns the problem with c, given who was accepted before it, or
// "". One MAC at one address may serve several leases: they are one VTEP; and
// where VXLAN is no way to c its MAC does not matter.
func (k *claims) contested(c *candidate) (kind, detail string) {
	if other, ok := k.nodes[c.lease.Node]; ok && other != c.lease {
		return "PeerDuplicateNode", fmt.Sprintf("subnet %s: the name is also that of the holder of %s, which is kept",
			c.subnet, other.Paths[0].Subnet)
	}
	if other, ok := k.macs[fdbKey{c.dev, c.mac}]; ok && c.dev != "" && other.dst != c.dst {
		return "PeerMACDuplicate", fmt.Sprintf("subnet %s: VTEP MAC %s at %s is also announced by %s at %s, which is kept",
			c.subnet, c.mac, c.dst, peerName(other.lease), other.dst)
	}
	if other, ok := k.overlapping(c.subnet); ok {
		return "PeerOverlap", fmt.Sprintf("subnet %s overlaps %s of %s, which is kept", c.subnet, other.subnet, peerName(other.lease))
	}
	return "", ""
}

// overlapping returns an accepted candidate whose subnet overlaps s.
func (k *claims) overlapping(s netip.Prefix) (*candidate, bool) {
	for _, n := range k.lengths {
		if n > s.Bits() {
			break
		}
		if c, ok := k.subnets[netip.PrefixFrom(s.Addr(), n).Masked()]; ok {
			return c, true
		}
	}
	c, ok := k.inside[s]
	return c, ok
}

func (k *claims) take(c *candidate) {
	if c.lease.Node != "" {
		k.nodes[c.lease.Node] = c.lease
	}
	k.macs[fdbKey{c.dev, c.mac}] = c
	k.subnets[c.subnet] = c
	for _, n := range k.lengths {
		if n >= c.subnet.Bits() {
			break
		}
		k.inside[netip.PrefixFrom(c.subnet.Addr(), n).Masked()] = c
	}
}
