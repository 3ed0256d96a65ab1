// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"weft.dev/weft/subnet"
)

func TestOverhead(t *testing.T) {
	// flannel #1781: an IPv6 underlay costs 20 bytes more.
	if got := [2]int{Overhead(subnet.IPv4), Overhead(subnet.IPv6)}; got != [2]int{50, 70} {
		t.Errorf("got %v, want 50 and 70", got)
	}
}

// Routes that share a metric share a bucket of the kernel's hash. 4096 values
// over 20,000 prefixes would be 5 each if spread perfectly.
func TestRouteMetricSpreads(t *testing.T) {
	for _, tt := range []struct {
		name   string
		prefix func(i int) netip.Prefix
	}{
		{"/24s of 10.0.0.0/8", func(i int) netip.Prefix { return prefix(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)) }},
		{"/28s of 10.0.0.0/8", func(i int) netip.Prefix { return prefix(fmt.Sprintf("10.%d.%d.%d/28", i>>12, i>>4&255, i&15<<4)) }},
		{"/64s of fd00::/48", func(i int) netip.Prefix { return prefix(fmt.Sprintf("fd00:0:0:%x::/64", i)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			per := map[uint32]int{}
			most := 0
			for i := range 20000 {
				m := routeMetric(tt.prefix(i))
				if m < metricBase || m >= metricBase+metricSpread {
					t.Fatalf("metric %d of %s is out of range", m, tt.prefix(i))
				}
				per[m]++
				most = max(most, per[m])
			}
			if most > 25 {
				t.Errorf("%d of 20,000 prefixes share a metric", most)
			}
		})
	}
	// Frozen: another value would make each upgrade replace every route.
	if got := [2]uint32{routeMetric(pods(4, 2)), routeMetric(pods(6, 2))}; got != [2]uint32{4776, 3063} {
		t.Errorf("metrics of %s and %s: %v", pods(4, 2), pods(6, 2), got)
	}
}

func TestProblemsWithThisNode(t *testing.T) {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	for _, tt := range []struct {
		name  string
		self  func(*Self)
		cfg   func(*subnet.Config)
		want  string
		links int
	}{
		{"healthy", func(*Self) {}, func(*subnet.Config) {}, "[]", 2},
		{
			"an underlay that is gone", func(s *Self) { s.Underlays = s.Underlays[:1] }, func(*subnet.Config) {},
			"[UnderlayMissing fd00:5:0:1::/64: this node has no IPv6 device to carry the subnet, but announces fd01::1]", 1,
		},
		{
			"an underlay too small for any device", func(s *Self) { s.Underlays[0].MTU = 100 }, func(*subnet.Config) {},
			"[MTUTooSmall weft.1: MTU 50 is below 68, so there can be no device: underlay eth0 needs an MTU of at least 118 " +
				"UnderlayMissing 10.5.1.0/24: this node has no IPv4 device to carry the subnet, but announces 10.0.0.1]", 1,
		},
		{
			"a configured MTU too small for IPv6", func(*Self) {}, func(c *subnet.Config) { c.Backend.MTU = 1349 },
			"[MTUTooSmall weft6.1: MTU 1279 is below 1280, so the device cannot carry IPv6: Backend.MTU in the network configuration needs a value of at least 1350]", 2,
		},
		{
			"a name longer than the kernel's", func(s *Self) { s.Names = Names{4: "flannel.", 6: "flannel-v6."} },
			func(c *subnet.Config) { c.Backend.VNI = 16777215 },
			"[LinkNameTooLong flannel-v6.16777215: a device name has at most 15 bytes: choose a smaller VNI than 16777215 " +
				"LinkNameTooLong flannel.16777215: a device name has at most 15 bytes: choose a smaller VNI than 16777215 " +
				"UnderlayMissing 10.5.1.0/24: this node has no IPv4 device to carry the subnet, but announces 10.0.0.1 " +
				"UnderlayMissing fd00:5:0:1::/64: this node has no IPv6 device to carry the subnet, but announces fd01::1]", 0,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			self, cfg := testSelf(v4, v6), testConfig()
			tt.self(&self)
			tt.cfg(&cfg)
			s, problems := Desired(self, cfg, []subnet.Lease{self.Lease}, NewState())
			if got := fmt.Sprint(problems); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if len(s.Links) != tt.links {
				t.Errorf("%d links, want %d:\n%s", len(s.Links), tt.links, s)
			}
		})
	}
}

