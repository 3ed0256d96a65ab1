// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/internal/nshost"
)

// handle finds the handle of the first rule or chain whose listing has text.
func handle(h *nshost.Host, text string) string {
	h.T.Helper()
	for line := range strings.Lines(h.Run("nft -a list table inet weft")) {
		if strings.Contains(line, text) {
			return regexp.MustCompile(`# handle (\d+)`).FindStringSubmatch(line)[1]
		}
	}
	h.T.Fatalf("no line with %q", text)
	return ""
}

// TestTampering does by hand what people and programs do to other people's
// tables. Each must be noticed, named, and mended by one transaction.
func TestTampering(t *testing.T) {
	want := Weft(params(), peers())
	for _, c := range []struct {
		name string
		do   func(h *nshost.Host) string // a script for nft
		why  string                      // in the plan
	}{
		{"ruleset flushed", func(*nshost.Host) string { return "flush ruleset" }, "table missing"},
		{"table deleted", func(*nshost.Host) string { return "delete table inet weft" }, "table missing"},
		{"table made dormant", func(*nshost.Host) string { return "add table inet weft { flags dormant; }" }, "table dormant"},
		{"table flushed", func(*nshost.Host) string { return "flush table inet weft" }, "chain early_forward: 1 of our rules missing or altered, 0 not ours"},
		{"chain flushed", func(*nshost.Host) string { return "flush chain inet weft early_output" }, "chain early_output: 1 of our rules missing"},
		{"chain deleted", func(*nshost.Host) string {
			return "flush chain inet weft early_output\ndelete chain inet weft early_output"
		}, "chain early_output missing"},
		{"chain made again with another priority", func(*nshost.Host) string {
			return "flush chain inet weft early_output\ndelete chain inet weft early_output\n" +
				"add chain inet weft early_output { type filter hook output priority -299; }"
		}, `chain early_output is type "filter" hook output priority -299`},
		{"policy altered", func(*nshost.Host) string { return "add chain inet weft early_forward { policy drop; }" }, "chain early_forward has policy drop"},
		{"chain added", func(*nshost.Host) string { return "add chain inet weft theirs" }, "chain theirs not ours"},
		{"rule deleted", func(h *nshost.Host) string {
			return "delete rule inet weft vxlan_outer4 handle " + handle(h, "refused_inner\" drop")
		}, "chain vxlan_outer4: 1 of our rules missing or altered, 0 not ours"},
		{"rule inserted", func(*nshost.Host) string { return "insert rule inet weft vxlan_outer4 accept" }, "chain vxlan_outer4: 0 of our rules missing or altered, 1 not ours"},
		{"rule replaced", func(h *nshost.Host) string {
			return "replace rule inet weft vxlan_outer4 handle " + handle(h, "not from a peer") + " accept comment \"not from a peer\""
		}, "chain vxlan_outer4: 1 of our rules missing or altered, 1 not ours"},
		{"rule replaced by its equal", func(h *nshost.Host) string {
			return "replace rule inet weft vxlan_outer4 handle " + handle(h, "inside is not") + " counter name refused_inner drop comment \"inside is not the peer's\""
		}, "chain vxlan_outer4: 1 of our rules missing or altered, 1 not ours"},
		{"rule doubled", func(*nshost.Host) string {
			return "add rule inet weft vxlan_fragment meta l4proto != udp return"
		}, "chain vxlan_fragment: 0 of our rules missing or altered, 1 not ours"},
		{"rules in another order", nil, "chain vxlan_outer4: rules in another order"},
		{"set added", func(*nshost.Host) string { return "add set inet weft theirs { type ipv4_addr; }" }, "set theirs not ours"},
		{"set deleted", func(*nshost.Host) string {
			return "flush chain inet weft vxlan_outer6\ndelete set inet weft bind6_inner4_25"
		}, "set bind6_inner4_25 missing"},
		{"set of another type", func(*nshost.Host) string {
			return "flush chain inet weft vxlan_outer6\ndelete set inet weft bind6_inner4_25\n" +
				"add set inet weft bind6_inner4_25 { type ipv6_addr . ipv4_addr; }"
		}, "set bind6_inner4_25 altered"},
		{"set of another size", func(*nshost.Host) string {
			return "flush chain inet weft vxlan_outer6\ndelete set inet weft bind6_inner4_25\n" +
				"add set inet weft bind6_inner4_25 { typeof ip6 saddr . @th,336,32; size 7; }"
		}, "set bind6_inner4_25 altered"},
		{"set whose elements expire", func(*nshost.Host) string {
			return "flush chain inet weft vxlan_outer6\ndelete set inet weft bind6_inner4_25\n" +
				"add set inet weft bind6_inner4_25 { typeof ip6 saddr . @th,336,32; timeout 1h; }"
		}, "set bind6_inner4_25 altered"},
		{"set with a comment", func(*nshost.Host) string {
			return "flush chain inet weft vxlan_outer6\ndelete set inet weft bind6_inner4_25\n" +
				"add set inet weft bind6_inner4_25 { typeof ip6 saddr . @th,336,32; comment \"mine\"; }"
		}, "set bind6_inner4_25 altered"},
		{"map in the place of a set", func(*nshost.Host) string {
			return "flush chain inet weft vxlan_outer6\ndelete set inet weft bind6_inner4_25\n" +
				"add map inet weft bind6_inner4_25 { typeof ip6 saddr . @th,336,32 : meta mark; }"
		}, "set bind6_inner4_25 altered"},
		{"counter added", func(*nshost.Host) string { return "add counter inet weft theirs" }, "counter theirs not ours"},
		{"counter deleted", func(h *nshost.Host) string {
			return "flush chain inet weft vxlan_fragment\ndelete counter inet weft refused_fragment"
		}, "counter refused_fragment missing"},
		{"quota added", func(*nshost.Host) string { return "add quota inet weft theirs { over 20 mbytes; }" }, "1 objects of other kinds"},
		{"element deleted", func(*nshost.Host) string { return "delete element inet weft peers4 { 10.0.0.2 }" },
			"nft add element inet weft peers4 { 10.0.0.2 }"},
		{"element added", func(*nshost.Host) string { return "add element inet weft bind4_inner4_24 { 10.0.0.66 . 0x0a2a0200 }" },
			"nft delete element inet weft bind4_inner4_24 { 10.0.0.66 . 10.42.2.0 }"},
		{"catch-all element added", func(*nshost.Host) string { return "add element inet weft peers4 { * }" },
			"nft delete element inet weft peers4 { * }"},
		{"set flushed", func(*nshost.Host) string { return "flush set inet weft own4" }, "nft add element inet weft own4 { 10.0.0.1 }"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := nshost.New(t)
			h.NFT("add table ip foreign\nadd chain ip foreign c\nadd rule ip foreign c counter drop")
			conn := dial(t, h)
			install(t, conn, want)
			if c.do == nil {
				swapRules(t, conn, want)
			} else {
				h.NFT(c.do(h))
			}
			plan := Diff(want, mustDump(t, conn, want.Table))
			if !strings.Contains(plan.String(), c.why) {
				t.Errorf("plan lacks %q:\n%.2000s", c.why, plan)
			}
			if c.name == "ruleset flushed" {
				h.NFT("add table ip foreign\nadd chain ip foreign c\nadd rule ip foreign c counter drop")
			}
			install(t, conn, want)
			if out := h.Run("nft list table ip foreign"); !strings.Contains(out, "counter packets 0 bytes 0 drop") {
				t.Errorf("the foreign table changed:\n%s", out)
			}
		})
	}
}

