// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// in runs f with the test's thread in n.
func (n *namespace) in(f func()) {
	n.t.Helper()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		n.t.Fatal(err)
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		n.t.Fatal(err)
	}
	f()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		n.t.Fatal(err)
	}
}

// twoNodes makes node 1 of the test's namespace and node 2 of another, with
// one link between their devices u0, and an address of a pod on each: 10.42.n.5
// and fd42:0:0:n::5.
func twoNodes(t testing.TB) (one, two *Kernel, other *namespace) {
	t.Helper()
	other = newNamespace(t)
	run(t, "ip link add u0 type veth peer name u0 netns "+other.path())
	for n, do := range map[int]func(string) string{1: func(c string) string { return run(t, c) }, 2: other.run} {
		for _, c := range []string{
			"ip link set lo up", "ip link set u0 addrgenmode none",
			fmt.Sprintf("ip addr add 10.0.0.%d/24 dev u0", n), fmt.Sprintf("ip addr add fd00::%d/64 dev u0 nodad", n),
			fmt.Sprintf("ip addr add fe80::%d/64 dev u0 nodad", n), "ip link set u0 up",
			fmt.Sprintf("ip addr add 10.42.%d.5/32 dev lo", n), fmt.Sprintf("ip addr add fd42:0:0:%d::5/128 dev lo nodad", n),
		} {
			do(c)
		}
	}
	one = newKernel(t, "weft.1", "weft6.1")
	other.in(func() { two = newKernel(t, "weft.1", "weft6.1") })
	return one, two, other
}

// node is the scenario of one of two nodes.
func node(self, peer int, direct bool) scenario {
	s := named{}.scenario()
	peers(peer)(&s)
	s.self.Lease = nodeLease(self)
	for i, f := range subnet.Families() {
		bits := map[subnet.Family]int{subnet.IPv4: 24, subnet.IPv6: 64}[f]
		a := underlay(f, self)
		s.self.Underlays[i] = overlay.Underlay{Dev: "u0", Addr: a, Net: netip.PrefixFrom(a, bits).Masked(), MTU: 1500}
	}
	s.cfg.Backend.DirectRouting = direct
	return s
}

// converge makes one pass, and fails if a second has anything to do.
func converge(t testing.TB, k *Kernel, s scenario) {
	t.Helper()
	have := mustDump(t, k)
	mustApply(t, k, overlay.Diff(s.desired(t, have), have)...)
	have = mustDump(t, k)
	if left := overlay.Diff(s.desired(t, have), have); !left.Empty() {
		t.Fatalf("still to do\n%s", left)
	}
}

// stream is a stream of numbered packets from one pod to another, which sends
// each one back.
type stream struct {
	t            testing.TB
	conn, echo   *net.UDPConn
	sent         atomic.Uint64
	back         chan map[uint64]bool
	stop, halted chan struct{}
}

// startStream sends a packet each 200 µs from the test's namespace.
func startStream(t testing.TB, other *namespace, f subnet.Family) *stream {
	t.Helper()
	port := func(n int) *net.UDPAddr {
		a := ip(fmt.Sprintf("10.42.%d.5", n))
		if f == subnet.IPv6 {
			a = ip(fmt.Sprintf("fd42:0:0:%d::5", n))
		}
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 7000))
	}
	s := &stream{t: t, back: make(chan map[uint64]bool, 1), stop: make(chan struct{}), halted: make(chan struct{})}
	var err error
	other.in(func() { s.echo, err = net.ListenUDP("udp", port(2)) })
	if err != nil {
		t.Fatal(err)
	}
	if s.conn, err = net.DialUDP("udp", port(1), port(2)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.UDPConn{s.conn, s.echo} {
		if err := c.SetReadBuffer(4 << 20); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	go s.reflect()
	go s.receive()
	go s.send()
	return s
}

func (s *stream) reflect() {
	buf := make([]byte, 64)
	for {
		n, from, err := s.echo.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // closed
		}
		_, _ = s.echo.WriteToUDPAddrPort(buf[:n], from) // a failure is a packet lost
	}
}

func (s *stream) receive() {
	seen, buf := map[uint64]bool{}, make([]byte, 64)
	for {
		n, err := s.conn.Read(buf)
		switch {
		case n == 8:
			seen[binary.BigEndian.Uint64(buf)] = true
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			s.back <- seen
			return
		}
	}
}

func (s *stream) send() {
	defer close(s.halted)
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		_, _ = s.conn.Write(binary.BigEndian.AppendUint64(nil, s.sent.Load())) // a failure is a packet lost
		s.sent.Add(1)
	}
}

