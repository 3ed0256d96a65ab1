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
		if c.Hook == Forward {
			continue // see TestClosedPorts
		}
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

// What the bridge itself forwards from or to a closed port is dropped, in each
// direction by its own rule; the node and other pods are reached.
func TestClosedPorts(t *testing.T) {
	y := newYard(t)
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	want := Spoof(t, yardPods()...)
	closed, err := ClosedPort("port-a")
	if err != nil {
		t.Fatal(err)
	}
	passes := func(src, dst string) bool {
		macs, ips := map[string]string{"a": macA, "b": macB, "c": macC}, map[string]string{"a": a4, "b": b4, "c": c4}
		f := frame{name: src + " to " + dst, bytes: ip(macGateway, macs[src], hello(ips[src], gw4))}
		if dst != "node" {
			f.bytes = ip(macs[dst], macs[src], hello(ips[src], ips[dst]))
		}
		at, refused := y.deliver(src, f, burst)
		if at[dst] == 0 && refused[RefusedUnjudged] < burst {
			t.Errorf("%s: delivered %v, refused %v", f.name, at, refused)
		}
		return at[dst] > 0 // listener reports, which all ports get, are refused meanwhile
	}
	out, in := -1, -1 // rules of the chain that are missing
	for _, lacks := range []int{-1, 0, 1} {
		d := want
		d.Elements = append(slices.Clone(want.Elements), closed)
		d.Table.Chains = slices.Clone(want.Table.Chains)
		for i, c := range d.Table.Chains {
			if c.Hook == Forward && lacks >= 0 {
				d.Table.Chains[i].Rules = slices.Delete(slices.Clone(c.Rules), lacks, lacks+1)
			}
		}
		if err := y.conn.Apply(t.Context(), Diff(d, Content{})); err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, way := range [][2]string{{"a", "c"}, {"c", "a"}, {"a", "node"}, {"b", "c"}} {
			got[way[0]+" to "+way[1]] = passes(way[0], way[1])
		}
		if !got["a to node"] || !got["b to c"] {
			t.Errorf("without rule %d: %v", lacks, got)
		}
		if lacks < 0 && (got["a to c"] || got["c to a"]) {
			t.Errorf("%v", got)
		}
		if got["a to c"] {
			out = lacks
		}
		if got["c to a"] {
			in = lacks
		}
	}
	if out != 0 || in != 1 {
		t.Errorf("what a sends is dropped by rule %d and what it gets by rule %d", out, in)
	}
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
