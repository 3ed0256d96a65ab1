// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// heard counts what a monitor reports.
type heard struct {
	own, host chan struct{}
	done      chan error
}

// listen runs m until the test ends.
func listen(t *testing.T, m *Monitor) *heard {
	t.Helper()
	h := &heard{make(chan struct{}, 10000), make(chan struct{}, 10000), make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		h.done <- m.Run(ctx, func() { h.own <- struct{}{} }, func() { h.host <- struct{}{} })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-h.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return h
}

func await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not heard of", what)
	}
}

func drain(c <-chan struct{}) (n int) {
	for {
		select {
		case <-c:
			n++
		default:
			return n
		}
	}
}

func openMonitor(t *testing.T) *Monitor {
	t.Helper()
	m, err := newKernel(t, "weft.1").Monitor()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMonitorHearsEveryDrift(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	h := listen(t, openMonitor(t))
	// The device is made after the monitor, as at an agent's first start.
	for _, c := range []string{
		"ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning",
		"ip link set weft.1 up",
		"ip addr add 10.42.1.0/32 dev weft.1",
		"ip neigh add 10.42.2.0 lladdr 02:00:00:00:00:02 dev weft.1 nud permanent",
		"bridge fdb add 02:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent",
		"ip route add 10.42.2.0/24 via 10.42.2.0 dev weft.1 onlink proto 87",
		"ip route del 10.42.2.0/24",
		"bridge fdb del 02:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self",
		"ip neigh del 10.42.2.0 dev weft.1",
		"ip addr del 10.42.1.0/32 dev weft.1",
		"ip link set weft.1 address 02:00:00:00:00:99",
		"ip link set weft.1 mtu 1300",
		"ip rule add from 10.42.0.0/16 table 7",
		"ip -6 rule add from fd42::/48 table 7",
		"ip route add 10.42.3.0/24 via 10.0.0.3 dev u0 onlink proto 87",
		"ip route del 10.42.3.0/24",
		"ip link set weft.1 down",
		"ip link set weft.1 name other",
		"ip link set other name weft.1",
		"ip link del weft.1",
	} {
		drain(h.own)
		run(t, c)
		await(t, h.own, c)
		time.Sleep(20 * time.Millisecond) // let the rest of this command's events come
	}
}

// A route of ours that another takes the place of is told by the message of
// the other, on another device.
func TestMonitorHearsAReplacedRoute(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning")
	run(t, "ip link set weft.1 up")
	run(t, "ip route add 10.42.2.0/24 via 10.42.2.0 dev weft.1 onlink proto 87 metric 7")
	h := listen(t, openMonitor(t))
	run(t, "ip route replace 10.42.2.0/24 via 10.0.0.7 dev u0 metric 7")
	await(t, h.own, "a replaced route")
}

func TestMonitorHearsTheUnderlay(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	h := listen(t, openMonitor(t))
	for _, c := range []string{
		"ip addr add 10.0.0.11/24 dev u0", "ip addr del 10.0.0.1/24 dev u0", "ip link set u0 mtu 1400",
		"ip link set u0 down", "ip link set u0 name v0", "ip link set v0 up", "ip link del v0",
	} {
		drain(h.host)
		run(t, c)
		await(t, h.host, c)
		time.Sleep(20 * time.Millisecond)
	}
}

// Neighbours that come and go on the underlay and on pods' ports must not
// cost an audit each.
func TestMonitorIgnoresOtherNeighbours(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning")
	h := listen(t, openMonitor(t))
	for i := 2; i < 50; i++ {
		run(t, fmt.Sprintf("ip neigh add 10.0.0.%d lladdr 02:00:00:00:00:02 dev u0", i))
	}
	run(t, "ip route add 192.0.2.0/24 dev u0")
	run(t, "ip addr add 10.0.0.50/24 dev u0") // events are in order: this is the last
	await(t, h.host, "the last command")
	if n := drain(h.own); n != 0 {
		t.Errorf("%d calls about our devices, want none", n)
	}
}

// A link that goes down takes our direct routes with it, and says nothing
// about the IPv4 ones.
func TestMonitorHearsOfDirectRoutesLinks(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip link add w0 type veth peer name w1")
	run(t, "ip link set w0 up")
	run(t, "ip route add 10.42.3.0/24 via 10.0.0.3 dev u0 onlink proto 87") // before the monitor
	h := listen(t, openMonitor(t))
	run(t, "ip route add 10.42.4.0/24 via 10.0.0.4 dev w0 onlink proto 87") // and after
	await(t, h.own, "a direct route")
	for _, c := range []string{"ip link set u0 down", "ip link set w0 down"} {
		time.Sleep(20 * time.Millisecond)
		drain(h.own)
		run(t, c)
		await(t, h.own, c)
	}
}

// flannel dies of this (nil dereference in watchVXLANDevice): the kernel
// drops events when nobody reads them in time. Here it does so 100 times, and
// each time both functions are called, and what comes after is heard.
func TestMonitorSurvives100Overruns(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	m := openMonitor(t)
	if err := m.sock.SetReceiveBufferSize(4096, true); err != nil {
		t.Fatal(err)
	}
	dropped := 0
	ctx, cancel := context.WithCancel(t.Context())
	calls, resume, done := make(chan string), make(chan struct{}), make(chan error)
	call := func(name string) func() {
		return func() { // who is told takes so long that events pile up
			select {
			case calls <- name:
				<-resume
			case <-ctx.Done():
			}
		}
	}
	go func() { done <- m.Run(ctx, call("own"), call("host")) }()
	hear := func(want string) {
		t.Helper()
		select {
		case got := <-calls:
			if got != want {
				t.Fatalf("%s was called, want %s", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not called", want)
		}
	}
	k, u0 := newKernel(t), ifindex(t, "u0")
	for i := range 100 {
		run(t, fmt.Sprintf("ip link set u0 mtu %d", 1400+i%2))
		hear("host")
		for j := range 50 { // not one of these is about us
			n := ndmsg{family: afInet, index: u0, state: unix.NUD_PERMANENT}
			if err := k.conn.change(t.Context(), request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, n,
				nl.NewRtAttr(unix.NDA_DST, []byte{10, 0, 1, byte(j)}), nl.NewRtAttr(unix.NDA_LLADDR, []byte{2, 0, 0, 0, byte(i), byte(j)}))); err != nil {
				t.Fatal(err)
			}
		}
		if n := drops(t, m.sock); n <= dropped {
			t.Fatalf("%d events dropped in %d overruns, %d before the last", n, i+1, dropped)
		} else {
			dropped = n
		}
		resume <- struct{}{}
		hear("own")
		resume <- struct{}{}
		hear("host")
		resume <- struct{}{}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v", err)
	}
}

// drops is how many events the kernel could not give to a socket.
func drops(t *testing.T, s *nl.NetlinkSocket) int {
	t.Helper()
	pid, err := s.GetPid()
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("/proc/thread-self/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		// sk, protocol, port, groups, rmem, wmem, dump, locks, drops, inode
		if f := strings.Fields(line); len(f) > 8 && f[1] == "0" && f[2] == fmt.Sprint(pid) {
			n, err := strconv.Atoi(f[8])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no socket %d in\n%s", pid, table)
	return 0
}

// Whatever happens to the subscription, Run takes another one, tells of
// the gap, and goes on: with rtnetlink as with nftables.
func TestMonitorSubscribesAgain(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k, err := New(Options{Devices: []string{"weft.1"}, Filter: true})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	m, err := k.Monitor()
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{make(chan struct{}, 10000), make(chan struct{}, 10000), make(chan error, 1)}
	first := m.sock
	ctx, cancel := context.WithCancel(t.Context())
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			h.done <- err
			return
		}
		h.done <- m.Run(ctx, func() { h.own <- struct{}{} }, func() { h.host <- struct{}{} })
	}()
	run(t, "ip link set u0 mtu 1400")
	await(t, h.host, "the first event")
	first.Close()
	await(t, h.own, "a lost subscription")
	await(t, h.host, "a lost subscription")
	time.Sleep(20 * time.Millisecond)
	drain(h.own)
	run(t, "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning")
	await(t, h.own, "an event after it")
	time.Sleep(20 * time.Millisecond)
	drain(h.own)
	for _, c := range []string{"nft add table inet weft", "nft add chain inet weft c", "nft delete table inet weft"} {
		run(t, c)
		await(t, h.own, c)
		time.Sleep(20 * time.Millisecond)
		drain(h.own)
	}
	cancel()
	if err := <-h.done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v", err)
	}
}

// A thread in another namespace would hear of that one.
func TestMonitorStaysInItsNamespace(t *testing.T) {
	enterNetns(t)
	k := newKernel(t, "weft.1")
	if namespaceCookie(k.conn.sock) == 0 {
		t.Fatal("this kernel does not tell namespaces apart (Linux 5.14)")
	}
	enterNetns(t)
	_, err := k.Monitor()
	wantErr(t, err, "another network namespace")
}
