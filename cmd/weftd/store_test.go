// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"weft.dev/weft/subnet"
)

// fakeStore grants what each Hold in turn is told to.
type fakeStore struct {
	mu    sync.Mutex
	holds []func(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error
	calls chan holdCall // of Hold, as they come

	reasons, reconnects atomic.Int32
}

type holdCall struct {
	cfg  subnet.Config
	want subnet.Lease
}

func (s *fakeStore) Config(ctx context.Context) (subnet.Config, error) {
	<-ctx.Done()
	return subnet.Config{}, ctx.Err()
}

// Hold does what the next of holds says; after the last one it waits.
func (s *fakeStore) Hold(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
	s.mu.Lock()
	do := func(ctx context.Context, _ subnet.Config, _ subnet.Lease, _ func(subnet.Lease)) error {
		<-ctx.Done()
		return ctx.Err()
	}
	if len(s.holds) > 0 {
		do, s.holds = s.holds[0], s.holds[1:]
	}
	s.mu.Unlock()
	select {
	case s.calls <- holdCall{cfg, want.Clone()}:
	case <-ctx.Done():
		return ctx.Err()
	}
	return do(ctx, cfg, want, granted)
}

func (s *fakeStore) Watch(ctx context.Context, _ subnet.Config, _ func(subnet.Snapshot)) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s *fakeStore) WatchConfig(ctx context.Context, _ subnet.Config, _ func(subnet.Config, error)) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s *fakeStore) Reconnect(context.Context) error { s.reconnects.Add(1); return nil }
func (s *fakeStore) Reason() string                  { s.reasons.Add(1); return "" }
func (s *fakeStore) Close() error                    { return nil }

// bare returns an agent of node n1 on a store that does nothing by itself.
func bare(t *testing.T, args ...string) (*agent, *fakeStore) {
	t.Helper()
	o := parse(t, nil, append([]string{"--subnet-file=" + t.TempDir() + "/subnet.env"}, args...)...)
	a := newAgent(o, newLogger(o, testWriter{t}))
	s := &fakeStore{calls: make(chan holdCall, 16)}
	a.store = s
	return a, s
}
