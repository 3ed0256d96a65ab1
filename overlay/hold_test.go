// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

const holdTime = 5 * time.Minute

// ready returns a bench with n peers programmed and a second of quiet.
func ready(t *testing.T, n int) *bench {
	b := start(t)
	b.SetSelf(b.self)
	b.deliver(n)
	b.sleep(time.Second)
	b.expect(n)
	return b
}

// give hands over leases and lets everything that is due at once happen.
func (b *bench) give(leases ...subnet.Lease) {
	b.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(append(leases, b.self.Lease)...)})
	b.sleep(time.Second)
}

// problems returns those of a kind that stand.
func (b *bench) problemsOf(kind string) []subnet.Problem {
	return slices.DeleteFunc(slices.Clone(b.Status().Problems), func(p subnet.Problem) bool { return p.Kind != kind })
}

// holding checks that n peers of the dual-stack bench are in the kernel, and
// that routes of them are held in all.
func (b *bench) holding(n, routes int) {
	b.t.Helper()
	b.expect(n)
	st := b.Status()
	if st.Hold == nil || st.Hold.Routes != routes || !st.InSync || len(b.problemsOf("MassRemovalHeld")) != 1 {
		b.t.Errorf("hold %+v, in sync %t, problems %v; want %d routes held", st.Hold, st.InSync, st.Problems, routes)
	}
}

// notHolding checks the contrary.
func (b *bench) notHolding(n int) {
	b.t.Helper()
	b.expect(n)
	if st := b.Status(); st.Hold != nil || !st.InSync || len(b.problemsOf("MassRemovalHeld")) != 0 {
		b.t.Errorf("hold %+v, in sync %t, problems %v; want none", st.Hold, st.InSync, st.Problems)
	}
}

// The store's content is wiped: all stays for five minutes, to the moment.
func TestMassRemovalWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		_, writes := b.k.counts()
		since := time.Now()
		b.give()
		b.holding(10, 20)
		st := b.Status()
		if !st.Hold.Since.Equal(since) || !st.Hold.Until.Equal(since.Add(holdTime)) || st.Peers != 0 {
			t.Errorf("hold %+v, %d peers", st.Hold, st.Peers)
		}
		want := subnet.Problem{Kind: "MassRemovalHeld", Object: "peers", Detail: "no usable lease is left for 20 of 20 subnets of peers since 2000-01-01T00:00:01Z: " +
			"their entries are kept until 2000-01-01T00:05:01Z, unless the leases come back; `weft peers release` removes them now"}
		if got := b.problemsOf("MassRemovalHeld"); got[0] != want {
			t.Errorf("got  %v\nwant %v", got[0], want)
		}
		if changes, problems, err := b.Plan(t.Context()); len(changes) != 0 || len(problems) != 1 || err != nil {
			t.Errorf("Plan: %v, %v, %v", changes, problems, err)
		}
		b.sleep(time.Until(st.Hold.Until) - time.Nanosecond)
		if _, now := b.k.counts(); now != writes {
			t.Errorf("%d writes while holding", now-writes)
		}
		b.holding(10, 20)
		b.sleep(time.Nanosecond)
		b.notHolding(0)
		if n := len(b.k.content().Routes); n != 0 {
			t.Errorf("%d routes are left", n)
		}
		b.stop()
	})
}

// The agent is started on an empty store, or with a wrong prefix, while the
// kernel has all peers.
func TestMassRemovalWaitsAfterARestart(t *testing.T) {
	for _, left := range []int{0, 4} {
		t.Run(fmt.Sprintf("%d of 10 left", left), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ready(t, 10)
				b.stop()
				next := start(t)
				next.k = b.k
				next.stop()
				next.Reconciler = NewReconciler(b.k, Options{Config: testConfig()})
				next.run()
				next.SetSelf(b.self)
				next.deliver(left)
				next.sleep(time.Minute)
				next.holding(10, 2*(10-left))
				next.sleep(holdTime)
				next.notHolding(left)
				next.stop()
			})
		})
	}
}

// Of three, three may go; of seven, three; and it counts per family.
func TestWhatIsAMassRemoval(t *testing.T) {
	for _, tt := range []struct {
		from, to int
		held     bool
	}{{3, 0, false}, {4, 0, true}, {7, 4, false}, {7, 3, true}, {8, 4, false}, {9, 5, false}, {9, 4, true}, {100, 50, false}, {101, 50, true}} {
		t.Run(fmt.Sprintf("%d to %d", tt.from, tt.to), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ready(t, tt.from)
				b.deliver(tt.to)
				b.sleep(time.Second)
				if tt.held {
					b.holding(tt.from, 2*(tt.from-tt.to))
				} else {
					b.notHolding(tt.to)
				}
				b.stop()
			})
		})
	}
}

