// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/subnet"
)

// Options configures a Reconciler. The zero value of a field other than
// Config means its default.
type Options struct {
	Config subnet.Config // until SetConfig gives another
	// Resync is how often the kernel is audited, or up to 30% earlier, unless
	// audits are so costly that they take more than a quarter of a percent of a
	// core: then so rarely that they take that, but once a minute. Default 5 s.
	Resync   time.Duration
	MinGap   time.Duration      // least time between two passes; default 50 ms
	Log      logrus.FieldLogger // default: nowhere
	OnStatus func(Status)       // called after each pass, from the goroutine of Run; must not block
	// MassRemovalHold is how long a removal waits that would take more than
	// half of the peers' subnets of a family, and more than three, at once, or
	// that is what is left of the removal of as large a part of the leases.
	// Default 5 min; negative: it does not wait.
	MassRemovalHold time.Duration
}

// A Reconciler keeps the kernel at the desired state. The goroutine of Run
// owns everything; others hand it the latest inputs and a poke, so that no
// queue can overflow and a storm of inputs costs one pass.
type Reconciler struct {
	kernel   Kernel
	opts     Options
	config   atomic.Pointer[subnet.Config]
	self     atomic.Pointer[Self]
	snapshot atomic.Pointer[delivery]
	decided  atomic.Pointer[delivery] // the last that was acted on
	status   atomic.Pointer[Status]
	released atomic.Bool            // Release was called and not yet acted on
	spread   func() float64         // from [0, 1): spreads audits
	yield    atomic.Pointer[func()] // makes the audit that is being made give way
	wake     chan struct{}          // one slot: something has changed
	poked    atomic.Bool            // Poke was called and not yet acted on
	plans    chan planRequest
}

// inputs is what the desired state is made from. Comparable: two are equal
// when nothing has been handed over between them.
type inputs struct {
	config *subnet.Config
	self   *Self
	snap   *delivery
}

// delivery is a snapshot, when it came, and the least number of leases there
// have been since the one that a decision was last made for.
type delivery struct {
	subnet.Snapshot
	at     time.Time
	fewest int
}

type planRequest struct {
	ctx   context.Context
	reply chan<- planReply // one slot
}

type planReply struct {
	changes  Changes
	problems []subnet.Problem
	err      error
}

// NewReconciler returns a Reconciler for k. Nothing happens before Run.
func NewReconciler(k Kernel, o Options) *Reconciler {
	o.Resync = cmp.Or(o.Resync, 5*time.Second)
	o.MinGap = cmp.Or(o.MinGap, 50*time.Millisecond)
	o.MassRemovalHold = cmp.Or(o.MassRemovalHold, 5*time.Minute)
	if o.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		o.Log = l
	}
	r := &Reconciler{kernel: k, opts: o, spread: rand.Float64, wake: make(chan struct{}, 1), plans: make(chan planRequest)}
	r.config.Store(&o.Config)
	r.status.Store(&Status{Reason: "starting"})
	return r
}

// SetConfig hands over the network's configuration. Every field is followed;
// whether a change may happen while pods run is for the caller to decide. c
// must not be changed afterwards.
func (r *Reconciler) SetConfig(c subnet.Config) {
	r.config.Store(&c)
	r.news()
}

// SetSelf hands over what is known of this node. s must not be changed
// afterwards.
func (r *Reconciler) SetSelf(s Self) {
	// Said once more, it is no news: a pass for it would make everything anew.
	if was := r.self.Load(); was != nil && reflect.DeepEqual(*was, s) {
		return
	}
	r.self.Store(&s)
	r.news()
}

// SetSnapshot hands over the store's content. s must not be changed
// afterwards.
func (r *Reconciler) SetSnapshot(s subnet.Snapshot) {
	d := &delivery{Snapshot: s, at: time.Now(), fewest: s.Leases.Len() - s.Dip}
	if unseen := r.snapshot.Load(); unseen != nil && unseen != r.decided.Load() {
		d.fewest = min(d.fewest, unseen.fewest)
	}
	r.snapshot.Store(d)
	r.news()
}

// Poke asks for a pass soon: something may have changed in the kernel. It
// never blocks.
func (r *Reconciler) Poke() {
	r.poked.Store(true)
	r.signal()
}

func (r *Reconciler) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Release ends the mass-removal hold, if there is one: what it keeps is
// removed now. It does not bear on later removals.
func (r *Reconciler) Release() {
	r.released.Store(true)
	r.signal()
}

// Status returns what the last pass found. Its slices are shared and must not
// be changed.
func (r *Reconciler) Status() Status { return *r.status.Load() }

// Plan returns what a pass would do now and the problems it would report, and
// does nothing. It is answered by the goroutine of Run, between two passes.
// While an input is missing it returns an error that says which.
func (r *Reconciler) Plan(ctx context.Context) (Changes, []subnet.Problem, error) {
	reply := make(chan planReply, 1)
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case r.plans <- planRequest{ctx, reply}:
	}
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case a := <-reply:
		return a.changes, a.problems, a.err
	}
}

// inputs returns the latest inputs, or what is still waited for.
func (r *Reconciler) inputs() (inputs, error) {
	in := inputs{r.config.Load(), r.self.Load(), r.snapshot.Load()}
	leased := in.self != nil && len(in.self.Lease.Paths) > 0
	switch {
	case !leased && in.snap == nil:
		return inputs{}, errors.New("waiting for a subnet lease and for the store's first snapshot of leases")
	case !leased:
		return inputs{}, errors.New("waiting for a subnet lease")
	case in.snap == nil:
		return inputs{}, errors.New("waiting for the store's first snapshot of leases")
	}
	return in, nil
}
