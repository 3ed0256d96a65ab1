// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"weft.dev/weft/subnet"
)

const (
	retryMin   = 100 * time.Millisecond // first retry after a pass that fell short; doubles
	retryMax   = 5 * time.Second
	restFactor = 4                // rest this many times as long as a pass took: at most a fifth of a core
	restMax    = time.Second      // but no longer: events are repaired within a second
	tellGap    = 10 * time.Second // between two reports of repairs
	logMost    = 5                // problems named in the log at once
)

// loop is the state of Run's goroutine.
type loop struct {
	r        *Reconciler
	due      time.Time     // of the next pass
	rest     time.Time     // no pass before this one
	retry    time.Duration // wait after the last pass fell short; 0 after a good one
	last     memo
	told     time.Time // of the last repair
	problems Set[subnet.Problem]
}

// memo is the last desired state and what it was made from.
type memo struct {
	self *Self
	snap *delivery
	*planner
}

// desired returns the planner that holds the desired state. Who is the
// incumbent is read from the kernel once, at the start; from then on it is who
// we decided for, so that a device which loses its entries does not hand a
// contested subnet to a rival. With that the state depends on the inputs
// alone, and an audit costs no more than the comparison.
func (l *loop) desired(self *Self, snap *delivery, have State) *planner {
	if l.last.self == self && l.last.snap == snap {
		return l.last.planner
	}
	if l.last.planner != nil {
		have = l.last.state
	}
	p := newPlanner(*self, l.r.opts.Config, have)
	p.run(snap.Leases)
	p.have = programmed{} // or each state would keep the one before
	l.last = memo{self, snap, p}
	return p
}

// Run keeps the kernel at the desired state until ctx ends, and returns
// ctx.Err(). It leaves the kernel as it is then. Before it has both a lease
// and a snapshot it touches nothing. It must be called once.
//
// The first change after a quiet time is applied at once, later ones after
// MinGap, or longer when passes are costly. A pass that falls short is
// repeated after 100 ms, doubling up to 5 s, and at each new input.
func (r *Reconciler) Run(ctx context.Context) error {
	l := &loop{r: r, problems: Set[subnet.Problem]{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case q := <-r.plans:
			q.reply <- l.plan(q.ctx)
			continue
		case <-r.wake:
			l.due = l.rest
		case <-timer.C:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.pass(ctx)
		}
		timer.Reset(time.Until(l.due))
	}
}

// pass makes one pass, publishes what it found and decides on the next.
func (l *loop) pass(ctx context.Context) {
	start := time.Now()
	self, snap, err := l.r.inputs()
	if err != nil {
		l.due = start.Add(jittered(l.r.opts.Resync))
		st := l.r.Status()
		st.InSync, st.Reason = false, err.Error()
		l.publish(st)
		return
	}
	st := l.sync(ctx, self, snap)
	if ctx.Err() != nil {
		return
	}
	end := time.Now()
	st.LastPass = end
	st.Synced = st.InSync || l.r.Status().Synced
	l.rest = end.Add(max(l.r.opts.MinGap, min(restFactor*end.Sub(start), restMax)))
	if st.InSync {
		l.retry = 0
		l.due = end.Add(jittered(l.r.opts.Resync))
	} else {
		l.retry = min(max(2*l.retry, retryMin), retryMax)
		l.due = end.Add(max(l.retry, time.Until(l.rest)))
	}
	l.publish(st)
}

