// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

// testConfig is a dual-stack network with flannel's defaults.
func testConfig() subnet.Config {
	return subnet.Config{
		Networks: []subnet.Network{
			{Prefix: prefix("10.5.0.0/16"), SubnetLen: 24, SubnetMin: addr("10.5.1.0"), SubnetMax: addr("10.5.255.0")},
			{Prefix: prefix("fd00:5::/48"), SubnetLen: 64, SubnetMin: addr("fd00:5:0:1::"), SubnetMax: addr("fd00:5:0:ffff::")},
		},
		Backend: subnet.BackendConfig{Type: subnet.BackendVXLAN, VNI: 1, Port: 8472},
	}
}

// testSelf is node "self" with the given pairs of pod and underlay family.
func testSelf(paths ...[2]subnet.Family) Self {
	s := Self{
		Lease: subnet.Lease{Node: "self", Instance: "i", Backend: subnet.BackendVXLAN},
		Names: Names{subnet.IPv4: "weft.", subnet.IPv6: "weft6."},
	}
	for _, p := range paths {
		under := host(p[1], 1)
		s.Lease.Paths = append(s.Lease.Paths, subnet.Path{Subnet: pods(p[0], 1), Underlay: under, MAC: mac(int(p[1]) / 6), VNI: 1})
		if !slices.ContainsFunc(s.Underlays, func(u Underlay) bool { return u.Addr == under }) {
			s.Underlays = append(s.Underlays, Underlay{Dev: underlayDev, Addr: under, MTU: 1500})
		}
	}
	return s
}

// guardedSelf is the same node with a guard, masquerading, an address more,
// and a link that it shares with the first 255 nodes.
func guardedSelf(paths ...[2]subnet.Family) Self {
	s := testSelf(paths...)
	s.Guard, s.Masquerade, s.Addresses = GuardBind, true, []netip.Addr{addr("192.0.2.1"), addr("fe80::1"), s.Underlays[0].Addr}
	for i, u := range s.Underlays {
		s.Underlays[i].Net = link(subnet.FamilyOf(u.Addr))
	}
	return s
}

// The shapes of a node: pod and underlay families.
func shapes() map[string][][2]subnet.Family {
	return map[string][][2]subnet.Family{
		"v4": {{4, 4}}, "v6": {{6, 6}}, "dual": {{4, 4}, {6, 6}}, "v6 over v4": {{6, 4}}, "v4 over v6": {{4, 6}},
		"dual over v4": {{4, 4}, {6, 4}}, "crossed": {{4, 6}, {6, 4}},
	}
}

func drawSelf(t *rapid.T) Self {
	all := shapes()
	return testSelf(all[rapid.SampledFrom(sortedKeys(all)).Draw(t, "shape")]...)
}

func drawPeers(t *rapid.T, fresh int) []subnet.Lease {
	var out []subnet.Lease
	for n := 2; n < 7; n++ {
		if rapid.IntRange(0, 3).Draw(t, "present") > 0 {
			out = append(out, drawPeer(t, n, fresh))
		}
	}
	return out
}

func drawJunkList(t *rapid.T) []subnet.Lease {
	var out []subnet.Lease
	for n := range rapid.IntRange(0, 6).Draw(t, "junk") {
		out = append(out, drawJunk(t, n))
	}
	return out
}

// node is one as Desired sees it.
type node struct {
	self Self
	cfg  subnet.Config
}

func (n node) desired(leases []subnet.Lease, have State) (State, []subnet.Problem) {
	return Desired(n.self, n.cfg, leases, have)
}

func drawNode(t *rapid.T) node {
	all := shapes()
	n := node{guardedSelf(all[rapid.SampledFrom(sortedKeys(all)).Draw(t, "shape")]...), testConfig()}
	return n.redraw(t)
}

// redraw returns the same node with another guard and another way to send.
func (n node) redraw(t *rapid.T) node {
	n.self.Guard = rapid.SampledFrom([]Guard{GuardBind, GuardBind, GuardBind, GuardPeers, GuardOff, ""}).Draw(t, "guard")
	n.self.Masquerade = rapid.Bool().Draw(t, "masquerade")
	n.self.Lease = n.self.Lease.Clone()
	n.cfg = opened(n.cfg, rapid.SampledFrom([]string{"", "", "4", "6", "46"}).Draw(t, "open"))
	switch rapid.SampledFrom([]string{"vxlan", "vxlan", "direct", "host-gw"}).Draw(t, "backend") {
	case "direct":
		n.cfg.Backend.DirectRouting = true
	case "host-gw":
		n.cfg.Backend.Type, n.self.Lease.Backend = subnet.BackendHostGW, subnet.BackendHostGW
		for i := range n.self.Lease.Paths {
			n.self.Lease.Paths[i].MAC = subnet.MAC{}
		}
	}
	return n
}

