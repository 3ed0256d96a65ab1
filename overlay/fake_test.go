// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// fakeKernel is the model kernel behind the Kernel interface, with faults.
type fakeKernel struct {
	mu       sync.Mutex
	state    State
	dumps    int
	writes   int     // changes made
	passes   []int   // changes asked for by each Apply
	tried    Changes // all of them
	failDump error
	fail     func(c Change) error // nil: nothing fails
	during   func()               // called in the middle of Apply, with the lock held
	slow     time.Duration        // what each change takes
	long     time.Duration        // what each dump takes
	given    int                  // dumps that their context ended
}

func newFakeKernel() *fakeKernel { return &fakeKernel{state: NewState()} }

func (k *fakeKernel) Dump(ctx context.Context, like Digest) (State, error) {
	if !k.read(ctx) {
		return State{}, ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dumps++
	return k.state.without(like), errors.Join(ctx.Err(), k.failDump)
}

// read takes as long as a dump does, and reports whether it came to its end.
func (k *fakeKernel) read(ctx context.Context) bool {
	k.mu.Lock()
	long := k.long
	k.mu.Unlock()
	if long == 0 {
		return true
	}
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		k.mu.Lock()
		k.given++
		k.mu.Unlock()
		return false
	}
}

func (k *fakeKernel) Apply(ctx context.Context, changes Changes) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.passes = append(k.passes, len(changes))
	var errs []error
	for _, c := range changes {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		k.tried = append(k.tried, c)
		err := error(nil)
		if k.fail != nil {
			err = k.fail(c)
		}
		if err == nil {
			err = applyModel(k.state, c)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s %s: %w", c.Op, c.Kind(), c.Entry, err))
			continue
		}
		k.writes++
		if k.during != nil {
			k.during()
		}
		if k.slow > 0 { // without the lock: who waits for one does not sleep in a bubble's eyes
			k.mu.Unlock()
			time.Sleep(k.slow)
			k.mu.Lock()
		}
	}
	return errors.Join(errs...)
}

// without returns a copy of s, with nil for the sets that are as like has them.
func (s State) without(like Digest) State {
	c := s.Clone()
	if like.Hasher == (Hasher{}) {
		return c
	}
	d := s.Digest(like.Hasher)
	table := d.Nodes == like.Nodes && d.Sources == like.Sources && d.Pods == like.Pods
	drop(&c.Nodes, table)
	drop(&c.Sources, table)
	drop(&c.Pods, table)
	drop(&c.FDB, d.FDB == like.FDB)
	drop(&c.Neighs, d.Neighs == like.Neighs)
	drop(&c.Routes, d.Routes == like.Routes)
	return c
}

func drop[E comparable](s *Set[E], as bool) {
	if as {
		*s = nil
	}
}

// edit lets a test meddle.
func (k *fakeKernel) edit(f func(State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k.state)
}

func (k *fakeKernel) counts() (dumps, writes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dumps, k.writes
}

// abandoned returns how many dumps were given up.
func (k *fakeKernel) abandoned() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.given
}

// applies returns how often Apply was called.
func (k *fakeKernel) applies() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.passes)
}

func (k *fakeKernel) content() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.Clone()
}

// vandalise damages s in one random way that a real kernel allows.
func vandalise(rng *rand.Rand, s State) {
	links := sorted(s.Links)
	if len(links) == 0 {
		return
	}
	l := links[rng.IntN(len(links))]
	changed := l
	switch rng.IntN(7) {
	case 0:
		s.drop(l.Name)
	case 1:
		changed.MAC, changed.MTU = mac(888), 1300
		_ = applyModel(s, Change{Op: Modify, Entry: changed})
	case 2:
		changed.Up = false
		_ = applyModel(s, Change{Op: Modify, Entry: changed})
	case 3:
		pick(rng, s.Routes)
	case 4:
		pick(rng, s.Neighs)
	case 5:
		pick(rng, s.FDB)
		_ = applyModel(s, Change{Op: Add, Entry: FDB{l.Name, mac(777), host(4, 7)}})
	case 6:
		for _, a := range sorted(s.Addrs) {
			_ = applyModel(s, Change{Op: Delete, Entry: a})
		}
	}
}

// pick removes one element.
func pick[E entryOf[E]](rng *rand.Rand, s Set[E]) {
	if all := sorted(s); len(all) > 0 {
		delete(s, all[rng.IntN(len(all))])
	}
}
