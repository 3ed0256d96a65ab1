// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.dev/weft/subnet"
)

// candidate is one path of a peer that is valid by itself.
type candidate struct {
	lease     *subnet.Lease
	subnet    netip.Prefix
	dst       netip.Addr // underlay address at which the subnet is reached
	mac       subnet.MAC // of the VTEP there; zero where the peer has none
	dev       string     // our VXLAN device on dst's family; empty when VXLAN is no way there
	via       netip.Addr // gateway of a direct route; zero when the route goes through dev
	incumbent bool       // programmed already
	fit       fit        // how well; zero unless incumbent
}

// compare orders candidates by who keeps what two of them claim: of two that
// are programmed, the one that fits better. Names and other paths come last,
// where they decide nothing but which of two equals is reported.
func (c candidate) compare(o candidate) int {
	if n := c.compareClaim(o); n != 0 {
		return n
	}
	return cmp.Or(
		cmp.Compare(c.lease.Node, o.lease.Node),
		cmp.Compare(c.lease.Instance, o.lease.Instance),
		slices.CompareFunc(c.lease.Paths, o.lease.Paths, func(a, b subnet.Path) int {
			return cmp.Or(a.Subnet.Compare(b.Subnet), a.Underlay.Compare(b.Underlay), compareMAC(a.MAC, b.MAC))
		}),
	)
}

// compareClaim is compare but for who it is that claims.
func (c candidate) compareClaim(o candidate) int {
	return cmp.Or(compareBool(o.incumbent, c.incumbent), c.fit.compare(o.fit), c.dst.Compare(o.dst), compareMAC(c.mac, o.mac), c.subnet.Compare(o.subnet))
}

// peerName is how problems name the holder of l: its node name or, for one
// that flannel runs, its first subnet.
func peerName(l *subnet.Lease) string {
	if l.Node != "" || len(l.Paths) == 0 {
		return l.Node
	}
	return l.Paths[0].Subnet.String()
}

// isOwn reports whether l is our own lease: our node and instance or, where
// flannel wrote it and names neither, our subnets and underlay addresses.
func (p *planner) isOwn(l *subnet.Lease) bool {
	own := p.self.Lease
	if l.Node != "" {
		return l.Node == own.Node && l.Instance == own.Instance
	}
	if len(l.Paths) == 0 || len(l.Paths) != len(own.Paths) {
		return false
	}
	for i, path := range l.Paths {
		if path.Subnet != own.Paths[i].Subnet || path.Underlay != own.Paths[i].Underlay {
			return false
		}
	}
	return true
}

// validHolder reports problems that concern all paths of l. A lease without
// a backend is a reservation that its node has not claimed yet: no peer, and
// nothing wrong.
func (p *planner) validHolder(l *subnet.Lease) bool {
	switch {
	case l.Backend == "":
		return false
	case l.Backend != subnet.BackendVXLAN && l.Backend != subnet.BackendHostGW:
		p.problem("PeerBackend", peerName(l), "expects to be reached by backend %q; this node speaks %q and %q only", l.Backend, subnet.BackendVXLAN, subnet.BackendHostGW)
	case l.Node != "" && l.Node == p.self.Lease.Node:
		p.problem("PeerDuplicateNode", peerName(l), "another holder (instance %q, ours is %q) uses this node's name: give each node its own", l.Instance, p.self.Lease.Instance)
	default:
		return true
	}
	return false
}

// candidates appends the paths of l that are valid by themselves. Paths of a
// family that we have no subnet of concern nobody here.
func (p *planner) candidates(list []candidate, l *subnet.Lease, shared func(*subnet.Lease, netip.Addr) bool) []candidate {
	for _, path := range l.Paths {
		if _, ok := p.self.Lease.Path(subnet.FamilyOf(path.Subnet.Addr())); !ok {
			continue
		}
		if c, ok := p.candidate(l, path); ok {
			if c.incumbent = p.have.holds(c); c.incumbent {
				from := func(a netip.Addr) bool { return p.canBe(a) && p.carriedBy(p.announced(l), a, c.subnet.Addr()) }
				c.fit = p.have.fits(c, from, func(a netip.Addr) bool { return shared(l, a) })
			}
			list = append(list, c)
		}
	}
	return list
}

