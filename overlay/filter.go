// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// accepted is the peers that have a route here, in the order in which they
// were accepted, and their subnets.
type accepted struct {
	leases  []*subnet.Lease
	subnets map[*subnet.Lease][]netip.Prefix
}

func newAccepted(n int) *accepted {
	return &accepted{leases: make([]*subnet.Lease, 0, n), subnets: make(map[*subnet.Lease][]netip.Prefix, n)}
}

func (a *accepted) add(c *candidate) {
	if _, ok := a.subnets[c.lease]; !ok {
		a.leases = append(a.leases, c.lease)
	}
	a.subnets[c.lease] = append(a.subnets[c.lease], c.subnet)
}

// makeSpace makes the sets large enough for the entries of n paths: growing
// them step by step would take as long as filling them.
func (p *planner) makeSpace(n int) {
	p.state.Routes = make(Set[Route], n)
	if !p.hostGW {
		p.state.FDB, p.state.Neighs = make(Set[FDB], n), make(Set[Neigh], n)
	}
	if p.filters() {
		p.state.Nodes = make(Set[Node], n)
	}
	if p.listsAny() {
		p.state.Pods = make(Set[Pods], n)
	}
	if p.self.Guard == GuardBind {
		// Of each path: its subnet, and its node's own address.
		p.state.Sources = make(Set[Source], 2*n)
	}
}

// filters reports whether table inet weft is wanted.
func (p *planner) filters() bool { return p.self.Guard != "" || p.self.Masquerade }

// filter adds table inet weft and its elements. twins claim what a peer has,
// exactly as the peer has it: nothing in the kernel could tell which of them
// was there first, so their addresses are nodes' too.
func (p *planner) filter(peers *accepted, twins []*candidate, claims *claims) {
	if !p.filters() {
		return
	}
	f := p.table()
	for a := range p.own {
		if unicast(a) {
			p.state.Nodes.Add(Node{Addr: a, Own: true})
		}
	}
	shared := holders(peers.leases)
	for _, l := range peers.leases {
		p.admit(&f, l, p.outer(l, peers.subnets[l], shared), peers.subnets[l], claims)
	}
	for _, c := range twins {
		p.admit(&f, c.lease, p.unopposed(c.lease, shared), nil, claims)
	}
	p.state.Filters.Add(f)
}

// admit lets in what l sends from the addresses outer: as one of its subnets,
// and as itself.
func (p *planner) admit(f *Filter, l *subnet.Lease, outer []netip.Addr, subnets []netip.Prefix, claims *claims) {
	for _, a := range outer {
		p.state.Nodes.Add(Node{Addr: a})
	}
	for _, s := range subnets {
		if f.lists(s) {
			f.Lengths = f.Lengths.With(s)
			p.state.Pods.Add(Pods{s})
		}
	}
	if f.Guard != GuardBind {
		return
	}
	announced := p.announced(l)
	for _, in := range innerOf(subnets, outer, claims) {
		if !in.IsSingleIP() {
			f.Lengths = f.Lengths.With(in)
		}
		for _, a := range outer {
			if p.carriedBy(announced, a, in.Addr()) {
				p.state.Sources.Add(Source{Outer: a, Inner: in})
			}
		}
	}
}

// unopposed returns the addresses that l announces, and those that it publishes
// and nobody else announces.
func (p *planner) unopposed(l *subnet.Lease, holders map[netip.Addr]*subnet.Lease) []netip.Addr {
	var out []netip.Addr
	for _, path := range l.Paths {
		out = append(out, path.Underlay.Unmap())
	}
	for _, s := range l.Sources {
		if other, taken := holders[s.Unmap()]; !taken || other == l {
			out = append(out, s.Unmap())
		}
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return !p.canBe(a) })
}

// lists reports whether the table lists subnet s of a peer's pods: where it has
// to tell pods from what is outside, and nobody has said which their network
// is. A single address is no pod's.
func (f Filter) lists(s netip.Prefix) bool {
	i := place(s.Addr())
	return i >= 0 && !s.IsSingleIP() && f.open(i)
}

// open reports whether pods of the family at place i of subnet.Families are told
// by Pods from what is outside.
func (f Filter) open(i int) bool {
	n := f.Networks[i]
	return f.Masquerade && n.IsValid() && n.Bits() == 0
}

// listsAny reports whether there can be Pods.
func (p *planner) listsAny() bool {
	return p.self.Masquerade && slices.ContainsFunc(p.cfg.Networks, subnet.Network.Open)
}