// swapRules installs want with two rules swapped. nft cannot: its rules
// would lack our stamp.
func swapRules(t *testing.T, c *Conn, want Desired) {
	t.Helper()
	var chains []Chain
	for _, ch := range want.Table.Chains {
		ch.Rules = append([]Rule(nil), ch.Rules...)
		if ch.Name == outerChain(4) {
			ch.Rules[0], ch.Rules[len(ch.Rules)-1] = ch.Rules[len(ch.Rules)-1], ch.Rules[0]
		}
		chains = append(chains, ch)
	}
	want.Table.Chains = chains
	install(t, c, want)
}

// What nft saved and loaded again does the same but is not what weft made. A
// ruleset with ours in it must load, or who saved it restores nothing.
func TestLoadedAgainFromItsListing(t *testing.T) {
	for _, guard := range []Guard{GuardBind, GuardPeers, GuardOff} {
		t.Run(string(guard), func(t *testing.T) {
			l := newLab(t)
			p := params()
			p.Guard, p.Masquerade = guard, guard != GuardBind
			if guard == GuardOff {
				p.opens()
			}
			want := Weft(p, peers())
			install(t, l.conn, want)
			listing := l.node.Run("nft list ruleset")
			l.node.NFT("flush ruleset\n" + listing)
			if again := l.node.Run("nft list ruleset"); again != listing {
				t.Errorf("loaded again:\n%s\nwas\n%s", again, listing)
			}
			if guard == GuardBind {
				each(attacks(), func(name string, a attack) {
					if n, refused := l.deliver(a, 5); n != 0 || refused[a.want] != 5 {
						t.Errorf("%s: %d of 5 delivered, %v", name, n, refused)
					}
				})
			}
			plan := Diff(want, mustDump(t, l.conn, want.Table))
			if !plan.Replace || !strings.Contains(plan.String(), "of our rules missing or altered") {
				t.Errorf("the plan's reasons are %q", plan.Why)
			}
			install(t, l.conn, want)
		})
	}
}

