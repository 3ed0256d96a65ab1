// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"math/rand"
	"net/netip"
	"reflect"
	"slices"
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
			s.Underlays = append(s.Underlays, Underlay{Dev: "eth0", Addr: under, MTU: 1500})
		}
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

func TestDesiredDoesNotDependOnTheOrderOfLeases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := drawSelf(t)
		leases := append(drawPeers(t, 0), drawJunkList(t)...)
		have, _ := Desired(self, testConfig(), append(drawPeers(t, 1), drawJunkList(t)...), NewState())
		want, problems := Desired(self, testConfig(), leases, have)
		shuffled := slices.Clone(leases)
		rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed"))).Shuffle(len(shuffled), reflect.Swapper(shuffled))
		got, gotProblems := Desired(self, testConfig(), shuffled, have)
		if !got.Equal(want) || !slices.Equal(problems, gotProblems) {
			t.Fatalf("leases %+v\n%s%v\nshuffled\n%s%v", leases, want, problems, got, gotProblems)
		}
	})
}

// What Desired returns is always something a kernel can hold, nothing in it
// is ours on a peer's account, and nobody's packets go to two places.
func TestDesiredIsConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := drawSelf(t)
		leases := append(append(drawPeers(t, 0), drawJunkList(t)...), self.Lease)
		s, problems := Desired(self, testConfig(), leases, NewState())
		if err := applyAll(NewState(), Diff(s, NewState())); err != nil {
			t.Fatalf("not something a kernel can hold: %v\n%s", err, s)
		}
		var seen []netip.Prefix
		for r := range s.Routes {
			if r.Proto != RouteProtocol || !r.Onlink || r.Metric != routeMetric(r.Dst) || r.Via != r.Dst.Addr() {
				t.Fatalf("route %s is not as it should be", r)
			}
			for _, o := range seen {
				if o.Overlaps(r.Dst) {
					t.Fatalf("%s overlaps %s", r.Dst, o)
				}
			}
			seen = append(seen, r.Dst)
			if _, ok := chain(s, r); !ok {
				t.Fatalf("%s leads nowhere:\n%s", r, s)
			}
			for _, p := range self.Lease.Paths {
				if p.Subnet.Overlaps(r.Dst) {
					t.Fatalf("%s overlaps our own %s", r, p.Subnet)
				}
			}
		}
		for f := range s.FDB {
			if f.MAC == mac(0) || f.MAC == mac(1) || f.Dst == host(4, 1) || f.Dst == host(6, 1) || !unicast(f.Dst) {
				t.Fatalf("FDB entry %s:\n%s", f, s)
			}
		}
		for i := 1; i < len(problems); i++ {
			if problems[i-1] == problems[i] || problems[i-1].Kind > problems[i].Kind {
				t.Fatalf("problems are not sorted: %v", problems)
			}
		}
	})
}

// chain follows r through its neighbour to the VTEP.
func chain(s State, r Route) (netip.Addr, bool) {
	for n := range s.Neighs {
		if n.Dev == r.Dev && n.IP == r.Via {
			for f := range s.FDB {
				if f.Dev == r.Dev && f.MAC == n.MAC {
					return f.Dst, true
				}
			}
		}
	}
	return netip.Addr{}, false
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
			if p.MAC == q.MAC || p.Subnet.IsValid() && q.Subnet.IsValid() && p.Subnet.Overlaps(q.Subnet) {
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
		self := drawSelf(t)
		peers, junk := drawPeers(t, 0), drawJunkList(t)
		have := NewState()
		incumbent := rapid.Bool().Draw(t, "programmed")
		if incumbent {
			have, _ = Desired(self, testConfig(), peers, NewState())
		}
		got, _ := Desired(self, testConfig(), append(slices.Clone(peers), junk...), have)
		for _, p := range peers {
			if !incumbent && slices.ContainsFunc(junk, func(j subnet.Lease) bool { return collides(p, j) }) {
				continue
			}
			for _, c := range Diff(entriesOf(self, p), got) {
				if c.Op != Delete {
					t.Fatalf("junk %+v\ntook from %+v:\n%s", junk, p, c)
				}
			}
		}
	})
}

// The same leases twice: what was resolved one way stays so.
func TestDesiredIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := drawSelf(t)
		leases := append(drawPeers(t, 0), drawJunkList(t)...)
		first, _ := Desired(self, testConfig(), leases, NewState())
		second, _ := Desired(self, testConfig(), leases, first)
		if c := Diff(second, first); !c.Empty() {
			t.Fatalf("the second pass would\n%s", c)
		}
	})
}

// While one set of leases becomes another, no route is ever without its
// neighbour and FDB entry, and a peer in both is reached at every step, at its
// old or its new address.
func TestChangesKeepPeersReachable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := drawSelf(t)
		have, _ := Desired(self, testConfig(), drawPeers(t, 0), NewState())
		want, _ := Desired(self, testConfig(), drawPeers(t, 1), have)
		var stay []Route
		for r := range have.Routes {
			for w := range want.Routes {
				if w.Dst == r.Dst {
					stay = append(stay, r, w)
				}
			}
		}
		changes := Diff(want, have)
		s := have.Clone()
		for i, c := range changes {
			if err := applyModel(s, c); err != nil {
				t.Fatal(err)
			}
			if err := reachable(s, have, want, stay); err != nil {
				t.Fatalf("after step %d (%s): %v\nof\n%s", i, c, err, changes)
			}
		}
	})
}

func reachable(s, have, want State, stay []Route) error {
	at := map[netip.Prefix]netip.Addr{}
	for r := range s.Routes {
		dst, ok := chain(s, r)
		if !ok {
			return fmt.Errorf("%s leads nowhere", r)
		}
		at[r.Dst] = dst
	}
	for i := 0; i < len(stay); i += 2 {
		before, _ := chain(have, stay[i])
		after, _ := chain(want, stay[i+1])
		if dst, ok := at[stay[i].Dst]; !ok || dst != before && dst != after {
			return fmt.Errorf("%s goes to %v, which is neither %s nor %s", stay[i].Dst, dst, before, after)
		}
	}
	return nil
}
