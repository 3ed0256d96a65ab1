// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
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
	mac       subnet.MAC // of the VTEP there
	dev       string     // our device on dst's family
	incumbent bool       // programmed already
}

// compare orders candidates by who keeps what two of them claim. Names and
// other paths come last, where they decide nothing but which of two equals is
// reported.
func (c candidate) compare(o candidate) int {
	if n := cmp.Or(compareBool(o.incumbent, c.incumbent), c.dst.Compare(o.dst), compareMAC(c.mac, o.mac), c.subnet.Compare(o.subnet)); n != 0 {
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

// peerName is how problems name the holder of l: its node name or, for one
// that flannel runs, its first subnet.
func peerName(l *subnet.Lease) string {
	if l.Node != "" || len(l.Paths) == 0 {
		return l.Node
	}
	return l.Paths[0].Subnet.String()
}

// peers adds the entries of all leases but our own.
func (p *planner) peers(leases []subnet.Lease) {
	list := make([]candidate, 0, 2*len(leases))
	for i := range leases {
		if l := &leases[i]; !p.isOwn(l) && p.validHolder(l) {
			list = p.candidates(list, l)
		}
	}
	slices.SortFunc(list, candidate.compare)
	claims := newClaims(list)
	reached := map[*subnet.Lease]struct{}{}
	for i := range list {
		c := &list[i]
		if kind, detail := claims.contested(c); kind != "" {
			p.problem(kind, peerName(c.lease), "%s", detail)
			continue
		}
		claims.take(c)
		p.program(c)
		reached[c.lease] = struct{}{}
	}
	p.reached = len(reached)
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
	case l.Backend != subnet.BackendVXLAN:
		p.problem("PeerBackend", peerName(l), "expects to be reached by backend %q; this node speaks %q only", l.Backend, subnet.BackendVXLAN)
	case l.Node != "" && l.Node == p.self.Lease.Node:
		p.problem("PeerDuplicateNode", peerName(l), "another holder (instance %q, ours is %q) uses this node's name: give each node its own", l.Instance, p.self.Lease.Instance)
	default:
		return true
	}
	return false
}

// candidates appends the paths of l that are valid by themselves. Paths of a
// family that we have no subnet of concern nobody here.
func (p *planner) candidates(list []candidate, l *subnet.Lease) []candidate {
	for _, path := range l.Paths {
		pod := subnet.FamilyOf(path.Subnet.Addr())
		if _, ok := p.self.Lease.Path(pod); !ok {
			continue
		}
		if !p.validSubnet(l, path.Subnet) {
			continue
		}
		vtep, link, ok := p.reach(l, path)
		if !ok {
			if len(p.links) > 0 {
				p.problem("PeerUnreachable", peerName(l), "subnet %s: this node has no underlay of a family that the peer announces (%s)", path.Subnet, announced(l))
			}
			continue
		}
		if !p.validVTEP(l, path.Subnet, vtep) || !link.carries(pod) {
			continue
		}
		c := candidate{lease: l, subnet: path.Subnet, dst: vtep.Underlay, mac: vtep.MAC, dev: link.Name}
		c.incumbent = p.have.holds(c)
		list = append(list, c)
	}
	return list
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
	case !unicast(v.Underlay) || s.Contains(v.Underlay):
		p.problem("PeerUnderlayInvalid", peerName(l), "subnet %s: underlay address %s is not a unicast address outside the subnet", s, v.Underlay)
	case p.ownUnderlay(v.Underlay):
		p.problem("PeerUnderlayIsOurs", peerName(l), "subnet %s: underlay address %s is this node's own", s, v.Underlay)
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

// unicast reports whether outer packets can be sent to a. IPv6 link-local
// addresses mean nothing without a device.
func unicast(a netip.Addr) bool {
	broadcast := a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !broadcast &&
		!(a.Is6() && a.IsLinkLocalUnicast())
}

func (p *planner) ownUnderlay(a netip.Addr) bool {
	return slices.ContainsFunc(p.self.Underlays, func(u Underlay) bool { return u.Addr.Unmap() == a }) ||
		slices.ContainsFunc(p.self.Lease.Paths, func(own subnet.Path) bool { return own.Underlay.Unmap() == a })
}

func (p *planner) ownMAC(m subnet.MAC) bool {
	return slices.ContainsFunc(p.self.Lease.Paths, func(own subnet.Path) bool { return own.MAC == m })
}