// candidate returns how a path of l is reached: through VXLAN where both sides
// have it, by a route on the underlay where that is wanted and can be.
func (p *planner) candidate(l *subnet.Lease, path subnet.Path) (candidate, bool) {
	if !p.validSubnet(l, path.Subnet) {
		return candidate{}, false
	}
	c := candidate{lease: l, subnet: path.Subnet}
	gateway, onLink := p.gateway(l, path)
	mustRoute := p.hostGW || l.Backend == subnet.BackendHostGW
	if mustRoute && !onLink {
		p.offLink(l, path)
		return c, false
	}
	if onLink && (mustRoute || p.cfg.Backend.DirectRouting && p.usable(c.subnet, gateway.Underlay)) {
		c.dst, c.via, c.mac = gateway.Underlay, gateway.Underlay, gateway.MAC
	}
	if mustRoute {
		return c, p.validOuter(l, c.subnet, c.via)
	}
	vtep, link, ok := p.reach(l, path)
	if !ok {
		if len(p.links) > 0 && !c.via.IsValid() {
			p.problem("PeerUnreachable", peerName(l), "subnet %s: this node has no underlay of a family that the peer announces (%s)", path.Subnet, announced(l))
		}
		return c, c.via.IsValid() && p.validOuter(l, c.subnet, c.via)
	}
	if !p.validVTEP(l, path.Subnet, vtep) {
		return c, false
	}
	if link.carries(subnet.FamilyOf(c.subnet.Addr())) {
		c.dst, c.mac, c.dev = vtep.Underlay, vtep.MAC, link.Name
	}
	return c, c.dev != "" || c.via.IsValid()
}

// gateway returns the peer's end on our link that can be the gateway of path's
// subnet, an address of the subnet's family: path's own, or else one that the
// peer announces with another path. It reports false when there is none.
func (p *planner) gateway(l *subnet.Lease, path subnet.Path) (subnet.Path, bool) {
	pod := subnet.FamilyOf(path.Subnet.Addr())
	end := unmapped(path)
	if subnet.FamilyOf(end.Underlay) != pod {
		other, ok := l.VTEP(pod)
		if !ok {
			return subnet.Path{}, false
		}
		end = unmapped(other)
	}
	u, ok := p.under[pod]
	return end, ok && u.Net.Contains(end.Underlay)
}

// offLink reports that path needs a direct route and can have none.
func (p *planner) offLink(l *subnet.Lease, path subnet.Path) {
	who := "this node"
	if !p.hostGW {
		who = "the peer"
	}
	pod := subnet.FamilyOf(path.Subnet.Addr())
	here := "has no " + pod.String() + " underlay"
	if u, ok := p.under[pod]; ok {
		here = fmt.Sprintf("is %s on %s, whose link is %s", u.Addr, u.Dev, u.Net)
	}
	p.problem("PeerUnreachable", peerName(l), "subnet %s: backend %q of %s needs both nodes on one %s link; the peer announces %s, this node %s",
		path.Subnet, subnet.BackendHostGW, who, pod, announced(l), here)
}

// reach picks the VTEP at which the peer's path is reached and our device for
// it: the path's own if we have an underlay of its family, else any other
// that the peer announces.
func (p *planner) reach(l *subnet.Lease, path subnet.Path) (subnet.Path, Link, bool) {
	f := subnet.FamilyOf(path.Underlay)
	if link, ok := p.links[f]; ok {
		return unmapped(path), link, true
	}
	for _, f := range subnet.Families() {
		link, ours := p.links[f]
		if vtep, ok := l.VTEP(f); ok && ours {
			return unmapped(vtep), link, true
		}
	}
	return subnet.Path{}, Link{}, false
}

// unmapped writes an IPv4-mapped address as the kernel will report it.
func unmapped(p subnet.Path) subnet.Path {
	p.Underlay = p.Underlay.Unmap()
	return p
}

