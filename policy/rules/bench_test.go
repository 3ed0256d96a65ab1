// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
)

// threadTime is the CPU time of the calling thread.
func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkPacket measures the CPU time that the sender's thread spends on a
// packet, all of the router's work and the way out with it.
func BenchmarkPacket(b *testing.B) {
	big := policy.Compile(city(5000), "here")
	pod := addr("10.42.1.10")
	holders := map[policy.Identity]netip.Addr{}
	for a, id := range big.Identities {
		if a.Is4() && !big.Known[a] {
			holders[id] = a
		}
	}
	var pair policy.Pair
	for p := range big.Pairs {
		if p.Direction == policy.Ingress && p.Class == big.Classes[policy.Ingress][pod] && holders[p.Identity].IsValid() {
			pair = p
		}
	}
	peer, port := holders[pair.Identity], uint16(7)
	passes := policy.Packet{Src: peer, Dst: pod, Proto: policy.UDP, Port: 2000}
	exact := clone(big)
	exact.Rows[policy.Row{Set: big.Pairs[pair], Proto: policy.UDP, Port: port}] = true
	for _, c := range []struct {
		name  string
		table *policy.Table
		g     Generation
		to    policy.Packet
	}{
		{"no table", nil, None, policy.Packet{Src: peer, Dst: pod, Proto: policy.UDP, Port: port}},
		{"conntrack alone", &policy.Table{}, None, policy.Packet{Src: peer, Dst: addr("1.0.0.1"), Proto: policy.UDP, Port: port}},
		{"labelled", exact, 0, policy.Packet{Src: peer, Dst: pod, Proto: policy.UDP, Port: port}},
		{"first row", exact, None, policy.Packet{Src: peer, Dst: pod, Proto: policy.UDP, Port: port}},
		{"range", big, None, passes},
		{"denied", big, None, policy.Packet{Src: addr("1.0.0.1"), Dst: pod, Proto: policy.UDP, Port: 7}},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWire(b)
			if c.table != nil {
				if err := w.conn.Apply(b.Context(), nft.Diff(Desired(Params{}, c.g, c.table, lease()), nft.Content{})); err != nil {
					b.Fatal(err)
				}
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			head := transport(c.to, 40000)
			start := threadTime(b)
			for b.Loop() {
				w.send(c.to, head)
			}
			b.ReportMetric(float64(threadTime(b)-start)/float64(b.N), "cpu-ns/op")
		})
	}
}
