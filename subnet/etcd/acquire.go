// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// After a lost race the table is fresh, so that the next try comes at once;
// when that is lost too, a random pause thins the racers out, the longer the
// more races were lost. (Pausing after each loss only makes the table stale
// again: with 64 racers that took six times as long.)
const (
	pausePerRace = 2 * time.Millisecond
	maxRacePause = 500 * time.Millisecond
)

// acquire returns once our lease is in the store. It waits as long as etcd
// is out of reach, the pool is exhausted, or another node has our name.
func (s *Store) acquire(ctx context.Context, cfg subnet.Config, want subnet.Lease) (*held, error) {
	b := &backoff{dice: s.dice}
	a := &attempt{s: s, cfg: cfg, want: want}
	for {
		h, err := a.once(ctx)
		if ctx.Err() != nil {
			return nil, s.life.Err(ctx)
		}
		if err == nil && h != nil {
			s.holdWait.Clear()
			return h, nil
		}
		if err == nil { // another was faster: the table is patched or to be read again
			if a.races++; a.races%2 == 0 {
				waiting.Pause(ctx, s.dice.between(0, min(time.Duration(a.races)*pausePerRace, maxRacePause)))
			}
			continue
		}
		if errors.Is(err, subnet.ErrExhausted) && a.table.patched {
			a.table = nil // something may have been freed since
			continue
		}
		if !a.wait(ctx, err, b) {
			return nil, err
		}
		a.table = nil
	}
}

// An attempt is the state of an acquisition from one try to the next.
type attempt struct {
	s     *Store
	cfg   subnet.Config
	want  subnet.Lease
	table *table // nil: list again
	read  bool   // the store was read
	grant grant  // made once, used by the try that wins
	races int
}

// wait waits after err until another try may do better, and reports false
// when none will.
func (a *attempt) wait(ctx context.Context, err error, b *backoff) bool {
	var r *rivalError
	switch {
	case errors.As(err, &r):
		a.s.holdWait.Set("rival", err.Error())
		a.s.awaitChange(ctx, r.stored.key, a.table.rev+1)
	case errors.Is(err, subnet.ErrExhausted):
		a.s.holdWait.Set("exhausted", fmt.Sprintf("%v: %d keys in etcd under %s; remove stale ones or widen the network", err, len(a.table.records), a.table.prefix))
		a.s.awaitChange(ctx, a.table.prefix, a.table.rev+1, clientv3.WithPrefix())
	case errors.Is(err, errPlan):
		return false
	default:
		a.s.holdWait.Set("unreachable", a.s.unreachable(err))
		b.pause(ctx)
		return true
	}
	b.reset()
	return true
}

// errPlan marks a lease that cannot be written whatever the store holds.
var errPlan = errors.New("cannot publish the lease")

// once tries to get the lease. It returns nil, nil after a lost race.
func (a *attempt) once(ctx context.Context) (*held, error) {
	if a.table == nil {
		read := a.s.read
		if !a.read {
			read = a.s.join // one that is some milliseconds old loses a race at worst
		}
		l, err := read(ctx)
		if err != nil {
			return nil, err
		}
		a.table, a.read = newTable(a.s.subnetsKey(), l), true
	}
	p, err := planFor(a.table, a.cfg, a.want, a.s.dice.below)
	if err != nil {
		if errors.Is(err, subnet.ErrExhausted) || errors.Is(err, subnet.ErrConflict) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errPlan, err)
	}
	h := &held{lease: p.lease, key: p.key, value: p.value}
	if !p.reserved {
		if err := a.grant.ensure(ctx, a.s); err != nil {
			return nil, err
		}
		h.etcd, h.ttl = a.grant.id, a.grant.ttl
	}
	won, err := a.s.commit(ctx, a.table, p, h.etcd)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		a.grant = grant{} // expired while we waited
	}
	if err != nil {
		a.table = nil // whether it was written is unknown
		return nil, err
	}
	if won == nil {
		a.s.supersede(ctx, p, h.etcd)
		return h, nil
	}
	if len(won.Responses[0].GetResponseRange().GetKvs()) == 0 {
		a.table = nil // one of ours changed
		return nil, nil
	}
	a.table.patch(won.Responses[0].GetResponseRange().Kvs, won.Header.Revision)
	return nil, nil
}

// A grant is an etcd lease.
type grant struct {
	id  clientv3.LeaseID
	ttl time.Duration // as etcd granted it, which may be more than asked
}

