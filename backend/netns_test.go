// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// enterNetns moves the test's goroutine into a fresh network namespace. The
// goroutine keeps its thread until it ends, and the namespace ends with it.
func enterNetns(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	run(t, "ip link set lo up")
}

// addUnderlay makes the device u0 with 10.0.0.1/24 and fd00::1/64, up.
func addUnderlay(t testing.TB) {
	t.Helper()
	for _, c := range []string{
		"ip link add u0 type veth peer name u1",
		"ip link set u0 addrgenmode none",
		"ip link set u1 addrgenmode none",
		"ip addr add 10.0.0.1/24 dev u0",
		"ip addr add fd00::1/64 dev u0 nodad",
		"ip link set u0 up",
		"ip link set u1 up",
	} {
		run(t, c)
	}
	// The kernel finishes setting a device up from a work queue; what is
	// printed of it and of its routes changes until then.
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(run(t, "ip link show u0"), "state UP"); {
		if time.Now().After(deadline) {
			t.Fatal("u0 does not come up")
		}
	}
}

// run executes one command and returns what it printed.
func run(t testing.TB, command string) string {
	t.Helper()
	out, err := try(command)
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

func try(command string) (string, error) {
	args := strings.Fields(command)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// sysctl writes a setting of the test's namespace.
func sysctl(t testing.TB, path, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newKernel(t testing.TB, devices ...string) *Kernel {
	t.Helper()
	k, err := New(Options{Devices: devices, Filter: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func mustDump(t testing.TB, k *Kernel) overlay.State {
	t.Helper()
	s, err := k.Dump(t.Context(), overlay.Digest{})
	if err != nil {
		t.Fatalf("dump: %v", err)
	}
	like, err := k.Dump(t.Context(), s.Digest(overlay.NewHasher()))
	if err != nil || like.FDB != nil || like.Neighs != nil || like.Routes != nil || like.Nodes != nil || like.Sources != nil || like.Pods != nil {
		t.Fatalf("dump: %v; what is as expected is read: %v of %v", err, like.Counts(), s.Counts())
	}
	return s
}

func mustApply(t testing.TB, k *Kernel, c ...overlay.Change) {
	t.Helper()
	if err := k.Apply(t.Context(), c); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// wantState fails unless the kernel holds exactly want.
func wantState(t testing.TB, k *Kernel, want overlay.State) {
	t.Helper()
	if have := mustDump(t, k); !have.Equal(want) {
		t.Fatalf("the kernel holds\n%swant\n%s", have, want)
	}
}

// wantErr fails unless err mentions all of texts.
func wantErr(t testing.TB, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", texts)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

func state(entries ...overlay.Entry) overlay.State {
	s := overlay.NewState()
	for _, e := range entries {
		s.Add(e)
	}
	return s
}

func add(e overlay.Entry) overlay.Change { return overlay.Change{Op: overlay.Add, Entry: e} }
func del(e overlay.Entry) overlay.Change { return overlay.Change{Op: overlay.Delete, Entry: e} }

func replace(was, e overlay.Entry) overlay.Change {
	return overlay.Change{Op: overlay.Replace, Entry: e, Was: was}
}

func modify(was, e overlay.Link) overlay.Change {
	return overlay.Change{Op: overlay.Modify, Entry: e, Was: was}
}

func ip(s string) netip.Addr       { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func mac(n byte) subnet.MAC { return subnet.MAC{0x0a, 0x58, 0, 0, 0, n} }

// link is a device as overlay.Desired makes it.
func link(f subnet.Family) overlay.Link {
	l := overlay.Link{
		Name: "weft.1", VNI: 1, Port: 8472, Local: ip("10.0.0.1"), Underlay: "u0", MAC: mac(1), MTU: 1450,
		Up: true, RPFilter: 2, AddrGen: "none",
	}
	if f == subnet.IPv6 {
		l.Name, l.Local, l.MTU, l.MAC = "weft6.1", ip("fd00::1"), 1430, mac(6)
	}
	return l
}

// monitor is an outside observer: a socket of its own that hears of every
// change to links, addresses, neighbours (with FDB) and routes.
type monitor struct {
	t    testing.TB
	sock *nl.NetlinkSocket
}

func newMonitor(t testing.TB) *monitor {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetReceiveBufferSize(16<<20, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &monitor{t, s}
}

// drain returns what has happened since the last call, without waiting: the
// kernel queues a notification before it acknowledges the change, except what
// settle waits for.
func (m *monitor) drain() []string {
	m.t.Helper()
	var out []string
	for {
		events := m.read(unix.MSG_DONTWAIT)
		if len(events) == 0 {
			return out
		}
		out = append(out, events...)
	}
}

// read returns the events of one datagram, or nothing when there is none.
func (m *monitor) read(flags int) []string {
	m.t.Helper()
	buf := make([]byte, 1<<16)
	n, _, err := unix.Recvfrom(m.sock.GetFd(), buf, flags)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		m.t.Fatalf("monitor: %v", err)
	}
	var out []string
	for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		size := int(binary.NativeEndian.Uint32(b))
		out = append(out, event(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]))
		b = b[min((size+3)&^3, len(b)):]
	}
	return out
}

// event renders a notification. The kernel's own host route to an IPv6
// address is named, because settle waits for it.
func event(typ uint16, body []byte) string {
	if typ == unix.RTM_NEWROUTE && len(body) > unix.SizeofRtMsg && body[4] == unix.RT_TABLE_LOCAL {
		if dst, ok := attr(body[unix.SizeofRtMsg:], unix.RTA_DST); ok && len(dst) == 16 {
			return "local route to " + netip.AddrFrom16([16]byte(dst)).String()
		}
	}
	return fmt.Sprintf("type %d: %x", typ, body)
}

// settle returns how much has happened since the last drain, after the kernel
// has done what it does later: it announces a new IPv6 address, and adds the
// route to it, from a work queue (addrconf_dad_work, net/ipv6/addrconf.c).
func (m *monitor) settle(changes overlay.Changes) int {
	m.t.Helper()
	late := map[string]bool{}
	for _, c := range changes {
		if a, ok := c.Entry.(overlay.Addr); ok && c.Op == overlay.Add && a.Prefix.Addr().Is6() {
			late["local route to "+a.Prefix.Addr().String()] = true
		}
	}
	n := 0
	for {
		for _, e := range m.drain() {
			n++
			delete(late, e)
		}
		if len(late) == 0 {
			return n
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(m.sock.GetFd()), Events: unix.POLLIN}}, 30_000)
		if ready == 0 && err == nil {
			m.t.Fatalf("the kernel has not announced %v", late)
		}
	}
}

// TestMonitorHears proves that the observer which other tests rest on is not
// deaf.
func TestMonitorHears(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	l := link(subnet.IPv4)
	m := newMonitor(t)
	for _, e := range []overlay.Entry{
		l,
		overlay.Addr{Dev: "weft.1", Prefix: prefix("10.42.1.0/32")},
		overlay.Addr{Dev: "weft.1", Prefix: prefix("fd42:0:0:1::/128")},
		overlay.FDB{Dev: "weft.1", MAC: mac(2), Dst: ip("10.0.0.2")},
		overlay.Neigh{Dev: "weft.1", IP: ip("10.42.2.0"), MAC: mac(2)},
		overlay.Route{Dev: "weft.1", Dst: prefix("10.42.2.0/24"), Via: ip("10.42.2.0"), Metric: 1, Onlink: true, Proto: 87},
		overlay.Route{Dev: "weft.1", Dst: prefix("fd42:0:0:2::/64"), Via: ip("fd42:0:0:2::"), Metric: 1, Onlink: true, Proto: 87},
	} {
		mustApply(t, k, add(e))
		if len(m.drain()) == 0 {
			t.Errorf("no notification of %s", e)
		}
	}
}

// TestNew refuses device names that cannot be.
func TestNew(t *testing.T) {
	enterNetns(t)
	for _, names := range [][]string{{""}, {"sixteen-bytes-xx"}, {"weft.1", "weft6.1", "weft.1"}} {
		if _, err := New(Options{Devices: names}); err == nil {
			t.Errorf("New accepted %q", names)
		}
	}
}

// TestContext: a context that has ended stops Dump and Apply, and Apply says
// how much it left undone.
func TestContext(t *testing.T) {
	enterNetns(t)
	k := newKernel(t, "weft.1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Dump(ctx, overlay.Digest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Dump: %v, want context.Canceled", err)
	}
	err := k.Apply(ctx, overlay.Changes{add(link(subnet.IPv4)), del(link(subnet.IPv4))})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v, want context.Canceled", err)
	}
	wantErr(t, err, "2 of 2 changes not made")
}