// A wipe that is nearly made good when it is looked at, be it that the store
// says so in one snapshot or that the first one came too soon after a pass:
// those that are still missing are late, not gone.
func TestAMassThatIsBackButForAFew(t *testing.T) {
	for name, wiped := range map[string]func(*bench){
		"in one snapshot": func(b *bench) {
			b.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(b.leases(8)...), Dip: 9})
		},
		"in two": func(b *bench) {
			b.deliver(0)
			b.deliver(8)
		},
		"in three": func(b *bench) {
			b.deliver(0)
			b.deliver(3)
			b.deliver(8)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ready(t, 10)
				_, writes := b.k.counts()
				wiped(b)
				b.sleep(time.Second)
				b.holding(10, 4)
				b.deliver(10)
				b.sleep(time.Second)
				b.notHolding(10)
				if _, now := b.k.counts(); now != writes {
					t.Errorf("%d writes, want none", now-writes)
				}
				b.deliver(8) // and what was seen then is no reason any more
				b.sleep(time.Second)
				b.notHolding(8)
				b.stop()
			})
		})
	}
}

func TestMassRemovalCountsPerFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 0)
		leases := func(v4, v6 int) (out []subnet.Lease) {
			for i := range max(v4, v6) {
				l := lease(i+2, [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})
				l.Paths = slices.DeleteFunc(l.Paths, func(p subnet.Path) bool {
					return i >= map[subnet.Family]int{4: v4, 6: v6}[subnet.FamilyOf(p.Subnet.Addr())]
				})
				out = append(out, l)
			}
			return out
		}
		b.give(leases(10, 10)...)
		b.give(leases(2, 7)...)
		count := map[subnet.Family]int{}
		for r := range b.k.content().Routes {
			count[subnet.FamilyOf(r.Dst.Addr())]++
		}
		if want := map[subnet.Family]int{4: 10, 6: 7}; !maps.Equal(count, want) {
			t.Errorf("routes %v, want %v", count, want)
		}
		if got := b.problemsOf("MassRemovalHeld"); len(got) != 1 || !strings.Contains(got[0].Detail, " 8 of 10 subnets ") {
			t.Errorf("%v", got)
		}
		b.stop()
	})
}

// They come back one after another: no route is ever touched, not even when
// those that are still missing have become few.
func TestPeersThatComeBackEndTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		_, writes := b.k.counts()
		b.deliver(0)
		for n := range 10 {
			b.sleep(10 * time.Second)
			b.holding(10, 2*(10-n))
			b.deliver(n + 1)
		}
		b.sleep(10 * time.Second)
		b.notHolding(10)
		if _, now := b.k.counts(); now != writes {
			t.Errorf("%d writes, want none", now-writes)
		}
		since := time.Now()
		b.give()
		if h := b.Status().Hold; h == nil || !h.Since.Equal(since) {
			t.Errorf("the next hold is %+v, want one since %v", h, since)
		}
		b.stop()
	})
}

// A removal in the meantime is part of the hold, or not, by its own size; the
// time is that of the first.
func TestTheTimeOfAHoldIsOfItsBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		began := time.Now()
		b.deliver(3)
		b.sleep(time.Minute)
		b.deliver(1)
		b.sleep(time.Minute)
		b.holding(10, 18)
		if h := b.Status().Hold; !h.Since.Equal(began) || !h.Until.Equal(began.Add(holdTime)) {
			t.Errorf("hold %+v", h)
		}
		b.sleep(time.Until(began.Add(holdTime)))
		b.notHolding(1)
		b.stop()
	})
}

func TestReleaseEndsTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		b.Release() // of nothing: is not remembered
		b.sleep(time.Second)
		b.give()
		b.holding(10, 20)
		b.Release()
		b.sleep(time.Millisecond)
		b.notHolding(0)
		b.deliver(10)
		b.sleep(time.Second)
		b.give()
		b.holding(10, 20)
		b.stop()
	})
}

// A release is of what is held, not of what another snapshot takes with it.
func TestReleaseLeavesALaterRemovalHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 30)
		b.deliver(10)
		b.sleep(time.Second)
		b.holding(30, 40)
		b.released.Store(true) // as Release does, but for the poke: both are in one pass
		b.deliver(0)
		b.sleep(time.Second)
		b.holding(10, 20)
		b.stop()
	})
}

func TestHoldSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startWith(t, Options{MassRemovalHold: -1})
		b.SetSelf(b.self)
		b.deliver(10)
		b.sleep(time.Second)
		b.give()
		b.notHolding(0)
		b.stop()
	})
}

// While holding, what is added or changed is so at once, and a subnet that has
// another holder, or lies inside one that has, is moved at once.
func TestWhileHoldingTheRestProceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		v4 := [2]subnet.Family{4, 4}
		stays := lease(2, v4, [2]subnet.Family{6, 6})
		moved := edit(lease(50, v4), func(p *subnet.Path) { p.Subnet = pods(4, 3) })
		wider := edit(lease(51, v4), func(p *subnet.Path) { p.Subnet = prefix("10.5.4.0/23") }) // two of them
		changed := edit(stays, func(p *subnet.Path) { p.MAC[4] = 9 })
		fresh := lease(60, v4)
		b.give(changed, moved, wider, fresh)
		s := b.k.content()
		want, _ := Desired(b.self, testConfig(), []subnet.Lease{changed, moved, wider, fresh}, NewState())
		for _, c := range Diff(want, s) {
			if c.Op != Delete {
				t.Errorf("waits, but should not: %s", c)
			}
		}
		for _, n := range []int{3, 4, 5} {
			for r := range s.Routes {
				dst, _ := chain(s, r)
				if old := host(4, n); r.Dst.Overlaps(pods(4, n)) && dst == old {
					t.Errorf("%s still leads to %s", r, old)
				}
			}
		}
		if h := b.Status().Hold; h == nil || h.Routes != 6+9 {
			t.Errorf("hold %+v, want 6 of IPv4 and 9 of IPv6", h)
		}
		b.stop()
	})
}

// What is held is repaired like everything else.
func TestWhatIsHeldIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		b.give()
		b.k.edit(func(s State) { s.drop("weft.1") })
		b.Poke()
		b.sleep(time.Second)
		b.holding(10, 20)
		b.self.Underlays = slices.Clone(b.self.Underlays)
		b.self.Underlays[0].MTU = 1400 // the device is changed, and the other one
		b.self.Underlays[1].MTU = 1400
		b.SetSelf(b.self)
		b.sleep(time.Second)
		b.holding(10, 20)
		b.stop()
	})
}

// What others put there was never a peer: it goes, however much it is.
func TestForgedRoutesAreNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 1)
		b.k.edit(func(s State) {
			for i := 20; i < 30; i++ {
				entries, _ := Desired(b.self, testConfig(), []subnet.Lease{lease(i, [2]subnet.Family{4, 4})}, NewState())
				maps.Copy(s.Routes, entries.Routes)
				maps.Copy(s.Neighs, entries.Neighs)
				maps.Copy(s.FDB, entries.FDB)
			}
		})
		b.Poke()
		b.sleep(time.Second)
		b.notHolding(1)
		b.stop()
	})
}

// That a node loses its own underlay is no removal by the store.
func TestALostUnderlayHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		b.self.Underlays = nil
		b.SetSelf(b.self)
		b.sleep(time.Second)
		if st := b.Status(); st.Hold != nil || b.k.content().Counts().Total() != 0 {
			t.Errorf("hold %+v, left:\n%s", st.Hold, b.k.content())
		}
		b.stop()
	})
}

// What has a holder overlaps, in either direction.
func TestSpansOverlap(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "v6") {
			return netip.PrefixFrom(addr(fmt.Sprintf("fd00:5:0:%x::", rapid.IntRange(0, 9).Draw(t, "n"))), rapid.SampledFrom([]int{48, 62, 63, 64, 128}).Draw(t, "len")).Masked()
		}
		return netip.PrefixFrom(addr(fmt.Sprintf("10.5.%d.0", rapid.IntRange(0, 9).Draw(t, "n"))), rapid.SampledFrom([]int{0, 16, 22, 23, 24, 25, 32}).Draw(t, "len")).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		list, p := rapid.SliceOfN(draw, 0, 6).Draw(t, "list"), draw.Draw(t, "p")
		if got, want := newSpans(list).overlaps(p), slices.ContainsFunc(list, p.Overlaps); got != want {
			t.Fatalf("%v overlaps %s: %t, want %t", list, p, got, want)
		}
	})
}

