// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// A watch is checked against the store from time to time: a glance is one
// small linearizable read that shows whether the revision went back, an audit
// (Options.AuditEvery) is a new listing that finds lost events (etcd issues
// 15271 and 17529).
const glanceEvery = time.Minute

var (
	errRelist  = errors.New("the watch ended")
	errRewound = errors.New("etcd was restored or replaced")
)

// Watch delivers all leases, our own included, to set: at first what is in
// the store, then what is there after each change, one snapshot for all that
// changed at once, none when nothing did. What does not parse is a Problem of
// kind JunkLease. See overlay.Store for the contract. The configuration is
// not used: leases outside the network are the caller's to judge.
func (s *Store) Watch(ctx context.Context, _ subnet.Config, set func(subnet.Snapshot)) error {
	ctx, done := s.life.Scope(ctx)
	defer done()
	defer s.watchWait.Forget()
	m := newMirror(s.subnetsKey(), s.plaintext())
	b := &backoff{dice: s.dice}
	for {
		err := s.follow(ctx, m, b, set)
		if ctx.Err() != nil {
			return s.life.Err(ctx)
		}
		switch {
		case errors.Is(err, errRewound):
			s.watchWait.Set("rewound", err.Error())
			m.deliver(set) // the same leases, and the problem
		case !errors.Is(err, errRelist):
			s.watchWait.Set("unreachable", s.unreachable(err))
		}
		b.pause(ctx)
	}
}

// follow lists, delivers, and streams what comes after.
func (s *Store) follow(ctx context.Context, m *mirror, b *backoff, set func(subnet.Snapshot)) error {
	read := s.read
	if !m.delivered {
		read = s.join
	}
	l, err := read(ctx)
	if err != nil {
		return err
	}
	if !m.admit(l.cluster, l.rev, time.Now()) {
		return fmt.Errorf("list %s: at revision %d of cluster %x, after %d of %x: %w", s.subnetsKey(),
			l.rev, l.cluster, m.rev, m.cluster, errRewound)
	}
	m.replace(l)
	m.deliver(set)
	s.watchWait.Clear()

	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	wctx, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	opened := make(chan clientv3.WatchChan, 1) // Watch blocks until the server answers
	next := clientv3.WithRev(m.rev + 1)
	go func() {
		opened <- c.Watch(wctx, s.subnetsKey(), clientv3.WithPrefix(), next, clientv3.WithProgressNotify())
	}()
	return s.stream(ctx, m, b, set, opened)
}

// stream applies and delivers events, and has an eye on the store beside,
// until something asks for a new listing.
func (s *Store) stream(ctx context.Context, m *mirror, b *backoff, set func(subnet.Snapshot), opened <-chan clientv3.WatchChan) error {
	link, unlink := s.watchLink(ctx)
	defer unlink()
	glance := time.NewTimer(s.dice.between(glanceEvery*9/10, glanceEvery))
	defer glance.Stop()
	audit := time.NewTimer(s.dice.between(s.o.AuditEvery*9/10, s.o.AuditEvery))
	defer audit.Stop()
	var events clientv3.WatchChan
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case events = <-opened:
		case <-audit.C:
			b.reset()
			return errRelist
		case <-link:
			glance.Reset(0)
		case <-glance.C:
			next, err := s.glance(ctx, m, b)
			if err != nil {
				return err
			}
			glance.Reset(next)
		case resp, ok := <-events:
			err := m.drain(resp, ok, events)
			m.deliver(set)
			if err != nil {
				return err
			}
		}
	}
}

// drain applies resp and what else has arrived. It fails with errRelist when
// the watch has ended: by compaction, for want of a leader, by the server.
func (m *mirror) drain(resp clientv3.WatchResponse, ok bool, more clientv3.WatchChan) error {
	for {
		switch {
		case !ok:
			return errRelist
		case resp.Err() != nil:
			return fmt.Errorf("%w: %w", errRelist, resp.Err())
		case resp.Header.Revision < m.rev && resp.IsProgressNotify():
			return errRelist // the server is behind what we have seen
		}
		m.apply(resp)
		select {
		case resp, ok = <-more:
		default:
			return nil
		}
	}
}

// glance reads the store's revision and returns when to do so again. While
// etcd is out of reach it only says so: the client resumes the watch by
// itself. It fails with errRelist when the store is not what it was.
func (s *Store) glance(ctx context.Context, m *mirror, b *backoff) (time.Duration, error) {
	resp, err := s.get(ctx, s.configKey(), clientv3.WithCountOnly())
	switch {
	case err != nil:
		if ctx.Err() == nil {
			s.watchWait.Set("unreachable", s.unreachable(err))
		}
		return b.take(), nil
	case resp.Header.Revision < m.rev || resp.Header.ClusterId != m.cluster:
		return 0, errRelist
	}
	s.watchWait.Clear()
	b.reset()
	return s.dice.between(glanceEvery*9/10, glanceEvery), nil
}
