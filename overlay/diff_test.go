// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// drawPair draws a wanted state and one to start from, related or not.
func drawPair(t *rapid.T) (want, have State) {
	want = drawState(t, true)
	if rapid.Bool().Draw(t, "related") {
		return want, drift(t, want)
	}
	return want, drawState(t, false)
}

func TestDiffOfEqualStatesIsEmpty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t, true)
		if c := Diff(s, s.Clone()); !c.Empty() {
			t.Fatalf("state:\n%schanges:\n%s", s, c)
		}
	})
}

// Applying Diff(want, have) to have gives want, and foreign routes that
// nothing forced out; every step is one that the kernel accepts.
func TestDiffLeadsToWant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawPair(t)
		changes := Diff(want, have)
		got := have.Clone()
		if err := applyAll(got, changes); err != nil {
			t.Fatalf("want:\n%shave:\n%schanges:\n%s%v", want, have, changes, err)
		}
		fail := func(why string, e Entry) {
			t.Fatalf("%s: %s\nwant:\n%shave:\n%schanges:\n%sgot:\n%s", why, e, want, have, changes, got)
		}
		known := newRouting(want, have)
		keys := Set[routeKey]{} // what stands there is replaced, whosever it is
		for r := range want.Routes {
			keys.Add(r.key())
		}
		for r := range want.Routes {
			if !got.Routes.Has(r) {
				fail("missing", r)
			}
		}
		for r := range got.Routes {
			if !want.Routes.Has(r) && (!have.Routes.Has(r) || known.ours(r)) {
				fail("left", r)
			}
		}
		for r := range have.Routes {
			if !got.Routes.Has(r) && !known.ours(r) && !keys.Has(r.key()) && undisturbed(want, have, r.Dev) {
				fail("foreign route lost", r)
			}
		}
		got.Routes, want.Routes = nil, nil
		if !got.Equal(want) {
			t.Fatalf("want:\n%shave:\n%schanges:\n%sgot:\n%s", want, have, changes, got)
		}
		if again := Diff(want, got); !again.Empty() {
			t.Fatalf("a second pass would still do\n%s", again)
		}
	})
}

// undisturbed reports whether nothing on dev, nor any address, has to change,
// so that the kernel has no cause to flush a route.
func undisturbed(want, have State, dev string) bool {
	for l := range have.Links {
		if !want.Links.Has(l) && (l.Name == dev || dev == underlayDev) { // sources go with any device
			return false
		}
	}
	if dev != underlayDev && have.dev(dev) == nil {
		return false
	}
	for a := range have.Addrs {
		if !want.Addrs.Has(a) {
			return false
		}
	}
	return true
}

// Everything is put in place before anything is deleted, except what the
// kernel gives no choice about: a link in the way of another, and an address
// whose removal flushes wanted routes.
func TestDiffAddsBeforeItDeletes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawPair(t)
		changes := Diff(want, have)
		deleting := false
		for _, c := range changes {
			switch {
			case c.Op != Delete && deleting:
				t.Fatalf("%s comes after a delete:\n%s", c, changes)
			case c.Op == Delete:
				_, isLink := c.Entry.(Link)
				_, isAddr := c.Entry.(Addr)
				deleting = deleting || !isLink && !isAddr
			}
		}
		rank := map[string]int{"filter": 1, "node": 2, "source": 3, "pods": 4, "link": 5, "addr": 6, "fdb": 7, "neigh": 8, "route": 9}
		last := 0
		for _, c := range changes {
			if c.Op != Delete {
				if rank[c.Kind()] < last {
					t.Fatalf("%s is out of order:\n%s", c, changes)
				}
				last = rank[c.Kind()]
			}
		}
	})
}

// Two peers' entries never depend on the order in which a map is walked.
func TestDiffIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawPair(t)
		if a, b := Diff(want, have), Diff(want.Clone(), have.Clone()); !reflect.DeepEqual(a, b) {
			t.Fatalf("%s\nand\n%s", a, b)
		}
	})
}

