// SPDX-License-Identifier: Apache-2.0

// Command weft-lab builds a network of nodes, etcd, agents and pods in
// namespaces on this machine, checks that the pods reach each other, and
// measures how fast. See package netlab for how the lab is made.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"weft.dev/weft/tests/netlab"
)

func main() {
	if code, ran := netlab.Stage(os.Args); ran {
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
