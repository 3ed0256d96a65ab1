// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

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
	due      time.Time     // of the next whole pass
	quickDue bool          // a quick pass is to be made
	soon     time.Time     // of the quick pass
	gap      time.Time     // no quick pass before this one
	rest     time.Time     // no whole pass before this one
	calm     time.Time     // no pass before this one on the kernel's account
	retry    time.Duration // wait after the last pass fell short; 0 after a good one
	last     *decision     // nil before the first
	tried    *decision     // of the last pass
	crowd    *crowd        // who claims what in last; nil when that is not known
	clean    bool          // that pass left nothing undone, as far as it could see
	hold     holding
	linger   lingering
	fight    fight
	audits   audits
	guess    *decision // before the first one: what it will be in an empty kernel, and where all is in place
	hasher   Hasher
	share    int       // leases that are turned into entries at once
	told     time.Time // of the last repair
	problems Set[subnet.Problem]
}

func newLoop(r *Reconciler) *loop {
	return &loop{r: r, problems: Set[subnet.Problem]{}, hasher: NewHasher(), share: shareSize}
}

// Run keeps the kernel at the desired state until ctx ends, and returns
// ctx.Err(). It leaves the kernel as it is then. Before it has both a lease
// and a snapshot it touches nothing. It must be called once.
//
// The first change after a quiet time is applied at once, later ones after
// MinGap, or longer when passes are costly. What somebody else undoes is
// repaired at once, but again and again only after MinGap, doubling up to 1 s.
// A pass that falls short is repeated after 100 ms, doubling up to 5 s, and at
// each new input.
func (r *Reconciler) Run(ctx context.Context) error {
	l := newLoop(r)
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
			l.woken()
		case <-timer.C:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.turn(ctx)
		}
		timer.Reset(time.Until(l.next()))
	}
}

