// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

const etcdPort = 2379

// heartbeat and election are etcd's times in milliseconds. A single member
// elects itself when the latter is over.
const (
	heartbeat = 10
	election  = 100
)

// store is the lab's etcd as nodes see it. stop makes it unreachable and
// start brings it back, with what it held.
type store interface {
	endpoints() []string // URLs for weftd
	hosts() string       // what nodes need in /etc/hosts
	attach(ctx context.Context, n *Place) error
	detach(n *Place)
	client(c *clientv3.Config) // adapts the lab's own client
	start(ctx context.Context) error
	stop() error
}

// newStore returns the etcd that the configuration asks for, not started.
func (l *Lab) newStore() store {
	if len(l.cfg.Etcd.Endpoints) > 0 {
		return newRelay(l.outer, l.cfg.Etcd.Endpoints)
	}
	return &etcdProcess{
		addr: fabricAddr(l.cfg.Underlay[0], fabricHost),
		dir:  l.EtcdDir(), log: l.LogPath("etcd"),
	}
}

// openStore starts etcd or the way to it, and writes the network's
// configuration.
func (l *Lab) openStore(ctx context.Context) error {
	if err := l.store.start(ctx); err != nil {
		return err
	}
	c, err := l.cfg.Etcd.config(l.store.endpoints())
	if err != nil {
		return err
	}
	l.store.client(&c)
	if l.client, err = clientv3.New(c); err != nil {
		return fmt.Errorf("make an etcd client: %w", err)
	}
	return l.SetNetwork(ctx, l.cfg.Network)
}

// SetNetwork writes the network's configuration, net-conf.json, to etcd.
func (l *Lab) SetNetwork(ctx context.Context, conf string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	key := l.cfg.Prefix + "/config"
	for {
		// A put is safe to repeat, and etcd needs a moment to elect itself.
		once, done := context.WithTimeout(ctx, 2*time.Second)
		_, err := l.client.Put(once, key, conf)
		done()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("write etcd key %s: %w\n%s", key, err, l.tail("etcd", 20))
		}
	}
}

// StopEtcd makes etcd unreachable for nodes: the lab's own is killed, the way
// to one outside is cut.
func (l *Lab) StopEtcd() error { return l.store.stop() }

// EtcdDir returns the directory where the lab's own etcd keeps its data, for
// a test that replaces it while etcd is stopped.
func (l *Lab) EtcdDir() string { return filepath.Join(stateDir, "etcd") }

// StartEtcd ends an outage and waits until etcd answers.
func (l *Lab) StartEtcd(ctx context.Context) error {
	if err := l.store.start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		once, done := context.WithTimeout(ctx, time.Second)
		_, err := l.client.Get(once, l.cfg.Prefix+"/config")
		done()
		if err == nil {
			return nil
		}
		if err := Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for etcd: %w", err)
		}
	}
}

// Leases returns the keys and values below the network's subnets prefix.
func (l *Lab) Leases(ctx context.Context) (map[string]string, error) {
	prefix := l.cfg.Prefix + "/subnets/"
	got, err := l.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read etcd keys %s: %w", prefix, err)
	}
	out := make(map[string]string, len(got.Kvs))
	for _, kv := range got.Kvs {
		out[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return out, nil
}

// etcdProcess is an embedded etcd in a process of its own, so that it can be
// killed.
type etcdProcess struct {
	addr netip.Addr
	dir  string
	log  string

	mu  sync.Mutex // guards cmd
	cmd *exec.Cmd  // nil while stopped
}

func (e *etcdProcess) endpoints() []string {
	return []string{"http://" + netip.AddrPortFrom(e.addr, etcdPort).String()}
}

func (*etcdProcess) hosts() string                        { return "" }
func (*etcdProcess) attach(context.Context, *Place) error { return nil }
func (*etcdProcess) detach(*Place)                        {}
func (*etcdProcess) client(*clientv3.Config)              {}

func (e *etcdProcess) start(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd != nil {
		return errors.New("etcd already runs")
	}
	log, err := os.OpenFile(e.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer log.Close()
	cmd := self(stageEtcd, e.endpoints()[0], e.dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	e.cmd = cmd
	return nil
}

func (e *etcdProcess) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd == nil {
		return errors.New("etcd does not run")
	}
	err := e.cmd.Process.Kill()
	e.cmd.Wait() // reports the kill
	e.cmd = nil
	if err != nil {
		return fmt.Errorf("kill etcd: %w", err)
	}
	return nil
}

// runEtcd is the etcd process: an embedded server that listens for clients
// at the given URL.
func runEtcd(args []string) error {
	client, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "lab", args[1]
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = heartbeat, election
	cfg.UnsafeNoFsync = true // the data lives on a tmpfs
	cfg.LogLevel = "warn"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd at %s: %w", client, err)
	}
	return <-e.Err()
}

// Pause waits, or returns ctx's error if that ends first.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
