// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// filter is the table of node 1 of a dual-stack network.
func filter() overlay.Filter {
	return overlay.Filter{
		Guard: overlay.GuardBind, Masquerade: true, Port: 8472, VNI: 1,
		Networks: [2]netip.Prefix{prefix("10.42.0.0/16"), prefix("fd42::/48")},
		Subnets:  [2]netip.Prefix{prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")},
		Devices:  [2]string{"weft.1", "weft6.1"},
		Lengths:  overlay.Lengths{}.WithLength(subnet.IPv4, 24).WithLength(subnet.IPv6, 64),
	}
}

// openFilter is filter where nobody has said which the pod networks are.
func openFilter() overlay.Filter {
	f := filter()
	f.Networks = [2]netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}
	return f
}

// filterState is f with the elements of n dual-stack peers, as many as its
// guard has sets for.
func filterState(f overlay.Filter, n int) overlay.State {
	s := state(f, overlay.Node{Addr: ip("10.0.0.1"), Own: true}, overlay.Node{Addr: ip("fd00::1"), Own: true})
	for i := range n {
		hi, lo := byte((i+2)>>8), byte(i+2)
		outers := []netip.Addr{netip.AddrFrom4([4]byte{10, 9, hi, lo}), netip.AddrFrom16([16]byte{0xfd, 14: hi, 15: lo})}
		base4, base6 := netip.AddrFrom4([4]byte{10, 128 + hi, lo, 0}), netip.AddrFrom16([16]byte{0xfd, 0x42, 6: hi, 7: lo})
		inners := []netip.Prefix{netip.PrefixFrom(base4, 24), netip.PrefixFrom(base6, 64), netip.PrefixFrom(base4, 32), netip.PrefixFrom(base6, 128)}
		for _, o := range outers {
			inners = append(inners, netip.PrefixFrom(o, o.BitLen()))
		}
		for _, in := range inners[:2] {
			if n := f.Networks[in.Addr().BitLen()/128]; f.Masquerade && n.IsValid() && n.Bits() == 0 {
				s.Add(overlay.Pods{Subnet: in})
			}
		}
		for _, o := range outers {
			s.Add(overlay.Node{Addr: o})
			for _, in := range inners {
				if f.Guard == overlay.GuardBind {
					s.Add(overlay.Source{Outer: o, Inner: in})
				}
			}
		}
	}
	return s
}

// pass does what the reconciler does once.
func pass(t testing.TB, k *Kernel, want overlay.State) (made overlay.Changes) {
	t.Helper()
	made = overlay.Diff(want, mustDump(t, k))
	mustApply(t, k, made...)
	return made
}

