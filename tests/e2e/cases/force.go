// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/netlab"
)

const (
	// cutWithin is how long a stream may go on when a policy forbids it.
	cutWithin = 200 * time.Millisecond
	// agentKills is how often the agent of an isolated pod is killed.
	agentKills = 50
	// mendedWithin is how long a removed table may be missing.
	mendedWithin = time.Second
)

// pairNamespaces and pair are a server and clients of which a policy can let
// some in, on another node and on the server's own.
func pairNamespaces() map[string]string { return map[string]string{"app": "name: app"} }

func pair() []person {
	return []person{
		{name: "server", namespace: "app", labels: "app: server", node: 0, tcp: []int{80}, udp: []int{80}},
		{name: "friend", namespace: "app", labels: "role: friend", node: 1, tcp: []int{80}},
		{name: "other", namespace: "app", labels: "role: other", node: 1},
		{name: "neighbour", namespace: "app", labels: "role: other", node: 0},
	}
}

// letIn is a policy that lets pods with the given roles reach the server.
func letIn(roles ...string) string {
	return `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: let-in, namespace: app}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchExpressions: [{key: role, operator: In, values: [` + strings.Join(roles, ", ") + `]}]}}]
`
}

// amongPair runs a case among the pods of pair, once policies are in force that
// show in trips.
func amongPair(ctx context.Context, c *cluster.Cluster, policies string, trips []trip, run func(*folk, context.Context) error) (err error) {
	f, err := settle(ctx, c, pairNamespaces(), pair())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.leave(context.WithoutCancel(ctx), pairNamespaces())) }()
	if err := c.Apply(ctx, policies); err != nil {
		return err
	}
	if err := f.try(ctx, trips); err != nil {
		return err
	}
	return run(f, ctx)
}

// friendsOnly makes letIn's policy one for friends.
const friendsOnly = `[{"op": "replace", "path": "/spec/ingress/0/from/0/podSelector/matchExpressions/0/values", "value": ["friend"]}]`

// revoke takes what lets two streams in away from one of them: it stops at once,
// and the other loses nothing.
func revoke(ctx context.Context, c *cluster.Cluster) error {
	return amongPair(ctx, c, letIn("friend", "other"), []trip{{"friend", "server", "tcp", 80, true}, {"other", "server", "tcp", 80, true}, {"neighbour", "server", "tcp", 80, true}}, (*folk).revoke)
}

func (f *folk) revoke(ctx context.Context) error {
	c, server := f.c, f.at["server"]
	const every = 10 * time.Millisecond
	for _, to := range server.IPs {
		kept, err := f.at["friend"].StartStream(ctx, server.Place, to, every)
		if err != nil {
			return err
		}
		var cut []*netlab.Stream
		for _, from := range []string{"other", "neighbour"} {
			s, err := f.at[from].StartStream(ctx, server.Place, to, every)
			if err != nil {
				return err
			}
			cut = append(cut, s)
		}
		if err := netlab.Pause(ctx, time.Second); err != nil {
			return err
		}
		if err := c.Patch(ctx, "/apis/networking.k8s.io/v1/namespaces/app/networkpolicies/let-in", friendsOnly); err != nil {
			return err
		}
		applied := time.Now()
		if err := areCut(ctx, c, cut, applied); err != nil {
			return err
		}
		for _, s := range cut {
			s.Stop()
		}
		if n := kept.Stop(); n.Err != nil || n.Longest > time.Second {
			return fmt.Errorf("a stream that may go on was disturbed: %s", n)
		}
		if err := c.Apply(ctx, letIn("friend", "other")); err != nil {
			return err
		}
		if err := f.try(ctx, []trip{{"other", "server", "tcp", 80, true}}); err != nil {
			return err
		}
	}
	return nil
}

