// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"weft.dev/weft/subnet"
)

// bench is a running Reconciler on a fake kernel, inside a synctest bubble.
type bench struct {
	*Reconciler
	t      *testing.T
	k      *fakeKernel
	self   Self
	log    *logtest.Hook
	status []Status // as OnStatus saw them
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T) *bench { return startWith(t, Options{}) }

// startWith starts a Reconciler with some options unlike the usual ones.
func startWith(t *testing.T, o Options) *bench {
	b := &bench{t: t, k: newFakeKernel(), self: testSelf([2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}), done: make(chan error, 1)}
	logger, hook := logtest.NewNullLogger()
	b.log = hook
	if len(o.Config.Networks) == 0 {
		o.Config = testConfig()
	}
	o.Log, o.OnStatus = logger, func(s Status) { b.status = append(b.status, s) }
	b.Reconciler = NewReconciler(b.k, o)
	b.run()
	return b
}

// run starts Run.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(b.t.Context())
	b.cancel = cancel
	go func() { b.done <- b.Run(ctx) }()
	synctest.Wait()
}

// sleep lets time pass and everything due in it finish.
func (b *bench) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) stop() {
	b.cancel()
	if err := <-b.done; !errors.Is(err, context.Canceled) {
		b.t.Errorf("Run returned %v, want context.Canceled", err)
	}
}

// deliver hands over leases of nodes 2 to n+1 and our own.
func (b *bench) deliver(n int) {
	b.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(b.leases(n)...)})
}

func (b *bench) leases(n int) []subnet.Lease {
	out := []subnet.Lease{b.self.Lease}
	for i := range n {
		out = append(out, lease(i+2, [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6}))
	}
	return out
}

func (b *bench) want(n int) State {
	s, _ := Desired(b.self, testConfig(), b.leases(n), NewState())
	return s
}

// expect waits until all is idle and compares the kernel with n peers.
func (b *bench) expect(n int) {
	b.t.Helper()
	synctest.Wait()
	if c := Diff(b.want(n), b.k.content()); !c.Empty() {
		b.t.Errorf("%s: still to do\n%s", time.Now().Format(time.StampMilli), c)
	}
}

func TestNothingIsTouchedBeforeLeaseAndSnapshot(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		give         func(*bench)
	}{
		{"neither", "waiting for a subnet lease and for the store's first snapshot of leases", func(*bench) {}},
		{
			"self without a lease", "waiting for a subnet lease and for the store's first snapshot of leases",
			func(b *bench) { b.SetSelf(Self{}) },
		},
		{"snapshot only", "waiting for a subnet lease", func(b *bench) { b.deliver(3) }},
		{"snapshot, and self without a lease", "waiting for a subnet lease", func(b *bench) { b.SetSelf(Self{}); b.deliver(3) }},
		{"lease only", "waiting for the store's first snapshot of leases", func(b *bench) { b.SetSelf(b.self) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t)
				tt.give(b)
				b.Poke()
				b.sleep(time.Minute)
				st := b.Status()
				if dumps, writes := b.k.counts(); dumps+writes != 0 {
					t.Errorf("%d dumps and %d writes", dumps, writes)
				}
				if st.InSync || st.Synced || st.Reason != tt.reason || !st.LastPass.IsZero() {
					t.Errorf("status %+v, want reason %q", st, tt.reason)
				}
				if _, _, err := b.Plan(t.Context()); err == nil || err.Error() != tt.reason {
					t.Errorf("Plan: %v, want %q", err, tt.reason)
				}
				b.stop()
			})
		})
	}
}

func TestFirstSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(b.leases(3)...), Problems: []subnet.Problem{{Kind: "Junk", Object: "key"}}})
		b.expect(3) // at once: no time has passed
		st := b.Status()
		if !st.InSync || !st.Synced || st.Reason != "" || st.Peers != 3 || len(st.Links) != 2 || len(st.Pending) != 0 {
			t.Errorf("status %+v", st)
		}
		if !st.Lease.Equal(b.self.Lease) || !st.LastPass.Equal(time.Now()) || !st.Snapshot.Equal(time.Now()) {
			t.Errorf("status %+v", st)
		}
		if len(st.Problems) != 1 || st.Problems[0].Kind != "Junk" {
			t.Errorf("problems %v, want the store's", st.Problems)
		}
		b.stop()
	})
}

// One slow start, then changes: the first at once, the next after MinGap.
func TestPacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(1)
		b.sleep(time.Second)
		b.deliver(2)
		b.expect(2)
		b.deliver(3)
		b.sleep(49 * time.Millisecond)
		b.expect(2)
		b.sleep(time.Millisecond)
		b.expect(3)
		b.stop()
	})
}

func TestStormCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(1)
		b.sleep(time.Second)
		before, _ := b.k.counts()
		for i := range 1000 { // 100 ms of them, 0.1 ms apart
			b.deliver(1 + i%7)
			b.Poke()
			b.sleep(100 * time.Microsecond)
		}
		b.deliver(5)
		b.sleep(50 * time.Millisecond)
		b.expect(5)
		if after, _ := b.k.counts(); after-before > 2*5 {
			t.Errorf("%d dumps for 1,000 snapshots in 100 ms, want at most two for each 50 ms", after-before)
		}
		b.stop()
	})
}

// Costly passes leave four fifths of a core to others.
func TestCostlyPassesRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.k.slow = 10 * time.Millisecond
		b.SetSelf(b.self)
		b.deliver(1) // two links, two addresses, two each of the others: 100 ms
		b.sleep(100 * time.Millisecond)
		b.expect(1)
		b.k.edit(func(s State) { clear(s.Routes) })
		b.Poke()
		b.sleep(399 * time.Millisecond)
		if _, writes := b.k.counts(); writes != 10 {
			t.Errorf("%d writes: the next pass did not wait for four times what the last took", writes)
		}
		b.sleep(21 * time.Millisecond)
		b.expect(1)
		b.stop()
	})
}

func TestNoWritesWhenNothingChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(3)
		synctest.Wait()
		dumps, writes := b.k.counts()
		b.sleep(10 * time.Minute)
		moreDumps, moreWrites := b.k.counts()
		if moreWrites != writes || len(b.k.passes) != 1 {
			t.Errorf("%d writes in %d applications, want %d in one", moreWrites, len(b.k.passes), writes)
		}
		if n := moreDumps - dumps; n < 100 || n > 150 { // each 4 to 6 s
			t.Errorf("%d audits in 10 minutes", n)
		}
		b.stop()
	})
}

func TestDriftIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(3)
		b.sleep(time.Second)
		b.k.edit(func(s State) { s.drop("weft.1") })
		b.Poke()
		b.expect(3) // by event, at once
		b.sleep(time.Second)
		b.k.edit(func(s State) { clear(s.Routes) })
		b.sleep(6 * time.Second)
		b.expect(3) // by audit
		b.stop()
	})
}

// A change that is refused delays no other, is named, and is made as soon as
// it can be, by retries that slow down.
func TestAFailedEntryDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		refused := errors.New("operation not permitted")
		var tries []time.Duration
		began := time.Now()
		bad := lease(3, [2]subnet.Family{4, 4}).Paths[0].Subnet
		b.k.fail = func(c Change) error {
			if r, ok := c.Entry.(Route); ok && r.Dst == bad {
				tries = append(tries, time.Since(began))
				return refused
			}
			return nil
		}
		b.SetSelf(b.self)
		b.deliver(3)
		synctest.Wait()
		st := b.Status()
		if len(st.Pending) != 1 || st.Pending[0].Entry.(Route).Dst != bad || st.InSync || st.Synced {
			t.Errorf("pending %v, in sync %t, synced %t", st.Pending, st.InSync, st.Synced)
		}
		if want := "1 of 22 changes failed, the first: add route 10.5.3.0/24"; !strings.HasPrefix(st.Reason, want) || !strings.HasSuffix(st.Reason, refused.Error()) {
			t.Errorf("reason %q, want %q... and the error", st.Reason, want)
		}
		if missing := Diff(b.want(3), b.k.content()); len(missing) != 1 {
			t.Errorf("missing:\n%s", missing)
		}
		b.sleep(15 * time.Second)
		want := []time.Duration{0, 100, 300, 700, 1500, 3100, 6300, 11300}
		for i := range want {
			want[i] *= time.Millisecond
		}
		if !slices.Equal(tries, want) {
			t.Errorf("tried at %v, want %v", tries, want)
		}
		b.k.edit(func(State) { b.k.fail = nil })
		b.deliver(4) // an input is acted on at once, whatever the backoff
		b.expect(4)
		if st := b.Status(); !st.InSync || !st.Synced || st.Reason != "" {
			t.Errorf("status %+v", st)
		}
		b.stop()
	})
}

