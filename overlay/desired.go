// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"weft.dev/weft/subnet"
)

const (
	rpFilterLoose = 2      // RFC 3704 section 2.4: asymmetric routing is legal
	addrGenNone   = "none" // a VXLAN device needs no link-local address
	maxLinkName   = 15     // IFNAMSIZ - 1, linux/if.h
	minMTU        = 68     // RFC 791: every IPv4 module must forward this much
	minMTUv6      = 1280   // RFC 8200 section 5; below it Linux switches IPv6 off
)

// Overhead returns how many bytes VXLAN takes from the MTU of an underlay of
// family f: the inner Ethernet header (14), VXLAN (8, RFC 7348 section 5),
// UDP (8) and the outer IP header (20 for IPv4, 40 for IPv6).
func Overhead(f subnet.Family) int {
	const headers = 14 + 8 + 8
	if f == subnet.IPv6 {
		return headers + 40
	}
	return headers + 20
}

// The metrics that routeMetric spreads over, [metricBase, metricBase+metricSpread).
const (
	metricBase   = 1024 // what the kernel gives IPv6 routes (IP6_RT_PRIO_USER, net/ip6_route.h)
	metricSpread = 4096
)

// routeMetric returns the metric of the route to dst. It is spread on purpose:
// the kernel hashes an IPv4 route's nexthop by device, protocol, scope, source
// and metric but not by gateway (fib_info_hashfn, net/ipv4/fib_semantics.c), so
// that with one metric all peers share one bucket and programming them takes
// quadratic time. It depends on dst alone, so that an agent that restarts, or
// another version, finds the routes it wants.
func routeMetric(dst netip.Prefix) uint32 {
	h := fnv.New32a()
	var b [17]byte
	a := dst.Addr().As16()
	copy(b[:], a[:])
	b[16] = byte(dst.Bits())
	h.Write(b[:])
	return metricBase + h.Sum32()%metricSpread
}

// Desired returns what the kernel should hold on this node, and what is wrong
// with the inputs. It is a pure function; the order of leases does not matter.
//
// Each underlay on which our lease offers a VTEP has a VXLAN device, which
// carries our subnets' base addresses and, for every peer reached over it, an
// FDB entry, a neighbour and a route for each of the peer's subnets whose
// family we have a subnet of. A peer is reached on the underlay it announces
// with the subnet, or else on the one we have.
//
// A peer on the same link (its address of the subnet's family is inside
// Underlay.Net) has its route on the underlay itself with DirectRouting, and
// where either side is a host-gw node; the rest stays as long as there is a
// VXLAN device, for how the peer sends to us is its own matter. A host-gw node
// has no device at all.
//
// Table inet weft (see Self.Guard) admits, for each peer that has a route
// here, what comes from its announced and published addresses: from its
// subnets' and its own.
//
// A peer that cannot be right is left out, path by path, and reported; it
// never affects another. Where two peers claim the same (overlapping subnets,
// one MAC at two addresses, one node name) the one already programmed in have
// keeps it; if both seem so, the one of whose entries none is missing. Else
// the lower underlay address wins, then the lower MAC, then the lower subnet:
// never the name, which the claimant chose for itself. have serves no other
// purpose.
//
// Problems are sorted by kind, object and detail. The desired state of an
// uninstalled node is NewState().
func Desired(self Self, cfg subnet.Config, leases []subnet.Lease, have State) (State, []subnet.Problem) {
	p := newPlanner(self, cfg, have)
	p.run(leases)
	return p.state, p.with(nil)
}

// planner builds one State.
type planner struct {
	self     Self
	cfg      subnet.Config
	hostGW   bool                       // no VXLAN device is wanted
	links    map[subnet.Family]Link     // own devices by underlay family
	under    map[subnet.Family]Underlay // by family
	vtep     map[subnet.Family]home     // own VTEP address by pod family
	own      Set[netip.Addr]            // addresses of this node
	mtu      int                        // for pods; see Status.MTU
	have     programmed
	state    State
	problems Set[subnet.Problem]
	reached  int // peers with at least one path
}

