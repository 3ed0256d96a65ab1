// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"slices"
	"time"
)

const (
	auditShare  = 500 // an audit is made every so many times what one takes, or up to 30% earlier: a quarter of a percent of a core
	auditMost   = time.Minute
	yieldMost   = 20 // audits in a row that give way to news; the next one is finished first
	auditsKnown = 3  // the quickest of so many counts: the others met something else that the machine did
)

// errYielded is why an audit was given up: there is news.
var errYielded = errors.New("gave way to news")

// audits decides how often the kernel is audited, by what the last audits have
// cost that found nothing to do.
type audits struct {
	took    [auditsKnown]time.Duration
	n       int // of them in all
	yielded int // in a row
}

func (a *audits) note(took time.Duration) {
	a.took[a.n%auditsKnown] = took
	a.n++
}

// period returns the time from one audit to the next, at least least. What one
// or two have taken may be chance, and counts for less.
func (a *audits) period(least time.Duration) time.Duration {
	known := min(a.n, auditsKnown)
	if known == 0 {
		return least
	}
	cost := slices.Min(a.took[:known])
	return max(least, min(auditShare*cost*time.Duration(known)/auditsKnown, auditMost))
}

// audit looks at the kernel when there is nothing new: it gives way to news,
// for it may take long, and they not. A change of the kernel is no news:
// looking is what it asks for.
func (l *loop) audit(ctx context.Context, in inputs) (State, error) {
	if l.last == nil || l.last.inputs != in || l.audits.yielded >= yieldMost {
		l.audits.yielded = 0
		return l.look(ctx, in)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	yield := func() { cancel(errYielded) }
	l.r.yield.Store(&yield)
	defer l.r.yield.Store(nil)
	if now, err := l.r.inputs(); err == nil && now != in { // it came before it could have called
		return State{}, errYielded
	}
	have, err := l.look(ctx, in)
	if err != nil && errors.Is(context.Cause(ctx), errYielded) {
		l.audits.yielded++
		return State{}, errYielded
	}
	l.audits.yielded = 0
	return have, err
}

// news makes an audit give way.
func (r *Reconciler) news() {
	if yield := r.yield.Load(); yield != nil {
		(*yield)()
	}
	r.signal()
}