// The holder of a subnet that somebody else claims too is read from the kernel
// at the start, and keeps it even when its entries are lost.
func TestTheIncumbentSurvivesALostDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		v4 := [2]subnet.Family{4, 4}
		holder := lease(40, v4)
		rival := edit(lease(3, v4), func(p *subnet.Path) { p.Subnet = prefix("10.5.40.0/23") })
		want, _ := Desired(b.self, testConfig(), []subnet.Lease{holder}, NewState())
		b.k.state = want.Clone()
		both := subnet.Snapshot{Leases: subnet.LeasesOf(b.self.Lease, rival, holder)}
		b.SetSelf(b.self)
		b.SetSnapshot(both)
		b.sleep(time.Second)
		if _, writes := b.k.counts(); writes != 0 || b.Status().Problems[0].Object != "node-3" {
			t.Errorf("%d writes, problems %v", writes, b.Status().Problems)
		}
		b.k.edit(func(s State) { s.drop("weft.1") })
		b.Poke()
		b.sleep(time.Second)
		if got := b.k.content(); !got.Equal(want) {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		b.k.edit(func(s State) { s.drop("weft.1") })
		both.Leases = subnet.LeasesOf(append(both.Leases.Slice(), lease(5, v4))...) // another decision
		b.SetSnapshot(both)
		b.sleep(time.Second)
		if c := Diff(want, b.k.content()); len(c) != 3 || c[0].Op != Delete {
			t.Errorf("changes from what it should be, apart from node-5's:\n%s", c)
		}
		b.stop()
	})
}

func TestAFailedDumpIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.k.failDump = errors.New("no buffer space available")
		b.SetSelf(b.self)
		b.deliver(3)
		synctest.Wait()
		if st := b.Status(); st.InSync || st.Reason != "read the kernel's state: no buffer space available" {
			t.Errorf("status %+v", st)
		}
		if _, _, err := b.Plan(t.Context()); !errors.Is(err, b.k.failDump) {
			t.Errorf("Plan: %v", err)
		}
		if _, writes := b.k.counts(); writes != 0 {
			t.Error("written without having read")
		}
		b.k.edit(func(State) { b.k.failDump = nil })
		b.sleep(100 * time.Millisecond)
		b.expect(3)
		b.stop()
	})
}

// Somebody undoes every change at once: reported, and not fought at wire speed.
func TestChangesThatDoNotLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.k.during = func() { clear(b.k.state.Neighs) }
		b.SetSelf(b.self)
		b.deliver(1)
		synctest.Wait()
		st := b.Status()
		if want := "2 changes did not last, the first: ip neigh add 10.5.2.0 "; st.InSync || !strings.HasPrefix(st.Reason, want) {
			t.Errorf("reason %q, want %q...", st.Reason, want)
		}
		b.sleep(time.Minute)
		if n := len(b.k.passes); n > 25 {
			t.Errorf("%d attempts in a minute", n)
		}
		b.stop()
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(2)
		synctest.Wait()
		state := b.k.content()
		dumps, writes := b.k.counts()
		b.deliver(3)
		b.stop()
		if d, w := b.k.counts(); d != dumps || w != writes || !b.k.content().Equal(state) {
			t.Errorf("%d dumps and %d writes after the end", d-dumps, w-writes)
		}
		if err := b.Run(canceled()); !errors.Is(err, context.Canceled) {
			t.Errorf("Run with an ended context: %v", err)
		}
		if d, w := b.k.counts(); d != dumps || w != writes {
			t.Errorf("%d dumps and %d writes with an ended context", d-dumps, w-writes)
		}
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// The end of the context in the middle of a pass is no failure of the pass.
func TestEndInTheMiddleOfAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.k.during = func() { b.cancel() }
		b.SetSelf(b.self)
		b.deliver(2)
		synctest.Wait()
		b.stop()
		if _, writes := b.k.counts(); writes != 1 {
			t.Errorf("%d writes, want the one in which the context ended", writes)
		}
		if st := b.Status(); !strings.HasPrefix(st.Reason, "waiting") {
			t.Errorf("status %+v: an ended pass is no pass", st)
		}
	})
}

func TestPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(2)
		b.sleep(time.Second)
		b.k.edit(func(s State) { clear(s.Routes) })
		_, writes := b.k.counts()
		changes, problems, err := b.Plan(t.Context())
		if err != nil || len(changes) != 4 || len(problems) != 0 {
			t.Errorf("Plan: %v, %v, %v", changes, problems, err)
		}
		if _, now := b.k.counts(); now != writes {
			t.Error("Plan has written")
		}
		if _, _, err := b.Plan(canceled()); !errors.Is(err, context.Canceled) {
			t.Errorf("Plan with an ended context: %v", err)
		}
		b.stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := b.Plan(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Plan without Run: %v", err)
		}
	})
}

