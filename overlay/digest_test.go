// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

// What a hash is made from tells every entry from every other, and costs no
// memory.
func TestEntryBytes(t *testing.T) {
	seen := map[string]Entry{}
	note := func(e Entry) {
		t.Helper()
		b := string(appendEntry(nil, e))
		if o, ok := seen[b]; ok && o != e || len(b) == 0 || len(b) > 96 {
			t.Errorf("%#v and %#v: %x", e, o, b)
		}
		seen[b] = e
	}
	four, six := addr("10.0.0.1"), addr("fd00::1")
	for _, a := range []netip.Addr{four, six, {}, addr("10.0.0.2"), addr("::ffff:10.0.0.1")} {
		for _, m := range []subnet.MAC{{}, {2}, {0, 2}} {
			for _, dev := range []string{"", "weft.1", "weft.16777215123"} {
				note(FDB{Dev: dev, MAC: m, Dst: a})
			}
		}
	}
	clear(seen)
	for _, via := range []netip.Addr{four, six, {}} {
		for _, src := range []netip.Addr{four, six, {}} {
			for _, dst := range []netip.Prefix{netip.PrefixFrom(four, 24), netip.PrefixFrom(four, 25), netip.PrefixFrom(six, 24)} {
				for _, onlink := range []bool{false, true} {
					for _, metric := range []uint32{0, 1, 256} {
						note(Route{Dev: "d", Dst: dst, Via: via, Src: src, Metric: metric, Onlink: onlink, Proto: 87})
						note(Route{Dev: "d", Dst: dst, Via: via, Src: src, Metric: metric, Onlink: onlink, Proto: 3})
					}
				}
			}
		}
	}
	clear(seen)
	for _, a := range []netip.Addr{four, six} {
		note(Node{Addr: a})
		note(Node{Addr: a, Own: true})
	}
	clear(seen)
	for _, a := range []netip.Addr{four, six} {
		for _, b := range []netip.Prefix{netip.PrefixFrom(four, 24), netip.PrefixFrom(six, 64), netip.PrefixFrom(six, 128)} {
			note(Source{Outer: a, Inner: b})
		}
	}
	h := NewHasher()
	route := Route{Dev: "weft.1", Dst: netip.PrefixFrom(six, 64), Via: six, Metric: 1, Onlink: true}
	if n := testing.AllocsPerRun(100, func() { h.Tally(route) }); n != 0 {
		t.Errorf("%v allocations for a hash", n)
	}
}

// The digest of what changes lead to is the digest that changes lead to, and
// is another than before.
func TestDigestFollowsChanges(t *testing.T) {
	h := NewHasher()
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		before, _ := n.desired(drawMembers(t, 0), NewState())
		after, _ := n.redraw(t).desired(drawMembers(t, 1), before)
		d := before.Digest(h)
		for _, c := range Diff(after, before) {
			switch c.Entry.(type) {
			case Filter, Link:
				return // takes others with it
			}
			d.change(c)
		}
		if want := after.Digest(h); d != want {
			t.Fatalf("%v, want %v", d, want)
		}
		if before.Digest(h) != after.Digest(h) {
			return
		}
		after.Filters, after.Links, after.Addrs = before.Filters, before.Links, before.Addrs
		if !before.Equal(after) {
			t.Fatalf("one digest for two states, which differ by\n%s", Diff(after, before))
		}
	})
}

// A decision made share by share is the one made at once, and what is slimmed
// can be enlarged again, whatever is programmed.
func TestThinDecisions(t *testing.T) {
	thin := 0
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		r := NewReconciler(newFakeKernel(), Options{Config: n.cfg})
		r.SetSelf(n.self)
		leases := drawMembers(t, 0)
		r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(leases...)})
		in, err := r.inputs()
		if err != nil {
			t.Fatal(err)
		}
		l := newLoop(r)
		l.share = rapid.IntRange(1, 8).Draw(t, "share")
		d := l.first(in)
		have, _ := n.redraw(t).desired(drawMembers(t, 1), NewState())
		for _, programmed := range []State{NewState(), have} {
			want, problems := n.desired(leases, programmed)
			if !d.thin && programmed.Counts().Total() > 0 {
				continue
			}
			if d.digest != want.Digest(l.hasher) || d.reached != reachedBy(n, leases, programmed) || len(d.with(nil)) != len(problems) {
				t.Fatalf("thin %v: digest %v, want %v; problems %v, want %v", d.thin, d.digest, want.Digest(l.hasher), d.with(nil), problems)
			}
		}
		if d.thin {
			thin++
			d.enlarge()
			l.last = d
			l.slim()
			if !d.thin || d.state.Counts().Routes > 0 {
				t.Fatalf("what was thin before cannot be slimmed")
			}
		}
		want, _ := n.desired(leases, NewState())
		if d.enlarge(); !d.target.Equal(want) {
			t.Fatalf("differs by\n%s", Diff(d.target, want))
		}
	})
	if thin < 20 {
		t.Errorf("%d thin decisions prove little", thin)
	}
}
