// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/tests/netlab"
)

// A promise: 3 etcd outages of 60 s, 0 of 10,000 pings at 100/s
// lost. During the second outage an agent is killed and started again; it has
// to find its subnet when etcd is back. After each, what changes in etcd
// reaches all nodes.
func TestEtcdOutageLosesNothing(t *testing.T) {
	outages, length, pings := sample(3, 2), sample(60*time.Second, 4*time.Second), sample(10000, 1000)
	inLab(t, netlab.Config{Nodes: 3, Network: roomForOthers}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		up(ctx, t, l, 1)
		before := subnetsOf(t, l)
		w := startWatch(ctx, t, l)
		for i := range outages {
			must(t, l.StopEtcd())
			must(t, wait(ctx, length/2))
			if i == 1 {
				n := l.Nodes()[0]
				must(t, n.KillAgent())
				must(t, n.StartAgent(ctx))
			}
			must(t, wait(ctx, length/2))
			for _, n := range l.Nodes() {
				if n.AgentPID() == 0 {
					t.Errorf("weftd on %s did not live through an outage of %s", n, length)
				}
			}
			must(t, l.StartEtcd(ctx))
			for _, n := range l.Nodes() {
				must(t, n.WaitReady(ctx))
			}
			followsNewPeer(ctx, t, l, fmt.Sprintf("10.42.%d.0", 250+i))
			t.Logf("outage %d of %s is over", i+1, length)
		}
		w.atLeast(ctx, t, pings)
		w.noneLost(t)
		sameSubnets(t, before, subnetsOf(t, l))
	})
}

// An agent that starts while etcd is away lives, says why it is not ready,
// and gets its lease when etcd is there.
func TestAgentStartsBeforeEtcd(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 2}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		must(t, l.StopEtcd())
		for _, n := range l.Nodes() {
			must(t, n.StartAgent(ctx))
		}
		n := l.Nodes()[0]
		eventually(ctx, t, "the agent answers that it is not ready", func() error {
			code, body, err := n.HTTP(ctx, "/readyz?verbose")
			if err != nil {
				return err
			}
			if code != http.StatusServiceUnavailable || !strings.Contains(body, "etcd") {
				return fmt.Errorf("/readyz answers %d %q, want 503 and a mention of etcd", code, body)
			}
			return nil
		})
		must(t, l.StartEtcd(ctx))
		for _, n := range l.Nodes() {
			must(t, n.WaitReady(ctx))
		}
		must(t, l.WaitConverged(ctx))
	})
}

// followsNewPeer writes the lease of a peer to etcd, waits until every node
// has a route to it, deletes it, and waits until none has.
func followsNewPeer(ctx context.Context, t *testing.T, l *netlab.Lab, base string) {
	t.Helper()
	key := l.Prefix() + "/subnets/" + base + "-24"
	value := flannelLease("192.168.77.200", "", "0a:00:00:00:00:aa", "")
	_, err := l.Client().Put(ctx, key, value)
	must(t, err)
	for _, n := range l.Nodes() {
		eventually(ctx, t, n.Name()+" has a route to the new peer "+base, func() error { return hasRoute(n, base+"/24", true) })
	}
	_, err = l.Client().Delete(ctx, key)
	must(t, err)
	for _, n := range l.Nodes() {
		eventually(ctx, t, n.Name()+" has no route to "+base, func() error { return hasRoute(n, base+"/24", false) })
	}
}
