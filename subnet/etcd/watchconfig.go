// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"time"

	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// WatchConfig tells set how the network's configuration changes, from one
// goroutine, until ctx ends or the store is closed, which it returns as an
// error. set gets
//
//   - a valid configuration and nil, when it is another one than set was told
//     last (running, at first), or valid again;
//   - the last good configuration and the error that says why the key's is
//     missing or invalid, when that has become so or the reason is another.
//
// While etcd is out of reach set is not called. Of several changes at once
// the last one counts; those before it may go unseen.
func (s *Store) WatchConfig(ctx context.Context, running subnet.Config, set func(cfg subnet.Config, err error)) error {
	ctx, done := s.life.Scope(ctx)
	defer done()
	defer s.newsWait.Forget()
	watching := s.watchOne(ctx, s.configKey())
	defer watching.end()
	told := subnet.ConfigNews{Good: running}
	b := &backoff{dice: s.dice}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.life.Err(ctx)
		case <-watching.changed:
			// What changes often is read less often, and not by all at once.
			waiting.Pause(ctx, s.dice.between(0, minPause))
		case <-watching.linked:
		case <-timer.C:
		}
		resp, err := s.get(ctx, s.configKey())
		switch {
		case ctx.Err() != nil:
			return s.life.Err(ctx)
		case err != nil:
			s.newsWait.Set("unreachable", s.unreachable(err))
			timer.Reset(b.take())
			continue
		}
		s.newsWait.Clear()
		b.reset()
		if _, cfg, err := s.parseConfig(resp); told.Update(cfg, err) {
			set(told.Good, told.Err)
		}
		timer.Reset(s.dice.between(verifyEvery*9/10, verifyEvery))
	}
}
