// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// walkDevices are all devices that a scenario may have.
func walkDevices() []string { return []string{"weft.1", "weft6.1", "weft.2", "weft6.2"} }

// scenario is the input of overlay.Desired.
type scenario struct {
	self   overlay.Self
	cfg    subnet.Config
	leases []subnet.Lease
	empty  bool // an uninstalled node
}

func (s scenario) desired(t testing.TB, have overlay.State) overlay.State {
	t.Helper()
	if s.empty {
		return overlay.NewState()
	}
	want, problems := overlay.Desired(s.self, s.cfg, s.leases, have)
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	return want
}

// edit changes a scenario.
type edit func(*scenario)

// named is a state of the walk: dual stack over both underlays, edited.
type named struct {
	name  string
	edits []edit
}

// walkStates are the states that the walk goes through.
func walkStates() []named {
	return []named{
		{"empty", []edit{func(s *scenario) { s.empty = true }}},
		{"dual", nil},
		{"IPv4", []edit{only(subnet.IPv4)}},
		{"IPv6", []edit{only(subnet.IPv6)}},
		{"both over IPv4", []edit{over(subnet.IPv4)}},
		{"both over IPv6", []edit{over(subnet.IPv6)}},
		{"no peers", []edit{peers()}},
		{"one peer less", []edit{peers(2, 3)}},
		{"one peer more", []edit{peers(2, 3, 4, 5)}},
		{"other peers", []edit{peers(6, 7, 8)}},
		{"60 peers", []edit{peers(upTo(61)...)}},
		{"peer MAC changed", []edit{peer(2, func(p *subnet.Path) { p.MAC[4] = 9 })}},
		{"peer address changed", []edit{peer(2, func(p *subnet.Path) { p.Underlay = underlay(subnet.FamilyOf(p.Underlay), 200) })}},
		{"peers swapped addresses", []edit{swapped}},
		{"peer subnet changed", []edit{peer(3, func(p *subnet.Path) { p.Subnet = pods(subnet.FamilyOf(p.Subnet.Addr()), 33) })}},
		{"own subnet changed", []edit{own(func(p *subnet.Path) { p.Subnet = pods(subnet.FamilyOf(p.Subnet.Addr()), 100) })}},
		{"own MAC changed", []edit{own(func(p *subnet.Path) { p.MAC[4] = 7 })}},
		{"MTU 1400", []edit{func(s *scenario) { s.cfg.Backend.MTU = 1400 }}},
		{"MTU without IPv6", []edit{only(subnet.IPv4), func(s *scenario) { s.cfg.Backend.MTU = 1200 }}},
		{"port 4789", []edit{func(s *scenario) { s.cfg.Backend.Port = 4789 }}},
		{"VNI 2", []edit{vni(2)}},
		{"learning", []edit{func(s *scenario) { s.cfg.Backend.Learning = true }}},
		{"no GRO", []edit{func(s *scenario) { s.self.NoGRO = true }}},
		{"GBP", []edit{func(s *scenario) { s.cfg.Backend.GBP = true }}},
		{"underlay moved", []edit{moved}},
		{"IPv4 on other port", []edit{only(subnet.IPv4), func(s *scenario) { s.cfg.Backend.Port = 4789 }}},
	}
}

func (n named) scenario() scenario {
	s := scenario{
		self: overlay.Self{
			Underlays: []overlay.Underlay{{Dev: "u0", Addr: ip("10.0.0.1"), MTU: 1500}, {Dev: "u0", Addr: ip("fd00::1"), MTU: 1500}},
			Names:     overlay.Names{subnet.IPv4: "weft.", subnet.IPv6: "weft6."},
		},
		cfg: subnet.Config{
			Networks: []subnet.Network{{Prefix: prefix("10.42.0.0/16"), SubnetLen: 24}, {Prefix: prefix("fd42::/48"), SubnetLen: 64}},
			Backend:  subnet.BackendConfig{Type: subnet.BackendVXLAN, VNI: 1, Port: 8472},
		},
	}
	peers(2, 3, 4)(&s)
	s.self.Lease = nodeLease(1)
	for _, e := range n.edits {
		e(&s)
	}
	return s
}

