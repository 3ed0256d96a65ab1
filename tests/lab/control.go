// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"weft.dev/weft/tests/netlab"
)

// control runs inside the lab: it builds the network and, unless the lab is
// only to stand, checks it. Its exit status is 0 only if everything worked.
func control(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	if len(args) != 1 {
		fmt.Fprintf(stderr, "weft-lab: control process with %d arguments, want 1\n", len(args))
		return exitUsage
	}
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		fmt.Fprintf(stderr, "weft-lab: options %q: %v\n", args[0], err)
		return exitUsage
	}
	ok, err := o.inside(ctx, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "weft-lab: %v\n", err)
	}
	if err != nil || !ok {
		return exitFailed
	}
	return 0
}

// inside builds the lab and reports whether all checks passed.
func (o options) inside(ctx context.Context, stdout, stderr io.Writer) (ok bool, err error) {
	underlay, err := netlab.ParseUnderlay(o.Underlay)
	if err != nil {
		return false, err
	}
	l, err := netlab.New(ctx, netlab.Config{
		Nodes: o.Nodes, Underlay: underlay, MTU: o.MTU, Network: o.Network,
		BinDir: o.BinDir, Etcd: o.Etcd, AgentArgs: o.Agent, Progress: stderr,
	})
	if err != nil {
		return false, err
	}
	if err := l.Up(ctx, o.PodsPerNode); err != nil {
		l.Dump(ctx, stderr)
		return false, err
	}
	if o.Mode == "up" {
		return true, l.Stand(ctx)
	}
	report, err := examine(ctx, l, o)
	if err != nil {
		l.Dump(ctx, stderr)
		return false, err
	}
	if !report.OK {
		l.Dump(ctx, stderr)
	}
	if o.Output == "json" {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		err = e.Encode(report)
	} else {
		err = report.table(stdout)
	}
	if err != nil {
		return false, fmt.Errorf("write the report: %w", err)
	}
	if o.Keep {
		return true, l.Stand(ctx)
	}
	return report.OK, l.Close(ctx)
}