// end stops the stream and returns how many packets were sent, and how many
// did not come back.
func (s *stream) end() (sent, lost int) {
	s.t.Helper()
	close(s.stop)
	<-s.halted
	if err := s.conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	back := <-s.back
	n := int(s.sent.Load())
	return n, n - len(back)
}

// TestSwitchLosesNothing: a peer's route moves from VXLAN to the underlay and
// back, 100 times each way, first on one node and then on both, and no packet
// of either family is lost in either direction.
func TestSwitchLosesNothing(t *testing.T) {
	enterNetns(t)
	one, two, other := twoNodes(t)
	converge(t, one, node(1, 2, false))
	converge(t, two, node(2, 1, false))
	for name, both := range map[string]bool{"one-sided": false, "both sides": true} {
		var streams []*stream
		for _, f := range subnet.Families() {
			streams = append(streams, startStream(t, other, f))
		}
		changed := 0
		for i := range 200 {
			before := mustDump(t, one)
			converge(t, one, node(1, 2, i%2 == 0))
			for r := range mustDump(t, one).Routes {
				if !before.Routes.Has(r) && r.Dev == "u0" == (i%2 == 0) {
					changed++
				}
			}
			if both {
				converge(t, two, node(2, 1, i%2 == 0))
			}
		}
		if changed != 400 {
			t.Errorf("%s: %d routes changed device, want 400", name, changed)
		}
		for i, f := range subnet.Families() {
			sent, lost := streams[i].end()
			t.Logf("%s, %v: %d packets, %d lost", name, f, sent, lost)
			if lost != 0 || sent < 200 {
				t.Errorf("%s, %v: %d of %d packets lost", name, f, lost, sent)
			}
			_, _ = streams[i].conn.Close(), streams[i].echo.Close()
		}
	}
}

func directRoute(dst, via string) overlay.Route {
	return overlay.Route{Dev: "u0", Dst: prefix(dst), Via: ip(via), Metric: 1100, Onlink: true, Proto: overlay.RouteProtocol}
}

// TestDirectRoutes: a route with our mark is ours on whatever device, and
// without it nothing on another's device is.
func TestDirectRoutes(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	for _, c := range []struct{ dst, via, other, family string }{
		{"10.42.2.0/24", "10.0.0.2", "10.0.0.3", "-4"}, {"fd42:0:0:2::/64", "fd00::2", "fd00::3", "-6"},
	} {
		r := directRoute(c.dst, c.via)
		mustApply(t, k, add(r), add(r))
		wantState(t, k, state(r))
		moved := directRoute(c.dst, c.other)
		mustApply(t, k, replace(r, moved))
		wantState(t, k, state(moved))
		mustApply(t, k, del(r)) // not that one
		wantState(t, k, state(moved))
		mustApply(t, k, del(moved), del(moved))
		wantState(t, k, overlay.NewState())

		// Another's, in its place and beside it.
		foreign := fmt.Sprintf("ip %s route add %s via %s dev u0 proto static metric 1100", c.family, c.dst, c.other)
		run(t, foreign)
		shown := run(t, "ip "+c.family+" route show "+c.dst)
		wantState(t, k, overlay.NewState())
		for _, op := range []overlay.Op{overlay.Add, overlay.Replace} {
			wantErr(t, k.Apply(t.Context(), overlay.Changes{{Op: op, Entry: r}}), op.String()+" route "+c.dst, "the route on u0", "is not ours")
		}
		unmarked := r
		unmarked.Proto = unix.RTPROT_STATIC
		wantErr(t, k.Apply(t.Context(), overlay.Changes{add(unmarked), del(unmarked)}), "device u0 is not one")
		if now := run(t, "ip "+c.family+" route show "+c.dst); now != shown {
			t.Errorf("another's route was %q, is %q", shown, now)
		}
		run(t, strings.Replace(foreign, "add", "del", 1))
	}
	// A route there does not make the device ours.
	err := k.Apply(t.Context(), overlay.Changes{add(directRoute("10.42.2.0/24", "10.0.0.2")),
		add(overlay.Neigh{Dev: "u0", IP: ip("10.0.0.9"), MAC: mac(9)}), add(overlay.Addr{Dev: "u0", Prefix: prefix("10.0.0.9/32")})})
	wantErr(t, err, "add neigh 10.0.0.9", "add addr 10.0.0.9/32", "device u0 is not one that weft was told to look after")
	wantState(t, k, state(directRoute("10.42.2.0/24", "10.0.0.2")))
	mustApply(t, k, del(overlay.Route{Dev: "gone", Dst: prefix("10.42.2.0/24"), Via: ip("10.0.0.2"), Metric: 1, Onlink: true, Proto: 87}))
}