func pods(f subnet.Family, n int) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(n), 0}), 24)
	}
	return prefix(fmt.Sprintf("fd42:0:0:%x::/64", n))
}

func underlay(f subnet.Family, n int) netip.Addr {
	if f == subnet.IPv4 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
	}
	return ip(fmt.Sprintf("fd00::%x", n))
}

func nodeLease(n int) subnet.Lease {
	l := subnet.Lease{Node: fmt.Sprintf("node%d", n), Instance: "i", Backend: subnet.BackendVXLAN}
	for _, f := range subnet.Families() {
		l.Paths = append(l.Paths, subnet.Path{
			Subnet: pods(f, n), Underlay: underlay(f, n), MAC: subnet.MAC{0x0a, byte(f), 0, 0, 0, byte(n)}, VNI: 1,
		})
	}
	return l
}

func upTo(n int) []int {
	var out []int
	for i := 2; i <= n; i++ {
		out = append(out, i)
	}
	return out
}

func peers(numbers ...int) edit {
	return func(s *scenario) {
		s.leases = nil
		for _, n := range numbers {
			s.leases = append(s.leases, nodeLease(n))
		}
	}
}

func peer(n int, f func(*subnet.Path)) edit {
	return func(s *scenario) {
		for _, l := range s.leases {
			if l.Node == fmt.Sprintf("node%d", n) {
				for i := range l.Paths {
					f(&l.Paths[i])
				}
			}
		}
	}
}

func own(f func(*subnet.Path)) edit {
	return func(s *scenario) {
		for i := range s.self.Lease.Paths {
			f(&s.self.Lease.Paths[i])
		}
	}
}

// swapped lets two peers exchange their underlay addresses and MACs.
func swapped(s *scenario) {
	a, b := s.leases[0].Paths, s.leases[1].Paths
	for i := range a {
		a[i].Underlay, b[i].Underlay = b[i].Underlay, a[i].Underlay
		a[i].MAC, b[i].MAC = b[i].MAC, a[i].MAC
	}
}

// moved puts the node and its peers on another pair of devices.
func moved(s *scenario) {
	s.self.Underlays = []overlay.Underlay{{Dev: "w0", Addr: ip("10.1.0.1"), MTU: 1500}, {Dev: "w0", Addr: ip("fd01::1"), MTU: 1500}}
	own(func(p *subnet.Path) {
		p.Underlay = s.self.Underlays[map[subnet.Family]int{subnet.IPv4: 0, subnet.IPv6: 1}[subnet.FamilyOf(p.Underlay)]].Addr
	})(s)
}

// each applies f to the paths of every lease.
func (s *scenario) each(f func([]subnet.Path) []subnet.Path) {
	s.self.Lease.Paths = f(s.self.Lease.Paths)
	for i := range s.leases {
		s.leases[i].Paths = f(s.leases[i].Paths)
	}
}

// vni gives the network another VNI.
func vni(n uint32) edit {
	return func(s *scenario) {
		s.cfg.Backend.VNI = n
		s.each(func(paths []subnet.Path) []subnet.Path {
			for i := range paths {
				paths[i].VNI = n
			}
			return paths
		})
	}
}

// only leaves one pod family and its underlay.
func only(f subnet.Family) edit {
	return func(s *scenario) {
		s.each(func(paths []subnet.Path) []subnet.Path {
			for _, p := range paths {
				if subnet.FamilyOf(p.Underlay) == f {
					return []subnet.Path{p}
				}
			}
			return nil
		})
	}
}

// over carries both pod families over the underlay of one.
func over(f subnet.Family) edit {
	return func(s *scenario) {
		s.each(func(paths []subnet.Path) []subnet.Path {
			vtep, _ := subnet.Lease{Paths: paths}.VTEP(f)
			for i := range paths {
				paths[i].Underlay, paths[i].MAC = vtep.Underlay, vtep.MAC
			}
			return paths
		})
	}
}

