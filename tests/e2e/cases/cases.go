// SPDX-License-Identifier: Apache-2.0

// Package cases holds our own tests of a cluster whose network is weft: what
// its users rely on from the manifest's application to its removal. They are
// run in order, on one cluster, and leave it as they found it; a case returns
// what is wrong, with what it measured in the message.
package cases

import (
	"context"
	"errors"
	"fmt"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
)

// A Case is one test.
type Case struct {
	Name string
	Run  func(context.Context, *cluster.Cluster) error
	// Weft marks what only weft can pass: a network without an agent is not
	// asked.
	Weft bool
	// Documented marks what applies the manifest that the documents name: not
	// for a cluster that was given another one.
	Documented bool
	// Long marks those that are run only where they are asked for.
	Long bool
}

// Network are the cases before Kubernetes' own suite: does the network work.
func Network() []Case {
	return []Case{
		{Name: "every node has podCIDRs of every family and no taint", Run: checkNodes},
		{Name: "pods reach pods on all nodes, addresses are kept", Run: checkPods},
		{Name: "nodes reach pods, and pods reach nodes, addresses are kept", Run: checkNodesAndPods, Weft: true},
		{Name: "what leaves the network is masqueraded, and only that", Run: checkOutside, Weft: true},
	}
}

// checkNodes looks at what the API says of the nodes.
func checkNodes(ctx context.Context, c *cluster.Cluster) error {
	states, err := c.NodeStates(ctx)
	if err != nil {
		return err
	}
	want := len(c.Config().Families())
	var errs []error
	for _, s := range states {
		if len(s.PodCIDRs) != want {
			errs = append(errs, fmt.Errorf("%s has podCIDRs %v, want %d", s.Name, s.PodCIDRs, want))
		}
		if len(s.Taints) > 0 {
			errs = append(errs, fmt.Errorf("%s has taints %v", s.Name, s.Taints))
		}
	}
	return errors.Join(errs...)
}

// eventually calls check until it returns nil, or says what is wrong still
// when the time is over.
func eventually(ctx context.Context, within time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if pause(ctx) != nil {
			return fmt.Errorf("still after %s: %w", within, err)
		}
	}
}

// ranked returns the percentile of an ascending list: the smallest value that is
// not below that share of them.
func ranked[T any](list []T, percent int) T { return list[(percent*len(list)+99)/100-1] }