func generation(t testing.TB, k *Kernel) uint32 {
	t.Helper()
	g, err := k.nft.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// nftRun feeds a script to the nft program.
func nftRun(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
}

// TestFilterRoundTrip: what is dumped is what was put there, for every way
// that a Filter can differ; the step from each to the next is one pass and one
// transaction, and `nft list ruleset` lists it.
func TestFilterRoundTrip(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	nftRun(t, "add table ip foreign\nadd chain ip foreign c\nadd rule ip foreign c counter drop")
	foreign := run(t, "nft list table ip foreign")
	seen := map[overlay.Filter]bool{}
	for name, edit := range map[string]func(*overlay.Filter){
		"bind":            func(*overlay.Filter) {},
		"peers":           func(f *overlay.Filter) { f.Guard = overlay.GuardPeers },
		"off":             func(f *overlay.Filter) { f.Guard = overlay.GuardOff },
		"masquerade only": func(f *overlay.Filter) { f.Guard, f.Lengths = "", overlay.Lengths{} },
		"no masquerade":   func(f *overlay.Filter) { f.Masquerade = false },
		"port":            func(f *overlay.Filter) { f.Port = 4789 },
		"port 1":          func(f *overlay.Filter) { f.Port = 1 },
		"port 65535":      func(f *overlay.Filter) { f.Port = 65535 },
		"VNI":             func(f *overlay.Filter) { f.VNI = 0xffffff },
		"networks":        func(f *overlay.Filter) { f.Networks[0] = prefix("10.0.0.0/8") },
		"no IPv6":         func(f *overlay.Filter) { f.Networks[1], f.Subnets[1] = netip.Prefix{}, netip.Prefix{} },
		"no IPv4":         func(f *overlay.Filter) { f.Networks[0], f.Subnets[0] = netip.Prefix{}, netip.Prefix{} },
		"no subnets":      func(f *overlay.Filter) { f.Subnets = [2]netip.Prefix{} },
		"open":            func(f *overlay.Filter) { f.Networks = [2]netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")} },
		"devices":         func(f *overlay.Filter) { f.Devices = [2]string{"flannel.1", "flannel-v6.1"} },
		"device IPv6":     func(f *overlay.Filter) { f.Devices = [2]string{"", "fifteen-bytes-x"} },
		"no devices":      func(f *overlay.Filter) { f.Devices = [2]string{} },
		"lengths":         func(f *overlay.Filter) { f.Lengths = f.Lengths.WithLength(4, 25).WithLength(6, 127).WithLength(6, 1) },
		"lengths, peers": func(f *overlay.Filter) {
			f.Guard, f.Lengths = overlay.GuardPeers, f.Lengths.WithLength(4, 1).WithLength(4, 31)
		},
	} {
		f := filter()
		edit(&f)
		if seen[f] {
			t.Fatalf("%s is there twice", name)
		}
		seen[f] = true
		want := filterState(f, 3)
		if f.Lengths != filter().Lengths && f.Guard == overlay.GuardBind {
			want.Add(overlay.Source{Outer: ip("fd00::9"), Inner: prefix("10.42.9.128/25")})
		}
		before := generation(t, k)
		made := pass(t, k, want)
		if n := generation(t, k) - before; n != 1 {
			t.Errorf("%s: %d transactions, want 1", name, n)
		}
		if have := mustDump(t, k); !have.Equal(want) {
			t.Fatalf("%s: changes\n%sleave\n%swant\n%s", name, made, have, want)
		}
		for _, c := range []string{"nft list ruleset", "nft -j list ruleset", "nft -a list table inet weft"} {
			run(t, c)
		}
	}
	pass(t, k, overlay.NewState())
	wantState(t, k, overlay.NewState())
	if now := run(t, "nft list ruleset"); now != foreign {
		t.Errorf("with our table gone\n%swant\n%s", now, foreign)
	}
}

// TestFilterRestart: an agent that starts anew finds in the kernel all it
// needs, and writes nothing.
func TestFilterRestart(t *testing.T) {
	enterNetns(t)
	want := filterState(filter(), 50)
	first := newKernel(t)
	pass(t, first, want)
	first.Close()
	k := newKernel(t)
	before := generation(t, k)
	for range 3 {
		if made := pass(t, k, want); !made.Empty() {
			t.Fatalf("after a restart there is to do\n%s", made)
		}
	}
	if now := generation(t, k); now != before {
		t.Errorf("%d transactions after a restart, want none", now-before)
	}
}

// TestFilterVandals does by hand what people and programs do to other
// people's tables. Each is seen and mended in one pass, by at most one
// transaction, with the counters' values kept unless the table was lost.
func TestFilterVandals(t *testing.T) {
	for _, c := range []struct {
		name, script string // HANDLE(text) stands for the handle of the first line with text
		why          string // in Foreign; empty where only elements differ
		gone         bool   // the table with its counters
	}{
		{"ruleset flushed", "flush ruleset", "", true},
		{"table deleted", "delete table inet weft", "", true},
		{"table deleted and made again", "delete table inet weft\nadd table inet weft", "no parameters", true},
		{"table made again with a comment", "delete table inet weft\nadd table inet weft { comment \"made by weftd, which undoes changes\"; }", "no parameters", true},
		{"table dormant", "add table inet weft { flags dormant; }", "table dormant", false},
		{"table flushed", "flush table inet weft", "rules missing", false},
		{"chain flushed", "flush chain inet weft early_input", "chain early_input: ", false},
		{"chain deleted", "flush chain inet weft early_output\ndelete chain inet weft early_output", "chain early_output missing", false},
		{"chain added", "add chain inet weft theirs", "chain theirs not ours", false},
		{"base chain added", "add chain inet weft theirs { type filter hook input priority 0; policy drop; }", "chain theirs not ours", false},
		{"policy altered", "add chain inet weft early_forward { policy drop; }", "policy drop", false},
		{"rule deleted", "delete rule inet weft vxlan_outer4 handle HANDLE(refused_inner\" drop)", "1 of our rules missing", false},
		{"rule inserted", "insert rule inet weft vxlan_outer4 accept", "1 not ours", false},
		{"rule appended", "add rule inet weft early_input counter", "1 not ours", false},
		{"rule replaced", "replace rule inet weft vxlan_outer4 handle HANDLE(not from a peer) accept comment \"not from a peer\"", "1 not ours", false},
		{"set added", "add set inet weft theirs { type ipv4_addr; elements = { 192.0.2.1 }; }", "set theirs not ours", false},
		{"set that looks like ours", "add set inet weft bind4_inner4_20 { type ipv4_addr . ipv4_addr; }", "set bind4_inner4_20 not ours", false},
		{"map added", "add map inet weft theirs { type ipv4_addr : mark; }", "set theirs not ours", false},
		{"set made again with a size", "flush chain inet weft vxlan_output\nflush chain inet weft vxlan_prerouting\nflush chain inet weft vxlan_forward\nflush chain inet weft vxlan_from_pods\nflush chain inet weft vxlan_outer4\n" +
			"delete set inet weft peers4\nadd set inet weft peers4 { type ipv4_addr; size 2; }", "of our rules missing", false},
		{"counter added", "add counter inet weft theirs", "counter theirs not ours", false},
		{"quota added", "add quota inet weft theirs { over 20 mbytes; }", "1 objects of other kinds", false},
		{"element deleted", "delete element inet weft peers4 { 10.9.0.2 }", "", false},
		{"element added", "add element inet weft peers4 { 10.0.0.66 }", "", false},
		{"odd address added", "add element inet weft own6 { :: }\nadd element inet weft peers4 { 224.0.0.1, 0.0.0.0 }", "", false},
		{"source added", "add element inet weft bind4_inner4_24 { 10.0.0.66 . 0x0a2a0200 }", "", false},
		{"source with host bits added", "add element inet weft bind4_inner4_24 { 10.0.0.66 . 0x0a2a0207 }", "", false},
		{"catch-all added", "add element inet weft peers4 { * }", "set peers4: 1 elements not ours", false},
		{"mapped address added", "add element inet weft peers6 { ::ffff:10.0.0.66 }", "set peers6: 1 elements not ours", false},
		{"set flushed", "flush set inet weft own4", "", false},
		{"all sets flushed", "flush set inet weft own4\nflush set inet weft peers4\nflush set inet weft peers6\nflush set inet weft bind4_inner4_24", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			enterNetns(t)
			k := newKernel(t)
			canary := "table ip foreign {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.1 }\n\t}\n\n\tchain c {\n\t\tip saddr @s counter packets 0 bytes 0 drop\n\t}\n}\n"
			nftRun(t, canary)
			want := filterState(filter(), 3)
			pass(t, k, want)
			count(t, k, nft.RefusedInner, 7)
			mustDump(t, k) // and keep it
			nftRun(t, handles(t, c.script))
			if c.name == "ruleset flushed" {
				nftRun(t, canary)
			}
			have := mustDump(t, k)
			var foreign string
			for f := range have.Filters {
				foreign = f.Foreign
			}
			if have.Equal(want) || !strings.Contains(foreign, c.why) || (c.why == "") != (foreign == "") {
				t.Errorf("the table is said to be %q, want %q, and the state\n%s", foreign, c.why, have)
			}
			before := generation(t, k)
			made := pass(t, k, want)
			if have := mustDump(t, k); !have.Equal(want) {
				t.Errorf("changes\n%sleave\n%swant\n%s", made, have, want)
			}
			if n := generation(t, k) - before; n < 1 || n > 2 { // adds, and deletes after them
				t.Errorf("%d transactions", n)
			}
			got, err := k.Refused(t.Context())
			if kept := map[bool]uint64{false: 7}[c.gone]; err != nil || got["inner"] != kept {
				t.Errorf("the counter reads %d, want %d, %v", got["inner"], kept, err)
			}
			if out := run(t, "nft list table ip foreign"); out != canary {
				t.Errorf("the foreign table is\n%swas\n%s", out, canary)
			}
		})
	}
}

// count makes a counter of the table read n packets.
func count(t *testing.T, k *Kernel, name string, n uint64) {
	t.Helper()
	p, err := paramsOf(filter())
	if err != nil {
		t.Fatal(err)
	}
	have := mustDump(t, k)
	plan := nft.Plan{Table: nft.Ruleset(p), Replace: true, Counts: map[string]nft.Counts{name: {Packets: n, Bytes: 100 * n}}}
	for _, e := range overlay.Diff(have, overlay.NewState()) {
		if el, err := elementOf(e.Entry); err == nil {
			plan.Add = append(plan.Add, el)
		}
	}
	if err := k.nft.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
}

// handles puts handles of our table's lines into a script.
func handles(t *testing.T, script string) string {
	t.Helper()
	return regexp.MustCompile(`HANDLE\(([^)]*)\)`).ReplaceAllStringFunc(script, func(m string) string {
		want := strings.TrimSuffix(strings.TrimPrefix(m, "HANDLE("), ")")
		for line := range strings.Lines(run(t, "nft -a list table inet weft")) {
			if strings.Contains(line, want) {
				return regexp.MustCompile(`# handle (\d+)`).FindStringSubmatch(line)[1]
			}
		}
		t.Fatalf("no line with %q", want)
		return ""
	})
}

// TestFilterUserdataAltered: a table like ours that says it was made from
// something else, or nothing, or what another weft wrote, is replaced.
func TestFilterUserdataAltered(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	want := filterState(filter(), 2)
	p, err := paramsOf(filter())
	if err != nil {
		t.Fatal(err)
	}
	good := nft.Ruleset(p)
	other := p
	other.VNI = 2
	for name, c := range map[string]struct{ params, why string }{
		"of another VNI":     {nft.Ruleset(other).Params, "rules missing or altered"},
		"none":               {"", "no parameters"},
		"of another version": {"\x7f" + good.Params[1:], "parameters of version 127"},
		"cut short":          {good.Params[:len(good.Params)-1], "malformed parameters"},
		"too long":           {good.Params + "\x00", "malformed parameters"},
		"of no guard":        {good.Params[:1] + "\x09" + good.Params[2:], "malformed parameters"},
	} {
		t.Run(name, func(t *testing.T) {
			table := good
			table.Params = c.params
			if err := k.nft.Apply(t.Context(), nft.Plan{Table: table, Replace: true}); err != nil {
				t.Fatal(err)
			}
			have := mustDump(t, k)
			for f := range have.Filters {
				if !strings.Contains(f.Foreign, c.why) {
					t.Errorf("Foreign is %q, want %q", f.Foreign, c.why)
				}
			}
			pass(t, k, want)
			wantState(t, k, want)
		})
	}
}

// TestFilterCache: nothing is read again while nobody touches nftables, all
// of it after anybody did.
func TestFilterCache(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	want := filterState(filter(), 20)
	pass(t, k, want)
	mustDump(t, k)
	like := want.Digest(overlay.NewHasher())
	asExpected := func() bool {
		t.Helper()
		s, err := k.Dump(t.Context(), like)
		if err != nil {
			t.Fatal(err)
		}
		return s.Sources == nil && s.Nodes == nil && s.Pods == nil
	}
	if !asExpected() || !k.filter.valid || k.filter.members.sources.N == 0 {
		t.Fatal("nothing is kept")
	}
	k.filter.members.sources.Sum++ // as if it had been another
	if asExpected() {
		t.Error("what is kept is not asked")
	}
	k.filter.members.sources.Sum--
	wantState(t, k, want)
	nftRun(t, "add table ip foreign")
	wantState(t, k, want)
	nftRun(t, "delete element inet weft peers4 { 10.9.0.2 }")
	delete(want.Nodes, overlay.Node{Addr: ip("10.9.0.2")})
	wantState(t, k, want)
}

// TestFilterOff: without Options.Filter nftables is neither read nor written,
// and links with a guard are refused.
func TestFilterOff(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t)
	pass(t, k, filterState(filter(), 1))
	off := newKernelWithoutFilter(t, "weft.1")
	wantState(t, off, overlay.NewState())
	before := generation(t, k)
	err := off.Apply(t.Context(), overlay.Changes{del(filter()), add(filter()), add(link(subnet.IPv4))})
	wantErr(t, err, "weft was told to leave nftables alone", "add link weft.1: not created: its ingress guard is not in place")
	if generation(t, k) != before {
		t.Error("nftables was written to")
	}
	if n, err := off.Refused(t.Context()); n != nil || err != nil {
		t.Errorf("Refused: %v, %v", n, err)
	}
}

