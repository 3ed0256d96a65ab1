// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// programmed is what Desired asks of the kernel's present state: does a
// subnet's gateway have this MAC?
type programmed struct {
	devs   []string // all that there are, for an underlay may change
	neighs Set[Neigh]
}

func indexProgrammed(have State) programmed {
	p := programmed{neighs: have.Neighs}
	for l := range have.Links {
		p.devs = append(p.devs, l.Name)
	}
	return p
}

// holds reports whether c is programmed already, on whatever device. The
// neighbour says so alone: a route may have been lost, and its holder keeps
// the subnet; a neighbour without route is deleted in the next pass.
func (p programmed) holds(c candidate) bool {
	return slices.ContainsFunc(p.devs, func(dev string) bool {
		return p.neighs.Has(Neigh{Dev: dev, IP: c.subnet.Addr(), MAC: c.mac})
	})
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
// "". One MAC at one address may serve several leases: they are one VTEP.
func (k *claims) contested(c *candidate) (kind, detail string) {
	if other, ok := k.nodes[c.lease.Node]; ok && other != c.lease {
		return "PeerDuplicateNode", fmt.Sprintf("subnet %s: the name is also that of the holder of %s, which is kept",
			c.subnet, other.Paths[0].Subnet)
	}
	if other, ok := k.macs[fdbKey{c.dev, c.mac}]; ok && other.dst != c.dst {
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
