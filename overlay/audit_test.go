// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"weft.dev/weft/subnet"
)

func TestAuditPeriod(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		took []time.Duration
		want time.Duration
	}{
		{nil, 5 * time.Second},
		{[]time.Duration{60 * ms}, 10 * time.Second}, // may be chance
		{[]time.Duration{60 * ms, 90 * ms}, 20 * time.Second},
		{[]time.Duration{10 * ms, 10 * ms, 9 * ms}, 5 * time.Second},
		{[]time.Duration{100 * ms, 70 * ms, 900 * ms}, 35 * time.Second},
		{[]time.Duration{10 * ms, 10 * ms, 10 * ms, 100 * ms, 100 * ms, 100 * ms}, 50 * time.Second},
		{[]time.Duration{time.Second, time.Second, time.Second}, time.Minute},
	} {
		var a audits
		for _, d := range tt.took {
			a.note(d)
		}
		if got := a.period(5 * time.Second); got != tt.want {
			t.Errorf("after audits of %v: %v, want %v", tt.took, got, tt.want)
		}
	}
}

// slowToRead is a bench in sync whose kernel takes long to look at.
func slowToRead(t *testing.T, long time.Duration) *bench {
	b := start(t)
	b.SetSelf(b.self)
	b.deliver(9)
	b.expect(9)
	b.sleep(time.Second)
	b.k.mu.Lock()
	b.k.long = long
	b.k.mu.Unlock()
	return b
}

// auditing waits until an audit is being made.
func (b *bench) auditing() {
	b.t.Helper()
	before, _ := b.k.counts()
	for range 1000 {
		b.sleep(10 * time.Millisecond)
		if b.yield.Load() != nil {
			return
		}
	}
	after, _ := b.k.counts()
	b.t.Fatalf("no audit; %d dumps before, %d after", before, after)
}

// The change of a lease does not wait for an audit, which is then made anew.
func TestAnAuditGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := slowToRead(t, 500*time.Millisecond)
		defer b.stop()
		b.auditing()
		dumps, _ := b.k.counts()
		b.deliver(10)
		b.expect(10)
		if n, _ := b.k.counts(); n != dumps || b.k.abandoned() != 1 {
			t.Errorf("%d dumps were made and %d given up when the change was in place", n-dumps, b.k.abandoned())
		}
		b.sleep(600 * time.Millisecond)
		if n, _ := b.k.counts(); n != dumps+1 || !b.Status().InSync {
			t.Errorf("%d audits after it, want 1; %+v", n-dumps, b.Status())
		}
	})
}

// News that comes right after an audit does not wait either.
func TestNewsAfterAnAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := slowToRead(t, 50*time.Millisecond)
		defer b.stop()
		b.auditing()
		b.sleep(51 * time.Millisecond)
		dumps, _ := b.k.counts()
		b.deliver(10)
		b.expect(10)
		if n, _ := b.k.counts(); n != dumps || b.yield.Load() != nil {
			t.Errorf("%d dumps", n-dumps)
		}
	})
}

// However much news there is, the kernel is audited; and what somebody else
// has undone meanwhile is repaired.
func TestNewsDoNotKeepAuditsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := slowToRead(t, 300*time.Millisecond)
		defer b.stop()
		b.auditing()
		b.k.edit(func(s State) { delete(s.Neighs, sorted(s.Neighs)[0]) })
		begin, n := time.Now(), 9
		for time.Since(begin) < 10*time.Second {
			b.deliver(9 + n%2)
			n++
			b.sleep(100 * time.Millisecond)
			if b.Status().Repairs > 0 {
				break
			}
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("a missing neighbour came back after %v", took)
		}
		b.sleep(time.Second)
		b.expect(9 + (n-1)%2)
	})
}

// A poke is no news: the audit that is being made, or the next, sees what it
// is about.
func TestAPokeDoesNotEndAnAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := slowToRead(t, 300*time.Millisecond)
		defer b.stop()
		b.auditing()
		b.Poke()
		b.sleep(time.Second)
		if n := b.k.abandoned(); n != 0 {
			t.Errorf("%d audits were given up", n)
		}
		b.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(b.leases(9)...)}) // the same again
		b.expect(9)
	})
}

// Costly audits are made less often.
func TestCostlyAuditsAreRarer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := slowToRead(t, 100*time.Millisecond)
		defer b.stop()
		b.sleep(time.Minute) // enough for three
		before, _ := b.k.counts()
		b.sleep(10 * time.Minute)
		after, _ := b.k.counts()
		if n := after - before; n < 600/50 || n > 600*10/7/50+1 { // every 50 s, or up to 30% earlier
			t.Errorf("%d audits in ten minutes, of 0.1 s each", n)
		}
	})
}