// TestUnguardedLinksAreRefused: when the guard cannot be put in place, no
// VXLAN device appears, or is made anew; what there is stays as it is.
func TestUnguardedLinksAreRefused(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1", "weft6.1")
	old := link(subnet.IPv6)
	mustApply(t, k, add(old))
	bad := filter()
	bad.Devices[0] = "a-name-of-16-byt"
	next := old
	next.Port = 4789
	lower := old
	lower.MTU = 1300
	for _, guard := range []overlay.Guard{overlay.GuardBind, overlay.GuardPeers} {
		bad.Guard = guard
		err := k.Apply(t.Context(), overlay.Changes{add(bad), add(overlay.Node{Addr: ip("10.0.0.2")}), add(link(subnet.IPv4)), replace(old, next), modify(old, lower)})
		wantErr(t, err, "a-name-of-16-byt", "with 1 elements",
			"add link weft.1: not created: its ingress guard is not in place", "replace link weft6.1: not created")
		wantState(t, k, state(lower))
		mustApply(t, k, modify(lower, old))
	}
	bad.Guard = overlay.GuardOff
	err := k.Apply(t.Context(), overlay.Changes{add(bad), add(link(subnet.IPv4))})
	wantErr(t, err, "a-name-of-16-byt")
	wantState(t, k, state(old, link(subnet.IPv4)))
	want := filterState(filter(), 1)
	want.Add(old)
	want.Add(link(subnet.IPv4))
	pass(t, k, want)
	wantState(t, k, want)
}