func announced(l *subnet.Lease) string {
	var out []string
	for _, p := range l.Paths {
		if p.Underlay.IsValid() && !slices.Contains(out, p.Underlay.String()) {
			out = append(out, p.Underlay.String())
		}
	}
	if len(out) == 0 {
		return "none"
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (p *planner) validSubnet(l *subnet.Lease, s netip.Prefix) bool {
	n, ok := p.cfg.Network(subnet.FamilyOf(s.Addr()))
	if s != s.Masked() || ok && (!n.Prefix.Contains(s.Addr()) || s.Bits() < n.Prefix.Bits()) {
		p.problem("PeerOutsideNetwork", peerName(l), "subnet %s is not a subnet of the pod network %s", s, n.Prefix)
		return false
	}
	for _, u := range p.self.Underlays {
		if n.Open() && s.Contains(u.Addr.Unmap()) { // a known network is chosen with care
			p.problem("PeerCoversUnderlay", peerName(l), "subnet %s contains this node's own address %s on %s", s, u.Addr, u.Dev)
			return false
		}
	}
	for _, own := range p.self.Lease.Paths {
		if own.Subnet.Overlaps(s) {
			p.problem("PeerOverlapsSelf", peerName(l), "subnet %s overlaps our own %s, which we keep", s, own.Subnet)
			return false
		}
	}
	return true
}

// flannelVNI masks what flannel keeps of a VNI when it publishes it: 16 of the
// 24 bits (pkg/backend/vxlan, flannel v0.28). Its device has them all.
const flannelVNI = 0xffff

func (p *planner) validVTEP(l *subnet.Lease, s netip.Prefix, v subnet.Path) bool {
	switch {
	case !p.validOuter(l, s, v.Underlay): // reported
	case !v.MAC.IsUnicast():
		p.problem("PeerMACInvalid", peerName(l), "subnet %s: VTEP MAC %s is not a unicast address", s, v.MAC)
	case p.ownMAC(v.MAC):
		p.problem("PeerMACIsOurs", peerName(l), "subnet %s: VTEP MAC %s is this node's own", s, v.MAC)
	case v.VNI != 0 && v.VNI != p.cfg.Backend.VNI && v.VNI != p.cfg.Backend.VNI&flannelVNI:
		p.problem("PeerVNI", peerName(l), "subnet %s: published for VNI %d, ours is %d", s, v.VNI, p.cfg.Backend.VNI)
	default:
		return true
	}
	return false
}

// validOuter reports what is wrong with a as the address at which the peer's
// subnet s is reached.
func (p *planner) validOuter(l *subnet.Lease, s netip.Prefix, a netip.Addr) bool {
	switch {
	case !unicast(a) || s.Contains(a):
		p.problem("PeerUnderlayInvalid", peerName(l), "subnet %s: underlay address %s is not a unicast address outside the subnet", s, a)
	case p.isOurs(a):
		p.problem("PeerUnderlayIsOurs", peerName(l), "subnet %s: underlay address %s is this node's own", s, a)
	default:
		return true
	}
	return false
}

// usable is validOuter without words.
func (p *planner) usable(s netip.Prefix, a netip.Addr) bool {
	return unicast(a) && !s.Contains(a) && !p.isOurs(a)
}

// unicast reports whether outer packets can be sent to a. IPv6 link-local
// addresses mean nothing without a device.
func unicast(a netip.Addr) bool {
	broadcast := a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !broadcast &&
		!(a.Is6() && a.IsLinkLocalUnicast())
}

// isOurs reports whether a is an address of this node or of its pods.
func (p *planner) isOurs(a netip.Addr) bool {
	return p.own.Has(a) || slices.ContainsFunc(p.self.Lease.Paths, func(own subnet.Path) bool { return own.Subnet.Contains(a) })
}

func (p *planner) ownMAC(m subnet.MAC) bool {
	return slices.ContainsFunc(p.self.Lease.Paths, func(own subnet.Path) bool { return own.MAC == m })
}
