// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"golang.org/x/sync/errgroup"
	"weft.dev/weft/subnet"
)

// Watch delivers all leases, our own included, to set: at first what is in
// the cluster, then what is there after each change, one snapshot for all that
// changed at once, none when nothing did. What does not parse is a Problem of
// kind JunkLease; what is wrong with our own Node is one, too. See
// overlay.Store for the contract. The configuration is not used: leases
// outside the network are the caller's to judge.
func (s *Store) Watch(ctx context.Context, _ subnet.Config, set func(subnet.Snapshot)) error {
	outer, done := s.scope(ctx)
	defer done()
	defer s.watchWait.forget()
	m := newMirror(s.dialects, time.Now)
	g, ctx := errgroup.WithContext(outer)
	g.Go(func() error {
		s.reflect(ctx, s.metadata(), &metav1.PartialObjectMetadata{}, m, &s.watchWait)
		return ended(ctx)
	})
	g.Go(func() error { return s.readCIDRs(ctx, m) })
	g.Go(func() error { return s.deliver(ctx, m, set) })
	_ = g.Wait() // ends with outer
	return ended(outer)
}

// metadata lists and watches the metadata of all Nodes.
func (s *Store) metadata() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return s.api.nodes.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return s.api.nodes.Watch(ctx, o)
		},
	}
}

// deliver hands snapshots to set, with what is wrong with our own Node.
func (s *Store) deliver(ctx context.Context, m *mirror, set func(subnet.Snapshot)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last subnet.Snapshot // without our own problems
	started := false
	for {
		own := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.poke:
		case <-timer.C:
		case <-s.news:
			own = true
		}
		snap, again, ok := m.snapshot()
		if timer.Stop(); again > 0 {
			timer.Reset(again)
		}
		if ok {
			last, started = snap, true
		}
		if started && (ok || own) {
			snap = last
			snap.Problems = append(slices.Clone(last.Problems), s.problems()...)
			set(snap)
		}
	}
}

// readCIDRs reads the Nodes whose podCIDRs stand nowhere else, one after the
// other, and again, less and less often, those that could not be read or have
// none yet.
func (s *Store) readCIDRs(ctx context.Context, m *mirror) error {
	var p pace
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ask:
		case <-timer.C:
		}
		left := false
		for _, name := range m.unread() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			left = !s.readNode(ctx, m, name) || left
		}
		if timer.Stop(); left {
			timer.Reset(p.failed())
		} else {
			p.reset()
		}
	}
}

// readNode reads one Node, and reports whether that settles it.
func (s *Store) readNode(ctx context.Context, m *mirror, name string) bool {
	ctx, cancel := s.call(ctx)
	defer cancel()
	n, err := s.api.getNode(ctx, name)
	if apierrors.IsNotFound(err) {
		return true // the watch will say so, too
	}
	if err != nil {
		return m.learn(name, "", nil, err)
	}
	cidrs, err := parseCIDRs(podCIDRs(n))
	return m.learn(name, n.UID, cidrs, err)
}
