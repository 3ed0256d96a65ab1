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
	fdb     Set[FDB]
	subnets func() Set[netip.Prefix] // that have a route
	// Base addresses of those whose route is on a device that is not ours.
	directly func() Set[netip.Addr]
}

// hop is a subnet's base address and the peer's address at which it is reached.
type hop struct{ base, at netip.Addr }

func indexProgrammed(have State) programmed {
	p := programmed{neighs: have.Neighs, direct: Set[hop]{}, sources: have.Sources, fdb: have.FDB}
	for l := range have.Links {
		p.devs = append(p.devs, l.Name)
	}
	for r := range have.Routes {
		if r.Via.IsValid() && !slices.Contains(p.devs, r.Dev) {
			p.direct.Add(hop{r.Dst.Addr(), r.Via})
		}
	}
	p.tunnels = sync.OnceValue(func() Set[hop] { return tunnels(have) })
	p.directly = sync.OnceValue(func() Set[netip.Addr] {
		out := make(Set[netip.Addr], len(p.direct))
		for h := range p.direct {
			out.Add(h.base)
		}
		return out
	})
	p.subnets = sync.OnceValue(func() Set[netip.Prefix] {
		out := make(Set[netip.Prefix], len(have.Routes))
		for r := range have.Routes {
			out.Add(r.Dst)
		}
		return out
	})
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

// A fit says how well a path fits what is programmed. Of two that claim the
// MAC and the base address of one subnet, the one that was there fits better:
// the other has copied it. Nothing is missing to what was accepted before, and
// no address of it is strange, so that what was resolved one way stays so.
type fit struct {
	missing  int // of its route, FDB entry and neighbour, those that are not there
	strange  int // addresses of its holder from which it is not let in, and that no other lease announces
	there    int // of its route, FDB entry and neighbour, those that are there
	admitted int // addresses of its holder from which it is let in
	doubtful int // addresses of its holder from which it is not let in, for another announces them, or did
}

// compare orders the better fit first.
func (f fit) compare(o fit) int {
	return cmp.Or(cmp.Compare(f.missing, o.missing), cmp.Compare(f.strange, o.strange),
		cmp.Compare(o.there, f.there), cmp.Compare(o.admitted, f.admitted), cmp.Compare(f.doubtful, o.doubtful))
}

// fits returns the fit of c, which is programmed. from says from which
// addresses its packets can come, shared which of those another lease
// announces.
func (p programmed) fits(c candidate, from, shared func(netip.Addr) bool) fit {
	f := p.entries(c)
	if len(p.sources) == 0 {
		return f
	}
	var space [4]netip.Addr
	seen := space[:0]
	for i := range len(c.lease.Paths) + len(c.lease.Sources) {
		var a netip.Addr
		published := i >= len(c.lease.Paths)
		if published {
			a = c.lease.Sources[i-len(c.lease.Paths)].Unmap()
		} else {
			a = c.lease.Paths[i].Underlay.Unmap()
		}
		if slices.Contains(seen, a) || !from(a) {
			continue
		}
		seen = append(seen, a)
		switch {
		case p.sources.Has(Source{Outer: a, Inner: c.subnet}):
			f.admitted++
		case !published || !shared(a):
			f.strange++
		default:
			f.doubtful++
		}
	}
	return f
}

// entries counts what c needs, by whether it is there, to the address and the
// length; on whatever device, for an underlay may change.
func (p programmed) entries(c candidate) fit {
	var f fit
	count := func(ok bool) {
		if ok {
			f.there++
		} else {
			f.missing++
		}
	}
	base, routed := c.subnet.Addr(), p.subnets().Has(c.subnet)
	if c.via.IsValid() {
		count(routed && p.direct.Has(hop{base, c.via}))
	} else {
		count(routed && !p.directly().Has(base))
	}
	if c.dev != "" {
		count(slices.ContainsFunc(p.devs, func(dev string) bool { return p.fdb.Has(FDB{Dev: dev, MAC: c.mac, Dst: c.dst}) }))
		count(slices.ContainsFunc(p.devs, func(dev string) bool {
			return p.neighs.Has(Neigh{Dev: dev, IP: base, MAC: c.mac})
		}))
	}
	return f
}

// knows reports whether packets from a are let in already as one of subnets,
// or as a from one of alone, addresses that nobody but the same peer announces.
func (p programmed) knows(a netip.Addr, subnets []netip.Prefix, alone []netip.Addr) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return p.sources.Has(Source{Outer: a, Inner: s}) }) ||
		slices.ContainsFunc(alone, func(o netip.Addr) bool { return p.sources.Has(Source{Outer: o, Inner: single(a)}) })
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
	if other, ok := k.macs[fdbKey{c.dev, c.mac}]; ok && c.dev != "" && other.dst != c.dst {
		return "PeerMACDuplicate", fmt.Sprintf("subnet %s: VTEP MAC %s at %s is also announced by %s at %s, which is kept",
			c.subnet, c.mac, c.dst, peerName(other.lease), other.dst)
	}
	if other, ok := k.overlapping(c.subnet); ok {
		return "PeerOverlap", fmt.Sprintf("subnet %s overlaps %s of %s, which is kept", c.subnet, other.subnet, peerName(other.lease))
	}
	return "", ""
}

// named returns what is wrong with the name of c, given who was accepted
// before it, or "".
func (k *claims) named(c *candidate) string {
	other, ok := k.nodes[c.lease.Node]
	if !ok || other == c.lease {
		return ""
	}
	return fmt.Sprintf("subnet %s: the name is also that of the holder of %s, which is kept", c.subnet, other.Paths[0].Subnet)
}

// twin reports whether an accepted candidate has the subnet of c and is reached
// as c is.
func (k *claims) twin(c *candidate) bool {
	o, ok := k.subnets[c.subnet]
	return ok && o.dst == c.dst && o.dev == c.dev && o.via == c.via && (o.mac == c.mac || c.dev == "")
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
	if _, taken := k.nodes[c.lease.Node]; c.lease.Node != "" && !taken {
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