// opened is cfg with the networks of the families named open.
func opened(cfg subnet.Config, which string) subnet.Config {
	cfg.Networks = slices.Clone(cfg.Networks)
	for i, n := range cfg.Networks {
		if f := subnet.FamilyOf(n.Prefix.Addr()); strings.Contains(which, fmt.Sprint(int(f))) {
			cfg.Networks[i] = subnet.OpenNetwork(f, n.SubnetLen)
		}
	}
	return cfg
}

// drawMembers is drawPeers with host-gw nodes among them, some with further
// sources of their own or shared by several.
func drawMembers(t *rapid.T, fresh int) []subnet.Lease {
	out := drawPeers(t, fresh)
	for i, l := range out {
		n := 150 + int(l.Paths[0].MAC[5])
		out[i].Sources = rapid.SampledFrom([][]netip.Addr{nil, nil, {host(4, n)}, {host(4, 99), host(6, n)}}).Draw(t, "sources")
		if rapid.IntRange(0, 4).Draw(t, "host-gw") == 0 {
			out[i] = hostGW(out[i])
		}
	}
	return out
}

// hostGW is l as a host-gw node publishes it.
func hostGW(l subnet.Lease) subnet.Lease {
	l.Backend = subnet.BackendHostGW
	return edit(l, func(p *subnet.Path) { p.MAC, p.VNI = subnet.MAC{}, 0 })
}

func TestDesiredDoesNotDependOnTheOrderOfLeases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		leases := append(drawMembers(t, 0), drawJunkList(t)...)
		have, _ := n.redraw(t).desired(append(drawMembers(t, 1), drawJunkList(t)...), NewState())
		want, problems := n.desired(leases, have)
		shuffled := slices.Clone(leases)
		rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed"))).Shuffle(len(shuffled), reflect.Swapper(shuffled))
		got, gotProblems := n.desired(shuffled, have)
		if !got.Equal(want) || !slices.Equal(problems, gotProblems) {
			t.Fatalf("leases %+v\n%s%v\nshuffled\n%s%v", leases, want, problems, got, gotProblems)
		}
	})
}

// What Desired returns is always something a kernel can hold, nothing in it
// is ours on a peer's account, and nobody's packets go to two places.
func TestDesiredIsConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		leases := append(append(drawMembers(t, 0), drawJunkList(t)...), n.self.Lease)
		s, problems := n.desired(leases, NewState())
		if err := applyAll(NewState(), Diff(s, NewState())); err != nil {
			t.Fatalf("not something a kernel can hold: %v\n%s", err, s)
		}
		var seen []netip.Prefix
		listed := Set[Pods]{}
		for r := range s.Routes {
			if net, _ := n.cfg.Network(subnet.FamilyOf(r.Dst.Addr())); net.Open() && n.self.Masquerade {
				listed.Add(Pods{r.Dst})
			}
			direct := r.Dev == underlayDev && r.Via != host(4, 1) && r.Via != host(6, 1) && link(subnet.FamilyOf(r.Via)).Contains(r.Via)
			if r.Proto != RouteProtocol || !r.Onlink || r.Metric != routeMetric(r.Dst) || r.Via != r.Dst.Addr() && !direct {
				t.Fatalf("route %s is not as it should be", r)
			}
			for _, o := range seen {
				if o.Overlaps(r.Dst) {
					t.Fatalf("%s overlaps %s", r.Dst, o)
				}
			}
			seen = append(seen, r.Dst)
			outer, ok := leads(s, r)
			if !ok || !admitted(s, outer, r.Dst) {
				t.Fatalf("%s leads nowhere, or nothing may come back:\n%s", r, s)
			}
			for _, p := range n.self.Lease.Paths {
				if p.Subnet.Overlaps(r.Dst) {
					t.Fatalf("%s overlaps our own %s", r, p.Subnet)
				}
			}
		}
		if !maps.Equal(s.Pods, listed) {
			t.Fatalf("pods %v should be where routes lead to, in open networks:\n%s", sorted(s.Pods), s)
		}
		for f := range s.FDB {
			if f.MAC == mac(0) || f.MAC == mac(1) || f.Dst == host(4, 1) || f.Dst == host(6, 1) || !unicast(f.Dst) {
				t.Fatalf("FDB entry %s:\n%s", f, s)
			}
		}
		if err := lawful(s, n.self, leases); err != nil {
			t.Fatalf("%v:\n%s", err, s)
		}
		for i := 1; i < len(problems); i++ {
			if problems[i-1] == problems[i] || problems[i-1].Kind > problems[i].Kind {
				t.Fatalf("problems are not sorted: %v", problems)
			}
		}
	})
}