// A subnet reserved for a node that has not come yet is neither a peer nor a
// problem.
func TestUnclaimedReservation(t *testing.T) {
	reserved := subnet.Lease{Paths: []subnet.Path{{Subnet: pods(4, 2), Underlay: addr("10.0.0.2")}}}
	s, problems := Desired(testSelf([2]subnet.Family{4, 4}), testConfig(), []subnet.Lease{reserved}, NewState())
	if len(s.Routes) != 0 || len(problems) != 0 {
		t.Errorf("%d routes, problems %v", len(s.Routes), problems)
	}
}

// flannel publishes the lower 16 bits of a VNI; its nodes are peers all the
// same. Any other VNI is another network.
func TestVNIAsFlannelPublishesIt(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	cfg := testConfig()
	cfg.Backend.VNI = 70000
	for vni, want := range map[uint32]int{70000: 1, 70000 & 0xffff: 1, 0: 1, 1: 0, 4465: 0} {
		peer := subnet.Lease{Backend: subnet.BackendVXLAN, Paths: []subnet.Path{{
			Subnet: pods(4, 2), Underlay: addr("10.0.0.2"), MAC: subnet.MAC{2, 2, 2, 2, 2, 2}, VNI: vni,
		}}}
		s, problems := Desired(testSelf(v4), cfg, []subnet.Lease{peer}, NewState())
		if len(s.Routes) != want || len(problems) != 1-want {
			t.Errorf("VNI %d: %d routes, problems %v", vni, len(s.Routes), problems)
		}
	}
}

// Our own lease is never a peer, as we wrote it or as flannel did.
func TestOwnLeaseIsNoPeer(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})
	flannel, moved := self.Lease.Clone(), self.Lease.Clone()
	flannel.Node, flannel.Instance = "", ""
	moved.Paths[0].Subnet = pods(4, 9) // the store is behind our grant
	anonymous := self
	anonymous.Lease = flannel
	for _, tt := range []struct {
		name string
		self Self
		own  subnet.Lease
	}{
		{"as we wrote it", self, self.Lease}, {"as flannel wrote it", self, flannel},
		{"before the store has caught up", self, moved}, {"without names", anonymous, flannel},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, problems := Desired(tt.self, testConfig(), []subnet.Lease{tt.own}, NewState())
			if len(s.Routes) != 0 || len(problems) != 0 {
				t.Errorf("problems %v, state\n%s", problems, s)
			}
		})
	}
}

// A node that NAT or a second flannel daemon gives two leases with one VTEP
// has two subnets, not a conflict.
func TestOneVTEPMayServeTwoLeases(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	a := lease(2, [2]subnet.Family{4, 4})
	b := edit(a, func(p *subnet.Path) { p.Subnet = pods(4, 3) })
	a.Node, b.Node = "", ""
	s, problems := Desired(self, testConfig(), []subnet.Lease{a, b}, NewState())
	if len(problems) != 0 || len(s.Routes) != 2 || len(s.FDB) != 1 {
		t.Errorf("problems %v, state\n%s", problems, s)
	}
}

// An IPv4-mapped address is programmed as the kernel reports it.
func TestMappedUnderlayAddress(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	plain := lease(2, [2]subnet.Family{4, 4})
	mapped := edit(plain, func(p *subnet.Path) { p.Underlay = netip.AddrFrom16(p.Underlay.As16()) })
	want, _ := Desired(self, testConfig(), []subnet.Lease{plain}, NewState())
	got, problems := Desired(self, testConfig(), []subnet.Lease{mapped}, NewState())
	if !got.Equal(want) || len(problems) != 0 {
		t.Errorf("problems %v, got\n%swant\n%s", problems, got, want)
	}
}

