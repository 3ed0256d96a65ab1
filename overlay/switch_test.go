// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// switches are the golden scenarios of direct routes and of the filter.
func switches(dual Self) []scenario {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	direct := func(c *subnet.Config) { c.Backend.DirectRouting = true }
	gw := func(c *subnet.Config) { c.Backend.Type = subnet.BackendHostGW }
	gwSelf := dual
	gwSelf.Lease = hostGW(dual.Lease)
	// On our link, beyond it, crossed, and a host-gw node. What the first sends
	// through VXLAN is let in whichever way we send: direct routing may be
	// one-sided.
	far := edit(lease(3, v4), func(p *subnet.Path) { p.Underlay = host(4, 300) })
	peers := []subnet.Lease{lease(2, v4, v6), far, lease(4, [2]subnet.Family{6, 4}), hostGW(lease(5, v4, v6))}
	near := []subnet.Lease{lease(2, v4, v6), lease(3, v4)}
	guard := func(g Guard, masquerade bool) Self {
		s := dual
		s.Guard, s.Masquerade = g, masquerade
		return s
	}
	wide := edit(lease(3, v4), func(p *subnet.Path) { p.Subnet = prefix("10.5.4.0/22") })
	behindNAT := lease(2, v4)
	behindNAT.Sources = []netip.Addr{addr("192.168.0.2"), addr("fd02::2")}
	return []scenario{
		{name: "direct routing", self: dual, cfg: direct, leases: peers},
		{name: "direct routing switched on", self: dual, cfg: direct, leases: peers, before: as(dual, nil, peers...)},
		{name: "direct routing switched off", self: dual, leases: peers, before: as(dual, direct, peers...)},
		{name: "host-gw", self: gwSelf, cfg: gw, leases: peers},
		{name: "vxlan to host-gw", self: gwSelf, cfg: gw, leases: near, before: as(dual, nil, near...)},
		{name: "host-gw to vxlan", self: dual, leases: near, before: as(gwSelf, gw, near...)},
		{name: "direct routing to host-gw", self: gwSelf, cfg: gw, leases: near, before: as(dual, direct, near...)},
		{name: "host-gw to direct routing", self: dual, cfg: direct, leases: near, before: as(gwSelf, gw, near...)},
		{name: "host-gw with the lease still to follow", self: gwSelf, leases: near},
		{name: "one peer becomes host-gw", self: dual, leases: []subnet.Lease{hostGW(near[0]), near[1]}, before: as(dual, nil, near...)},
		{name: "one host-gw peer becomes vxlan", self: gwSelf, cfg: gw, leases: near, before: as(gwSelf, gw, hostGW(near[0]), near[1])},
		{name: "direct peer leaves the link", self: dual, cfg: direct, leases: []subnet.Lease{
			edit(lease(2, v4), func(p *subnet.Path) { p.Underlay = host(4, 302) })}, before: as(dual, direct, lease(2, v4))},
		{name: "peer moves to the other underlay", self: dual, leases: []subnet.Lease{lease(2, [2]subnet.Family{4, 6}, [2]subnet.Family{6, 4})}, before: as(dual, nil, lease(2, v4, v6))},
		{name: "taken over from flannel host-gw", self: gwSelf, cfg: gw, leases: near, before: flannelHostGW},
		{name: "guard by peers", self: guard(GuardPeers, true), leases: near},
		{name: "guard off", self: guard(GuardOff, true), leases: near},
		{name: "masquerading alone", self: guard("", true), leases: near},
		{name: "guard switched on", self: dual, leases: near, before: as(guard("", false), nil, near...)},
		{name: "guard given up", self: guard("", false), leases: near, before: as(dual, nil, near...)},
		{name: "filter altered by others", self: dual, leases: near[1:], before: func(s *scenario) State {
			have := as(dual, nil, near[1:]...)(s)
			f := sorted(have.Filters)[0]
			f.Foreign = "chain input: rule 2 is missing"
			have.Filters = Set[Filter]{f: {}}
			return have
		}},
		{name: "elements altered by others", self: dual, leases: near[1:], before: func(s *scenario) State {
			have := as(dual, nil, near[1:]...)(s)
			delete(have.Nodes, Node{Addr: addr("10.0.0.3")})
			delete(have.Sources, Source{addr("10.0.0.3"), pods(4, 3)})
			have.Sources.Add(Source{addr("10.0.0.66"), pods(4, 3)})
			return have
		}},
		{name: "peer with further sources", self: dual, leases: []subnet.Lease{behindNAT}},
		{name: "peer with another prefix length", self: dual, leases: []subnet.Lease{lease(2, v4), wide}, before: as(dual, nil, lease(2, v4))},
	}
}

// as is what a node as it was then desires.
func as(self Self, cfg func(*subnet.Config), leases ...subnet.Lease) func(*scenario) State {
	return func(*scenario) State {
		was := scenario{self: self, cfg: cfg}
		have, _ := Desired(self, was.config(), leases, NewState())
		return have
	}
}

// flannelHostGW is what flannel's host-gw leaves: routes on the underlay, IPv4
// without a metric and IPv6 with the kernel's; and somebody else's beside.
func flannelHostGW(s *scenario) State {
	want, _ := Desired(s.self, s.config(), s.leases, NewState())
	have := NewState()
	for r := range want.Routes {
		r.Proto, r.Metric, r.Onlink = protoBoot, 0, false
		if r.Dst.Addr().Is6() {
			r.Metric = metricBase
		}
		have.Routes.Add(r)
	}
	other := slices.MinFunc(sorted(have.Routes), Route.compare)
	other.Dst, other.Metric = pods(4, 66), 7
	have.Routes.Add(other)
	return have
}
