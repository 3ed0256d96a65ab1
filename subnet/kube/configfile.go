// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// maxNetConf is how much of the file is read, bytes: more than a document that
// subnet.ParseConfig accepts.
const maxNetConf = 1 << 20

// Config returns the network's configuration. While the file is missing or
// invalid, or does not name a network and our Node, its podCIDR or the API is
// missing, Config waits; Reason says for what. It fails only when ctx ends or the
// store is closed.
func (s *Store) Config(ctx context.Context) (subnet.Config, error) {
	ctx, done := s.life.Scope(ctx)
	defer done()
	defer s.configWait.Forget()
	var asked pace // the API
	for {
		cfg, err := s.readConfig()
		if err == nil {
			cfg, err = s.resolve(ctx, cfg)
		}
		if err == nil {
			s.configWait.Clear()
			return cfg, nil
		}
		again, kind := s.o.PollEvery, "ConfigInvalid"
		if errors.Is(err, fs.ErrNotExist) {
			kind = "ConfigMissing"
		} else if n, ok := asNotYet(err); ok {
			again, kind = asked.failed(), n.kind
		}
		if ctx.Err() == nil {
			s.configWait.Set(kind, err.Error())
		}
		if waiting.Pause(ctx, again); ctx.Err() != nil {
			return subnet.Config{}, s.life.Err(ctx)
		}
	}
}

// WatchConfig tells set how the network's configuration changes, from one
// goroutine, until ctx ends or the store is closed, which it returns as an
// error. set gets
//
//   - a valid configuration and nil, when it is another one than set was told
//     last (running, at first), or valid again;
//   - the last good configuration and the error that says why the file is
//     missing or invalid, when that has become so or the reason is another.
//
// Where the file names no network, podCIDRs of another family, or another answer
// of the cluster, make another configuration, too; while neither can be told,
// set is told nothing.
//
// The file is read whole and anew each time: kubelet replaces a ConfigMap's
// files by moving a symbolic link, which no watch on the file itself sees.
func (s *Store) WatchConfig(ctx context.Context, running subnet.Config, set func(cfg subnet.Config, err error)) error {
	ctx, done := s.life.Scope(ctx)
	defer done()
	told := subnet.ConfigNews{Good: running}
	for {
		cfg, err := s.readConfig()
		if err == nil {
			cfg, err = s.resolve(ctx, cfg)
		}
		if _, later := asNotYet(err); !later && told.Update(cfg, err) {
			set(told.Good, told.Err)
		}
		if waiting.Pause(ctx, s.o.PollEvery); ctx.Err() != nil {
			return s.life.Err(ctx)
		}
	}
}

// readConfig reads and judges the file. Networks that it does not name are open.
func (s *Store) readConfig() (subnet.Config, error) {
	info, err := os.Stat(s.o.NetConf)
	if err != nil {
		return subnet.Config{}, fmt.Errorf("network configuration: %w; it is the mounted ConfigMap, want a file like {} or {\"Network\":\"10.244.0.0/16\"} (--net-conf)", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxNetConf {
		return subnet.Config{}, fmt.Errorf("network configuration %s: want a file of at most %d bytes", s.o.NetConf, maxNetConf)
	}
	data, err := os.ReadFile(s.o.NetConf)
	if err != nil {
		return subnet.Config{}, fmt.Errorf("network configuration: %w", err)
	}
	cfg, err := subnet.ParseConfig(data, s.o.NetConf, subnet.Defaults{Flannel: s.o.Flannel, Open: true})
	if errors.Is(err, subnet.ErrNoNetwork) {
		err = fmt.Errorf("%w, or neither EnableIPv4 nor EnableIPv6 false: then it is what the cluster says", err)
	}
	return cfg, err
}