func TestDiffNamedCases(t *testing.T) {
	link := Link{Name: "weft.1", VNI: 1, Port: 8472, Local: addr("10.0.0.1"), Underlay: "eth0", MAC: mac(1), MTU: 1450, Up: true, RPFilter: 2, AddrGen: "none"}
	with := func(f func(*Link)) Link { l := link; f(&l); return l }
	route := Route{Dev: "weft.1", Dst: pods(4, 2), Via: pods(4, 2).Addr(), Metric: 1100, Onlink: true, Proto: RouteProtocol}
	routeWith := func(f func(*Route)) Route { r := route; f(&r); return r }
	state := func(entries ...Entry) State {
		s := NewState()
		for _, e := range entries {
			s.Add(e)
		}
		return s
	}
	fdb, neigh := FDB{"weft.1", mac(2), addr("10.0.0.2")}, Neigh{"weft.1", route.Via, mac(2)}
	other := with(func(l *Link) { l.Name, l.Local = "weft6.1", addr("fd01::1") })
	own, sourced := Addr{"weft.1", prefix("10.5.1.0/32")}, routeWith(func(r *Route) { r.Dev, r.Src = "weft6.1", addr("10.5.1.0") })
	second := Addr{"weft6.1", own.Prefix}
	onLink := routeWith(func(r *Route) { r.Dst, r.Via, r.Src = pods(4, 3), pods(4, 3).Addr(), addr("10.5.1.0") })
	foreign := routeWith(func(r *Route) { r.Dst, r.Onlink, r.Proto, r.Metric = pods(4, 9), false, 4, 0 })
	direct := routeWith(func(r *Route) { r.Dev, r.Via = underlayDev, addr("10.0.0.2") })
	directWith := func(f func(*Route)) Route { r := direct; f(&r); return r }
	six := routeWith(func(r *Route) { r.Dst, r.Via = pods(6, 2), pods(6, 2).Addr() })
	sixDirect := routeWith(func(r *Route) { r.Dev, r.Dst, r.Via = underlayDev, pods(6, 2), addr("fd01::2") })
	filter := Filter{Guard: GuardBind, Port: 8472, VNI: 1, Lengths: Lengths{}.WithLength(4, 24)}
	altered := filter
	altered.Foreign = "chain input: rule 2 is missing"
	node, source := Node{Addr: addr("10.0.0.2")}, Source{addr("10.0.0.2"), pods(4, 2)}
	for _, tt := range []struct {
		name       string
		want, have State
		diff       string
	}{
		{
			"flannel's route is taken over, another's is left",
			state(link, route), state(link, routeWith(func(r *Route) { r.Metric, r.Proto = 0, protoBoot }), foreign),
			`ip route add 10.5.2.0/24 via 10.5.2.0 dev weft.1 proto 87 metric 1100 onlink
ip route del 10.5.2.0/24 via 10.5.2.0 dev weft.1 proto 3 onlink
`,
		},
		{
			"an address that goes early takes the routes with that source along",
			state(link, fdb, neigh), state(link, own, routeWith(func(r *Route) { r.Dev, r.Via, r.Src = underlayDev, addr("10.0.0.2"), addr("10.5.1.0") })),
			`ip addr del 10.5.1.0/32 dev weft.1
bridge fdb add 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent
ip neigh add 10.5.2.0 lladdr 0a:00:00:00:00:02 dev weft.1 nud permanent
`,
		},
		{
			"a stale flannel route goes (flannel #2554)",
			state(link), state(link, routeWith(func(r *Route) { r.Metric, r.Proto = 0, protoBoot })),
			"ip route del 10.5.2.0/24 via 10.5.2.0 dev weft.1 proto 3 onlink\n",
		},
		{
			"any route to a wanted prefix with another metric shadows ours",
			state(link, route), state(link, route, routeWith(func(r *Route) { r.Metric, r.Proto, r.Via = 5, 4, addr("10.5.2.9") })),
			"ip route del 10.5.2.0/24 via 10.5.2.9 dev weft.1 proto 4 metric 5 onlink\n",
		},
		{
			"flannel's direct route is taken over, others' on the underlay are left",
			state(direct), state(directWith(func(r *Route) { r.Metric, r.Proto, r.Onlink = 0, protoBoot, false }),
				directWith(func(r *Route) { r.Metric, r.Proto, r.Via = 1, protoBoot, addr("10.0.0.9") }), // to somebody else
				directWith(func(r *Route) { r.Metric, r.Proto = 2, 4 }), directWith(func(r *Route) { r.Metric, r.Proto, r.Dst = 0, protoBoot, pods(4, 9) })),
			`ip route add 10.5.2.0/24 via 10.0.0.2 dev eth0 proto 87 metric 1100 onlink
ip route del 10.5.2.0/24 via 10.0.0.2 dev eth0 proto 3
`,
		},
		{
			"a stale direct route goes, and one with another metric",
			state(direct), state(direct, directWith(func(r *Route) { r.Metric = 1 }), directWith(func(r *Route) { r.Dst = pods(4, 9) })),
			`ip route del 10.5.2.0/24 via 10.0.0.2 dev eth0 proto 87 metric 1 onlink
ip route del 10.5.9.0/24 via 10.0.0.2 dev eth0 proto 87 metric 1100 onlink
`,
		},
		{
			"from VXLAN to the underlay in one step",
			state(link, fdb, neigh, direct), state(link, fdb, neigh, route),
			"ip route replace 10.5.2.0/24 via 10.0.0.2 dev eth0 proto 87 metric 1100 onlink\n",
		},
		{
			"an IPv6 route back from the underlay needs a way to its gateway first",
			state(link, six), state(link, sixDirect),
			`ip route add fd00:5:0:2::/128 dev weft.1 proto 87 metric 1847
ip route replace fd00:5:0:2::/64 via fd00:5:0:2:: dev weft.1 proto 87 metric 1100 onlink
ip route del fd00:5:0:2::/128 dev weft.1 proto 87 metric 1847
`,
		},
		{
			"a way to a gateway that is left goes",
			state(link, six), state(link, sixDirect, Route{Dev: "weft.1", Dst: single(six.Via), Metric: 1847, Proto: RouteProtocol}),
			`ip route replace fd00:5:0:2::/64 via fd00:5:0:2:: dev weft.1 proto 87 metric 1100 onlink
ip route del fd00:5:0:2::/128 dev weft.1 proto 87 metric 1847
`,
		},
		{
			"a filter that was altered is made anew with its elements",
			state(filter, node, source), state(altered, node, source, Node{Addr: addr("10.0.0.66")}),
			`# replace filter inet weft guard bind masquerade false udp dport 8472 vni 1 networks , subnets , devices , lengths IPv4/24
nft add element inet weft peers4 { 10.0.0.2 }
nft add element inet weft bind4_inner4_24 { 10.0.0.2 . 0xa050200 } # 10.5.2.0/24
`,
		},
		{
			"a filter comes before the link and its elements before the route, and go after them",
			state(filter, link, Node{Addr: addr("10.0.0.3")}), state(filter, node, source, link, fdb, neigh, route),
			`nft add element inet weft peers4 { 10.0.0.3 }
ip route del 10.5.2.0/24 via 10.5.2.0 dev weft.1 proto 87 metric 1100 onlink
ip neigh del 10.5.2.0 lladdr 0a:00:00:00:00:02 dev weft.1 nud permanent
bridge fdb del 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent
nft delete element inet weft bind4_inner4_24 { 10.0.0.2 . 0xa050200 } # 10.5.2.0/24
nft delete element inet weft peers4 { 10.0.0.2 }
`,
		},
		{
			"a deleted filter takes its elements along, last of all",
			NewState(), state(filter, node, source, link),
			`ip link del weft.1
# delete filter inet weft guard bind masquerade false udp dport 8472 vni 1 networks , subnets , devices , lengths IPv4/24
`,
		},
		{
			"a second destination of one MAC is deleted, not replaced",
			state(link, fdb), state(link, fdb, FDB{"weft.1", mac(2), addr("10.0.0.7")}),
			"bridge fdb del 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.7 self permanent\n",
		},
		{
			"one of two stale destinations is replaced, the other deleted",
			state(link, fdb), state(link, FDB{"weft.1", mac(2), addr("10.0.0.7")}, FDB{"weft.1", mac(2), addr("10.0.0.8")}),
			`bridge fdb replace 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent
bridge fdb del 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.8 self permanent
`,
		},
		{
			"an own MAC changed by udev is put back and neighbours added again",
			state(link, fdb, neigh, route), state(with(func(l *Link) { l.MAC = mac(9) }), fdb, neigh, route),
			`ip link set weft.1 address 0a:00:00:00:00:01
ip neigh add 10.5.2.0 lladdr 0a:00:00:00:00:02 dev weft.1 nud permanent
`,
		},
		{
			"the MTU follows in place",
			state(link, fdb, neigh, route), state(with(func(l *Link) { l.MTU = 1350 }), fdb, neigh, route),
			"ip link set weft.1 mtu 1450\n",
		},
		{
			"a link that cannot be changed is created again with everything on it",
			state(link, fdb), state(with(func(l *Link) { l.Port = 4789 }), fdb, neigh),
			`ip link del weft.1 && ip link add weft.1 address 0a:00:00:00:00:01 mtu 1450 type vxlan id 1 local 10.0.0.1 dev eth0 dstport 8472 nolearning && sysctl -qw net.ipv4.conf.weft/1.rp_filter=2 && ip link set weft.1 addrgenmode none && ip link set weft.1 up
bridge fdb add 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent
`,
		},
		{
			"a device of another name in the way goes first",
			state(link), state(with(func(l *Link) { l.Name = "flannel.1" }), FDB{"flannel.1", mac(2), addr("10.0.0.2")}),
			`ip link del flannel.1
ip link add weft.1 address 0a:00:00:00:00:01 mtu 1450 type vxlan id 1 local 10.0.0.1 dev eth0 dstport 8472 nolearning && sysctl -qw net.ipv4.conf.weft/1.rp_filter=2 && ip link set weft.1 addrgenmode none && ip link set weft.1 up
`,
		},
		{
			"the last IPv4 address takes the routes with it, so they follow it",
			state(link, route, neigh), state(link, Addr{"weft.1", prefix("10.5.1.0/32")}, route, neigh),
			`ip addr del 10.5.1.0/32 dev weft.1
ip neigh add 10.5.2.0 lladdr 0a:00:00:00:00:02 dev weft.1 nud permanent
ip route add 10.5.2.0/24 via 10.5.2.0 dev weft.1 proto 87 metric 1100 onlink
`,
		},
		{
			"a source address goes with its link, and routes elsewhere with it",
			state(link, other, own, sourced), state(with(func(l *Link) { l.Port = 4789 }), other, own, sourced),
			`ip link del weft.1 && ip link add weft.1 address 0a:00:00:00:00:01 mtu 1450 type vxlan id 1 local 10.0.0.1 dev eth0 dstport 8472 nolearning && sysctl -qw net.ipv4.conf.weft/1.rp_filter=2 && ip link set weft.1 addrgenmode none && ip link set weft.1 up
ip addr add 10.5.1.0/32 dev weft.1
ip route add 10.5.2.0/24 via 10.5.2.0 dev weft6.1 proto 87 src 10.5.1.0 metric 1100 onlink
`,
		},
		{
			"a source address that is on another link too stays, and so do its routes",
			state(link, other, second, sourced), state(with(func(l *Link) { l.Port = 4789 }), other, own, second, sourced),
			`ip link del weft.1 && ip link add weft.1 address 0a:00:00:00:00:01 mtu 1450 type vxlan id 1 local 10.0.0.1 dev eth0 dstport 8472 nolearning && sysctl -qw net.ipv4.conf.weft/1.rp_filter=2 && ip link set weft.1 addrgenmode none && ip link set weft.1 up
`,
		},
		{
			"a source address that moves keeps its routes, unless it was the last where they are",
			state(link, other, own, sourced, onLink), state(link, other, second, sourced, onLink),
			`ip addr add 10.5.1.0/32 dev weft.1
ip addr del 10.5.1.0/32 dev weft6.1
ip route add 10.5.2.0/24 via 10.5.2.0 dev weft6.1 proto 87 src 10.5.1.0 metric 1100 onlink
`,
		},
		{
			"a deleted link takes its entries along",
			NewState(), state(link, fdb, neigh, route, foreign),
			"ip link del weft.1\n",
		},
		{
			"entries on no link of ours go one by one, in reverse",
			NewState(), state(Addr{"weft.1", prefix("10.5.1.0/32")}, fdb, neigh, route, foreign),
			`ip route del 10.5.2.0/24 via 10.5.2.0 dev weft.1 proto 87 metric 1100 onlink
ip neigh del 10.5.2.0 lladdr 0a:00:00:00:00:02 dev weft.1 nud permanent
bridge fdb del 0a:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent
ip addr del 10.5.1.0/32 dev weft.1
`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Diff(tt.want, tt.have).String(); got != tt.diff {
				t.Errorf("got:\n%swant:\n%s", got, tt.diff)
			}
		})
	}
}
