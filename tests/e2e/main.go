// SPDX-License-Identifier: Apache-2.0

// Command weft-e2e brings a real Kubernetes up on this machine, gives it its
// network by weft's manifest, and tests it. See package cluster for how it is
// made, and package parts for what of.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/netlab"
)

func main() {
	if code, ran := cluster.Stage(os.Args); ran {
		os.Exit(code)
	}
	// Second and later signals end the process at once: stop restores them.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: the launcher outside a lab, its control
// process inside.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if netlab.Inside() {
		return control(ctx, stdout, stderr)
	}
	return launch(ctx, args, stdout, stderr)
}
