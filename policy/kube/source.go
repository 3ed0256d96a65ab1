// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// settle is how long a change waits for others: those that have arrived with
// it are decoded one after the other.
const settle = 5 * time.Millisecond

// Options say where the API is and who we are.
type Options struct {
	// Kubeconfig and Server are those of kubeapi.Options.
	Kubeconfig, Server string
	// Node is the name of our Node.
	Node string
	// CallTimeout bounds every call to the API that is no watch; default
	// kubeapi.DefaultCallTimeout.
	CallTimeout time.Duration
	// Version of the agent, for the API server's log.
	Version string
	// Log receives edges only; nil discards them.
	Log logrus.FieldLogger

	maxPause time.Duration // that of kubeapi.Options, for tests
}

// A Snapshot is all that policies depend on, and what of it was not understood.
// What it points to is shared with others and never modified. Pods and policies
// are in the order of their namespaces and names.
type Snapshot struct {
	Cluster  policy.Cluster
	Problems []subnet.Problem
}

// errClosed is what a blocked call returns after Close.
var errClosed = errors.New("the source of policies is closed")

// ErrNoPod says that the API does not have a pod.
var ErrNoPod = errors.New("there is no such pod")

// Source delivers snapshots of one cluster. Its methods may run at the same
// time, Watch once at a time.
type Source struct {
	conn  *kubeapi.Conn
	reads reader
	kinds [kinds]kind
	life  waiting.Life // ends with Close

	mirror atomic.Pointer[mirror] // what Watch has seen; nil while it does not run
	waits  [kinds]waiting.Reason
}

// New checks o, reads the credentials once and connects to nothing.
func New(o Options) (*Source, error) {
	if o.Node == "" {
		return nil, errors.New("no name of our Node: want --node-name or NODE_NAME (in a pod: fieldRef spec.nodeName)")
	}
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = silent
	}
	conn, err := kubeapi.Connect(kubeapi.Options{Kubeconfig: o.Kubeconfig, Server: o.Server, Node: o.Node, Version: o.Version, CallTimeout: o.CallTimeout, MaxPause: o.maxPause})
	if err != nil {
		return nil, err
	}
	s := &Source{conn: conn, reads: newReader(), life: waiting.NewLife(errClosed)}
	if s.kinds, err = newKinds(conn); err != nil {
		return nil, err
	}
	for i := range s.waits {
		s.waits[i].Log = o.Log.WithFields(logrus.Fields{"op": "watch " + s.kinds[i].resource, "node": o.Node})
	}
	return s, nil
}

// Close ends all calls and connections. Only the first call does anything.
func (s *Source) Close() error {
	s.life.End()
	s.conn.Drop()
	return nil
}

// Reconnect drops all connections; what needs one makes a new one. For when
// this node's addresses have changed.
func (s *Source) Reconnect(context.Context) error {
	s.conn.Drop()
	return nil
}

// Reason says in one sentence what Watch waits for; it is empty while it gets
// on.
func (s *Source) Reason() string {
	list := make([]*waiting.Reason, len(s.waits))
	for i := range s.waits {
		list[i] = &s.waits[i]
	}
	return waiting.First(list...)
}

// Watch delivers snapshots to set: at first what is in the cluster, then what
// is there after each change. While set runs, what changes waits for the next.
// It ends only when ctx ends or the source is closed.
func (s *Source) Watch(ctx context.Context, set func(Snapshot)) error {
	outer, done := s.life.Scope(ctx)
	defer done()
	m := newMirror()
	r := s.reads.with(m)
	s.mirror.Store(m)
	defer s.mirror.Store(nil)
	g, ctx := errgroup.WithContext(outer)
	for i := range s.kinds {
		g.Go(func() error {
			defer s.waits[i].Forget()
			s.conn.Reflect(ctx, s.listWatch(&s.kinds[i], r), &record{}, &table{m: m, kind: i}, &s.waits[i])
			return s.life.Err(ctx)
		})
	}
	g.Go(func() error { return deliver(ctx, m, set) })
	_ = g.Wait() // ends with outer
	return s.life.Err(outer)
}

// deliver hands snapshots to set.
func deliver(ctx context.Context, m *mirror, set func(Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.poke:
		}
		if waiting.Pause(ctx, settle); ctx.Err() != nil {
			return ctx.Err()
		}
		if snap, ok := m.snapshot(); ok {
			set(snap)
		}
	}
}

// Pod returns a pod as Watch has last seen it, or else as the API has it now.
// With a uid it is the pod with this UID and no other of that name; that of a
// static pod is the one its kubelet knows it by. The error is ErrNoPod if there
// is none.
func (s *Source) Pod(ctx context.Context, namespace, name, uid string) (*policy.Pod, error) {
	ctx, done := s.life.Scope(ctx)
	defer done()
	if m := s.mirror.Load(); m != nil {
		if r := m.row(pods, namespace, name); r != nil && (uid == "" || uid == r.pod.UID) {
			return r.pod, nil
		}
	}
	p, err := s.readPod(ctx, namespace, name)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, s.life.Err(ctx)
	case err != nil:
		return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, err)
	case uid != "" && uid != p.UID:
		return nil, fmt.Errorf("pod %s/%s with UID %s, not %s: %w", namespace, name, p.UID, uid, ErrNoPod)
	}
	return p, nil
}
