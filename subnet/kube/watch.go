// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/subnet"
)

// Watch delivers all leases, our own included, to set: at first what is in
// the cluster, then what is there after each change, one snapshot for all that
// changed at once, none when nothing did. What does not parse is a Problem of
// kind JunkLease; what is wrong with our own Node is one, too. See
// overlay.Store for the contract. The configuration is not used: leases
// outside the network are the caller's to judge.
func (s *Store) Watch(ctx context.Context, _ subnet.Config, set func(subnet.Snapshot)) error {
	outer, done := s.life.Scope(ctx)
	defer done()
	defer s.watchWait.Forget()
	m := newMirror(s.dialects, time.Now)
	g, ctx := errgroup.WithContext(outer)
	g.Go(func() error {
		s.conn.Reflect(ctx, s.metadata(), &metav1.PartialObjectMetadata{}, m, &s.watchWait)
		return s.life.Err(ctx)
	})
	g.Go(func() error { return s.readCIDRs(ctx, m) })
	g.Go(func() error { return s.deliver(ctx, m, set) })
	_ = g.Wait() // ends with outer
	return s.life.Err(outer)
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

// noCIDRPause is how long a Node without podCIDRs is left alone unless it
// changes, at least; with jitter up to twice as long.
const noCIDRPause = time.Minute

// readCIDRs reads the Nodes whose podCIDRs stand nowhere else, one after the
// other, and again those that could not be read or have none yet.
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
		left, failed := s.readAll(ctx, m)
		timer.Stop()
		switch {
		case failed:
			timer.Reset(p.failed())
		case left:
			p.reset()
			timer.Reset(wait.Jitter(noCIDRPause, 1))
		default:
			p.reset()
		}
	}
}

// readAll reads what is unread. It reports whether something still is, and
// whether that is because reading failed; when the API does not answer, it
// does not ask it for the rest.
func (s *Store) readAll(ctx context.Context, m *mirror) (left, failed bool) {
	for _, name := range m.unread() {
		n, err := s.readNode(ctx, name)
		switch {
		case ctx.Err() != nil:
			return true, true
		case apierrors.IsNotFound(err):
			continue // the watch will say so, too
		case err != nil:
			failed = true
			var answered apierrors.APIStatus
			if m.learn(name, "", nil, err); !errors.As(err, &answered) {
				return true, true
			}
			continue
		}
		cidrs, err := parseCIDRs(podCIDRs(n))
		left = !m.learn(name, n.UID, cidrs, err) || left
	}
	return left || failed, failed
}

func (s *Store) readNode(ctx context.Context, name string) (*corev1.Node, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	return s.api.getNode(ctx, name)
}