// home is an address of ours and the device that carries it.
type home struct {
	dev  string
	addr netip.Addr
}

func newPlanner(self Self, cfg subnet.Config, have State) *planner {
	p := &planner{
		self: self, cfg: cfg, have: indexProgrammed(have),
		// Without VTEPs in our lease there are no devices, whatever the
		// configuration says by now: the lease follows it.
		hostGW: cfg.Backend.Type == subnet.BackendHostGW || self.Lease.Backend == subnet.BackendHostGW,
		links:  map[subnet.Family]Link{}, under: map[subnet.Family]Underlay{}, vtep: map[subnet.Family]home{},
		own: Set[netip.Addr]{}, state: NewState(), problems: Set[subnet.Problem]{},
	}
	for _, u := range self.Underlays {
		p.under[subnet.FamilyOf(u.Addr)] = u
		p.own.Add(u.Addr.Unmap())
	}
	for _, path := range self.Lease.Paths {
		p.own.Add(path.Underlay.Unmap())
	}
	for _, a := range self.Addresses {
		p.own.Add(a.Unmap())
	}
	return p
}

func (p *planner) problem(kind, object, format string, args ...any) {
	p.problems.Add(subnet.Problem{Kind: kind, Object: object, Detail: fmt.Sprintf(format, args...)})
}

// run builds the state.
func (p *planner) run(leases []subnet.Lease) {
	if p.hostGW {
		p.gateways()
	} else {
		p.devices()
	}
	p.peers(leases)
}

// with returns our problems and the given ones, each once, sorted.
func (p *planner) with(others []subnet.Problem) []subnet.Problem {
	all := maps.Clone(p.problems)
	for _, o := range others {
		all.Add(o)
	}
	return sortedProblems(all)
}

func sortedProblems(s Set[subnet.Problem]) []subnet.Problem {
	return slices.SortedFunc(maps.Keys(s), func(a, b subnet.Problem) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Detail, b.Detail))
	})
}

// devices adds our links and their addresses.
func (p *planner) devices() {
	for _, u := range p.self.Underlays {
		f := subnet.FamilyOf(u.Addr)
		if _, ok := p.self.Lease.VTEP(f); ok {
			p.device(f, u)
		}
	}
	for _, path := range p.self.Lease.Paths {
		pod, f := subnet.FamilyOf(path.Subnet.Addr()), subnet.FamilyOf(path.Underlay)
		l, ok := p.links[f]
		switch {
		case !ok:
			p.problem("UnderlayMissing", path.Subnet.String(), "this node has no %s device to carry the subnet, but announces %s", f, path.Underlay)
			continue
		case !l.carries(pod):
			p.tooSmall(l.Name, l.MTU, p.under[f], minMTUv6, Overhead(f), "so the device cannot carry IPv6")
			continue
		}
		base := path.Subnet.Addr()
		p.state.Addrs.Add(Addr{Dev: l.Name, Prefix: netip.PrefixFrom(base, base.BitLen())})
		p.vtep[pod] = home{l.Name, base}
	}
}

// gateways is devices for a host-gw node: pods' packets go out as they are.
func (p *planner) gateways() {
	for _, path := range p.self.Lease.Paths {
		pod := subnet.FamilyOf(path.Subnet.Addr())
		u, ok := p.under[pod]
		if !ok {
			p.problem("UnderlayMissing", path.Subnet.String(), "this node has no %s underlay, and backend %q needs one of the subnet's family", pod, subnet.BackendHostGW)
			continue
		}
		mtu := p.underlayMTU(u)
		if pod == subnet.IPv6 && mtu < minMTUv6 {
			p.tooSmall(u.Dev, mtu, u, minMTUv6, 0, "so pods cannot use IPv6")
		}
		p.carry(mtu)
	}
}

