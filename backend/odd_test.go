// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// directRoutes are n routes to peers on our own link, 10.0.0.9.
func directRoutes(n int) overlay.State {
	s := state()
	for i := range n {
		dst := netip.AddrFrom4([4]byte{100, 64 + byte(i>>8), byte(i), 0})
		s.Add(overlay.Route{Dev: "u0", Dst: netip.PrefixFrom(dst, 24), Via: ip("10.0.0.9"), Metric: 1024, Proto: overlay.RouteProtocol})
	}
	return s
}

// BenchmarkDeleteLooked measures deletions that look at the kernel first:
// half of the routes to peers on our own link.
func BenchmarkDeleteLooked(b *testing.B) {
	for _, n := range []int{500, 1000, 2000, 4000} {
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				b.Fatal(err)
			}
			addUnderlay(b)
			k := newKernel(b, "weft.1")
			all, none := directRoutes(n), overlay.NewState()
			for b.Loop() {
				b.StopTimer()
				mustApply(b, k, overlay.Diff(all, none)...)
				b.StartTimer()
				mustApply(b, k, overlay.Diff(none, all)...)
			}
			wantState(b, k, none)
		})
	}
}

// TestManyOddEntries: however many entries there are that overlay's types
// cannot tell apart, one pass puts all right and leaves the good ones.
func TestManyOddEntries(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	want := manyPeers(60)
	pass(t, k, want)
	l := link(subnet.IPv4)
	i := 0
	for e := range want.FDB {
		switch i++; i % 4 {
		case 0: // a second way, beside the good one
			run(t, fmt.Sprintf("bridge fdb append %s dev %s dst %s port 4000 self permanent", e.MAC, l.Name, e.Dst))
		case 1: // instead of the good one
			run(t, fmt.Sprintf("bridge fdb replace %s dev %s dst %s vni 77 self permanent", e.MAC, l.Name, e.Dst))
		}
	}
	i = 0
	for r := range want.Routes {
		switch i++; i % 4 {
		case 0:
			run(t, fmt.Sprintf("ip route add %s via %s dev %s metric 77 onlink proto 87 mtu 1000", r.Dst, r.Via, l.Name))
		case 1:
			run(t, fmt.Sprintf("ip route replace %s via %s dev %s metric %d onlink proto 87 mtu 1000", r.Dst, r.Via, l.Name, r.Metric))
		}
	}
	pass(t, k, want)
	wantState(t, k, want)
}
