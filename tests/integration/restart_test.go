// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"testing"

	"weft.dev/weft/tests/netlab"
)

// A promise: 20 kill -9, 0 of 10,000 pings at 100/s lost.
func TestKillLosesNothing(t *testing.T) {
	endings(t, (*netlab.Node).KillAgent)
}

// A promise: 20 SIGTERM, 0 of 10,000 pings at 100/s lost. The
// data plane stays when the agent exits.
func TestTermLosesNothing(t *testing.T) {
	endings(t, (*netlab.Node).TermAgent)
}

// endings ends agents in turn while pods ping each other, and starts each
// again. Every node must come back with the subnets it had.
func endings(t *testing.T, end func(*netlab.Node) error) {
	times, pings := sample(20, 6), sample(10000, 1000)
	inLab(t, netlab.Config{Nodes: 3}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		up(ctx, t, l, 1)
		before := subnetsOf(t, l)
		w := startWatch(ctx, t, l)
		for i := range times {
			n := l.Nodes()[i%len(l.Nodes())]
			must(t, end(n))
			// The first half of a round without the agent, the second with it.
			w.atLeast(ctx, t, (2*i+1)*pings/(2*times))
			restart(ctx, t, n)
			w.atLeast(ctx, t, (2*i+2)*pings/(2*times))
		}
		w.noneLost(t)
		must(t, l.WaitConverged(ctx))
		sameSubnets(t, before, subnetsOf(t, l))
	})
}

// subnetsOf returns every node's pod subnets, as text, and fails the test if
// two are the same.
func subnetsOf(t *testing.T, l *netlab.Lab) map[string]string {
	t.Helper()
	out, holder := map[string]string{}, map[string]string{}
	for _, n := range l.Nodes() {
		subnets, err := n.Subnets()
		must(t, err)
		for _, s := range subnets {
			if other := holder[s.String()]; other != "" {
				t.Errorf("%s and %s both hold %s", other, n, s)
			}
			holder[s.String()] = n.Name()
			out[n.Name()] += " " + s.String()
		}
	}
	return out
}

func sameSubnets(t *testing.T, before, after map[string]string) {
	t.Helper()
	for n, was := range before {
		if after[n] != was {
			t.Errorf("%s had%s and has%s", n, was, after[n])
		}
	}
}