// areCut watches streams until none has had an answer for a second, and says
// whether each had its last within cutWithin of when the API took the change.
func areCut(ctx context.Context, c *cluster.Cluster, cut []*netlab.Stream, applied time.Time) error {
	answered, last := make([]uint64, len(cut)), make([]time.Time, len(cut))
	for quiet := applied; time.Since(quiet) < time.Second; {
		for i, s := range cut {
			if n := s.Count().Answered; n > answered[i] {
				answered[i], last[i], quiet = n, time.Now(), time.Now()
			}
		}
		if time.Since(applied) > settleTime {
			return fmt.Errorf("%s after the change: %s", settleTime, cut[0].Count())
		}
		if err := netlab.Pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	for i, s := range cut {
		after := max(0, last[i].Sub(applied))
		c.Progress("  %s: its last answer was %s after the API had taken the change", s.Count(), after.Round(time.Millisecond))
		if after > cutWithin {
			return fmt.Errorf("%s went on for %s after its policy had gone, want at most %s", s.Count(), after, cutWithin)
		}
	}
	return nil
}

// killUnderDeny kills the agent of a pod that may get nothing, again and again,
// while others try to reach it: nothing arrives. A pod that may be reached is,
// all the time.
func killUnderDeny(ctx context.Context, c *cluster.Cluster) error {
	return amongPair(ctx, c, letIn("friend"), []trip{{"friend", "server", "udp", 80, true}, {"other", "server", "udp", 80, false}, {"neighbour", "server", "udp", 80, false}}, (*folk).killUnderDeny)
}

func (f *folk) killUnderDeny(ctx context.Context) error {
	const every = 10 * time.Millisecond // 100 a second
	c, server := f.c, f.at["server"]
	var denied, allowed []*netlab.Pinger
	for _, to := range server.IPs {
		for _, from := range []string{"other", "neighbour", "friend"} {
			p, err := f.at[from].StartPing(ctx, to, every)
			if err != nil {
				return err
			}
			if from == "friend" {
				allowed = append(allowed, p)
			} else {
				denied = append(denied, p)
			}
		}
	}
	kills, err := killAgain(ctx, c, server.Node)
	sent := 0
	for _, p := range denied {
		n := p.Stop()
		sent += n.Sent
		if n.Sent > n.Lost {
			err = errors.Join(err, fmt.Errorf("denied, and answered %d times: %s", n.Sent-n.Lost, n))
		}
	}
	for _, p := range allowed {
		if n := p.Stop(); n.Lost > 0 || n.Err != nil {
			err = errors.Join(err, fmt.Errorf("allowed, and lost: %s", n))
		}
	}
	c.Progress("  %d kills, %d probes that are denied", kills, sent)
	return err
}

// killAgain kills the agent on a node and lets a new one come up, agentKills
// times. It deletes the pod after each kill, or kubelet would wait ever longer.
func killAgain(ctx context.Context, c *cluster.Cluster, node string) (int, error) {
	for n := range agentKills {
		var before cluster.Pod
		err := eventually(ctx, time.Minute, func(ctx context.Context) error {
			pods, err := agents(ctx, c)
			for _, p := range pods {
				if p.Node == node {
					before = p
				}
			}
			return err
		})
		if err != nil {
			return n, err
		}
		if err := signal(before, agentProgram, syscall.SIGKILL); err != nil {
			return n, err
		}
		if _, err := c.Kubectl(ctx, "-n", agentSystem, "delete", "pod", before.Name, "--grace-period=0", "--force"); err != nil {
			return n, err
		}
	}
	return agentKills, eventually(ctx, time.Minute, func(ctx context.Context) error {
		_, err := agents(ctx, c)
		return err
	})
}

// flush removes all of nftables from a node with an isolated pod: the tables are
// back at once, and kube-proxy's are its own affair.
func flush(ctx context.Context, c *cluster.Cluster) error {
	trips := []trip{{"friend", "server", "tcp", 80, true}, {"other", "server", "tcp", 80, false}, {"neighbour", "server", "tcp", 80, false}}
	return amongPair(ctx, c, letIn("friend"), trips, func(f *folk, ctx context.Context) error {
		return errors.Join(f.flush(ctx), f.try(ctx, trips))
	})
}

func (f *folk) flush(ctx context.Context) (err error) {
	c, node := f.c, f.c.Nodes()[0]
	// kube-proxy does not notice that its tables have gone.
	defer func() { err = errors.Join(err, node.Restart(context.WithoutCancel(ctx), node.Proxy, syscall.SIGTERM)) }()
	for range 5 {
		if _, err := node.Network().Run(ctx, "nft", "flush", "ruleset"); err != nil {
			return err
		}
		start := time.Now()
		err := eventually(ctx, 10*time.Second, func(ctx context.Context) error { return haveTables(ctx, node.Network()) })
		if err != nil {
			return err
		}
		gone := time.Since(start)
		c.Progress("  flushed; the tables were back after at most %s", gone.Round(time.Millisecond))
		if gone > mendedWithin {
			return fmt.Errorf("tables were back after %s, want at most %s", gone, mendedWithin)
		}
		if err := netlab.Pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// haveTables fails while a node lacks one of weft's tables.
func haveTables(ctx context.Context, node *netlab.Place) error {
	out, err := node.Run(ctx, "nft", "list", "tables")
	if err != nil {
		return err
	}
	for _, t := range []string{"inet weft_policy", "bridge weft_guard", "inet weft"} {
		if !strings.Contains(out, "table "+t+"\n") {
			return fmt.Errorf("table %s is missing", t)
		}
	}
	return nil
}

// coldCaches forgets all neighbours under policies that let one client in, and
// sees that it gets in all the same.
func coldCaches(ctx context.Context, c *cluster.Cluster) error {
	const shut = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: app}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: app}
spec:
  podSelector: {matchExpressions: [{key: role, operator: Exists}]}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]
---
`
	trips := []trip{{"friend", "server", "tcp", 80, true}, {"neighbour", "server", "tcp", 80, true}, {"server", "friend", "tcp", 80, false}}
	return amongPair(ctx, c, shut+letIn("friend", "other"), trips, func(f *folk, ctx context.Context) error { return f.forgetNeighbours(ctx, trips[:2]) })
}

func (f *folk) forgetNeighbours(ctx context.Context, trips []trip) error {
	for range 5 {
		for _, s := range f.at {
			if _, err := s.Network().Run(ctx, "ip", "neigh", "flush", "all"); err != nil {
				return err
			}
		}
		if _, err := f.c.Nodes()[0].Network().Run(ctx, "ip", "neigh", "flush", "dev", bridgeName); err != nil {
			return err
		}
		for _, t := range trips {
			for _, to := range f.addrs(t) {
				if err := f.ask(ctx, t, to); err != nil {
					return fmt.Errorf("with cold caches %s to %s at %s: %w", t.from, t.to, to, err)
				}
			}
		}
	}
	return nil
}