// underlayMTU returns the MTU to assume of u: the configured one, but never
// more than the device has, for the kernel would refuse what is made from it
// and the node would have no device at all.
func (p *planner) underlayMTU(u Underlay) int {
	mtu := p.cfg.Backend.MTU
	switch {
	case mtu == 0 || u.MTU == 0:
		return cmp.Or(mtu, u.MTU)
	case mtu > u.MTU:
		p.problem("MTUTooLarge", u.Dev, "Backend.MTU %d in the network configuration is above the underlay's own %d, which is used instead", mtu, u.MTU)
	}
	return min(mtu, u.MTU)
}

// carry notes that pods' packets go over a device of that MTU.
func (p *planner) carry(mtu int) {
	if p.mtu == 0 || mtu < p.mtu {
		p.mtu = mtu
	}
}

// deviceName returns the name of our device on underlay family f.
func (p *planner) deviceName(f subnet.Family) string {
	return p.self.Names[f] + strconv.FormatUint(uint64(p.cfg.Backend.VNI), 10)
}

// device adds the link on underlay u of family f.
func (p *planner) device(f subnet.Family, u Underlay) {
	own, _ := p.self.Lease.VTEP(f)
	b := p.cfg.Backend
	l := Link{
		Name: p.deviceName(f),
		VNI:  b.VNI, Port: b.Port, Local: u.Addr.Unmap(), Underlay: u.Dev, MAC: own.MAC,
		MTU:      p.underlayMTU(u) - Overhead(f),
		Learning: b.Learning, GBP: b.GBP, NoGRO: p.self.NoGRO, Up: true, RPFilter: rpFilterLoose, AddrGen: addrGenNone,
	}
	switch {
	case len(l.Name) > maxLinkName:
		p.problem("LinkNameTooLong", l.Name, "a device name has at most %d bytes: choose a smaller VNI than %d", maxLinkName, b.VNI)
	case l.MTU < minMTU:
		p.tooSmall(l.Name, l.MTU, u, minMTU, Overhead(f), "so there can be no device")
	default:
		p.links[f] = l
		p.state.Links.Add(l)
		p.carry(l.MTU)
	}
}

func (p *planner) tooSmall(dev string, mtu int, u Underlay, least, overhead int, effect string) {
	what := "underlay " + u.Dev + " needs an MTU"
	if b := p.cfg.Backend.MTU; b != 0 && (u.MTU == 0 || b <= u.MTU) {
		what = "Backend.MTU in the network configuration needs a value"
	}
	p.problem("MTUTooSmall", dev, "MTU %d is below %d, %s: %s of at least %d", mtu, least, effect, what, least+overhead)
}

// carries reports whether the kernel lets l carry packets of family pod.
func (l Link) carries(pod subnet.Family) bool {
	return pod != subnet.IPv6 || l.MTU >= minMTUv6
}

// program adds the entries of one accepted path of a peer: through VXLAN as
// far as there is a device for it, and the route where it goes.
func (p *planner) program(c *candidate) {
	base := c.subnet.Addr()
	r := Route{
		Dev: c.dev, Dst: c.subnet, Via: base,
		Metric: routeMetric(c.subnet), Onlink: true, Proto: RouteProtocol,
	}
	if c.dev != "" {
		p.state.FDB.Add(FDB{Dev: c.dev, MAC: c.mac, Dst: c.dst})
		p.state.Neighs.Add(Neigh{Dev: c.dev, IP: base, MAC: c.mac})
	}
	if c.via.IsValid() {
		r.Dev, r.Via = p.under[subnet.FamilyOf(c.via)].Dev, c.via
	} else if own, ok := p.vtep[subnet.FamilyOf(base)]; ok && own.dev != c.dev {
		// Only where the device has no address of the pods' family to choose.
		r.Src = own.addr
	}
	p.state.Routes.Add(r)
}
