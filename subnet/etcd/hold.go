// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// verifyEvery is the pause between two looks at our own key that no event
// asked for. It bounds how long a loss goes unseen that a watch cannot show,
// such as an etcd restored from a backup.
const verifyEvery = time.Minute

// Hold acquires a lease for want and keeps it until ctx ends; it leaves it
// in the store then. See overlay.Store for the contract.
//
// Hold waits, with a Reason, while etcd is out of reach, while the pool has
// no free subnet, and while another node holds a lease under our name. It
// returns an error that is subnet.ErrConflict when a lease it was granted is
// someone else's now.
func (s *Store) Hold(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
	if want.Node == "" || len(want.Paths) != len(cfg.Networks) {
		return fmt.Errorf("lease of node %q with %d paths: want a name, and a path for each of %d networks", want.Node, len(want.Paths), len(cfg.Networks))
	}
	if err := s.shareable(cfg); err != nil {
		return err
	}
	ctx, done := s.scope(ctx)
	defer done()
	defer s.holdWait.forget()
	h, err := s.acquire(ctx, cfg, want)
	if err != nil {
		return err
	}
	granted(h.lease.Clone())

	watching := s.watchOne(ctx, h.key)
	defer watching.end()
	return s.keep(ctx, h, watching)
}

// renewEvery is the pause between renewals of an etcd lease granted for ttl.
func (s *Store) renewEvery(ttl time.Duration) time.Duration {
	if s.o.RenewMargin < ttl {
		return min(ttl-s.o.RenewMargin, ttl/3)
	}
	return ttl / 3
}

// keep renews and verifies h until ctx ends or the lease is lost. Timers are
// monotonic: neither a step of the clock nor a time zone moves them.
func (s *Store) keep(ctx context.Context, h *held, watching keyWatch) error {
	b := &backoff{dice: s.dice}
	renewed := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ended(ctx)
		case <-watching.changed:
		case <-watching.linked:
		case <-timer.C:
		}
		due := h.etcd != clientv3.NoLease && time.Since(renewed) >= s.renewEvery(h.ttl)
		now := time.Now() // before the call: what is left is not overrated
		err := s.refresh(ctx, h, due)
		switch {
		case ctx.Err() != nil:
			return ended(ctx)
		case errors.Is(err, subnet.ErrConflict):
			return err
		case err != nil:
			s.holdWait.set("unreachable", s.unreachable(err))
			timer.Reset(b.take())
			continue
		}
		s.holdWait.clear()
		b.reset()
		if due {
			renewed = now
		}
		timer.Reset(s.nextLook(h, renewed))
	}
}

// nextLook is the pause until h is to be renewed or verified.
func (s *Store) nextLook(h *held, renewed time.Time) time.Duration {
	look := s.dice.between(verifyEvery*9/10, verifyEvery)
	if h.etcd == clientv3.NoLease {
		return look
	}
	return max(0, min(look, s.renewEvery(h.ttl)-time.Since(renewed)))
}

// refresh renews the etcd lease if that is due, and then makes sure that the
// key is ours: it mends what may be mended and fails with subnet.ErrConflict
// when the lease is another's.
func (s *Store) refresh(ctx context.Context, h *held, renew bool) error {
	if renew {
		err := s.keepAlive(ctx, h.etcd)
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return err
		} // an expired lease took the key with it, which shows below
	}
	for {
		resp, err := s.get(ctx, h.key)
		if err != nil {
			return err
		}
		var stored *mvccpb.KeyValue
		if len(resp.Kvs) > 0 {
			stored = resp.Kvs[0]
		}
		state, err := s.judge(h, stored)
		if err != nil || state == intact {
			return err
		}
		won, err := s.mend(ctx, h, state, stored)
		if err != nil || won {
			return err
		}
	}
}

// A state is what has become of our key.
type state int

const (
	intact  state = iota
	absent        // deleted or expired
	altered       // ours, with another value
	adopted       // ours, put again without an etcd lease: a reservation now
)

