// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
)

// walled is a table in which 10.42.1.2 is isolated in Ingress and 10.42.1.3 in
// Egress, the same of IPv6, and nothing may pass.
func walled() *policy.Table {
	t := &policy.Table{Known: map[netip.Addr]bool{}, Classes: [2]map[netip.Addr]policy.Class{{}, {}}}
	for _, a := range []string{"10.42.1.", "fd42:0:0:1::"} {
		t.Known[addr(a+"2")], t.Known[addr(a+"3")], t.Known[addr(a+"4")] = true, true, true
		t.Classes[policy.Ingress][addr(a+"2")] = 1
		t.Classes[policy.Egress][addr(a+"3")] = 2
	}
	return t
}

// Packets of no flow are dropped by their header's addresses.
func TestStrays(t *testing.T) {
	w := newWire(t)
	// An acknowledgement that is nobody's: invalid where conntrack picks nothing up.
	w.router.Sysctl("0", "netfilter/nf_conntrack_tcp_loose")
	p := NewProgrammer(w.conn, params())
	if _, err := p.Sync(t.Context(), walled(), lease()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src, dst string
		want     bool
	}{
		{"1.0.0.1", "10.42.1.2", false}, {"10.42.1.2", "1.0.0.1", true},
		{"10.42.1.3", "1.0.0.1", false}, {"1.0.0.1", "10.42.1.3", true},
		{"1.0.0.1", "10.42.1.4", true}, {"10.42.1.4", "1.0.0.1", true},
		{"1.0.0.1", "10.42.1.5", false}, {"10.42.1.5", "1.0.0.1", false}, {"1.0.0.1", "1.0.0.2", true},
		{"2001:db8::1", "fd42:0:0:1::2", false}, {"fd42:0:0:1::2", "2001:db8::1", true},
		{"fd42:0:0:1::3", "2001:db8::1", false}, {"2001:db8::1", "fd42:0:0:1::3", true},
		{"2001:db8::1", "fd42:0:0:1::5", false}, {"fd42:0:0:1::5", "2001:db8::1", false},
	} {
		k := policy.Packet{Src: addr(c.src), Dst: addr(c.dst), Proto: policy.TCP, Port: 80}
		ack := func(policy.Packet) []byte {
			return append(be(nil, 40000, 80, 0, 1, 0, 1), 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0)
		}
		if got := w.verdicts([]policy.Packet{k}, ack)[0]; got != c.want {
			t.Errorf("%s to %s came through: %t, want %t", c.src, c.dst, got, c.want)
		}
	}
	all, err := p.Counters(t.Context())
	if err != nil || all[Stray].Packets != 8 || all[UnknownPod].Packets+all[DeniedEgress].Packets+all[DeniedIngress].Packets != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// Neighbour discovery passes a bridge whose packets are filtered, whoever it is
// from and to, but no router.
func TestNeighbourDiscovery(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, Params{})
	if _, err := p.Sync(t.Context(), walled(), lease()); err != nil {
		t.Fatal(err)
	}
	k := policy.Packet{Src: addr("fd42:0:0:1::3"), Dst: addr("fd42:0:0:1::2"), Proto: unix.IPPROTO_ICMPV6}
	for _, kind := range []byte{133, 134, 135, 136, 137} {
		if w.verdicts([]policy.Packet{k}, func(policy.Packet) []byte { return []byte{kind, 0, 0, 0, 0, 0, 0, 0} })[0] {
			t.Errorf("type %d was forwarded to and from isolated pods", kind)
		}
	}
	w.router.Run("ip link add br0 type bridge\nip link set br0 up\nip link set rin master br0\nip link set rout master br0")
	w.router.Sysctl("1", "bridge/bridge-nf-call-ip6tables")
	sent := map[uint64]bool{}
	for _, kind := range []byte{133, 134, 135, 136, 137} {
		w.hops = 255
		sent[w.frame(macWire, k, []byte{kind, 0, 0, 0, 0, 0, 0, 0})] = true
	}
	refused := w.refused()
	w.frame(macWire, k, []byte{128, 0, 0, 0, 0, 0, 0, 0})
	nshost.Eventually(t, "an echo request is refused on the bridge", func() bool { return w.refused() == refused+1 })
	nshost.Eventually(t, "neighbour discovery passes the bridge", func() bool {
		seen := map[uint64]bool{}
		w.arrived(seen)
		for tag := range seen {
			delete(sent, tag)
		}
		return len(sent) == 0
	})
}

