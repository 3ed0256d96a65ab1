// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files in testdata instead of comparing")
	flag.Parse()
	os.Exit(m.Run())
}

// golden compares got with testdata/name, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./overlay -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// scenario is one golden file: what a node desires, from what, and the
// changes from the state before (nothing, or what before says).
type scenario struct {
	name   string
	self   Self
	cfg    func(*subnet.Config)
	leases []subnet.Lease
	before func(s *scenario) State
}

func (s scenario) config() subnet.Config {
	c := testConfig()
	if s.cfg != nil {
		s.cfg(&c)
	}
	return c
}

func (s scenario) render() string {
	have := NewState()
	if s.before != nil {
		have = s.before(&s)
	}
	want, problems := Desired(s.self, s.config(), s.leases, have)
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n-- self --\n%s", s.name, renderLease(s.self.Lease))
	for _, u := range s.self.Underlays {
		fmt.Fprintf(&b, "underlay %s dev %s net %s mtu %d\n", u.Addr, u.Dev, u.Net, u.MTU)
	}
	if c := s.config().Backend; c.Type != subnet.BackendVXLAN || c.DirectRouting {
		fmt.Fprintf(&b, "backend %s, direct routing %t\n", c.Type, c.DirectRouting)
	}
	b.WriteString("\n-- leases --\n")
	for _, l := range s.leases {
		b.WriteString(renderLease(l))
	}
	fmt.Fprintf(&b, "\n-- desired --\n%s\n-- problems --\n", want)
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	if s.before != nil {
		fmt.Fprintf(&b, "\n-- changes --\n%s", Diff(want, have))
	}
	return b.String()
}

func renderLease(l subnet.Lease) string {
	var b strings.Builder
	for _, p := range l.Paths {
		fmt.Fprintf(&b, "%s/%s %s %s via %s mac %s vni %d\n", l.Node, l.Instance, l.Backend, p.Subnet, p.Underlay, p.MAC, p.VNI)
	}
	if len(l.Sources) > 0 {
		fmt.Fprintf(&b, "%s/%s sources %v\n", l.Node, l.Instance, l.Sources)
	}
	return b.String()
}

// lease is a peer's: node n, with pairs of pod and underlay family.
func lease(n int, paths ...[2]subnet.Family) subnet.Lease {
	l := subnet.Lease{Node: fmt.Sprintf("node-%d", n), Instance: "i", Backend: subnet.BackendVXLAN}
	for _, p := range paths {
		l.Paths = append(l.Paths, subnet.Path{Subnet: pods(p[0], n), Underlay: host(p[1], n), MAC: mac(16*n + int(p[1])), VNI: 1})
	}
	return l
}

// edit returns l with f applied to each of its paths.
func edit(l subnet.Lease, f func(*subnet.Path)) subnet.Lease {
	l = l.Clone()
	for i := range l.Paths {
		f(&l.Paths[i])
	}
	return l
}

// after is the desired state of the same node with other leases.
func after(leases ...subnet.Lease) func(*scenario) State {
	return func(s *scenario) State {
		have, _ := Desired(s.self, s.config(), leases, NewState())
		return have
	}
}

func mixedCluster() []subnet.Lease {
	flannel := lease(7, [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})
	flannel.Node, flannel.Instance = "", ""
	flannel = edit(flannel, func(p *subnet.Path) { p.VNI = 0 })
	return []subnet.Lease{
		lease(2, [2]subnet.Family{4, 4}), lease(3, [2]subnet.Family{6, 6}), lease(4, [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}),
		lease(5, [2]subnet.Family{4, 4}, [2]subnet.Family{6, 4}), lease(6, [2]subnet.Family{4, 6}), flannel,
	}
}