// TestFilterElementFailures: one element that the kernel refuses, or that is
// gone or there already, costs the others of its run nothing.
func TestFilterElementFailures(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	want := filterState(filter(), 10)
	pass(t, k, want)
	run(t, "nft delete element inet weft peers4 { 10.9.0.2 }")
	run(t, "nft delete element inet weft peers4 { 10.9.0.3 }")
	var run1 overlay.Changes
	for n := range want.Nodes {
		if !n.Own {
			run1 = append(run1, del(n))
			delete(want.Nodes, n)
		}
	}
	for _, e := range []overlay.Entry{
		overlay.Node{Addr: ip("192.0.2.1")}, overlay.Source{Outer: ip("192.0.2.1"), Inner: prefix("10.42.77.0/24")},
	} {
		run1 = append(run1, add(e), add(e))
		want.Add(e)
	}
	junk := []overlay.Entry{
		overlay.Node{}, overlay.Node{Addr: ip("::ffff:10.0.0.1")}, overlay.Source{Outer: ip("192.0.2.1")},
		overlay.Source{Outer: ip("192.0.2.1"), Inner: prefix("10.42.77.0/26")},
	}
	for _, e := range junk {
		run1 = append(run1, add(e))
	}
	err := k.Apply(t.Context(), run1)
	wantErr(t, err, "address invalid IP", "address ::ffff:10.0.0.1", "inner prefix invalid Prefix", "set bind4_inner4_26")
	if n := strings.Count(err.Error(), "\n") + 1; n != len(junk) {
		t.Errorf("%d errors, want %d: %v", n, len(junk), err)
	}
	wantState(t, k, want)

	err = k.Apply(t.Context(), append(overlay.Changes{add(filter())}, add(junk[3]), add(overlay.Node{Addr: ip("192.0.2.9")})))
	wantErr(t, err, "add source ", "table inet weft has no set bind4_inner4_26")
	wantState(t, k, state(filter(), overlay.Node{Addr: ip("192.0.2.9")}))

	run(t, "nft delete table inet weft")
	mustApply(t, k, del(overlay.Node{Addr: ip("192.0.2.9")}), del(overlay.Node{Addr: ip("192.0.2.8")}), del(filter()))
	err = k.Apply(t.Context(), overlay.Changes{add(overlay.Node{Addr: ip("192.0.2.9")}), add(overlay.Node{Addr: ip("192.0.2.8")})})
	wantErr(t, err, "table inet weft is gone")
	wantState(t, k, overlay.NewState())
}