// naiveHold says by leases what must be held: an independent reading.
func naiveHold(want, had State, self Self) Set[netip.Prefix] {
	out := Set[netip.Prefix]{}
	for _, f := range subnet.Families() {
		var all, gone []netip.Prefix
		for r := range had.Routes {
			if subnet.FamilyOf(r.Dst.Addr()) == f {
				all = append(all, r.Dst)
				if !destinations(want.Routes).Has(r.Dst) {
					gone = append(gone, r.Dst)
				}
			}
		}
		if len(gone) < 4 || len(gone) <= len(all)-len(gone) {
			continue
		}
		for _, g := range gone {
			free := !slices.ContainsFunc(self.Lease.Paths, func(p subnet.Path) bool { return p.Subnet.Overlaps(g) })
			for r := range want.Routes {
				free = free && !r.Dst.Overlaps(g)
			}
			if free {
				out.Add(g)
			}
		}
	}
	return out
}

// Any peers before, any after: what must be held is, and with it the state can
// be reached; no held peer is unreachable at any step, nor is any other.
func TestHoldingIsAState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := drawSelf(t)
		var before []subnet.Lease
		for n := 2; n < 9; n++ {
			before = append(before, drawPeer(t, n, 0))
		}
		had, _ := Desired(self, testConfig(), before, NewState())
		after := append(slices.DeleteFunc(drawPeers(t, 1), func(subnet.Lease) bool { return rapid.Bool().Draw(t, "gone") }), drawJunkList(t)...)
		want, _ := Desired(self, testConfig(), after, had)
		h := massRemoval(want, had, self, nil, false)
		if expect := naiveHold(want, had, self); !maps.Equal(h.subnets, expect) && len(h.subnets)+len(expect) > 0 {
			t.Fatalf("held %v, want %v", h.subnets, expect)
		}
		target := h.over(want)
		s := had.Clone()
		changes := Diff(target, had)
		for _, c := range changes {
			if err := applyModel(s, c); err != nil {
				t.Fatalf("%s: %v\nof\n%s", c, err, changes)
			}
			if err := reachable(s, NewState(), NewState(), nil); err != nil {
				t.Fatalf("after %s: %v\nof\n%s", c, err, changes)
			}
			for r := range had.Routes {
				if h.subnets.Has(r.Dst) && !s.Routes.Has(r) {
					t.Fatalf("%s removes held %s\nof\n%s", c, r, changes)
				}
			}
		}
		if !s.Equal(target) {
			t.Fatalf("got\n%swant\n%s", s, target)
		}
		if again := massRemoval(want, want.with(h.state), self, h.subnets, false); !maps.Equal(again.subnets, h.subnets) || !again.over(want).Equal(target) {
			t.Fatalf("held %v, and then %v", h.subnets, again.subnets)
		}
	})
}

// Whatever the store says and the kernel suffers, in whatever order: no route
// is deleted while Status says that it is held, and when the time is over the
// state is the desired one.
func TestNothingHeldIsDeletedBeforeItsTime(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { holdWalk(t, seed) })
		})
	}
}

func holdWalk(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	b := start(t)
	heldNow, until := Set[netip.Prefix]{}, time.Time{}
	b.k.fail = func(c Change) error { // sees every change before it is made
		if r, ok := c.Entry.(Route); ok && c.Op == Delete && heldNow.Has(r.Dst) && time.Now().Before(until) {
			t.Errorf("seed %d: %s deleted %v before its time", seed, r, time.Until(until))
		}
		return nil
	}
	b.SetSelf(b.self)
	n, holds := 0, 0
	for range 40 {
		n = rng.IntN(12)
		wanted := destinations(b.want(n).Routes)
		b.k.edit(func(s State) { // those that are back are their lease's again
			maps.DeleteFunc(heldNow, func(p netip.Prefix, _ struct{}) bool { return wanted.Has(p) })
		})
		b.deliver(n)
		if rng.IntN(3) == 0 {
			b.k.edit(func(s State) { vandalise(rng, s) })
			b.Poke()
		}
		if rng.IntN(8) == 0 {
			b.k.edit(func(State) { clear(heldNow) })
			b.Release()
		}
		b.sleep(time.Second)
		h := b.Status().Hold
		if h == nil {
			b.expect(n)
		} else {
			holds++
		}
		b.k.edit(func(s State) {
			clear(heldNow)
			if h == nil {
				return
			}
			until = h.Until
			for r := range s.Routes {
				if !wanted.Has(r.Dst) {
					heldNow.Add(r.Dst)
				}
			}
			if len(heldNow) != h.Routes {
				t.Errorf("seed %d: %d routes that are not wanted, status says %d", seed, len(heldNow), h.Routes)
			}
		})
		b.sleep(time.Duration(rng.IntN(100)) * time.Second)
	}
	if h := b.Status().Hold; h != nil {
		b.sleep(time.Until(h.Until))
	}
	b.notHolding(n)
	if holds == 0 {
		t.Errorf("seed %d: never held", seed)
	}
	b.stop()
}
