// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// errClosed is what a blocked call returns after Close.
var errClosed = errors.New("the Kubernetes store is closed")

// Store leases subnets in one cluster. Its methods may run at the same time,
// each of Config, Hold, Watch, WatchConfig and Report once at a time.
type Store struct {
	o        Options
	dialects dialects
	conn     *kubeapi.Conn
	api      *client
	events   *events

	life waiting.Life // ends with Close

	node     atomic.Pointer[corev1.Node]      // ours as last seen; nil when there is none, or not yet
	moved    chan struct{}                    // poked when node changes, for Report
	standing atomic.Pointer[[]subnet.Problem] // what Hold finds wrong with our Node
	news     chan struct{}                    // poked when standing changes, for Watch

	resolver resolver // of networks that the file does not name

	configWait, nodeWait, leaseWait, watchWait waiting.Reason
}

// New checks o, reads the credentials once and connects to nothing.
func New(o Options) (*Store, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	s := &Store{o: o, moved: make(chan struct{}, 1), news: make(chan struct{}, 1)}
	if s.dialects, err = newDialects(o); err != nil {
		return nil, err
	}
	if s.conn, err = o.connect(); err != nil {
		return nil, err
	}
	if s.api, err = newClient(s.conn); err != nil {
		return nil, err
	}
	s.life = waiting.NewLife(errClosed)
	s.events = newEvents(s.life.Context(), s.api, o)
	for w, op := range map[*waiting.Reason]string{&s.configWait: "read configuration", &s.nodeWait: "watch our Node", &s.leaseWait: "hold lease", &s.watchWait: "watch Nodes"} {
		w.Log, w.Told = o.Log.WithFields(logrus.Fields{"op": op, "node": o.Node}), s.events.warn
	}
	return s, nil
}

// Close ends all calls and connections. Annotations stay. Only the first call
// does anything.
func (s *Store) Close() error {
	s.life.End()
	s.conn.Drop()
	return nil
}

// Reconnect drops all connections; what needs one makes a new one. For when
// this node's addresses have changed: a connection from an address that is
// gone answers nothing, and is only found dead by its pings. Calls under way
// fail, and are made again by whoever made them.
func (s *Store) Reconnect(context.Context) error {
	s.conn.Drop()
	return nil
}

// Server returns the URL of the API server.
func (s *Store) Server() string { return s.conn.Server() }

// Reason says in one sentence what the store waits for: the API out of reach,
// our Node or its podCIDRs missing, the configuration missing. It is empty
// when the store gets on.
func (s *Store) Reason() string {
	return waiting.First(&s.configWait, &s.nodeWait, &s.leaseWait, &s.watchWait)
}

// setStanding makes list what is wrong with our Node.
func (s *Store) setStanding(list []subnet.Problem) {
	if slices.Equal(list, s.problems()) {
		return
	}
	s.standing.Store(&list)
	poke(s.news)
}

func (s *Store) problems() []subnet.Problem {
	if list := s.standing.Load(); list != nil {
		return *list
	}
	return nil
}

// call gives one call to the API its deadline.
func (s *Store) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return s.conn.Call(ctx)
}
