// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"weft.dev/weft/tests/e2e/cases"
	"weft.dev/weft/tests/e2e/cluster"
)

// readyWithin is how long nodes may take from the manifest to Ready before the
// run gives up. What weft promises is promisedReady.
const (
	readyWithin   = 2 * time.Minute
	promisedReady = 20 * time.Second
)

// control runs inside: it builds the cluster and, unless that is only to
// stand, tests it. Its exit status is 0 only if everything worked.
func control(ctx context.Context, stdout, stderr io.Writer) int {
	var o options
	if err := json.Unmarshal([]byte(os.Getenv(optionsEnv)), &o); err != nil {
		fmt.Fprintf(stderr, "weft-e2e: options in %s: %v\n", optionsEnv, err)
		return exitUsage
	}
	o.Cluster.Progress = stderr
	ok, err := o.inside(ctx, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "weft-e2e: %v\n", err)
	}
	if err != nil || !ok {
		return exitFailed
	}
	return 0
}

// inside builds the cluster and reports whether all tests passed.
func (o options) inside(ctx context.Context, stdout, stderr io.Writer) (ok bool, err error) {
	limited, cancel := context.WithTimeoutCause(ctx, o.Limit, fmt.Errorf("the limit of %s is over", o.Limit))
	defer cancel()
	c, err := cluster.New(limited, o.Cluster)
	var before cases.Trace
	if err == nil {
		before, err = cases.Look(limited, c)
	}
	var took time.Duration
	if err == nil {
		took, err = o.network(limited, c)
	}
	var report Report
	if err == nil && !o.Up {
		report, err = o.test(limited, c, before, took)
	}
	if limited.Err() != nil {
		err = errors.Join(err, context.Cause(limited))
	}
	if err != nil || !report.OK && !o.Up {
		// What has failed is worth a look even when time is over.
		c.Report(ctx, stderr)
		if e := c.Collect(ctx); e != nil {
			fmt.Fprintf(stderr, "weft-e2e: not all could be collected: %v\n", e)
		}
	}
	if err == nil && !o.Up {
		err = report.write(stdout, o.Cluster.LogDir)
	}
	switch {
	case o.Keep && err != nil: // to look at
		fmt.Fprintf(stderr, "weft-e2e: %v\n", err)
		return false, c.Stand(ctx, exitFailed)
	case o.Keep:
		return report.OK, c.Stand(ctx, report.status())
	case o.Up && err == nil:
		return true, c.Stand(ctx, 0)
	}
	return report.OK, err
}

// network gives the pods their network, and the cluster its DNS. It returns
// how long the nodes took to be Ready.
func (o options) network(ctx context.Context, c *cluster.Cluster) (time.Duration, error) {
	start := time.Now()
	switch o.Network {
	case "none":
		return 0, nil
	case "static":
		if err := c.StaticNetwork(ctx, o.Plugins); err != nil {
			return 0, err
		}
	default:
		if err := c.Apply(ctx, o.Manifest); err != nil {
			return 0, err
		}
	}
	if err := c.WaitReady(ctx, readyWithin); err != nil {
		return 0, err
	}
	took := time.Since(start)
	c.Progress("all nodes are Ready, %.1f s after the network was applied", took.Seconds())
	if !o.DNS {
		return took, nil
	}
	if err := c.InstallDNS(ctx); err != nil {
		return took, err
	}
	c.Progress("DNS is ready")
	return took, nil
}

// promised is the result that says whether the nodes were Ready in time.
func promised(took time.Duration) Result {
	r := Result{
		Group: "weft", Name: fmt.Sprintf("nodes are Ready within %.0f s", promisedReady.Seconds()),
		OK: took <= promisedReady, Seconds: took.Seconds(),
	}
	if !r.OK {
		r.Error = fmt.Sprintf("they were after %.1f s", took.Seconds())
	}
	return r
}
