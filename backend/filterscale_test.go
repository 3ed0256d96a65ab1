// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
)

// TestFilterOfTenThousandPeers: 140,000 elements are one transaction, dump as
// they were put there, and go.
func TestFilterOfTenThousandPeers(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	want := filterState(filter(), 10000)
	before := generation(t, k)
	pass(t, k, want)
	if n := generation(t, k) - before; n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
	if have := mustDump(t, k); !have.Equal(want) {
		t.Fatalf("%v, want %v", have.Counts(), want.Counts())
	}
	less := filterState(filter(), 5000)
	pass(t, k, less)
	if have := mustDump(t, k); !have.Equal(less) {
		t.Fatalf("%v, want %v", have.Counts(), less.Counts())
	}
	run(t, "nft insert rule inet weft vxlan_outer4 accept")
	pass(t, k, less)
	if have := mustDump(t, k); !have.Equal(less) {
		t.Fatalf("after a repair: %v, want %v", have.Counts(), less.Counts())
	}
}

// BenchmarkFilter measures, for n dual-stack peers with two outer addresses
// and twelve sources each: making the table with all of them (program),
// adding them to a table that is there (fill), a dump that nothing has
// changed before (audit), and one after somebody else's transaction (dump).
func BenchmarkFilter(b *testing.B) {
	for _, n := range []int{1000, 10000, 20000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				b.Fatal(err)
			}
			k := newKernel(b)
			want := filterState(filter(), n)
			all := overlay.Diff(want, overlay.NewState())
			b.Run("program", func(b *testing.B) {
				for b.Loop() {
					mustApply(b, k, all...)
				}
			})
			b.Run("fill", func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					mustApply(b, k, all[0])
					b.StartTimer()
					mustApply(b, k, all[1:]...)
				}
			})
			b.Run("dump", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					if err := k.nft.Apply(b.Context(), nft.Plan{Table: nft.Table{Family: nft.Inet, Name: "foreign"}, Replace: true}); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					mustDump(b, k)
				}
			})
			b.Run("audit", func(b *testing.B) {
				b.ReportAllocs()
				mustDump(b, k)
				for b.Loop() {
					mustDump(b, k)
				}
			})
			wantState(b, k, want)
		})
	}
}
