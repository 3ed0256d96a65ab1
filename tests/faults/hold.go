// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/tests/netlab"
)

// holds are stores that suddenly know less. Not one ping may be lost for four
// minutes; each is a lab of its own, so that they run at the same time.
func holds() []campaign {
	one := func(name, id, what, flannel string, run func(context.Context, *scene) error) campaign {
		return campaign{
			Name: name, What: "a store that knows less", Nodes: 8, Pods: 1, Conf: roomForOthers, Prepare: yesterday,
			Faults: []fault{{ID: id, Name: what, Flannel: flannel, Limit: 30 * time.Second, Seeds: 1, Tells: true, Run: run}},
		}
	}
	const gone = "every node removes every peer"
	// While agents take their leases back, a few that are missing once more are
	// no mass: those may be removed for a moment.
	repeated := one("wipes", "F13", "the prefix of all leases is deleted ten times within seconds", "all agents exit with status 0 (T16)", wipes(10))
	repeated.Faults[0].Loses, repeated.Faults[0].Slow = true, true
	return []campaign{
		one("wipe", "F13", "the prefix of all leases is deleted", "all agents exit with status 0 (T16)", wipes(1)),
		repeated,
		one("backup", "F13", "yesterday's backup is restored", gone, restored),
		one("prefix", "F13", "an agent is started with the wrong prefix", gone, wrongPrefix),
	}
}

// yesterdaysNodes is how many nodes there were that are no more.
const yesterdaysNodes = 6

// yesterday makes a backup of etcd from the time when other nodes held leases.
func yesterday(ctx context.Context, l *netlab.Lab) error {
	for i := range yesterdaysNodes {
		key := fmt.Sprintf("%s/subnets/10.42.%d.0-24", l.Prefix(), 210+i)
		if _, err := l.Client().Put(ctx, key, lease(fmt.Sprintf("192.168.77.%d", 210+i), fmt.Sprintf("0a:00:00:00:02:%02x", i))); err != nil {
			return fmt.Errorf("write a lease: %w", err)
		}
	}
	if err := l.StopEtcd(); err != nil {
		return err
	}
	if err := os.CopyFS(backupDir, os.DirFS(l.EtcdDir())); err != nil {
		return fmt.Errorf("back etcd up: %w", err)
	}
	if err := l.StartEtcd(ctx); err != nil {
		return err
	}
	_, err := l.Client().Delete(ctx, l.Prefix()+"/subnets/", clientv3.WithPrefix())
	return err
}

// backupDir is on the lab's own tmpfs.
const backupDir = "/run/lab/etcd-yesterday"

// calm is how long nothing may be lost.
func (s *scene) calm() time.Duration {
	if s.full {
		return 4 * time.Minute
	}
	return 8 * time.Second
}

// waitOut waits for the rest of the calm since the damage began.
func (s *scene) waitOut(ctx context.Context) error {
	s.notef("watched for %s", s.calm())
	return netlab.Pause(ctx, time.Until(s.broke.Add(s.calm())))
}

// wipes deletes all leases, so many times that agents that take theirs back
// are in the middle of it.
func wipes(times int) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error { return wipe(ctx, s, times) }
}

func wipe(ctx context.Context, s *scene, times int) error {
	keys := map[string]string{}
	for _, n := range s.Nodes() {
		key, _, err := s.keyOf(ctx, n)
		if err != nil {
			return err
		}
		keys[n.Name()] = key
	}
	err := s.outage(func() error {
		for range times {
			if err := s.remove(ctx, s.key(""), clientv3.WithPrefix()); err != nil {
				return err
			}
			if err := netlab.Pause(ctx, s.chance(300*time.Millisecond)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.leasesBack(ctx, keys); err != nil {
		return err
	}
	return s.waitOut(ctx)
}

// restored replaces etcd's data by yesterday's: it knows none of the nodes
// that there are, six that are no more, and its revisions go backwards.
func restored(ctx context.Context, s *scene) error {
	keys := map[string]string{}
	for _, n := range s.Nodes() {
		key, _, err := s.keyOf(ctx, n)
		if err != nil {
			return err
		}
		keys[n.Name()] = key
	}
	err := s.outage(func() error {
		if err := s.StopEtcd(); err != nil {
			return err
		}
		if err := errors.Join(os.RemoveAll(s.EtcdDir()), os.CopyFS(s.EtcdDir(), os.DirFS(backupDir))); err != nil {
			return fmt.Errorf("restore the backup: %w", err)
		}
		return s.StartEtcd(ctx)
	})
	if err != nil {
		return err
	}
	err = s.until(ctx, "the leases of the nodes that there are", func() error {
		leases, err := s.Leases(ctx)
		if err != nil {
			return err
		}
		for name, key := range keys {
			if _, ok := leases[key]; !ok {
				return fmt.Errorf("%s of %s is missing", key, name)
			}
		}
		return s.agents(ctx)
	})
	if err != nil {
		return err
	}
	if err := s.waitOut(ctx); err != nil {
		return err
	}
	if err := s.nothingMissing(ctx); err != nil {
		return err
	}
	for i := range yesterdaysNodes {
		if err := s.remove(ctx, s.key(fmt.Sprintf("10.42.%d.0-24", 210+i))); err != nil {
			return err
		}
	}
	return nil
}

// wrongPrefix restarts an agent with a prefix below which there is a
// configuration, and no peer.
func wrongPrefix(ctx context.Context, s *scene) error {
	n := s.node()
	const wrong = "/wrong/network"
	s.notef("%s", n)
	if err := s.put(ctx, wrong+"/config", s.Config().Network); err != nil {
		return err
	}
	restart := func(args ...string) error {
		if err := n.KillAgent(); err != nil {
			return err
		}
		return n.StartAgent(ctx, args...)
	}
	if err := s.outage(func() error { return restart("--etcd-prefix=" + wrong) }); err != nil {
		return err
	}
	if err := s.wait(ctx, "an agent that says what it holds back", func() error {
		st, err := s.ask(ctx, n)
		if err == nil && len(st.Hold) <= len("null") {
			err = fmt.Errorf("%s holds nothing back: %+v", n, st)
		}
		return err
	}); err != nil {
		return err
	}
	if err := s.waitOut(ctx); err != nil {
		return err
	}
	s.injected = time.Now()
	if err := restart(); err != nil {
		return err
	}
	return s.until(ctx, "agents ready and the kernel as before", func() error {
		return errors.Join(s.agents(ctx), s.asBefore(ctx))
	})
}