// The incumbent keeps a subnet, a MAC and a name, whoever comes; a peer that
// is gone from the store keeps nothing.
func TestIncumbentKeepsWhatItHas(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	self, holder := testSelf(v4), lease(40, v4)
	rivals := map[string]func(*subnet.Lease){
		"PeerOverlap":       func(l *subnet.Lease) { l.Paths[0].Subnet = holder.Paths[0].Subnet },
		"PeerMACDuplicate":  func(l *subnet.Lease) { l.Paths[0].MAC = holder.Paths[0].MAC },
		"PeerDuplicateNode": func(l *subnet.Lease) { l.Node = holder.Node },
	}
	have := entriesOf(self, holder)
	for kind, imitate := range rivals {
		t.Run(kind, func(t *testing.T) {
			rival := lease(3, v4) // a lower address: wins where nobody is first
			imitate(&rival)
			for _, order := range [][]subnet.Lease{{holder, rival}, {rival, holder}} {
				s, problems := Desired(self, testConfig(), order, have)
				if c := Diff(s, have); !c.Empty() || len(problems) != 1 || problems[0].Kind != kind {
					t.Errorf("problems %v, changes\n%s", problems, c)
				}
				if s, _ := Desired(self, testConfig(), order, NewState()); !s.Equal(entriesOf(self, rival)) {
					t.Errorf("without an incumbent:\n%s", s)
				}
			}
			if s, problems := Desired(self, testConfig(), []subnet.Lease{rival}, have); len(problems) != 0 || !s.Equal(entriesOf(self, rival)) {
				t.Errorf("once the holder is gone: problems %v, state\n%s", problems, s)
			}
		})
	}
}

// Two leases without names that claim the same, with the same VTEP, differ
// only in what else they hold: which is reported must not depend on their
// order.
func TestEqualClaimsAreReportedAlike(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	a := lease(2, [2]subnet.Family{4, 4})
	a.Node = ""
	b := a.Clone()
	b.Paths = append([]subnet.Path{self.Lease.Paths[0]}, b.Paths...)
	_, one := Desired(self, testConfig(), []subnet.Lease{a, b}, NewState())
	_, two := Desired(self, testConfig(), []subnet.Lease{b, a}, NewState())
	if len(one) != 2 || !slices.Equal(one, two) {
		t.Errorf("%v and %v", one, two)
	}
}

// Wide and narrow subnets, nested in one another: nobody overlaps anybody.
func TestNestedOverlaps(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	self := testSelf(v4)
	var leases []subnet.Lease
	for i, s := range []string{"10.5.32.0/22", "10.5.34.0/24", "10.5.34.128/25", "10.5.35.0/24", "10.5.32.0/20", "10.5.48.0/24"} {
		leases = append(leases, edit(lease(10+i, v4), func(p *subnet.Path) { p.Subnet = prefix(s) }))
	}
	for range 2 {
		s, problems := Desired(self, testConfig(), leases, NewState())
		if len(s.Routes) != 2 || len(problems) != 4 {
			t.Errorf("problems %v, state\n%s", problems, s)
		}
		have := entriesOf(self, leases[2])
		s, problems = Desired(self, testConfig(), leases, have)
		if len(s.Routes) != 3 || len(problems) != 3 { // /25 kept, then 10.5.35.0/24 and 10.5.48.0/24
			t.Errorf("problems %v, state\n%s", problems, s)
		}
		slices.Reverse(leases)
	}
}

// The rules follow from the configuration as far as they can: from the first
// peer on they stay the same, whoever comes and goes.
func TestFilterDependsOnPeersByLengthOnly(t *testing.T) {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	self := guardedSelf(v4, v6)
	filter := func(leases ...subnet.Lease) Filter {
		s, _ := Desired(self, testConfig(), leases, NewState())
		return sorted(s.Filters)[0]
	}
	none := filter()
	single := edit(lease(3, v4), func(p *subnet.Path) { p.Subnet = prefix("10.5.3.0/32") })
	if got := filter(lease(2, v4, v6), single); got != none {
		t.Errorf("got  %s\nwant %s", got, none)
	}
	wide := edit(lease(4, v4), func(p *subnet.Path) { p.Subnet = prefix("10.5.4.0/22") })
	want := none
	want.Lengths = want.Lengths.WithLength(subnet.IPv4, 22)
	if got := filter(wide); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	refused := edit(wide, func(p *subnet.Path) { p.MAC = subnet.MAC{} })
	if got := filter(refused); got != none {
		t.Errorf("a refused peer's length: %s", got)
	}
	// Only mode bind has sets by length; what is read back must not differ.
	self.Guard = GuardPeers
	if got := filter(wide).Lengths; got != (Lengths{}) {
		t.Errorf("lengths %s in mode %s", got, self.Guard)
	}
}