// wrongPeers has one peer for each thing that can be wrong, and a right one.
func wrongPeers(self Self) []subnet.Lease {
	v4, dual := [2]subnet.Family{4, 4}, [][2]subnet.Family{{4, 4}, {6, 6}}
	set := func(n int, f func(*subnet.Path)) subnet.Lease { return edit(lease(n, v4), f) }
	clone := lease(30, dual...)
	clone.Node, clone.Instance = self.Lease.Node, "another"
	wireguard := lease(31, v4)
	wireguard.Backend = subnet.BackendWireGuard
	sources := lease(35, v4)
	sources.Sources = []netip.Addr{addr("10.0.0.1"), addr("10.0.0.35"), addr("10.0.0.2"), addr("192.168.0.35"), addr("10.5.1.9"), addr("224.0.0.9"), addr("192.0.2.1")}
	twice := lease(33, v4)
	twice.Node = "node-32"
	half := lease(34, dual...)
	half.Paths[0].MAC = subnet.MAC{}
	return []subnet.Lease{
		self.Lease,
		lease(2, dual...),
		set(10, func(p *subnet.Path) { p.Subnet = prefix("10.5.1.128/25") }),
		set(11, func(p *subnet.Path) { p.Subnet = prefix("10.5.2.0/25") }), // loses to node-2: higher underlay address
		set(12, func(p *subnet.Path) { p.Subnet = prefix("10.6.0.0/24") }),
		set(13, func(p *subnet.Path) { p.Subnet = prefix("10.0.0.0/8") }),
		set(14, func(p *subnet.Path) { p.Underlay = addr("10.0.0.1") }),
		set(15, func(p *subnet.Path) { p.Underlay = addr("224.0.0.5") }),
		set(16, func(p *subnet.Path) { p.Underlay = addr("10.5.16.1") }),
		set(17, func(p *subnet.Path) { p.MAC = subnet.MAC{1, 0, 0x5e} }),
		set(18, func(p *subnet.Path) { p.MAC = self.Lease.Paths[0].MAC }),
		set(19, func(p *subnet.Path) { p.MAC = mac(16*2 + 4) }), // node-2's
		set(20, func(p *subnet.Path) { p.VNI = 7 }),
		set(21, func(p *subnet.Path) { p.Underlay = subnet.Path{}.Underlay }),
		edit(lease(22, [2]subnet.Family{6, 6}), func(p *subnet.Path) { p.Underlay = addr("fe80::22") }),
		clone, wireguard, lease(32, v4), twice, half, sources, edit(hostGW(lease(37, v4)), func(p *subnet.Path) { p.Underlay = host(4, 300) }), hostGW(lease(36, [2]subnet.Family{4, 6})),
	}
}

func flannelNames(s Self) Self {
	s.Names = Names{subnet.IPv4: "flannel.", subnet.IPv6: "flannel-v6."}
	return s
}

// flannelState is what flannel leaves on a node: no protocol, no metric.
func flannelState(s *scenario) State {
	want, _ := Desired(s.self, s.config(), s.leases, NewState())
	have := want.Clone()
	have.Routes = Set[Route]{}
	for r := range want.Routes {
		r.Proto, r.Metric = protoBoot, 0
		have.Routes.Add(r)
	}
	have.Filters, have.Nodes, have.Sources, have.Pods = Set[Filter]{}, Set[Node]{}, Set[Source]{}, Set[Pods]{}
	stale := lease(9, [2]subnet.Family{4, 4}).Paths[0]
	have.FDB.Add(FDB{"flannel.1", stale.MAC, stale.Underlay})
	have.Neighs.Add(Neigh{"flannel.1", stale.Subnet.Addr(), stale.MAC})
	have.Routes.Add(Route{Dev: "flannel.1", Dst: stale.Subnet, Via: stale.Subnet.Addr(), Onlink: true, Proto: protoBoot})
	return have
}