// A lost lease leaves the data plane alone, and says so.
func TestLosingTheLeaseTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(2)
		synctest.Wait()
		b.SetSelf(Self{})
		b.deliver(0)
		b.sleep(time.Minute)
		b.expect(2)
		if st := b.Status(); st.InSync || !st.Synced || st.Reason != "waiting for a subnet lease" {
			t.Errorf("status %+v", st)
		}
		b.stop()
	})
}

// Edges are logged once, however long a state lasts.
func TestLogsEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		synctest.Wait()
		b.deliver(2)
		b.sleep(time.Minute)
		b.k.edit(func(s State) { s.drop("weft.1"); b.k.fail = func(Change) error { return errors.New("refused") } })
		b.sleep(time.Minute)
		if st := b.Status(); st.InSync || !st.Synced {
			t.Errorf("status %+v: out of sync, but it has been", st)
		}
		b.k.edit(func(State) { b.k.fail = nil })
		b.sleep(time.Minute)
		var junk []subnet.Problem
		for i := range 300 {
			junk = append(junk, subnet.Problem{Kind: "Junk", Object: fmt.Sprintf("key-%03d", i), Detail: "no JSON"})
		}
		b.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(b.leases(2)...), Problems: junk})
		b.sleep(time.Minute)
		b.deliver(2)
		b.sleep(time.Minute)
		var got []string
		for _, e := range b.log.AllEntries() {
			if e.Level < logrus.DebugLevel {
				got = append(got, fmt.Sprint(e.Level, ": ", e.Message))
			}
		}
		want := []string{
			"info: waiting for a subnet lease and for the store's first snapshot of leases",
			"info: waiting for the store's first snapshot of leases",
			"info: in sync: 2 links, 2 peers",
			"warning: out of sync: 8 changes pending",
			"info: in sync: 2 links, 2 peers",
		}
		for i := range 5 {
			want = append(want, fmt.Sprintf("warning: Junk key-%03d: no JSON", i))
		}
		want = append(want, "warning: 295 more problems")
		for i := range 5 {
			want = append(want, fmt.Sprintf("info: no longer: Junk key-%03d: no JSON", i))
		}
		want = append(want, "info: no longer: 295 more problems")
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		b.stop()
		if n := len(b.status); n < 60 {
			t.Errorf("OnStatus called %d times in 5 minutes", n)
		}
	})
}

// What somebody else keeps undoing is repaired every time and told now and
// then, with the first difference.
func TestRepairsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSelf(b.self)
		b.deliver(2)
		b.sleep(time.Minute)
		for range 30 {
			b.k.edit(func(s State) { s.drop("weft.1") })
			b.Poke()
			b.sleep(time.Second)
			b.expect(2)
		}
		told := 0
		for _, e := range b.log.AllEntries() {
			if strings.HasPrefix(e.Message, "somebody else changed the kernel; repaired 8 differences, the first: ip link add weft.1") {
				told++
			}
		}
		if told < 3 || told > 4 {
			t.Errorf("told %d times in 30 s, want one in 10 s", told)
		}
		if n := b.Status().Repairs; n != 30 {
			t.Errorf("counted %d repairs, want 30", n)
		}
		b.stop()
	})
}

// Errors, meddling and new snapshots at random; when they end, all is well
// within 10 s and stays so.
func TestConvergence(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				faults := rand.New(rand.NewPCG(seed, 2)) // drawn from in Run's goroutine
				b := startWith(t, Options{MassRemovalHold: 5 * time.Second})
				b.k.fail = func(Change) error {
					if faults.IntN(4) == 0 {
						return errors.New("injected")
					}
					return nil
				}
				b.SetSelf(b.self)
				n := 0
				for range 60 {
					n = rng.IntN(6)
					b.deliver(n)
					b.k.edit(func(s State) { vandalise(rng, s) })
					if rng.IntN(2) == 0 {
						b.Poke()
					}
					_ = b.Status()
					b.sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
				}
				b.k.edit(func(State) { b.k.fail = nil })
				b.sleep(10 * time.Second)
				b.expect(n)
				if st := b.Status(); !st.InSync || !st.Synced || st.Reason != "" || len(st.Pending) != 0 {
					t.Errorf("status %+v", st)
				}
				_, writes := b.k.counts()
				b.sleep(time.Minute)
				if _, now := b.k.counts(); now != writes {
					t.Errorf("%d writes after it had settled", now-writes)
				}
				b.stop()
			})
		})
	}
}