// A host-gw node has the same table, so that a switch leaves the guard alone.
func TestFilterIsTheSameInHostGW(t *testing.T) {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	self, cfg := guardedSelf(v4, v6), testConfig()
	leases := []subnet.Lease{lease(2, v4, v6), hostGW(lease(3, v4, v6))}
	vxlan, _ := Desired(self, cfg, leases, NewState())
	cfg.Backend.Type, self.Lease = subnet.BackendHostGW, hostGW(self.Lease)
	gw, problems := Desired(self, cfg, leases, NewState())
	if len(problems) != 0 || len(vxlan.Sources) != 2*4 {
		t.Errorf("problems %v, state\n%s", problems, gw)
	}
	gw.Links, gw.Addrs, gw.FDB, gw.Neighs, gw.Routes = vxlan.Links, vxlan.Addrs, vxlan.FDB, vxlan.Neighs, vxlan.Routes
	if !gw.Equal(vxlan) {
		t.Errorf("got\n%swant\n%s", gw, vxlan)
	}
}

// Status.MTU: of the smallest device or, without devices, of the underlay.
func TestPodMTU(t *testing.T) {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	for _, tt := range []struct {
		name  string
		self  Self
		cfg   func(*subnet.Config)
		want  int
		kinds string
	}{
		{"VXLAN over IPv4", guardedSelf(v4), nil, 1450, "[]"},
		{"VXLAN over both", guardedSelf(v4, v6), nil, 1430, "[]"},
		{"VXLAN, configured", guardedSelf(v4), func(c *subnet.Config) { c.Backend.MTU = 1400 }, 1350, "[]"},
		{"VXLAN, configured above the underlay's", guardedSelf(v4), func(c *subnet.Config) { c.Backend.MTU = 9000 }, 1450,
			"[MTUTooLarge eth0: Backend.MTU 9000 in the network configuration is above the underlay's own 1500, which is used instead]"},
		{"host-gw, configured above the underlay's", guardedSelf(v4), func(c *subnet.Config) { c.Backend.Type, c.Backend.MTU = subnet.BackendHostGW, 1501 }, 1500,
			"[MTUTooLarge eth0: Backend.MTU 1501 in the network configuration is above the underlay's own 1500, which is used instead]"},
		{"direct routing goes back and forth", guardedSelf(v4), func(c *subnet.Config) { c.Backend.DirectRouting = true }, 1450, "[]"},
		{"host-gw", guardedSelf(v4, v6), func(c *subnet.Config) { c.Backend.Type = subnet.BackendHostGW }, 1500, "[]"},
		{"host-gw, too small for IPv6", guardedSelf(v4, v6), func(c *subnet.Config) { c.Backend.Type, c.Backend.MTU = subnet.BackendHostGW, 1000 }, 1000,
			"[MTUTooSmall eth0: MTU 1000 is below 1280, so pods cannot use IPv6: Backend.MTU in the network configuration needs a value of at least 1280]"},
		{"host-gw without an underlay of the pods' family", guardedSelf([2]subnet.Family{4, 6}), func(c *subnet.Config) { c.Backend.Type = subnet.BackendHostGW }, 0,
			`[UnderlayMissing 10.5.1.0/24: this node has no IPv4 underlay, and backend "host-gw" needs one of the subnet's family]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			if tt.cfg != nil {
				tt.cfg(&cfg)
			}
			p := newPlanner(tt.self, cfg, NewState())
			p.run(nil)
			if got := fmt.Sprint(p.with(nil)); p.mtu != tt.want || got != tt.kinds {
				t.Errorf("MTU %d, want %d; problems %s, want %s", p.mtu, tt.want, got, tt.kinds)
			}
		})
	}
}

// Who was reached first keeps the subnet although no neighbour says so: a
// direct route does, weft's or flannel's; and a peer that has given up its VTEP
// is known by its address.
func TestIncumbentWithoutNeighbour(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	gw, vxlan := testConfig(), testConfig()
	gw.Backend.Type = subnet.BackendHostGW
	self, holder := guardedSelf(v4), lease(40, v4)
	rival := edit(lease(3, v4), func(p *subnet.Path) { p.Subnet = holder.Paths[0].Subnet }) // a lower address
	routed, _ := Desired(self, gw, []subnet.Lease{holder}, NewState())
	flannel := NewState()
	flannel.Add(Route{Dev: underlayDev, Dst: pods(4, 40), Via: host(4, 40), Proto: protoBoot})
	tunnelled, _ := Desired(self, vxlan, []subnet.Lease{holder}, NewState())
	for _, tt := range []struct {
		name   string
		cfg    subnet.Config
		have   State
		leases []subnet.Lease
	}{
		{"direct route", gw, routed, []subnet.Lease{holder, rival}},
		{"flannel's direct route", gw, flannel, []subnet.Lease{hostGW(holder), rival}},
		{"direct route, now through VXLAN", vxlan, routed, []subnet.Lease{rival, holder}},
		{"VXLAN, now direct", gw, tunnelled, []subnet.Lease{rival, holder}},
		{"VXLAN, and the peer is host-gw now", vxlan, tunnelled, []subnet.Lease{rival, hostGW(holder)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, problems := Desired(self, tt.cfg, tt.leases, tt.have)
			if at := ways(s)[pods(4, 40)]; at != host(4, 40) || len(problems) != 1 || problems[0].Object != "node-3" {
				t.Errorf("reached at %s, problems %v", at, problems)
			}
		})
	}
}

// A further source is not taken from the peer that has it by another that
// announces it later; who comes second does without.
func TestSourceOfTwoPeers(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	self, first := guardedSelf(v4), lease(2, v4)
	first.Sources = []netip.Addr{host(4, 3)}
	leases := []subnet.Lease{lease(3, v4), first}
	shared := Source{host(4, 3), pods(4, 2)}
	s, problems := Desired(self, testConfig(), leases, NewState())
	if len(problems) != 1 || problems[0].Kind != "PeerSource" || problems[0].Object != "node-2" || s.Sources.Has(shared) || len(s.Routes) != 2 {
		t.Errorf("problems %v, state\n%s", problems, s)
	}
	have, _ := Desired(self, testConfig(), leases[1:], NewState())
	s, problems = Desired(self, testConfig(), leases, have)
	if len(problems) != 0 || !s.Sources.Has(shared) {
		t.Errorf("problems %v, state\n%s", problems, s)
	}
}

// peersLike returns n dual-stack peers in distinct /24s and /64s.
func peersLike(n int) []subnet.Lease {
	out := make([]subnet.Lease, n)
	for i := range out {
		m := subnet.MAC{0x0a, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		out[i] = subnet.Lease{Node: fmt.Sprint("node-", i), Backend: subnet.BackendVXLAN, Paths: []subnet.Path{
			{Subnet: prefix(fmt.Sprintf("10.%d.%d.0/24", 64+i>>8, i&255)), Underlay: addr(fmt.Sprintf("172.16.%d.%d", i>>8, i&255)), MAC: m, VNI: 1},
			{Subnet: prefix(fmt.Sprintf("fd00:5:0:%x::/64", 16+i)), Underlay: addr(fmt.Sprintf("fd01::1:%x", i)), MAC: m, VNI: 1},
		}}
	}
	return out
}

// BenchmarkPass is the pure part of a pass over a dual-stack cluster, without
// the guard and with it: of the first, with all to do, of one after a change
// of the leases, and of an audit with the same inputs, which is a comparison.
// The CPU time of the process is reported too: it does not depend on who else
// uses the machine.
func BenchmarkPass(b *testing.B) {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	for _, n := range []int{1000, 5000, 10000, 20000} {
		benchmarkPass(b, "bare", testSelf(v4, v6), n, 4+6*n, 6)
		// One filter, three addresses of our own; of a peer two, and from each
		// of them two subnets, two VTEPs and the two themselves.
		benchmarkPass(b, "guarded", guardedSelf(v4, v6), n, 4+6*n+4+14*n, 6+14)
	}
}

func benchmarkPass(b *testing.B, name string, self Self, n, first, change int) {
	cfg, leases := testConfig(), peersLike(n)
	cfg.Networks[0].Prefix = prefix("10.0.0.0/8")
	full, problems := Desired(self, cfg, leases, NewState())
	if len(full.Routes) != 2*n || len(problems) != 0 {
		b.Fatalf("%d routes, problems %v", len(full.Routes), problems)
	}
	same := full.Clone()
	for _, bm := range []struct {
		name    string
		changes int
		pass    func() Changes
	}{
		{"first", first, func() Changes {
			want, _ := Desired(self, cfg, leases, NewState())
			return Diff(want, NewState())
		}},
		{"change", change, func() Changes {
			want, _ := Desired(self, cfg, leases[1:], full)
			return Diff(want, full)
		}},
		{"desired", 0, func() Changes {
			Desired(self, cfg, leases, full)
			return nil
		}},
		{"audit", 0, func() Changes { return Diff(full, same) }},
	} {
		b.Run(fmt.Sprintf("%s/%s/%d", name, bm.name, n), func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				if c := bm.pass(); len(c) != bm.changes {
					b.Fatalf("%d changes, want %d", len(c), bm.changes)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpuTime returns what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
