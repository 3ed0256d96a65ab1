// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// outcomes is what becomes of one frame of each kind that pod a sends.
func (y *yard) outcomes() map[string]string {
	out := map[string]string{}
	for _, f := range append(ownFrames(), lies()...) {
		at, refused := y.deliver("a", f, 1)
		out[f.name] = fmt.Sprintf("delivered %v, refused %v", len(at) > 0, refused)
	}
	return out
}

// Without any one of the rules, some frame fares differently: no rule is there
// for nothing, and the frames of the tests meet them all.
func TestEverySpoofRuleIsNeeded(t *testing.T) {
	y := newYard(t)
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	want := Spoof(t, yardPods()...)
	install(t, y.conn, want)
	all, rules := y.outcomes(), 0
	for i, c := range want.Table.Chains {
		for j, r := range c.Rules {
			rules++
			less := want
			less.Table.Chains = slices.Clone(want.Table.Chains)
			less.Table.Chains[i].Rules = slices.Delete(slices.Clone(c.Rules), j, j+1)
			plan := Diff(less, Content{}) // the counters start from zero
			if err := y.conn.Apply(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			changed := 0
			for name, o := range y.outcomes() {
				if o != all[name] {
					changed++
				}
			}
			if changed == 0 {
				t.Errorf("chain %s: nothing changes without %q", c.Name, r)
			}
		}
	}
	t.Logf("%d rules", rules)
}

// BenchmarkSpoof is what a frame from pod to pod costs the CPU on its whole way,
// in nanoseconds of the sending thread, which takes it there itself.
func BenchmarkSpoof(b *testing.B) {
	y := newYard(b)
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	for _, fd := range y.received {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	}
	many := yardPods()
	for i := range 10000 {
		n := byte(i >> 8)
		many = append(many, SpoofPod{
			Port: fmt.Sprintf("veth%08x", i*2654435761>>8&0xffffffff), MAC: net.HardwareAddr{2, 0, 0, 2, n, byte(i)},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 43, n, byte(i)}), addr(fmt.Sprintf("fd43::%x", i))},
		})
	}
	for _, f := range []frame{{name: "IPv4", bytes: ip(macC, macA, hello(a4, c4))}, {name: "IPv6", bytes: ip(macC, macA, hello(a6, c6))}} {
		for _, with := range []struct {
			name string
			pods []SpoofPod
		}{{"none", nil}, {"3 pods", yardPods()}, {"10003 pods", many}} {
			b.Run(f.name+"/"+with.name, func(b *testing.B) {
				y.conn.remove(b)
				if with.pods != nil {
					install(b, y.conn, Spoof(b, with.pods...))
				}
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				from := threadTime(b)
				for b.Loop() {
					y.send("a", f)
				}
				b.ReportMetric(float64(threadTime(b)-from)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

func (c *Conn) remove(t testing.TB) {
	t.Helper()
	if err := c.Apply(t.Context(), Removal(SpoofTable(), mustDump(t, c, SpoofTable()))); err != nil {
		t.Fatal(err)
	}
}

func threadTime(t testing.TB) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}
