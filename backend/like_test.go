// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"net/netip"
	"reflect"
	"testing"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// sameSet reports whether a and b are one set.
func sameSet[E comparable](a, b overlay.Set[E]) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// peersState is n peers with all that they have on a device and in the table.
func peersState(n int) overlay.State {
	s := filterState(filter(), n)
	l := link(subnet.IPv4)
	s.Add(l)
	for i := range n {
		base := netip.AddrFrom4([4]byte{10, 42, byte(i), 0})
		m := subnet.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		s.Add(overlay.FDB{Dev: l.Name, MAC: m, Dst: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
		s.Add(overlay.Neigh{Dev: l.Name, IP: base, MAC: m})
		s.Add(overlay.Route{Dev: l.Name, Dst: netip.PrefixFrom(base, 24), Via: base, Onlink: true, Metric: 1024, Proto: overlay.RouteProtocol})
	}
	return s
}

// A dump shares with what was expected exactly the kinds in which nothing
// differs, whatever somebody did to the others.
func TestDumpLike(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	want := peersState(200)
	pass(t, k, want)
	pass(t, k, want) // a new device loses what came with it
	check := func(name string, damaged ...string) {
		t.Helper()
		alone, err := k.Dump(t.Context(), overlay.State{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Dump(t.Context(), want)
		if err != nil || !s.Equal(alone) {
			t.Fatalf("%s: %v; like %v it is %v, and by itself %v", name, err, want.Counts(), s.Counts(), alone.Counts())
		}
		shared := map[string]bool{
			"FDB": sameSet(s.FDB, want.FDB), "neighbours": sameSet(s.Neighs, want.Neighs), "routes": sameSet(s.Routes, want.Routes),
			"nodes": sameSet(s.Nodes, want.Nodes), "sources": sameSet(s.Sources, want.Sources),
		}
		expect := map[string]bool{"FDB": true, "neighbours": true, "routes": true, "nodes": true, "sources": true}
		for _, d := range damaged {
			expect[d] = false
		}
		if !maps.Equal(shared, expect) {
			t.Errorf("%s: shared %v", name, shared)
		}
	}
	check("nothing")
	run(t, "ip neigh del 10.42.7.0 dev weft.1")
	check("a neighbour less", "neighbours")
	run(t, "ip neigh replace 10.42.7.0 lladdr 02:00:00:00:00:08 nud permanent dev weft.1")
	check("a neighbour's MAC", "neighbours")
	pass(t, k, want)
	run(t, "bridge fdb replace 02:00:00:00:00:09 dev weft.1 dst 10.9.0.99")
	check("an FDB entry elsewhere", "FDB")
	run(t, "ip route replace 10.42.9.0/24 via 10.42.8.0 dev weft.1 onlink proto 87 metric 1024")
	check("a route too", "FDB", "routes")
	pass(t, k, want)
	check("repaired")
	nftRun(t, "delete element inet weft peers4 { 10.9.0.2 }")
	check("an element less", "nodes", "sources") // one table: both are read
	pass(t, k, want)
	run(t, "ip link del weft.1")
	check("the device", "FDB", "neighbours", "routes")
}

// Whoever gives a dump up finds the next one whole, and changes meanwhile are
// not held up by what is left of it.
func TestDumpGivenUp(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	want := manyPeers(2000)
	maps.Copy(want.Filters, filterState(filter(), 0).Filters)
	maps.Copy(want.Nodes, filterState(filter(), 2000).Nodes)
	pass(t, k, want)
	pass(t, k, want) // a new device loses what came with it
	left := 0
	for after := range 100 {
		ctx := &dying{Context: t.Context(), after: after}
		_, err := k.Dump(ctx, want)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if k.tables.conn.open {
			left++
		}
		node := overlay.Node{Addr: ip("10.9.0.2")}
		mustApply(t, k, del(node), add(node))
		if s, err := k.Dump(t.Context(), want); err != nil || !s.Equal(want) {
			t.Fatalf("given up after %d: %v, dumped %v, want %v", after, err, s.Counts(), want.Counts())
		}
	}
	if left < 10 {
		t.Errorf("%d dumps were left open", left)
	}
}

// dying is a context that ends when it has been asked so many times.
type dying struct {
	context.Context
	after int
}

func (d *dying) Err() error {
	if d.after--; d.after < 0 {
		return context.Canceled
	}
	return nil
}

// What a hash is made from tells every entry from every other, and costs no
// memory.
func TestEntryBytes(t *testing.T) {
	seen := map[string]any{}
	note := func(e any) {
		t.Helper()
		b := string(appendEntry(nil, e))
		if o, ok := seen[b]; ok && o != e || len(b) == 0 || len(b) > 96 {
			t.Errorf("%#v and %#v: %x", e, o, b)
		}
		seen[b] = e
	}
	four, six := ip("10.0.0.1"), ip("fd00::1")
	for _, a := range []netip.Addr{four, six, {}, ip("10.0.0.2"), ip("::ffff:10.0.0.1")} {
		for _, m := range []subnet.MAC{{}, {2}, {0, 2}} {
			for _, dev := range []string{"", "weft.1", "weft.16777215123"} {
				note(overlay.FDB{Dev: dev, MAC: m, Dst: a})
			}
		}
	}
	clear(seen)
	for _, via := range []netip.Addr{four, six, {}} {
		for _, src := range []netip.Addr{four, six, {}} {
			for _, dst := range []netip.Prefix{netip.PrefixFrom(four, 24), netip.PrefixFrom(four, 25), netip.PrefixFrom(six, 24)} {
				for _, onlink := range []bool{false, true} {
					for _, metric := range []uint32{0, 1, 256} {
						note(overlay.Route{Dev: "d", Dst: dst, Via: via, Src: src, Metric: metric, Onlink: onlink, Proto: 87})
						note(overlay.Route{Dev: "d", Dst: dst, Via: via, Src: src, Metric: metric, Onlink: onlink, Proto: 3})
					}
				}
			}
		}
	}
	clear(seen)
	for _, a := range []netip.Addr{four, six} {
		note(overlay.Node{Addr: a})
		note(overlay.Node{Addr: a, Own: true})
	}
	clear(seen)
	for _, a := range []netip.Addr{four, six} {
		for _, b := range []netip.Prefix{netip.PrefixFrom(four, 24), netip.PrefixFrom(six, 64), netip.PrefixFrom(six, 128)} {
			note(overlay.Source{Outer: a, Inner: b})
		}
	}
	h := hasher{maphash.MakeSeed()}
	route := overlay.Route{Dev: "weft.1", Dst: netip.PrefixFrom(six, 64), Via: six, Metric: 1, Onlink: true}
	if n := testing.AllocsPerRun(100, func() { hash(h, route) }); n != 0 {
		t.Errorf("%v allocations for a hash", n)
	}
}