// An ICMP error is judged as the flow that it is about, also by a router that
// has not judged that since the generation began.
func TestErrorsBelongToTheirFlow(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	table := walled()
	peer, pod := addr("1.0.0.1"), addr("10.42.1.2")
	table.Pairs = map[policy.Pair]policy.PortSet{{Direction: policy.Ingress, Class: 1, Identity: policy.Anyone}: 9}
	row := policy.Row{Set: 9, Proto: policy.UDP, Port: 53}
	spare := row
	spare.Port = 54
	table.Rows = map[policy.Row]bool{row: true, spare: true}
	if _, err := p.Sync(t.Context(), table, lease()); err != nil {
		t.Fatal(err)
	}
	k := policy.Packet{Src: peer, Dst: pod, Proto: policy.UDP, Port: 53}
	about := func(policy.Packet) []byte {
		return append(be(nil, 0x0303, 0, 0, 0), ip(k, be(nil, 40000, 53, 16, 0))...)
	}
	answer := policy.Packet{Src: pod, Dst: peer, Proto: unix.IPPROTO_ICMP}
	if !w.verdicts([]policy.Packet{k}, func(k policy.Packet) []byte { return transport(k, 40000) })[0] {
		t.Fatal("the packet itself does not pass")
	}
	for _, step := range []struct {
		drop policy.Row
		want bool
	}{{spare, true}, {row, false}} {
		table = clone(table)
		delete(table.Rows, step.drop)
		if _, err := p.Update(t.Context(), table, lease()); err != nil {
			t.Fatal(err)
		}
		if got := w.verdicts([]policy.Packet{answer}, about)[0]; got != step.want {
			t.Errorf("without row %+v the error came through: %t, want %t", step.drop, got, step.want)
		}
	}
}

// Flows that are older than the table cannot be labelled; all the same they are
// judged, and go on if they may.
func TestFlowsOlderThanTheTable(t *testing.T) {
	w := newTown(t)
	w.router.NFT("table inet other {\nchain c {\ntype filter hook forward priority 0\nct state new counter\n}\n}") // conntrack, no labels
	a, b := w.stream("a", netip.AddrPortFrom(at("c", v4), 81)), w.stream("b", netip.AddrPortFrom(at("c", v4), 80))
	w.goesOn(a, 20)
	w.goesOn(b, 20)
	w.update(func(*policy.Table) {})
	turns := a.turns.Load()
	w.goesOn(b, 300)
	if more := a.turns.Load() - turns; more > 1 {
		t.Errorf("%d more turns on what may not pass", more)
	}
	w.update(func(t *policy.Table) { delete(t.Rows, rowOf(policy.Ingress, classC, isA, 80)) })
	w.goesOn(b, 300)
	if n := w.retransmits(b); n != 0 {
		t.Errorf("the other stream repeated %d segments", n)
	}
}