// lawful reports an element that lets in what it must not: from or as
// ourselves, or as one peer from another's address.
func lawful(s State, self Self, leases []subnet.Lease) error {
	ours := func(a netip.Addr) bool {
		return slices.ContainsFunc(self.Underlays, func(u Underlay) bool { return u.Addr == a }) || slices.Contains(self.Addresses, a) ||
			slices.ContainsFunc(self.Lease.Paths, func(p subnet.Path) bool { return p.Subnet.Contains(a) })
	}
	for n := range s.Nodes {
		if n.Own != ours(n.Addr) || !unicast(n.Addr) {
			return fmt.Errorf("node %s", n)
		}
	}
	for e := range s.Sources {
		if !s.Nodes.Has(Node{Addr: e.Outer}) || ours(e.Outer) || ours(e.Inner.Addr()) {
			return fmt.Errorf("source %s", e)
		}
		if !slices.ContainsFunc(leases, func(l subnet.Lease) bool { return says(l, e) }) {
			return fmt.Errorf("source %s is nobody's", e)
		}
		for _, p := range self.Lease.Paths {
			if p.Subnet.Overlaps(e.Inner) {
				return fmt.Errorf("source %s overlaps our own %s", e, p.Subnet)
			}
		}
	}
	return nil
}

// says reports whether one lease alone is reason enough for e.
func says(l subnet.Lease, e Source) bool {
	var outer []netip.Addr
	var inner []netip.Prefix
	for _, a := range l.Sources {
		outer = append(outer, a.Unmap())
	}
	for _, p := range l.Paths {
		if p.Underlay.IsValid() {
			outer = append(outer, p.Underlay.Unmap())
		}
		if p.Subnet.IsValid() {
			inner = append(inner, p.Subnet, single(p.Subnet.Addr()))
		}
	}
	for _, a := range outer {
		inner = append(inner, single(a))
	}
	return slices.Contains(outer, e.Outer) && slices.Contains(inner, e.Inner)
}

// chain follows r through its neighbour to the VTEP. A stepping stone has no
// gateway.
func chain(s State, r Route) (netip.Addr, bool) {
	via := r.Via
	if !via.IsValid() {
		via = r.Dst.Addr()
	}
	for n := range s.Neighs {
		if n.Dev == r.Dev && n.IP == via {
			for f := range s.FDB {
				if f.Dev == r.Dev && f.MAC == n.MAC {
					return f.Dst, true
				}
			}
		}
	}
	return netip.Addr{}, false
}

// leads returns the peer's address that r leads to, directly or through VXLAN.
func leads(s State, r Route) (netip.Addr, bool) {
	if r.Dev == underlayDev {
		return r.Via, true
	}
	return chain(s, r)
}

// admitted reports whether the guard, if there is one, knows the peer at outer
// and lets in what comes from its subnet; over which underlay that comes is
// what TestWhatPeersSendIsLetIn is about.
func admitted(s State, outer netip.Addr, dst netip.Prefix) bool {
	for f := range s.Filters {
		if !s.Nodes.Has(Node{Addr: outer}) {
			return false
		}
		inside := false
		for src := range s.Sources {
			inside = inside || src.Inner == dst
		}
		if f.Guard == GuardBind && !inside {
			return false
		}
	}
	return true
}

