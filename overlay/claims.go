// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// programmed is what Desired asks of the kernel's present state: which MAC
// does it send each subnet's packets to?
type programmed struct {
	routes map[netip.Prefix]Set[neighKey] // gateways by destination
	neighs map[neighKey]subnet.MAC
}

func indexProgrammed(have State) programmed {
	p := programmed{
		routes: make(map[netip.Prefix]Set[neighKey], len(have.Routes)),
		neighs: make(map[neighKey]subnet.MAC, len(have.Neighs)),
	}
	for r := range have.Routes {
		if p.routes[r.Dst] == nil {
			p.routes[r.Dst] = Set[neighKey]{}
		}
		p.routes[r.Dst].Add(neighKey{r.Dev, r.Via})
	}
	for n := range have.Neighs {
		p.neighs[n.key()] = n.MAC
	}
	return p
}

// holds reports whether c is reached already, on whatever device: a route to
// its subnet has a gateway with c's MAC.
func (p programmed) holds(c candidate) bool {
	for gw := range p.routes[c.subnet] {
		if mac, ok := p.neighs[gw]; ok && mac == c.vtep.MAC {
			return true
		}
	}
	return false
}

// claims is what the accepted candidates occupy: names, MACs and subnets.
type claims struct {
	lengths []int // prefix lengths among all candidates, ascending
	nodes   map[string]*subnet.Lease
	macs    map[fdbKey]candidate
	subnets map[netip.Prefix]candidate
	inside  map[netip.Prefix]candidate // a candidate inside each wider prefix
}

func newClaims(list []candidate) *claims {
	lengths := map[int]bool{}
	for _, c := range list {
		lengths[c.subnet.Bits()] = true
	}
	return &claims{
		lengths: slices.Sorted(maps.Keys(lengths)),
		nodes:   map[string]*subnet.Lease{}, macs: map[fdbKey]candidate{},
		subnets: map[netip.Prefix]candidate{}, inside: map[netip.Prefix]candidate{},
	}
}

// contested returns the problem with c, given who was accepted before it, or
// "". One MAC at one address may serve several leases: they are one VTEP.
func (k *claims) contested(c candidate) (kind, detail string) {
	if other, ok := k.nodes[c.lease.Node]; ok && other != c.lease {
		return "PeerDuplicateNode", fmt.Sprintf("subnet %s: the name is also that of the holder of %s, which is kept",
			c.subnet, other.Paths[0].Subnet)
	}
	if other, ok := k.macs[fdbKey{c.link.Name, c.vtep.MAC}]; ok && other.vtep.Underlay != c.vtep.Underlay {
		return "PeerMACDuplicate", fmt.Sprintf("subnet %s: VTEP MAC %s at %s is also announced by %s at %s, which is kept",
			c.subnet, c.vtep.MAC, c.vtep.Underlay, peerName(other.lease), other.vtep.Underlay)
	}
	if other, ok := k.overlapping(c.subnet); ok {
		return "PeerOverlap", fmt.Sprintf("subnet %s overlaps %s of %s, which is kept", c.subnet, other.subnet, peerName(other.lease))
	}
	return "", ""
}

// overlapping returns an accepted candidate whose subnet overlaps s.
func (k *claims) overlapping(s netip.Prefix) (candidate, bool) {
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

func (k *claims) take(c candidate) {
	if c.lease.Node != "" {
		k.nodes[c.lease.Node] = c.lease
	}
	k.macs[fdbKey{c.link.Name, c.vtep.MAC}] = c
	k.subnets[c.subnet] = c
	for _, n := range k.lengths {
		if n >= c.subnet.Bits() {
			break
		}
		k.inside[netip.PrefixFrom(c.subnet.Addr(), n).Masked()] = c
	}
}
