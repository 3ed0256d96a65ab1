// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The pauses of Report: between two looks at the agent's health, and at least
// between two patches of the conditions, so that what flaps costs the API little.
const (
	lookEvery  = 5 * time.Second
	patchEvery = 5 * time.Second
)

// Report keeps the conditions of our Node as look says, until ctx ends or the
// store is closed, which it returns as an error. They are compared with the
// Node as last seen, so that one that was removed comes back, and patched only
// when they differ. changed makes it look at once. Nothing happens before Hold
// has seen our Node.
func (s *Store) Report(ctx context.Context, changed <-chan struct{}, look func() Health) error {
	ctx, done := s.life.Scope(ctx)
	defer done()
	var (
		e       = edges{spread: rand.Float64()}
		p       pace
		patched []corev1.NodeCondition // what the watch may not have brought yet
		known   *corev1.Node           // of which patched is true
		resumed bool                   // what the Node said at first is taken over
		timer   = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.life.Err(ctx)
		case <-changed:
		case <-s.moved:
		case <-timer.C:
		}
		now, node := time.Now(), s.node.Load()
		if node != nil && !resumed {
			e.resume(node.Status.Conditions)
			resumed = true
		}
		want, again := e.judge(now, look())
		if again == 0 || again > lookEvery {
			again = lookEvery
		}
		timer.Reset(again)
		if node == nil || now.Before(p.due) {
			continue
		}
		have := node.Status.Conditions
		if node == known {
			have = slices.Concat(patched, have)
		}
		diff := changes(want, have, now)
		if len(diff) == 0 {
			continue
		}
		if err := s.patchConditions(ctx, node.UID, diff); err != nil {
			p.due = now.Add(p.failed())
			s.o.Log.WithField("err", err).Debug("the Node's conditions could not be patched")
			continue
		}
		p.reset()
		p.due = now.Add(patchEvery)
		patched, known = diff, node
		for _, c := range diff {
			s.events.condition(c, c.Status == corev1.ConditionFalse)
		}
	}
}

// patchConditions merges list into our Node's conditions, by their types.
func (s *Store) patchConditions(ctx context.Context, uid types.UID, list []corev1.NodeCondition) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	doc := map[string]any{"metadata": map[string]any{"uid": uid}, "status": map[string]any{"conditions": list}}
	return s.api.patch(ctx, types.StrategicMergePatchType, s.o.Node, doc)
}