// seed returns the seed of a random test: WEFT_SEED, or a new one. It is
// printed when the test fails.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := rand.Uint64()
	if s := os.Getenv("WEFT_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("WEFT_SEED: %v", err)
		}
	}
	t.Logf("WEFT_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// walkNetns prepares the namespace of a walk: two pairs of devices.
func walkNetns(t *testing.T) {
	t.Helper()
	addUnderlay(t)
	for _, c := range []string{
		"ip link add w0 type veth peer name w1", "ip link set w0 addrgenmode none", "ip link set w1 addrgenmode none",
		"ip addr add 10.1.0.1/24 dev w0", "ip addr add fd01::1/64 dev w0 nodad", "ip link set w0 up", "ip link set w1 up",
	} {
		run(t, c)
	}
}

// TestWalk goes through the named states in random order. After each step,
// the dump is what is desired, and a further pass writes nothing: an outside
// observer hears nothing of it.
func TestWalk(t *testing.T) {
	t.Parallel()
	enterNetns(t)
	walkNetns(t)
	walk(t, 200)
}

func walk(t *testing.T, steps int) {
	k := newKernel(t, walkDevices()...)
	m := newMonitor(t)
	r, states := seed(t), walkStates()
	var at named
	written, visited := 0, map[string]bool{}
	for range steps {
		next := states[r.IntN(len(states))]
		written += step(t, k, m, at, next)
		if t.Failed() {
			return
		}
		at, visited[next.name] = next, true
	}
	if len(visited) < 12 || written == 0 {
		t.Errorf("visited %d states and heard of %d writes: this proves nothing", len(visited), written)
	}
	t.Logf("%d states, %d notifications", len(visited), written)
}

// step goes from one state to the next and returns how much an observer heard
// of it.
func step(t *testing.T, k *Kernel, m *monitor, from, to named) (written int) {
	t.Helper()
	name := from.name + " -> " + to.name
	s := to.scenario()
	have := mustDump(t, k)
	var made overlay.Changes
	for left := passes(from.scenario(), s); left > 0; left-- {
		changes := overlay.Diff(s.desired(t, have), have)
		if err := k.Apply(t.Context(), changes); err != nil && left == 1 {
			t.Fatalf("%s: %v\nchanges\n%s", name, err, changes)
		}
		made = append(made, changes...)
		have = mustDump(t, k)
	}
	want := s.desired(t, have)
	second := overlay.Diff(want, have)
	if !have.Equal(want) || !second.Empty() {
		t.Fatalf("%s: changes\n%sleave\n%swant\n%sstill to do\n%s", name, made, have, want, second)
	}
	written = m.settle(made)
	mustApply(t, k, second...)
	mustDump(t, k)
	if noise := m.drain(); len(noise) > 0 {
		t.Fatalf("%s: a pass with nothing to do wrote %q", name, noise)
	}
	return written
}

// passes is how many passes a step takes: one, or two where devices that
// differ in VNI and GBP follow each other on one UDP port. They cannot share
// the socket (vxlan_find_sock, drivers/net/vxlan/vxlan_core.c), and the old
// one goes last.
func passes(from, to scenario) int {
	a, b := from.cfg.Backend, to.cfg.Backend
	if a.VNI != b.VNI && a.GBP != b.GBP && a.Port == b.Port {
		return 2
	}
	return 1
}

// TestWalkPairs goes from each state to each other, and to itself, which the
// random walk may miss. The order is a de Bruijn sequence, so that it takes
// one step a pair.
func TestWalkPairs(t *testing.T) {
	t.Parallel()
	enterNetns(t)
	walkNetns(t)
	k := newKernel(t, walkDevices()...)
	m := newMonitor(t)
	states := walkStates()
	var order []int
	for i := range states {
		order = append(order, i)
		for j := i + 1; j < len(states); j++ {
			order = append(order, i, j)
		}
	}
	var at named
	for _, i := range append(order, order[0]) {
		step(t, k, m, at, states[i])
		at = states[i]
	}
}
