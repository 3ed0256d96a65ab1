// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// peersState is n peers with all that they have on a device and in the table.
func peersState(n int) overlay.State {
	s := filterState(openFilter(), n)
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

// A dump leaves out exactly the kinds in which nothing differs from what was
// expected, whatever somebody did to the others.
func TestDumpLike(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	want := peersState(200)
	like := want.Digest(overlay.NewHasher())
	pass(t, k, want)
	pass(t, k, want) // a new device loses what came with it
	check := func(name string, damaged ...string) {
		t.Helper()
		alone, err := k.Dump(t.Context(), overlay.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Dump(t.Context(), like)
		if err != nil {
			t.Fatal(err)
		}
		var read []string
		note := func(kind string, is bool) {
			if is {
				read = append(read, kind)
			}
		}
		note("FDB", s.FDB != nil)
		note("neighbours", s.Neighs != nil)
		note("routes", s.Routes != nil)
		note("nodes", s.Nodes != nil)
		note("sources", s.Sources != nil)
		note("pods", s.Pods != nil)
		if !slices.Equal(read, damaged) {
			t.Errorf("%s: read %v, want %v", name, read, damaged)
		}
		complete(&s.FDB, want.FDB)
		complete(&s.Neighs, want.Neighs)
		complete(&s.Routes, want.Routes)
		complete(&s.Nodes, want.Nodes)
		complete(&s.Sources, want.Sources)
		complete(&s.Pods, want.Pods)
		if !s.Equal(alone) {
			t.Fatalf("%s: %v where %v was expected, and by itself %v", name, s.Counts(), want.Counts(), alone.Counts())
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
	check("an element less", "nodes", "sources", "pods") // one table: all are read
	pass(t, k, want)
	nftRun(t, "delete element inet weft pods4_24 { 10.128.2.0 }")
	check("a subnet of pods less", "nodes", "sources", "pods")
	pass(t, k, want)
	check("repaired")
	run(t, "ip link del weft.1")
	check("the device", "FDB", "neighbours", "routes")
}

func complete[E comparable](s *overlay.Set[E], expected overlay.Set[E]) {
	if *s == nil {
		*s = expected
	}
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
	like := want.Digest(overlay.NewHasher())
	left := 0
	for after := range 100 {
		ctx := &dying{Context: t.Context(), after: after}
		_, err := k.Dump(ctx, like)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if k.tables.conn.open {
			left++
		}
		node := overlay.Node{Addr: ip("10.9.0.2")}
		mustApply(t, k, del(node), add(node))
		if s, err := k.Dump(t.Context(), like); err != nil || s.Counts().Total() != 2 { // the link and the table
			t.Fatalf("given up after %d: %v, dumped %v beyond %v", after, err, s.Counts(), want.Counts())
		}
	}
	if left < 10 {
		t.Errorf("%d dumps were left open", left)
	}
}

// A tally that was made while the kernel resized a set, and passed over an
// element and listed another twice, is forgotten as soon as the table was read
// whole: no transaction need come for that.
func TestWrongTallyIsForgotten(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	want := filterState(filter(), 200)
	pass(t, k, want)
	like := want.Digest(overlay.NewHasher())
	read := func() bool {
		t.Helper()
		s, err := k.Dump(t.Context(), like)
		if err != nil || s.Nodes != nil && !s.Equal(want) {
			t.Fatalf("%v, dumped %v, want %v", err, s.Counts(), want.Counts())
		}
		return s.Nodes != nil
	}
	if read() {
		t.Fatal("read though all is as expected")
	}
	k.filter.members.nodes.Sum++
	if !read() {
		t.Fatal("not read though the tally differs")
	}
	if read() {
		t.Error("read again: the tally was not forgotten")
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