// ensure grants a lease unless g is one.
func (g *grant) ensure(ctx context.Context, s *Store) error {
	if g.id != clientv3.NoLease {
		return nil
	}
	return s.call(ctx, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Grant(ctx, int64(s.o.LeaseTTL/time.Second))
		if err != nil {
			return fmt.Errorf("grant an etcd lease of %s: %w", s.o.LeaseTTL, err)
		}
		*g = grant{resp.ID, time.Duration(resp.TTL) * time.Second}
		return nil
	})
}

// commit writes p, provided that our entries are as in t and, for a fresh
// key, that no key was created since t. It returns nil when it did, and
// otherwise the response, which carries the keys created since.
//
// The comparison over the whole range is what keeps overlapping subnets
// apart: two transactions that create different keys exclude each other. In
// an empty range it holds (etcd 3.4 and later, server apply of compares).
func (s *Store) commit(ctx context.Context, t *table, p *plan, id clientv3.LeaseID) (*clientv3.TxnResponse, error) {
	var cmps []clientv3.Cmp
	if p.fresh {
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(t.prefix).WithPrefix(), "<", t.rev+1))
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(p.key), "=", 0))
	}
	ops := []clientv3.Op{clientv3.OpPut(p.key, string(p.value), clientv3.WithLease(id))}
	for _, r := range p.replaced() {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(r.key), "=", r.changed))
		if r.key != p.key {
			ops = append(ops, clientv3.OpDelete(r.key))
		}
	}
	later := clientv3.OpGet(t.prefix, clientv3.WithPrefix(), clientv3.WithMinCreateRev(t.rev+1))
	return s.txn(ctx, p.key, cmps, ops, later)
}

// replaced are our entries so far.
func (p *plan) replaced() []record {
	if p.entry == nil {
		return p.drop
	}
	return append([]record{*p.entry}, p.drop...)
}

// txn runs ops if all of cmps hold and returns nil then; else it runs look
// and returns its response. key is named in the error.
func (s *Store) txn(ctx context.Context, key string, cmps []clientv3.Cmp, ops []clientv3.Op, look clientv3.Op) (*clientv3.TxnResponse, error) {
	var resp *clientv3.TxnResponse
	err := s.call(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Txn(ctx).If(cmps...).Then(ops...).Else(look).Commit()
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("write %s: %w", key, err)
	case resp.Succeeded:
		return nil, nil
	}
	return resp, nil
}

// supersede reports what p replaced, and gives back etcd leases of our own
// earlier life that hold nothing any more, so that restarts leave none.
func (s *Store) supersede(ctx context.Context, p *plan, id clientv3.LeaseID) {
	log := s.o.Log.WithFields(logrus.Fields{"op": "acquire", "dst": p.key})
	for _, r := range p.replaced() {
		if r.key != p.key {
			log.Warnf("deleted %s, which was ours and does not fit any more", r.key)
		}
		if !r.reserved() && r.etcd != id && (sameHolder(r.lease, p.lease) || renamed(r.lease, p.lease)) {
			s.revokeEmpty(ctx, r.etcd)
		}
	}
	log.Info("lease acquired")
}

// revokeEmpty revokes an etcd lease that no key hangs on. It is a courtesy:
// what fails is left to expire.
func (s *Store) revokeEmpty(ctx context.Context, id clientv3.LeaseID) {
	err := s.call(ctx, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil || resp.TTL < 0 || len(resp.Keys) > 0 {
			return err
		}
		_, err = c.Revoke(ctx, id)
		return err
	})
	if err != nil {
		s.o.Log.WithFields(logrus.Fields{"op": "revoke old etcd lease", "err": err}).Debug("left to expire")
	}
}

// keepAlive renews an etcd lease once. A lease that is gone gives
// rpctypes.ErrLeaseNotFound. (The client's KeepAliveOnce tries again without
// a pause for as long as etcd is out of reach.)
func (s *Store) keepAlive(ctx context.Context, id clientv3.LeaseID) error {
	return s.call(ctx, func(ctx context.Context, c *clientv3.Client) error {
		stream, err := etcdserverpb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(ctx)
		if err != nil {
			return fmt.Errorf("renew etcd lease %x: %w", id, err)
		}
		// What is wrong with a stream that cannot be sent on, Recv tells.
		_ = stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)})
		resp, err := stream.Recv()
		switch {
		case err != nil:
			return fmt.Errorf("renew etcd lease %x: %w", id, rpctypes.Error(err))
		case resp.TTL <= 0:
			return rpctypes.ErrLeaseNotFound
		}
		return stream.CloseSend()
	})
}