// TestFlannelsDirectRoutes: what flannel's host-gw and DirectRouting leave is
// taken over without a gap, and static routes that only look alike stay.
func TestFlannelsDirectRoutes(t *testing.T) {
	enterNetns(t)
	one, two, other := twoNodes(t)
	converge(t, two, node(2, 1, true))
	for _, c := range []string{
		"ip route add 10.42.2.0/24 via 10.0.0.2", "ip -6 route add fd42:0:0:2::/64 via fd00::2", // flannel's
		"ip route add 10.42.9.0/24 via 10.0.0.2", "ip -6 route add fd42:0:0:9::/64 via fd00::2", // of a peer we know nothing of
		"ip route add 192.0.2.0/24 via 10.0.0.2", "ip route add default via 10.0.0.2",
		"ip route add 10.42.2.0/24 via 10.0.0.2 metric 50 proto static", "ip route add 10.42.2.0/24 via 10.0.0.77 metric 5000",
	} {
		run(t, c)
	}
	show := func() string { return run(t, "ip route") + run(t, "ip -6 route") }
	before := show()
	var streams []*stream
	for _, f := range subnet.Families() {
		streams = append(streams, startStream(t, other, f))
	}
	more := func() { // some packets before, and some after
		for _, s := range streams {
			from := s.sent.Load()
			eventually(t, "packets to be sent", func() bool { return s.sent.Load() >= from+50 })
		}
	}
	more()
	converge(t, one, node(1, 2, true))
	more()
	for i, f := range subnet.Families() {
		if sent, lost := streams[i].end(); lost != 0 || sent < 100 {
			t.Errorf("%v: %d of %d packets lost", f, lost, sent)
		}
	}
	ours := 0
	var rest []string
	for line := range strings.Lines(show()) {
		if strings.Contains(line, "proto 87") {
			ours++
		} else if !strings.Contains(line, "weft") {
			rest = append(rest, line)
		}
	}
	var want []string
	for line := range strings.Lines(before) {
		if !strings.HasPrefix(line, "10.42.2.0/24 via 10.0.0.2 dev u0 \n") && !strings.HasPrefix(line, "fd42:0:0:2::/64") {
			want = append(want, line)
		}
	}
	if strings.Join(rest, "") != strings.Join(want, "") || ours != 2 {
		t.Errorf("%d routes of ours; of others\n%swant\n%s", ours, strings.Join(rest, ""), strings.Join(want, ""))
	}
}

// bigTable makes a node with 50,000 routes of somebody else and none of ours.
func bigTable(b *testing.B) *Kernel {
	b.Helper()
	enterNetns(b)
	addUnderlay(b)
	k, u0 := newKernel(b, "weft.1"), ifindex(b, "u0")
	for i := range 50_000 {
		r := overlay.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Via: ip("10.0.0.9"), Proto: 186}
		if err := k.conn.change(b.Context(), routeRequest(r, u0, 0, false)); err != nil {
			b.Fatal(err)
		}
	}
	return k
}

// BenchmarkDumpBigTable is the cost of an audit there.
func BenchmarkDumpBigTable(b *testing.B) {
	k := bigTable(b)
	for b.Loop() {
		if _, err := k.Dump(b.Context(), overlay.Digest{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProbeBigTable is the cost of a probe there.
func BenchmarkProbeBigTable(b *testing.B) {
	bigTable(b)
	for b.Loop() {
		if _, err := Probe(b.Context(), probeSpec()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestOtherAgentsRoutes: two agents of two VNIs share a network namespace, and
// neither takes the other's routes for its own stale ones.
func TestOtherAgentsRoutes(t *testing.T) {
	enterNetns(t)
	one, _, _ := twoNodes(t)
	run(t, "ip link add weft.2 type vxlan id 2 local 10.0.0.1 dev u0 dstport 8473 nolearning")
	run(t, "ip link set weft.2 up")
	run(t, "ip route add 10.99.3.0/24 via 10.99.3.0 dev weft.2 onlink proto 87 metric 3000")
	run(t, "ip route add 10.42.99.0/24 via 10.0.0.99 dev u0 proto 87 metric 3000")
	converge(t, one, node(1, 2, false))
	if got := run(t, "ip route show proto 87"); !strings.Contains(got, "10.99.3.0/24 via 10.99.3.0 dev weft.2") || strings.Contains(got, "10.42.99.0/24") {
		t.Errorf("want the route on weft.2 and not the one on u0:\n%s", got)
	}
}