// woken decides when to look after a poke: a change of some leases may be
// applied by itself, and waits for no more than the gap to the last one.
func (l *loop) woken() {
	in, err := l.r.inputs()
	news := err != nil || l.last == nil || in != l.last.inputs || l.r.released.Load()
	switch {
	case news && err == nil && l.calmFor(in):
		l.quickDue, l.soon = true, l.gap
	case news:
		l.due = earlier(l.due, l.rest)
	}
	if l.r.poked.Swap(false) {
		at := l.rest
		if !news && l.calm.After(at) {
			at = l.calm
		}
		l.due = earlier(l.due, at)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// next is when something is to be done next. soon may be long past.
func (l *loop) next() time.Time {
	if l.quickDue {
		return earlier(l.soon, l.due)
	}
	return l.due
}

// turn does what is due: the news of some leases by themselves, or else a
// whole pass.
func (l *loop) turn(ctx context.Context) {
	if l.quickDue {
		l.quickDue = false
		if in, err := l.r.inputs(); err == nil && l.quick(ctx, in) {
			return
		}
		l.due = earlier(l.due, l.rest)
	}
	if !time.Now().Before(l.due) {
		l.pass(ctx)
	}
}

// pass makes one pass, publishes what it found and decides on the next.
func (l *loop) pass(ctx context.Context) {
	start := time.Now()
	in, err := l.r.inputs()
	if err != nil {
		l.due = start.Add(l.r.jittered(l.r.opts.Resync))
		st := l.r.Status()
		st.InSync, st.Reason = false, err.Error()
		l.publish(st)
		return
	}
	st, done := l.sync(ctx, in)
	if ctx.Err() != nil {
		return
	}
	if !done { // what is due stays due, but after the news
		l.woken()
		if l.quickDue && l.due.Before(l.soon) {
			l.due = l.soon
		}
		return
	}
	end := time.Now()
	st.LastPass, st.LastLook = end, end
	st.Synced = st.InSync || l.r.Status().Synced
	l.rest = end.Add(max(l.r.opts.MinGap, min(restFactor*end.Sub(start), restMax)))
	if st.InSync {
		l.retry = 0
		l.due = end.Add(l.r.jittered(l.audits.period(l.r.opts.Resync)))
	} else {
		l.retry = min(max(2*l.retry, retryMin), retryMax)
		l.due = end.Add(max(l.retry, time.Until(l.rest)))
	}
	for _, until := range []time.Time{l.hold.until, l.linger.until} {
		if until.After(end) && until.Before(l.due) {
			l.due = until
		}
	}
	l.publish(st)
}

// sync dumps, compares and applies; if there was anything to apply it looks
// again, because only the kernel knows what has become of it.
// It reports false, and has done nothing, when it gave way to news.
func (l *loop) sync(ctx context.Context, in inputs) (Status, bool) {
	st := l.r.Status()
	st.InSync, st.Reason = false, ""
	st.Lease, st.Snapshot = in.self.Lease, in.snap.at
	begin := time.Now()
	have, err := l.audit(ctx, in)
	if errors.Is(err, errYielded) {
		return st, false
	}
	if err != nil {
		st.Reason = fmt.Sprintf("read the kernel's state: %v", err)
		return st, true
	}
	changes, found := l.settle(in, have)
	l.r.decided.Store(in.snap)
	again := l.tried == l.last
	l.tried = l.last
	st.Peers, st.Links, st.Hold = l.last.reached, sorted(l.last.state.Links), l.hold.status()
	st.MTU, st.Pending = l.last.mtu, nil
	switch {
	case found == asWanted:
		st.InSync, l.clean = true, true
		if again {
			took := time.Since(begin)
			l.audits.note(took)
			l.r.opts.Log.Debugf("audited in %v, the next in %v or less", took.Round(time.Microsecond), l.audits.period(l.r.opts.Resync))
		}
	case ctx.Err() != nil:
		return st, true
	case found == nothing:
		l.fill(ctx, &st)
	default:
		l.apply(ctx, &st, changes, again)
	}
	if st.InSync {
		l.slim()
	}
	st.Problems = l.problemList()
	return st, true
}

// What a dump can have found, seen from the decision.
type finding int

const (
	otherwise finding = iota
	asWanted
	nothing // and the decision is thin
)

// settle brings l.last up to date with what a dump has found, and returns what
// is to be done about it, except where that is to fill an empty kernel.
func (l *loop) settle(in inputs, have State) (Changes, finding) {
	expected := l.last
	if expected == nil {
		expected, l.guess = l.guess, nil
		if expected.thin && expected.bare(have) {
			l.last = expected
			return nil, nothing
		}
	}
	calm := expected.inputs == in && !l.hold.active() && !l.linger.active() && !l.r.released.Load()
	if calm && (l.last != nil || expected.thin) && expected.expected(have) {
		l.last = expected
		return nil, asWanted
	}
	var changes Changes
	if calm && l.last != nil {
		changes = l.differences(have)
	} else {
		have = expected.complete(have)
		l.decide(in, have)
		l.last.enlarge()
		changes = Diff(l.last.target, have)
	}
	if changes.Empty() {
		return nil, asWanted
	}
	return changes, otherwise
}

// differences returns what turns have, a dump that the last decision's digest
// was given to, into what that wants. have is used up.
func (l *loop) differences(have State) Changes {
	if l.last.thin && l.last.framed(have) {
		return Diff(l.last.sift(have, l.peek()))
	}
	have = l.last.complete(have)
	l.last.enlarge()
	return Diff(l.last.target, have)
}

// apply makes the changes and looks what has become of them. again says that
// the last pass wanted the same.
func (l *loop) apply(ctx context.Context, st *Status, changes Changes, again bool) {
	l.debug(changes)
	undone := again && l.clean
	applied := l.r.kernel.Apply(ctx, changes)
	now := time.Now()
	if again {
		l.calm = now.Add(l.fight.pace(now, l.r.opts.MinGap))
	}
	if undone {
		l.fight.count(now, changes[0])
	}
	st.Pending = changes
	l.verify(ctx, st, applied, len(changes))
	if undone && st.InSync {
		st.Repairs++
		l.repaired(changes)
	}
}

// verify looks what has become of n changes, of which applied says how they
// went.
func (l *loop) verify(ctx context.Context, st *Status, applied error, n int) {
	l.clean = applied == nil
	// After a pass without changes the next news need not wait.
	defer func() { l.gap = time.Now().Add(l.r.opts.MinGap) }()
	have, err := l.look(ctx, l.last.inputs)
	if err != nil {
		st.Reason = fmt.Sprintf("read the kernel's state: %v", err)
		return
	}
	st.Pending = nil
	if !l.last.expected(have) {
		st.Pending = l.differences(have)
	}
	st.InSync = st.Pending.Empty()
	if !st.InSync {
		st.Reason = shortfall(applied, n, st.Pending)
	} else if applied != nil { // refused, and yet it is as we want it
		l.clean = true
		l.r.opts.Log.WithField("err", applied).Debug("in sync despite an error")
	}
}

// debug logs changes, if anybody wants to read them: there may be many.
func (l *loop) debug(changes Changes) {
	switch log := l.r.opts.Log.(type) {
	case *logrus.Logger:
		if !log.IsLevelEnabled(logrus.DebugLevel) {
			return
		}
	case *logrus.Entry:
		if !log.Logger.IsLevelEnabled(logrus.DebugLevel) {
			return
		}
	}
	for _, c := range changes {
		l.r.opts.Log.Debugf("%s", c)
	}
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
	failed := failures(err)
	return fmt.Sprintf("%d of %d changes failed, the first: %v", len(failed), tried, failed[0])
}

// failures takes apart what Kernel.Apply joined; none is nil.
func failures(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined) && len(joined.Unwrap()) > 0:
		return joined.Unwrap()
	}
	return []error{err}
}

// look dumps the kernel, which is expected to be as it was to become.
func (l *loop) look(ctx context.Context, in inputs) (State, error) {
	if l.last != nil {
		return l.r.kernel.Dump(ctx, l.last.digest)
	}
	l.guess = l.first(in)
	return l.r.kernel.Dump(ctx, l.guess.digest)
}

// plan is a pass without its effects. What it decides on is not kept: the pass
// that does it would find it decided already, and nothing new.
func (l *loop) plan(ctx context.Context) planReply {
	in, err := l.r.inputs()
	if err != nil {
		return planReply{err: err}
	}
	trial := *l
	if l.last != nil {
		last := *l.last
		trial.last = &last
	}
	if l.r.released.Load() {
		defer l.r.released.Store(true)
	}
	have, err := trial.look(ctx, in)
	if err != nil {
		return planReply{err: fmt.Errorf("read the kernel's state: %w", err)}
	}
	changes, found := trial.settle(in, have)
	if found == nothing {
		trial.last.enlarge()
		changes = Diff(trial.last.target, NewState())
	}
	return planReply{changes: changes, problems: trial.problemList()}
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

// jittered shortens d by 5% to 30%, so that agents that started together do
// not stay together. Never longer: what happened without an event has to be
// found and repaired within d.
func (r *Reconciler) jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.7 + 0.25*r.spread()))
}