// TestWhatPeersSendIsLetIn: whatever the shapes of two nodes, and whatever the
// backends, what one sends to the other's pods through VXLAN is let in there:
// from its own pods and from itself, over the underlay that it chooses.
func TestWhatPeersSendIsLetIn(t *testing.T) {
	sent := 0
	for _, here := range shapes() {
		for _, there := range shapes() {
			for _, direct := range []bool{false, true} {
				cfg := testConfig()
				cfg.Backend.DirectRouting = direct
				us, peer := guardedSelf(here...), secondSelf(there...)
				ours, _ := Desired(us, cfg, []subnet.Lease{peer.Lease}, NewState())
				theirs, _ := Desired(peer, testConfig(), []subnet.Lease{us.Lease}, NewState())
				devices := linksByName(theirs)
				for r := range theirs.Routes {
					dev, ok := devices[r.Dev]
					if !ok {
						t.Fatalf("%v to %v: no VXLAN: %s", there, here, r)
					}
					f := subnet.FamilyOf(r.Dst.Addr())
					own, _ := peer.Lease.Path(f)
					inner := []netip.Prefix{own.Subnet}
					for _, u := range peer.Underlays { // as which the node itself may send
						if subnet.FamilyOf(u.Addr) == f {
							inner = append(inner, single(u.Addr))
						}
					}
					for _, in := range inner {
						sent++
						if want := (Source{dev.Local, in}); !ours.Sources.Has(want) {
							t.Errorf("%v to %v, direct %v: %s is refused by\n%s", there, here, direct, want, ours)
						}
					}
				}
				// And the VTEP's address, which is in the subnet.
				for src := range ours.Sources {
					if src.Inner.IsSingleIP() && slices.ContainsFunc(peer.Lease.Paths, func(p subnet.Path) bool { return p.Subnet.Contains(src.Inner.Addr()) }) {
						t.Errorf("%s says no more than its subnet's", src)
					}
				}
			}
		}
	}
	if sent < 100 {
		t.Errorf("%d kinds of packets are too few to prove anything", sent)
	}
}

// secondSelf is node 2 with the given pairs of pod and underlay family.
func secondSelf(paths ...[2]subnet.Family) Self {
	s := Self{Lease: lease(2, paths...), Names: Names{subnet.IPv4: "weft.", subnet.IPv6: "weft6."}}
	for _, f := range subnet.Families() {
		if _, ok := s.Lease.VTEP(f); ok {
			s.Underlays = append(s.Underlays, Underlay{Dev: underlayDev, Addr: host(f, 2), MTU: 1500})
		}
	}
	return s
}

// entriesOf returns what one lease alone gives.
func entriesOf(self Self, l subnet.Lease) State {
	s, _ := Desired(self, testConfig(), []subnet.Lease{l}, NewState())
	return s
}

// collides reports whether a and b claim the same, by the obvious test.
func collides(a, b subnet.Lease) bool {
	if a.Node == b.Node {
		return true
	}
	for _, p := range a.Paths {
		for _, q := range b.Paths {
			if p.MAC == q.MAC || p.Subnet.IsValid() && q.Subnet.IsValid() && p.Subnet.Overlaps(q.Subnet) || slices.Contains(a.Sources, q.Underlay.Unmap()) {
				return true
			}
		}
	}
	return false
}

// Any number of junk leases changes nothing for the peers they do not collide
// with, nor for those that are programmed already.
func TestJunkAffectsNobodyElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		peers, junk := drawMembers(t, 0), drawJunkList(t)
		have := NewState()
		incumbent := rapid.Bool().Draw(t, "programmed")
		if incumbent {
			have, _ = n.desired(peers, NewState())
		}
		got, _ := n.desired(append(slices.Clone(peers), junk...), have)
		for _, p := range peers {
			if !incumbent && slices.ContainsFunc(junk, func(j subnet.Lease) bool { return collides(p, j) }) {
				continue
			}
			alone, _ := n.desired([]subnet.Lease{p}, NewState())
			if err := filterCovers(got, alone); err != nil {
				t.Fatalf("junk %+v: %v", junk, err)
			}
			alone.Filters = got.Filters
			for _, c := range Diff(alone, got) {
				if c.Op != Delete {
					t.Fatalf("junk %+v\ntook from %+v:\n%s", junk, p, c)
				}
			}
		}
	})
}

// filterCovers reports whether got's table is alone's, which may have fewer
// prefix lengths.
func filterCovers(got, alone State) error {
	a, b := sorted(got.Filters), sorted(alone.Filters)
	if len(a) != len(b) {
		return fmt.Errorf("filters %v, not %v", a, b)
	}
	for i, f := range b {
		for family, n := range a[i].Lengths.All() {
			f.Lengths = f.Lengths.WithLength(family, n)
		}
		if f != a[i] {
			return fmt.Errorf("filter %s, not %s", a[i], f)
		}
	}
	return nil
}

// The same leases twice: what was resolved one way stays so, also when the
// node has begun to send another way.
func TestDesiredIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		leases := append(drawMembers(t, 0), drawJunkList(t)...)
		first, _ := n.desired(leases, NewState())
		second, _ := n.desired(leases, first)
		if c := Diff(second, first); !c.Empty() {
			t.Fatalf("the second pass would\n%s", c)
		}
	})
}

