// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"weft.dev/weft/tests/netlab"
)

// control runs inside the lab: it builds the network and, unless the lab is
// only to stand, checks it. Its exit status is 0 only if everything worked.
func control(ctx context.Context, stdout, stderr io.Writer) int {
	var o options
	if err := json.Unmarshal([]byte(os.Getenv(optionsEnv)), &o); err != nil {
		fmt.Fprintf(stderr, "weft-lab: options in %s=%q: %v\n", optionsEnv, os.Getenv(optionsEnv), err)
		return exitUsage
	}
	o.Etcd.Password = os.Getenv(passwordEnv)
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
		return true, l.Stand(ctx, 0)
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
		e.SetEscapeHTML(false) // "->" is not for a browser
		err = e.Encode(report)
	} else {
		err = report.table(stdout)
	}
	if err != nil {
		return false, fmt.Errorf("write the report: %w", err)
	}
	if o.Keep {
		status := 0
		if !report.OK {
			status = exitFailed
		}
		return report.OK, l.Stand(ctx, status)
	}
	return report.OK, nil
}
