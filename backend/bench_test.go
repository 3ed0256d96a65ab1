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

// manyPeers is a node with n peers on one device.
func manyPeers(n int) overlay.State {
	l := link(subnet.IPv4)
	s := state(l)
	for i := range n {
		base := netip.AddrFrom4([4]byte{100, 64 + byte(i>>8), byte(i), 0})
		m := subnet.MAC{0x0a, 0x58, 1, 0, byte(i >> 8), byte(i)}
		s.Add(overlay.FDB{Dev: l.Name, MAC: m, Dst: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
		s.Add(overlay.Neigh{Dev: l.Name, IP: base, MAC: m})
		s.Add(overlay.Route{Dev: l.Name, Dst: netip.PrefixFrom(base, 24), Via: base, Metric: 1024 + uint32(i)%4096, Onlink: true, Proto: 87})
	}
	return s
}

// BenchmarkProgram measures an empty device being given all peers,
// BenchmarkDump the reading of them, BenchmarkAudit that where they are as
// expected.
func BenchmarkProgram(b *testing.B) {
	bench(b, func(b *testing.B, k *Kernel, want overlay.State) {
		changes := overlay.Diff(want, overlay.NewState())
		for b.Loop() {
			b.StopTimer()
			mustApply(b, k, del(link(subnet.IPv4)), add(link(subnet.IPv4)))
			b.StartTimer()
			mustApply(b, k, changes...)
		}
	})
}

func BenchmarkDump(b *testing.B)  { benchDump(b, false) }
func BenchmarkAudit(b *testing.B) { benchDump(b, true) }

func benchDump(b *testing.B, expected bool) {
	bench(b, func(b *testing.B, k *Kernel, want overlay.State) {
		var like overlay.Digest
		if expected {
			like = want.Digest(overlay.NewHasher())
		}
		for b.Loop() {
			if _, err := k.Dump(b.Context(), like); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func bench(b *testing.B, f func(b *testing.B, k *Kernel, want overlay.State)) {
	for _, n := range []int{1000, 10000, 20000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				b.Fatal(err)
			}
			addUnderlay(b)
			k := newKernel(b, "weft.1")
			want := manyPeers(n)
			b.ReportAllocs()
			mustApply(b, k, overlay.Diff(want, overlay.NewState())...)
			f(b, k, want)
			b.StopTimer()
			wantState(b, k, want)
		})
	}
}