// judge compares the stored key with what we hold. Someone else's etcd lease
// on it, or another holder in it, means that it is lost: subnet.ErrConflict.
// A value that does not parse names no other holder.
func (s *Store) judge(h *held, stored *mvccpb.KeyValue) (state, error) {
	if stored == nil {
		return absent, nil
	}
	same := bytes.Equal(stored.Value, h.value)
	id := clientv3.LeaseID(stored.Lease)
	r := readRecord(s.subnetsKey(), stored)
	_, differ := compareUnderlays(r.lease, h.lease)
	ours := same || r.err == nil && !differ &&
		(sameHolder(r.lease, h.lease) || r.lease.Node == "" && standingOf(r.lease, h.lease) == own)
	switch {
	case same && id == h.etcd:
		return intact, nil
	case id != h.etcd && id != clientv3.NoLease:
		// Whatever it says, another process wrote it: only we know our id.
	case r.err != nil, ours && id == h.etcd:
		return altered, nil
	case ours:
		return adopted, nil
	}
	return intact, fmt.Errorf("lease %s of %s is lost: %s has it now: %w", h.key, holderOf(record{lease: h.lease}), holderOf(r), subnet.ErrConflict)
}

// mend puts our key back into the given state's place. It reports false when
// the store changed meanwhile and must be judged again.
func (s *Store) mend(ctx context.Context, h *held, st state, stored *mvccpb.KeyValue) (bool, error) {
	log := s.o.Log.WithFields(logrus.Fields{"op": "hold lease", "dst": h.key})
	if st == absent {
		won, err := s.retake(ctx, h)
		if won {
			log.Warn("the key was gone and is back")
		}
		return won, err
	}
	id := h.etcd
	if st == adopted {
		id = clientv3.NoLease
	}
	if !bytes.Equal(stored.Value, h.value) || clientv3.LeaseID(stored.Lease) != id {
		unchanged := clientv3.Compare(clientv3.ModRevision(h.key), "=", stored.ModRevision)
		put := clientv3.OpPut(h.key, string(h.value), clientv3.WithLease(id))
		lost, err := s.txn(ctx, h.key, []clientv3.Cmp{unchanged}, []clientv3.Op{put}, clientv3.OpGet(h.key, clientv3.WithCountOnly()))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return false, s.grantAnew(ctx, h)
		}
		if err != nil || lost != nil {
			return false, err
		}
		log.Warn("the key's value was altered and is mended")
	}
	if st == adopted {
		old := h.etcd
		h.etcd, h.ttl = clientv3.NoLease, 0
		s.revokeEmpty(ctx, old)
		log.Info("the key has become a reservation")
	}
	return true, nil
}

// grantAnew gives h another etcd lease. h has it before any key does, so
// that a write whose answer is lost is known as ours afterwards.
func (s *Store) grantAnew(ctx context.Context, h *held) error {
	var g grant
	if err := g.ensure(ctx, s); err != nil {
		return err
	}
	h.etcd, h.ttl = g.id, g.ttl
	return nil
}

// retake creates our key anew, if nobody else has come to hold our name or a
// subnet that overlaps ours. A reservation that was deleted becomes a lease.
func (s *Store) retake(ctx context.Context, h *held) (bool, error) {
	t, err := s.list(ctx)
	if err != nil {
		return false, err
	}
	if _, back := t.records[h.key]; back {
		return false, nil
	}
	for _, r := range t.sorted() {
		named := r.err == nil && r.lease.Node == h.lease.Node
		for _, p := range h.lease.Paths {
			if named || r.overlaps(p.Subnet) {
				return false, fmt.Errorf("lease %s of %s is lost: it expired or was deleted, and %s holds %s now: %w",
					h.key, holderOf(record{lease: h.lease}), holderOf(r), r.key, subnet.ErrConflict)
			}
		}
	}
	if h.etcd == clientv3.NoLease {
		if err := s.grantAnew(ctx, h); err != nil {
			return false, err
		}
	}
	p := &plan{lease: h.lease, key: h.key, value: h.value, fresh: true}
	lost, err := s.commit(ctx, t, p, h.etcd)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, s.grantAnew(ctx, h) // ours has expired, and the key with it
	}
	return err == nil && lost == nil, err
}