// sync dumps, compares and applies; if there was anything to apply it looks
// again, because only the kernel knows what has become of it.
func (l *loop) sync(ctx context.Context, self *Self, snap *delivery) Status {
	st := l.r.Status()
	st.InSync, st.Reason = false, ""
	st.Lease, st.Snapshot = self.Lease, snap.at
	have, err := l.r.kernel.Dump(ctx)
	if err != nil {
		st.Reason = fmt.Sprintf("read the kernel's state: %v", err)
		return st
	}
	same := l.last.self == self && l.last.snap == snap
	p := l.desired(self, snap, have)
	st.Peers, st.Links, st.Problems = p.reached, sorted(p.state.Links), p.with(snap.Problems)
	changes := Diff(p.state, have)
	st.Pending = nil
	if changes.Empty() {
		st.InSync = true
		return st
	}
	if ctx.Err() != nil {
		return st
	}
	for _, c := range changes {
		l.r.opts.Log.Debugf("%s", c)
	}
	applied := l.r.kernel.Apply(ctx, changes)
	if have, err = l.r.kernel.Dump(ctx); err != nil {
		st.Pending = changes
		st.Reason = fmt.Sprintf("read the kernel's state: %v", err)
		return st
	}
	st.Pending = Diff(p.state, have)
	st.InSync = st.Pending.Empty()
	if same && st.InSync && l.r.Status().InSync {
		l.repaired(changes)
	}
	if !st.InSync {
		st.Reason = shortfall(applied, len(changes), st.Pending)
	} else if applied != nil { // refused, and yet it is as we want it
		l.r.opts.Log.WithField("err", applied).Debug("in sync despite an error")
	}
	return st
}

// repaired logs that a pass undid what somebody else had done, but not for
// every round of a fight.
func (l *loop) repaired(changes Changes) {
	if now := time.Now(); now.Sub(l.told) >= tellGap {
		l.told = now
		l.r.opts.Log.Warnf("somebody else changed the kernel; repaired %d differences, the first: %s", len(changes), changes[0])
	}
}

// shortfall says in one sentence why something is left to do.
func shortfall(err error, tried int, pending Changes) string {
	if err == nil {
		return fmt.Sprintf("%d changes did not last, the first: %s", len(pending), pending[0])
	}
	first, n := err, 1
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		first, n = joined.Unwrap()[0], len(joined.Unwrap())
	}
	return fmt.Sprintf("%d of %d changes failed, the first: %v", n, tried, first)
}

// plan is a pass without its effects.
func (l *loop) plan(ctx context.Context) planReply {
	self, snap, err := l.r.inputs()
	if err != nil {
		return planReply{err: err}
	}
	have, err := l.r.kernel.Dump(ctx)
	if err != nil {
		return planReply{err: fmt.Errorf("read the kernel's state: %w", err)}
	}
	p := l.desired(self, snap, have)
	return planReply{changes: Diff(p.state, have), problems: p.with(snap.Problems)}
}

// publish makes st the status and logs what is new in it.
func (l *loop) publish(st Status) {
	old := l.r.Status()
	l.r.status.Store(&st)
	l.logEdges(old, st)
	if l.r.opts.OnStatus != nil {
		l.r.opts.OnStatus(st)
	}
}

func (l *loop) logEdges(old, st Status) {
	log := l.r.opts.Log
	switch {
	case st.InSync && !old.InSync:
		log.Infof("in sync: %d links, %d peers", len(st.Links), st.Peers)
	case !st.InSync && st.LastPass.IsZero():
		if st.Reason != old.Reason {
			log.Info(st.Reason)
		}
	case !st.InSync && (old.InSync || old.LastPass.IsZero()):
		log.WithField("err", st.Reason).Warnf("out of sync: %d changes pending", len(st.Pending))
	}
	now := make(Set[subnet.Problem], len(st.Problems))
	for _, p := range st.Problems {
		now.Add(p)
	}
	logProblems(log.Warn, "", now, l.problems)
	logProblems(log.Info, "no longer: ", l.problems, now)
	l.problems = now
}

// logProblems logs the first few of those in a and not in b, and how many
// more there are.
func logProblems(log func(...any), prefix string, a, b Set[subnet.Problem]) {
	only := Set[subnet.Problem]{}
	for p := range a {
		if !b.Has(p) {
			only.Add(p)
		}
	}
	for i, p := range sortedProblems(only) {
		if i == logMost {
			log(fmt.Sprintf("%s%d more problems", prefix, len(only)-i))
			break
		}
		log(prefix + p.String())
	}
}

// jittered spreads d by 20% either way, so that agents that started together
// do not stay together.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
