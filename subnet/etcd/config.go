// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// lookAgain is the longest pause between two looks at something that a watch
// should have reported.
const lookAgain = 10 * time.Second

// Config returns the network's configuration. While it is missing or
// invalid, or etcd is out of reach, Config waits; Reason says for what. It
// fails only when ctx ends or the store is closed.
func (s *Store) Config(ctx context.Context) (subnet.Config, error) {
	ctx, done := s.life.Scope(ctx)
	defer done()
	defer s.configWait.Forget()
	b := &backoff{dice: s.dice}
	for {
		resp, err := s.get(ctx, s.configKey())
		if ctx.Err() != nil {
			return subnet.Config{}, s.life.Err(ctx)
		}
		if err != nil {
			s.configWait.Set("unreachable", s.unreachable(err))
			b.pause(ctx)
			continue
		}
		b.reset()
		kind, cfg, err := s.parseConfig(resp)
		if err == nil {
			s.configWait.Clear()
			return cfg, nil
		}
		s.configWait.Set(kind, err.Error())
		s.awaitChange(ctx, s.configKey(), resp.Header.Revision+1)
	}
}

// ConfigChange reads the configuration once and says, in one sentence, what
// an agent that runs with cfg should tell its operator: that etcd holds
// another one now, none, or one that is not valid. It returns "" when nothing
// has changed, and an error when etcd did not answer.
func (s *Store) ConfigChange(ctx context.Context, running subnet.Config) (string, error) {
	resp, err := s.get(ctx, s.configKey())
	if err != nil {
		return "", err
	}
	_, cfg, err := s.parseConfig(resp)
	switch {
	case err != nil:
		return err.Error() + "; this node goes on with what it started with", nil
	case cfg.Equal(running):
		return "", nil
	}
	return fmt.Sprintf("etcd key %s has changed to %+v; this node goes on with %+v until weftd is restarted", s.configKey(), cfg, running), nil
}

// parseConfig judges the configuration as read. kind tells what is wrong.
func (s *Store) parseConfig(resp *clientv3.GetResponse) (kind string, cfg subnet.Config, err error) {
	if len(resp.Kvs) == 0 {
		return "missing", cfg, fmt.Errorf(`config key %s is missing; create it with: etcdctl put %[1]s '{"Network":"10.244.0.0/16"}'`, s.configKey())
	}
	cfg, err = subnet.ParseConfig(resp.Kvs[0].Value, "etcd key "+s.configKey(), s.o.Defaults)
	if err == nil {
		err = s.shareable(cfg)
	}
	return "invalid", cfg, err
}

// shareable reports why cfg cannot be used in a store shared with flannel.
// flannel v0.28 takes the key of a lease without IPv4 for an empty list of
// leases, whereupon every flannel node removes every peer.
func (s *Store) shareable(cfg subnet.Config) error {
	if _, ok := cfg.Network(subnet.IPv4); !s.o.Defaults.Flannel || ok {
		return nil
	}
	return fmt.Errorf("etcd key %s: an IPv6 network alone cannot be shared with flannel, which would drop all its peers: add an IPv4 Network, or use another --etcd-prefix without --flannel-compat", s.configKey())
}

// awaitChange returns when key changes at revision rev or later, after
// lookAgain, or when ctx ends. With clientv3.WithPrefix it awaits a change of
// any key that begins so. A change is answered after a short random pause, so
// that many who wait for one key do not read it at one moment.
func (s *Store) awaitChange(ctx context.Context, key string, rev int64, opts ...clientv3.OpOption) {
	c, err := s.client(ctx)
	if err != nil {
		waiting.Pause(ctx, s.dice.between(lookAgain/2, lookAgain))
		return
	}
	timer, cancel := context.WithTimeout(ctx, s.dice.between(lookAgain/2, lookAgain))
	defer cancel()
	wctx, stop := context.WithCancel(clientv3.WithRequireLeader(timer))
	defer stop()
	resp, ok := <-c.Watch(wctx, key, append(opts, clientv3.WithRev(rev))...)
	if ok && resp.Err() == nil {
		waiting.Pause(ctx, s.dice.between(0, minPause))
		return
	}
	waiting.Pause(timer, s.dice.between(minPause, 2*time.Second))
}