// Labels of many flows are cleared in a time that is worth knowing.
func TestManyFlowsAreCleared(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	if _, err := p.Sync(t.Context(), walled(), lease()); err != nil {
		t.Fatal(err)
	}
	const flows = 20000
	k := policy.Packet{Src: addr("1.0.0.1"), Dst: addr("10.42.1.4"), Proto: policy.UDP, Port: 53}
	for port := range flows {
		w.send(k, transport(k, 10000+port))
		if port%500 == 0 {
			w.arrived(map[uint64]bool{})
		}
	}
	labelled := func() int {
		n, err := w.conn.CountLabelled(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	nshost.Eventually(t, "all flows are there", func() bool { return labelled() == flows })
	start := time.Now()
	if err := w.conn.ClearLabels(t.Context(), 0); err != nil || labelled() != flows {
		t.Errorf("after all labels but that one were cleared %d flows have it, %v", labelled(), err)
	}
	read := time.Since(start)
	start = time.Now()
	if err := w.conn.ClearLabels(t.Context(), -1); err != nil || labelled() != 0 {
		t.Errorf("after all were cleared %d flows have it, %v", labelled(), err)
	}
	t.Logf("%d flows: nothing to clear %v, all to clear %v", flows, read.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
}

// What others do to the table is noticed and mended, with a new generation: what
// passed meanwhile is judged again.
func TestTampering(t *testing.T) {
	for name, script := range map[string]string{
		"rule inserted":       "insert rule inet weft_policy pod_forward accept",
		"chain flushed":       "flush chain inet weft_policy ingress4",
		"label rule gone":     "flush chain inet weft_policy pass",
		"table deleted":       "delete table inet weft_policy",
		"ruleset flushed":     "flush ruleset",
		"element added":       "add element inet weft_policy class_egress4 { 10.42.1.11 : 5 }",
		"element deleted":     "delete element inet weft_policy class_ingress4 { 10.42.1.12 }",
		"row added":           "add element inet weft_policy rows { 0x00000000 . 0x0006001b . tcp . 0x00005100 }",
		"range added":         "add element inet weft_policy block4 { 10.0.0.0/8 : 5, 255.0.0.0-255.255.255.255 : 6 }",
		"range gone":          "flush set inet weft_policy lease4",
		"range in the middle": "delete element inet weft_policy protocols { 18-131 }",
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			w.update(func(*policy.Table) {})
			before := w.p.Generation()
			w.router.NFT(script)
			w.p.Touched()
			r := w.update(func(*policy.Table) {})
			if plan := nftDiff(t, w); !plan.Empty() {
				t.Errorf("still to do:\n%s", plan)
			}
			// Undoing what only forbade forbids nothing; and where the generation
			// could not be read, all labels were cleared and the first one is new.
			undone := slices.Contains([]string{"element added", "range in the middle"}, name)
			unread := slices.Contains([]string{"label rule gone", "table deleted", "ruleset flushed"}, name)
			if want := before + 1; !undone && !unread && r.Generation != want || (undone || unread) && r.Generation != 0 {
				t.Errorf("generation %d after %d: %+v", r.Generation, before, r)
			}
			if w.reaches("b", netip.AddrPortFrom(at("c", v4), 81)) || !w.connects("b", netip.AddrPortFrom(at("c", v4), 80)) {
				t.Error("the table does not do what it says")
			}
		})
	}
}

// Somebody who changes another table all the time keeps nobody from changing
// this one.
func TestSyncBesideOthersTransactions(t *testing.T) {
	w := newTown(t)
	other := nft.Table{Family: nft.Inet, Name: "weft_other", Sets: []nft.Set{{Name: "s", Fields: []nft.Type{nft.Port}}}}
	busy := dial(w.t, w.router)
	if err := busy.Apply(t.Context(), nft.Diff(nft.Desired{Table: other}, nft.Content{})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		e := []nft.Element{{Set: "s", Key: "\x00\x50"}}
		for ctx.Err() == nil {
			_ = busy.Apply(ctx, nft.Plan{Table: other, Add: e})
			_ = busy.Apply(ctx, nft.Plan{Table: other, Delete: e})
			time.Sleep(100 * time.Microsecond)
		}
	})
	defer wg.Wait()
	defer cancel()
	for range 20 {
		w.table = clone(w.table)
		w.table.Rows[rowOf(policy.Ingress, classC, isB, uint16(1000+len(w.table.Rows)))] = true
		if r, err := w.p.Sync(t.Context(), w.table, lease()); err != nil || r.Unlabelled != nil {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}

// An update that meets a table other than it was left reads it and starts again.
func TestUpdateOfAChangedTable(t *testing.T) {
	w := newTown(t)
	w.update(func(*policy.Table) {})
	row := rowOf(policy.Ingress, classC, isA, 80)
	w.router.NFT("flush set inet weft_policy rows")
	w.update(func(t *policy.Table) { delete(t.Rows, row) }) // is gone already: ENOENT
	if plan := nftDiff(t, w); !plan.Empty() {
		t.Errorf("still to do:\n%s", plan)
	}
}
