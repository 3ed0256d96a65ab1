// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/tests/netlab"
)

// crowd is damage to a node that has a thousand peers.
func crowd() campaign {
	const all = 2 * time.Second
	return campaign{
		Name: "crowd", What: "a node with 1,000 peers", Nodes: 2, Pods: 1,
		Conf: `{"Network":"10.40.0.0/13","SubnetMax":"10.41.255.0","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}`,
		// Leases of hand-made peers: 10.42.0.0/24 and up.
		Prepare: thousand,
		Faults: []fault{
			{ID: "T6", Name: "VXLAN device deleted under 1,000 peers", Flannel: neverDevice, Loses: true, Limit: all, Tells: true, Run: crowdDevice("ip link del %s")},
			{ID: "T7", Name: "VXLAN device set down and up under 1,000 peers", Flannel: neverRoute, Loses: true, Limit: all, Run: crowdDevice("ip link set %[1]s down\nip link set %[1]s up")},
			{ID: "F1", Name: "agent killed and started again under 1,000 peers", Flannel: "0 of 120 pings lost", Limit: 5 * time.Second, Run: agentEnds((*netlab.Node).KillAgent)},
		},
	}
}

const crowdSize = 1000

// thousand writes the leases of peers that do not exist, behind the default
// route.
func thousand(ctx context.Context, l *netlab.Lab) error {
	for part := range slices.Chunk(slices.Collect(numbers(crowdSize)), 100) {
		var ops []clientv3.Op
		for _, i := range part {
			key := fmt.Sprintf("%s/subnets/10.%d.%d.0-24", l.Prefix(), 42+i/256, i%256)
			value := lease(fmt.Sprintf("172.16.%d.%d", i/200, 1+i%200), fmt.Sprintf("0a:00:00:10:%02x:%02x", i/256, i%256))
			ops = append(ops, clientv3.OpPut(key, value))
		}
		if _, err := l.Client().Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("write leases: %w", err)
		}
	}
	return nil
}

func numbers(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

// crowdDevice damages the device that the peers are on.
func crowdDevice(format string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		n := s.node()
		dev := "weft.1"
		is, err := s.lines(n, "route")
		if err != nil {
			return err
		}
		if len(is) < crowdSize {
			return fmt.Errorf("%s has %d routes, want at least %d", n, len(is), crowdSize)
		}
		s.notef("%d entries of %d peers back, with the same MAC", len(s.before[n.Name()]), crowdSize)
		if err := s.inject(func() error { return s.do(ctx, n.Place, fmt.Sprintf(format, dev)) }); err != nil {
			return err
		}
		return s.heals(ctx)
	}
}

// race is nodes that start at the same moment and have just as many subnets
// as they are.
func race() campaign {
	return campaign{
		Name: "race", What: "nodes that race for subnets", Nodes: 4, Still: true,
		Conf: `{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.4.0","IPv6Network":"fd42::/48","IPv6SubnetMin":"fd42:0:0:1::","IPv6SubnetMax":"fd42:0:0:4::","Backend":{"Type":"vxlan"}}`,
		Faults: []fault{
			{ID: "T14", Name: "four new nodes, four subnets, all at once", Flannel: "1 of 24 daemons dies: subnet already exists (B3)", Limit: 5 * time.Second, Run: racing},
		},
	}
}

func racing(ctx context.Context, s *scene) error {
	var g errgroup.Group
	for _, n := range s.Nodes() {
		if err := n.Reboot(ctx); err != nil {
			return err
		}
		if err := os.RemoveAll(n.Path("/var/lib/weft")); err != nil { // new nodes, that have held nothing
			return err
		}
	}
	if err := s.remove(ctx, s.key(""), clientv3.WithPrefix()); err != nil {
		return err
	}
	s.injected = time.Now()
	for _, n := range s.Nodes() {
		g.Go(func() error {
			if err := n.StartAgent(ctx, fmt.Sprintf("--node-name=%s-%d", n, s.seed)); err != nil {
				return err
			}
			return n.WaitReady(ctx)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.stopClock(time.Now())
	holders := map[string]string{}
	var all error
	for _, n := range s.Nodes() {
		subnets, err := n.Subnets()
		if err != nil {
			return err
		}
		for _, p := range subnets {
			if other := holders[p.String()]; other != "" {
				all = errors.Join(all, fmt.Errorf("%s and %s both hold %s", other, n, p))
			}
			holders[p.String()] = n.Name()
		}
		if n.AgentPID() == 0 {
			all = errors.Join(all, fmt.Errorf("weftd on %s has ended", n))
		}
	}
	if len(holders) != 2*len(s.Nodes()) {
		all = errors.Join(all, fmt.Errorf("%d subnets are held: %q", len(holders), slices.Sorted(maps.Keys(holders))))
	}
	return all
}