func TestCountersSurviveRepair(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	want := Weft(params(), peers())
	install(t, c, want)
	plan := Diff(want, Content{})
	plan.Counts = map[string]Counts{RefusedInner: {Packets: 7, Bytes: 700}}
	if err := c.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	h.NFT("insert rule inet weft vxlan_outer4 accept")
	install(t, c, want)
	if got := mustDump(t, c, want.Table).Counters[RefusedInner]; got != (Counts{7, 700}) {
		t.Errorf("the counter reads %+v after a repair, want 7 packets, 700 bytes", got)
	}
}

// A change is all or nothing, and the error names what was refused.
func TestElementDeltasAreAtomic(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	want := Weft(params(), peers())
	install(t, c, want)
	stale := mustDump(t, c, want.Table)
	h.NFT("delete element inet weft peers4 { 10.0.0.2 }")
	more := Weft(params(), append(peers()[1:], Peer{Outer: addrs("10.0.0.9"), Inner: prefixes("10.42.9.0/24")}))
	err := c.Apply(t.Context(), Diff(more, stale))
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "delete elements of set peers4 in table inet weft") {
		t.Errorf("deleting what is gone: %v", err)
	}
	h.NFT("add element inet weft peers4 { 10.0.0.2 }")
	if plan := Diff(want, mustDump(t, c, want.Table)); !plan.Empty() {
		t.Errorf("a refused change left something behind:\n%s", plan)
	}
	install(t, c, more)
	if err := c.Apply(t.Context(), Plan{Table: more.Table, Add: more.Elements}); err != nil {
		t.Errorf("adding what is there: %v", err)
	}
	bad := Plan{Table: want.Table, Add: []Element{{Set: "peers4", Key: Key(addr("10.0.0.10").AsSlice())}, {Set: "nosuch", Key: "\x01\x02\x03\x04"}}}
	if err := c.Apply(t.Context(), bad); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "set nosuch") {
		t.Errorf("an element of a set that is not there: %v", err)
	}
	if plan := Diff(more, mustDump(t, c, want.Table)); !plan.Empty() {
		t.Errorf("a refused change left something behind:\n%s", plan)
	}
}

func TestTenThousandPeers(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	p := params()
	p.opens()
	all := manyPeers(10000)
	want := Weft(p, all)
	step := func(what string, f func()) {
		start := time.Now()
		f()
		t.Logf("%s: %v", what, time.Since(start).Round(10*time.Microsecond))
	}
	var have Content
	step(fmt.Sprintf("load %d elements in one transaction", len(want.Elements)), func() {
		if err := c.Apply(t.Context(), Diff(want, Content{})); err != nil {
			t.Fatal(err)
		}
	})
	step("dump", func() { have = mustDump(t, c, want.Table) })
	step("diff", func() {
		if plan := Diff(want, have); !plan.Empty() {
			t.Fatalf("%d to add, %d to delete, %v", len(plan.Add), len(plan.Delete), plan.Why)
		}
	})
	step("generation", func() {
		if _, err := c.Generation(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	less := Weft(p, all[1:])
	step("one peer less", func() {
		if err := c.Apply(t.Context(), Diff(less, have)); err != nil {
			t.Fatal(err)
		}
	})
	step("repair of a vandalised rule", func() {
		h.NFT("insert rule inet weft vxlan_outer4 accept")
		install(t, c, less)
	})
}

func TestGeneration(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	gen := func() uint32 {
		g, err := c.Generation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	want := Weft(params(), peers())
	before := gen()
	install(t, c, want)
	first := gen()
	mustDump(t, c, want.Table)
	if before == first || gen() != first {
		t.Errorf("generation %d before a change, %d after it, %d after a dump", before, first, gen())
	}
	h.NFT("delete element inet weft peers4 { 10.0.0.2 }")
	if gen() == first {
		t.Error("a foreign change left the generation alone")
	}
}

func TestContextEndsCalls(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want := Weft(params(), peers())
	if err := c.Apply(ctx, Diff(want, Content{})); !errors.Is(err, context.Canceled) {
		t.Errorf("apply: %v", err)
	}
	if _, err := c.Dump(ctx, want.Table); !errors.Is(err, context.Canceled) {
		t.Errorf("dump: %v", err)
	}
	install(t, c, want) // and the socket is as good as before
}
