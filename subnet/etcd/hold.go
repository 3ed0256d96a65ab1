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

	"weft.dev/weft/internal/waiting"
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
// no free subnet, and while another node holds a lease under our name. A
// lease that the same instance of this node left under another node name is
// replaced in one transaction.
//
// Hold returns an error that is subnet.ErrConflict when a lease it was granted
// is someone else's now. Nothing of it is left in the store by then, so Hold
// may be called again at any time, as often as one likes: it acquires as after
// a restart, with want's subnets if they are free again and with others, which
// granted tells, if not. When the error is subnet.ErrTwin too, another process
// has taken the lease as this very node: two that both call again take it from
// each other for ever.
//
// An etcd that was restored from a backup is not a conflict. What is found
// there in our place and is older than what we wrote is ours to replace if it
// is our own, and is given rewindGrace to correct itself if it is another's.
func (s *Store) Hold(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
	if want.Node == "" || len(want.Paths) != len(cfg.Networks) {
		return fmt.Errorf("lease of node %q with %d paths: want a name, and a path for each of %d networks", want.Node, len(want.Paths), len(cfg.Networks))
	}
	if err := s.shareable(cfg); err != nil {
		return err
	}
	ctx, done := s.life.Scope(ctx)
	defer done()
	defer s.holdWait.Forget()
	h, err := s.acquire(ctx, cfg, want)
	if err != nil {
		return err
	}
	granted(h.lease.Clone())

	watching := s.watchOne(ctx, h.key)
	defer watching.end()
	err = s.keep(ctx, h, watching)
	if errors.Is(err, subnet.ErrConflict) && h.etcd != clientv3.NoLease {
		s.revokeEmpty(ctx, h.etcd) // or each call again would leave one
	}
	return err
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
			return s.life.Err(ctx)
		case <-watching.changed:
		case <-watching.linked:
		case <-timer.C:
		}
		due := h.etcd != clientv3.NoLease && time.Since(renewed) >= s.renewEvery(h.ttl)
		now := time.Now() // before the call: what is left is not overrated
		err := s.refresh(ctx, h, due)
		switch {
		case ctx.Err() != nil:
			return s.life.Err(ctx)
		case errors.Is(err, subnet.ErrConflict):
			return err
		case errors.Is(err, errRewound):
			s.holdWait.Set("rewound", err.Error())
			timer.Reset(b.take())
			continue
		case err != nil:
			s.holdWait.Set("unreachable", s.unreachable(err))
			timer.Reset(b.take())
			continue
		}
		s.holdWait.Clear()
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
	for races := 0; ; races++ {
		if races > 1 { // a store that contradicts itself is not asked at full speed
			waiting.Pause(ctx, s.dice.between(0, min(time.Duration(races)*pausePerRace, maxRacePause)))
		}
		resp, err := s.get(ctx, h.key)
		if err != nil {
			return err
		}
		var stored *mvccpb.KeyValue
		if len(resp.Kvs) > 0 {
			stored = resp.Kvs[0]
		}
		state, err := s.judge(h, stored)
		switch {
		case err != nil:
			return h.bear(err, time.Now())
		case state == intact:
			h.wrote, h.disputed = stored.ModRevision, time.Time{}
			return nil
		}
		won, err := s.mend(ctx, h, state, stored)
		if err != nil || won {
			return h.bear(err, time.Now())
		}
	}
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
		log.Warn("the key was altered and is mended")
	}
	switch st {
	case adopted:
		old := h.etcd
		h.etcd, h.ttl = clientv3.NoLease, 0
		s.revokeEmpty(ctx, old)
		log.Info("the key has become a reservation")
	case restored:
		s.revokeEmpty(ctx, clientv3.LeaseID(stored.Lease))
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
// What a restored backup brought back of our own goes with it.
func (s *Store) retake(ctx context.Context, h *held) (bool, error) {
	t, err := s.list(ctx)
	if err != nil {
		return false, err
	}
	if _, back := t.records[h.key]; back {
		return false, nil
	}
	p := &plan{lease: h.lease, key: h.key, value: h.value, fresh: true}
	if p.drop, err = h.obstacles(t); err != nil {
		return false, err
	}
	if h.etcd == clientv3.NoLease {
		if err := s.grantAnew(ctx, h); err != nil {
			return false, err
		}
	}
	lost, err := s.commit(ctx, t, p, h.etcd)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, s.grantAnew(ctx, h) // ours has expired, and the key with it
	}
	if err == nil && lost == nil {
		s.supersede(ctx, p, h.etcd)
	}
	return err == nil && lost == nil, err
}