// table returns table inet weft as it is without peers. Only mode bind and
// open networks ask for lengths.
func (p *planner) table() Filter {
	b := p.cfg.Backend
	f := Filter{Guard: p.self.Guard, Masquerade: p.self.Masquerade, Port: b.Port, VNI: b.VNI, Bridge: p.self.Bridge}
	if f.Guard == "" {
		f.Guard = GuardOff
	}
	for i, family := range subnet.Families() {
		if n, ok := p.cfg.Network(family); ok {
			f.Networks[i] = n.Prefix
			if (f.Guard == GuardBind || f.open(i)) && n.SubnetLen > 0 && n.SubnetLen < family.Bits() {
				f.Lengths = f.Lengths.WithLength(family, n.SubnetLen)
			}
		}
		if path, ok := p.self.Lease.Path(family); ok {
			f.Subnets[i] = path.Subnet
		}
		if name := p.deviceName(family); p.self.Names[family] != "" && len(name) <= maxLinkName {
			f.Devices[i] = name
		}
	}
	return f
}

// holders returns which of leases announces each underlay address; nil stands
// for several.
func holders(leases []*subnet.Lease) map[netip.Addr]*subnet.Lease {
	out := make(map[netip.Addr]*subnet.Lease, 2*len(leases))
	for _, l := range leases {
		for _, path := range l.Paths {
			only(out, path.Underlay.Unmap(), l)
		}
	}
	return out
}

// only notes that l names a.
func only(names map[netip.Addr]*subnet.Lease, a netip.Addr, l *subnet.Lease) {
	if other, ok := names[a]; ok && other != l {
		l = nil
	}
	names[a] = l
}

// outer returns the addresses that l's packets come from, each once: those it
// announces and those it published beside them. An announced one that cannot
// be right is reported where a path needs it, and passed over here. A
// published one must be nobody else's, unless it was let in before the other
// came: that one must not cut l off.
func (p *planner) outer(l *subnet.Lease, subnets []netip.Prefix, holders map[netip.Addr]*subnet.Lease) []netip.Addr {
	out := make([]netip.Addr, 0, len(l.Paths)+len(l.Sources))
	for _, path := range l.Paths {
		if a := path.Underlay.Unmap(); p.canBe(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	alone := slices.DeleteFunc(slices.Clone(out), func(a netip.Addr) bool { return holders[a] != l })
	for _, s := range l.Sources {
		a := s.Unmap()
		other, taken := holders[a]
		switch {
		case slices.Contains(out, a):
		case !unicast(a):
			p.problem("PeerSource", peerName(l), "source address %s is not a unicast address: it is left out", s)
		case p.isOurs(a):
			p.problem("PeerSource", peerName(l), "source address %s is this node's own: it is left out", s)
		case taken && other != l && !p.have.knows(a, subnets, alone):
			p.problem("PeerSource", peerName(l), "source address %s is announced by another peer: it is left out", s)
		default:
			out = append(out, a)
		}
	}
	return out
}

// carriedBy reports whether packets with inner source in, of a lease that
// announces underlay addresses of those families, can come from its address
// outer. A sender goes by our lease, as reach does: to our subnet of a
// family on the underlay that we announce with it, or else on one that both
// have. From an address of a family that l does not announce, published beside
// the others, anything can come.
func (p *planner) carriedBy(announced families, outer, in netip.Addr) bool {
	own, ok := p.self.Lease.Path(subnet.FamilyOf(in))
	if !ok {
		return false // we have no pods that it could be sent to
	}
	g := subnet.FamilyOf(outer)
	if !announced.has(g) {
		return true
	}
	over := subnet.FamilyOf(own.Underlay)
	if announced.has(over) {
		return g == over
	}
	_, ok = p.self.Lease.VTEP(g)
	return ok
}

// families is a set of address families.
type families uint8

func (s families) has(f subnet.Family) bool { return s>>f&1 != 0 }

// announced returns of which families l has an underlay address that can be
// right.
func (p *planner) announced(l *subnet.Lease) families {
	var out families
	for _, path := range l.Paths {
		if a := path.Underlay.Unmap(); p.canBe(a) {
			out |= 1 << subnet.FamilyOf(a)
		}
	}
	return out
}

// canBe reports whether a can be an underlay address of a peer.
func (p *planner) canBe(a netip.Addr) bool { return unicast(a) && !p.isOurs(a) }

// innerOf returns what the packets of a peer can have as inner source: its
// subnets, in which its VTEP's addresses are, and what the node itself sends
// from its own addresses. An address among a peer's pods is nobody's own.
func innerOf(subnets []netip.Prefix, outer []netip.Addr, claims *claims) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(subnets)+len(outer))
	out = append(out, subnets...)
	for _, a := range outer {
		if _, pods := claims.overlapping(single(a)); !pods {
			out = append(out, single(a))
		}
	}
	return out
}
