// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A keyWatch pokes when something may have become of one key.
type keyWatch struct {
	changed <-chan struct{} // after a change, and when the watch begins anew
	linked  <-chan struct{} // after the connection was lost, and after it is back
	end     func()          // and wait until nothing of the watch is left
}

// watchOne watches key until ctx ends or end is called.
func (s *Store) watchOne(ctx context.Context, key string) keyWatch {
	ctx, stop := context.WithCancel(ctx)
	poke, gone := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(gone)
		s.watchKey(ctx, key, poke)
	}()
	linked, unlink := s.watchLink(ctx)
	return keyWatch{changed: poke, linked: linked, end: func() {
		stop()
		<-gone
		unlink()
	}}
}

// watchKey pokes after each change of key, and whenever the watch begins
// anew, since changes may have gone unseen before. It returns when ctx ends.
func (s *Store) watchKey(ctx context.Context, key string, poke chan<- struct{}) {
	b := &backoff{dice: s.dice}
	for ctx.Err() == nil {
		c, err := s.client(ctx)
		if err != nil {
			b.pause(ctx)
			continue
		}
		wctx, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for resp := range c.Watch(wctx, key, clientv3.WithCreatedNotify()) {
			if resp.Err() != nil {
				break
			}
			select {
			case poke <- struct{}{}:
			default: // one is enough
			}
			if !resp.Created {
				b.reset()
			}
		}
		stop()
		b.pause(ctx)
	}
}
