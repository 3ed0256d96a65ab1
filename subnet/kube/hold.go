// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/subnet"
)

// Our annotations are put right at once when somebody alters them; who does it
// again and again is not answered at full speed, and becomes a Problem.
const (
	calmAfter = time.Minute // without a patch, the next one is the first again
	contested = 5           // repairs in a row that make it a Problem
)

// Hold publishes the lease that follows from our Node's podCIDRs and from
// want's underlays, and keeps it published until ctx ends; it stays then. See
// overlay.Store for the contract. want's subnets are not used, nor what cfg
// says of how networks are cut.
//
// Hold waits, with a Reason, while the API is out of reach or refuses us, our
// Node is missing, or it has no podCIDR. It grants what families there are,
// and again when another comes. It never returns because the lease is lost: a
// Node's podCIDRs are nobody else's.
func (s *Store) Hold(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
	if len(want.Paths) != len(cfg.Networks) || len(cfg.Networks) == 0 {
		return fmt.Errorf("lease of Node %q with %d paths: want one for each of %d networks", s.o.Node, len(want.Paths), len(cfg.Networks))
	}
	outer, done := s.life.Scope(ctx)
	defer done()
	defer s.nodeWait.Forget()
	defer s.leaseWait.Forget()
	g, ctx := errgroup.WithContext(outer)
	own := &ownNode{s: s, changed: make(chan struct{}, 1)}
	g.Go(func() error {
		s.conn.Reflect(ctx, s.api.node(s.o.Node), &corev1.Node{}, own, &s.nodeWait)
		return s.life.Err(ctx)
	})
	g.Go(func() error {
		h := &holder{s: s, cfg: cfg, want: want, granted: granted}
		return h.keep(ctx, own)
	})
	_ = g.Wait() // ends with outer
	return s.life.Err(outer)
}

// holder keeps our lease published. One goroutine owns it.
type holder struct {
	s       *Store
	cfg     subnet.Config
	want    subnet.Lease
	granted func(subnet.Lease)

	told     subnet.Lease // as granted last; no paths before
	uid      types.UID    // of the Node that was annotated last
	pace     pace         // of patches
	patched  time.Time    // when the last one was made
	restored int          // how many in a row undid what somebody else had done
}

// keep compares our Node with what it should be whenever it changes.
func (h *holder) keep(ctx context.Context, own *ownNode) error {
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-own.changed:
		case <-timer.C:
		}
		if again := h.step(ctx, h.s.node.Load()); again > 0 {
			timer.Reset(again)
		}
	}
}

// step does what there is to do, and returns in how long to do it again (0 for
// when the Node changes).
func (h *holder) step(ctx context.Context, node *corev1.Node) (again time.Duration) {
	s := h.s
	if time.Since(h.patched) > calmAfter {
		h.pace.reset()
		h.restored = 0
	}
	p := s.dialects.planOwn(h.cfg, h.want, s.o.Node, node)
	if h.restored >= contested {
		again = calmAfter + time.Second
		p.problems = append(p.problems, subnet.Problem{Kind: "AnnotationsContested", Object: s.o.Node,
			Detail: "somebody alters this node's annotations again and again: does another agent, or a second cluster's, run under this node's name?"})
	}
	s.setStanding(p.problems)
	if len(p.lease.Paths) == 0 {
		s.leaseWait.Set(p.kind, p.lacks)
		return again
	}
	if diff := s.dialects.difference(p, node); len(diff) > 0 {
		if soon, err := h.mend(ctx, p, node, diff); soon > 0 {
			if err != nil && ctx.Err() == nil {
				s.leaseWait.Set(s.conn.Unreachable(err))
			}
			return soon
		}
	}
	if p.lacks != "" {
		s.leaseWait.Set(p.kind, p.lacks)
	} else {
		s.leaseWait.Clear()
	}
	if !p.lease.Equal(h.told) {
		h.tellChange(p.lease)
		h.told = p.lease
		s.events.leased(p.lease)
		h.granted(p.lease.Clone())
	}
	return again
}

// tellChange says that l has other subnets than were granted before. A Node
// that was re-created may be given another podCIDR, and the one before is
// anybody's then: there is nothing to hold on to for the pods that have it.
func (h *holder) tellChange(l subnet.Lease) {
	for _, was := range h.told.Paths {
		now, ok := l.Path(subnet.FamilyOf(was.Subnet.Addr()))
		if !ok || now.Subnet == was.Subnet {
			continue
		}
		text := fmt.Sprintf("this Node was re-created and has podCIDR %v, no longer %v: pods that run since before have addresses that lead elsewhere; restart them", now.Subnet, was.Subnet)
		h.s.o.Log.WithField("node", h.s.o.Node).Warn(text)
		h.s.events.warn("PodCIDRChanged", text)
	}
}

// mend patches our annotations, unless it is too early for that. It returns in
// how long to try again, 0 when it has succeeded.
func (h *holder) mend(ctx context.Context, p plan, node *corev1.Node, diff map[string]*string) (time.Duration, error) {
	now := time.Now()
	if early := h.pace.due.Sub(now); early > 0 {
		return early, nil
	}
	h.patched = now
	wait := h.pace.failed() // if not now, then the next time
	h.pace.due = now.Add(wait)
	if err := h.publish(ctx, node.UID, diff); err != nil {
		return wait, err
	}
	log := h.s.o.Log.WithField("node", h.s.o.Node)
	switch {
	case node.UID != h.uid && h.uid != "":
		log.Warn("the Node has become another object, which has this node's annotations now, too")
	case p.lease.Equal(h.told):
		h.restored++
		log.Warn("somebody has altered this node's annotations; they are as they should be again")
	}
	h.uid = node.UID
	return 0, nil
}

// publish patches our annotations. The UID makes the patch fail when the Node
// is another object by now, whose podCIDRs may be others.
func (h *holder) publish(ctx context.Context, uid types.UID, diff map[string]*string) error {
	ctx, cancel := h.s.call(ctx)
	defer cancel()
	doc := map[string]any{"metadata": map[string]any{"uid": uid, "annotations": diff}}
	err := h.s.api.patch(ctx, types.MergePatchType, h.s.o.Node, doc)
	if err != nil {
		return fmt.Errorf("annotate Node %s: %w", h.s.o.Node, err)
	}
	return nil
}

// ownNode is our Node as a Reflector keeps it (a cache.ReflectorStore): one
// object or none.
type ownNode struct {
	s       *Store
	changed chan struct{}
}

// Add, Update and Replace take over the Node.
func (o *ownNode) Add(obj any) error { return o.Update(obj) }

func (o *ownNode) Update(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("our Node came as %T", obj)
	}
	o.set(o.s.slim(n))
	return nil
}

// Delete notes that it is gone.
func (o *ownNode) Delete(any) error {
	o.set(nil)
	return nil
}

func (o *ownNode) Replace(list []any, _ string) error {
	switch len(list) {
	case 0:
		return o.Delete(nil)
	case 1:
		return o.Update(list[0])
	}
	return errors.New("several Nodes came by one name")
}

// Resync does nothing.
func (o *ownNode) Resync() error { return nil }

func (o *ownNode) set(n *corev1.Node) {
	o.s.node.Store(n)
	poke(o.changed)
	poke(o.s.moved)
}

// slim is n without what nobody here asks: its images, and fifty more.
func (s *Store) slim(n *corev1.Node) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: s.dialects.pick(n.Annotations)},
		Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Conditions: n.Status.Conditions, Addresses: n.Status.Addresses},
	}
}