func scenarios() []scenario {
	v4, v6 := [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}
	dual, six, four := guardedSelf(v4, v6), guardedSelf([2]subnet.Family{6, 4}), guardedSelf([2]subnet.Family{4, 6})
	low := guardedSelf(v4, v6)
	low.Underlays = slices.Clone(low.Underlays)
	low.Underlays[1].MTU = 1340
	incumbent := lease(40, v4) // loses to node-3 unless it is there first
	rival := edit(lease(3, v4), func(p *subnet.Path) { p.Subnet = prefix("10.5.40.0/23") })
	return append(switches(dual), []scenario{
		{name: "ipv4", self: guardedSelf(v4), leases: []subnet.Lease{lease(2, v4), lease(3, v4)}},
		{name: "ipv6", self: guardedSelf(v6), leases: []subnet.Lease{lease(2, v6), lease(3, v6)}},
		{name: "dual stack", self: dual, leases: []subnet.Lease{lease(2, v4, v6), lease(3, v4, v6)}},
		{name: "ipv6 pods over an ipv4 underlay", self: six, leases: []subnet.Lease{
			lease(2, [2]subnet.Family{6, 4}), lease(3, v4, v6), lease(4, v6)}},
		{name: "ipv4 pods over an ipv6 underlay", self: four, leases: []subnet.Lease{
			lease(2, [2]subnet.Family{4, 6}), lease(3, v4, v6), lease(4, v4)}},
		{name: "mixed cluster", self: dual, leases: mixedCluster()},
		{name: "mixed cluster seen from ipv4", self: guardedSelf(v4), leases: mixedCluster()},
		{name: "flannel names", self: flannelNames(dual), leases: []subnet.Lease{lease(2, v4, v6)}},
		{name: "taken over from flannel", self: flannelNames(dual), leases: []subnet.Lease{lease(2, v4, v6)}, before: flannelState},
		{name: "peers with problems", self: dual, leases: wrongPeers(dual)},
		{name: "overlap without an incumbent", self: dual, leases: []subnet.Lease{incumbent, rival}},
		{name: "overlap with an incumbent", self: dual, leases: []subnet.Lease{incumbent, rival}, before: after(incumbent)},
		{name: "backend options", self: dual, leases: []subnet.Lease{
			edit(lease(2, v4), func(p *subnet.Path) { p.VNI = 4096 })}, cfg: func(c *subnet.Config) {
			c.Backend = subnet.BackendConfig{Type: subnet.BackendVXLAN, VNI: 4096, Port: 4789, MTU: 1400, Learning: true, GBP: true, DirectRouting: true}
		}},
		{name: "underlay too small for ipv6", self: low, leases: []subnet.Lease{lease(2, v4, v6)}},
		{name: "peer with a new MAC", self: dual, leases: []subnet.Lease{
			edit(lease(2, v4, v6), func(p *subnet.Path) { p.MAC[0] = 0x0e }), lease(3, v4, v6)}, before: after(lease(2, v4, v6), lease(3, v4, v6))},
		{name: "peer with a new underlay address", self: dual, leases: []subnet.Lease{
			edit(lease(2, v4, v6), func(p *subnet.Path) { p.Underlay = host(subnet.FamilyOf(p.Underlay), 77) })}, before: after(lease(2, v4, v6))},
		{name: "peer leaves and another joins", self: dual, leases: []subnet.Lease{lease(3, v4, v6)}, before: after(lease(2, v4, v6))},
		{name: "subnet leased to another node", self: dual, leases: []subnet.Lease{
			edit(lease(3, v4), func(p *subnet.Path) { p.Subnet = pods(4, 2) })}, before: after(lease(2, v4))},
		{name: "underlay MTU lowered", self: dual, leases: []subnet.Lease{lease(2, v4, v6)}, before: func(s *scenario) State {
			jumbo := s.self
			jumbo.Underlays = slices.Clone(jumbo.Underlays)
			for i := range jumbo.Underlays {
				jumbo.Underlays[i].MTU = 9000
			}
			have, _ := Desired(jumbo, s.config(), s.leases, NewState())
			return have
		}},
		{name: "open networks", self: dual, leases: []subnet.Lease{lease(3, v4, v6), lease(4, v4)}, before: func(s *scenario) State {
			have, _ := Desired(dual, s.config(), []subnet.Lease{lease(2, v4, v6), lease(3, v4, v6)}, NewState())
			return have
		}, cfg: func(c *subnet.Config) { *c = opened(*c, "46") }},
		{name: "a network is known by now", self: dual, leases: []subnet.Lease{lease(2, v4, v6)}, before: func(s *scenario) State {
			have, _ := Desired(dual, opened(s.config(), "46"), s.leases, NewState())
			return have
		}},
		{name: "uninstalled", before: func(s *scenario) State {
			have, _ := Desired(dual, s.config(), []subnet.Lease{lease(2, v4, v6)}, NewState())
			return have
		}},
	}...)
}

func TestGolden(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			golden(t, strings.ReplaceAll(s.name, " ", "-")+".golden", s.render())
		})
	}
}

// A golden file that no scenario writes is a mistake.
func TestGoldenFilesAreUsed(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.golden"))
	if err != nil {
		t.Fatal(err)
	}
	if want := len(scenarios()); len(files) != want {
		t.Errorf("%d golden files, %d scenarios", len(files), want)
	}
}