// Who is there stays whichever way the node sends from now on.
func TestASwitchKeepsIncumbents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		peers, junk := drawMembers(t, 0), drawJunkList(t)
		have, _ := n.desired(peers, NewState())
		next := n.redraw(t)
		want, _ := next.desired(peers, have)
		got, _ := next.desired(append(junk, peers...), have)
		for r := range want.Routes {
			if destinations(have.Routes).Has(r.Dst) && !got.Routes.Has(r) {
				t.Fatalf("junk %+v took %s; left\n%s", junk, r, got)
			}
		}
	})
}

// While one set of leases becomes another, and one way to send another, no
// route is ever without its neighbour and FDB entry, or without what lets the
// answers in; a peer in both is reached at every step, at its old or its new
// address; and no VXLAN device is there without the guard that goes with it.
func TestChangesKeepPeersReachable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		have, _ := n.desired(drawMembers(t, 0), NewState())
		if rapid.Bool().Draw(t, "switched") {
			n = n.redraw(t)
		}
		want, _ := n.desired(drawMembers(t, 1), have)
		changes := Diff(want, have)
		s := have.Clone()
		for i, c := range changes {
			if err := applyModel(s, c); err != nil {
				t.Fatal(err)
			}
			if i+1 < len(changes) && ofTable(c) && ofTable(changes[i+1]) {
				continue // one transaction
			}
			if err := errors.Join(reachable(s, have, want, staying(have, want)), guardFirst(s, want), welcome(s, have, want)); err != nil {
				t.Fatalf("after step %d (%s): %v\nof\n%s", i, c, err, changes)
			}
		}
	})
}

// ofTable reports whether c concerns table inet weft.
func ofTable(c Change) bool {
	switch c.Entry.(type) {
	case Filter, Node, Source:
		return true
	}
	return false
}

// staying returns the prefixes that both have routes to.
func staying(have, want State) []netip.Prefix {
	var out []netip.Prefix
	for dst := range destinations(have.Routes) {
		if destinations(want.Routes).Has(dst) {
			out = append(out, dst)
		}
	}
	return out
}

// reachable reports a route of s that leads nowhere, and one of stay that does
// not lead where it did before or will afterwards.
func reachable(s, have, want State, stay []netip.Prefix) error {
	before, after, at := ways(have), ways(want), ways(s)
	for r := range s.Routes {
		if _, ok := leads(s, r); !ok {
			return fmt.Errorf("%s leads nowhere", r)
		}
	}
	for _, dst := range stay {
		if !at[dst].IsValid() || at[dst] != before[dst] && at[dst] != after[dst] {
			return fmt.Errorf("%s goes to %v, which is neither %s nor %s", dst, at[dst], before[dst], after[dst])
		}
	}
	return nil
}

// ways returns where s sends each prefix.
func ways(s State) map[netip.Prefix]netip.Addr {
	out := map[netip.Prefix]netip.Addr{}
	for r := range s.Routes {
		if a, ok := leads(s, r); ok {
			out[r.Dst] = a
		}
	}
	return out
}

// guardFirst reports a VXLAN device without the filter that is wanted.
func guardFirst(s, want State) error {
	if len(s.Links) > 0 && len(want.Filters) > 0 && !maps.Equal(s.Filters, want.Filters) {
		return fmt.Errorf("devices %v without their guard", sorted(s.Links))
	}
	return nil
}

// welcome reports a route whose peer's packets are refused. A table that is
// made anew admits only who is wanted, and one that goes nobody new.
func welcome(s, have, want State) error {
	after := ways(want)
	if len(want.Filters) == 0 {
		after = nil
	}
	for dst, outer := range ways(s) {
		if dst.IsSingleIP() { // a stepping stone
			continue
		}
		renewed := !maps.Equal(have.Filters, want.Filters)
		if !admitted(s, outer, dst) && !(renewed && after[dst] != outer) {
			return fmt.Errorf("what %s sends from %s is refused", outer, dst)
		}
	}
	return nil
}

// To uninstall is to want nothing: everything goes, the filter last.
func TestUninstallLeavesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		have, _ := n.desired(drawMembers(t, 0), NewState())
		changes := Diff(NewState(), have)
		s := have.Clone()
		if err := applyAll(s, changes); err != nil || s.Counts().Total() != 0 {
			t.Fatalf("%v; left\n%s", err, s)
		}
		for i, c := range changes {
			if ofTable(c) && i != len(changes)-1 {
				t.Fatalf("the filter is not last:\n%s", changes)
			}
		}
	})
}
