// SPDX-License-Identifier: Apache-2.0

// Command weftd is the node agent: it leases this node's pod subnets, keeps
// the VXLAN devices and the entries of every peer in the kernel, and says on
// a unix socket and over HTTP how it is doing. The package only wires the
// others together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"weft.dev/weft/cmd/internal/api"
)

func main() {
	collectSooner(os.LookupEnv)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process: it returns the exit status, 0 when all
// went well or a signal ended it, 1 after a failure, 2 for wrong usage.
func run(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == installCommand {
		return installCNI(ctx, args[1:], env, stdout, stderr)
	}
	o, err := parseOptions(args, env)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(stdout, usage(o))
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "weftd: %v\n", err)
		return 2
	case o.Version:
		fmt.Fprintln(stdout, "weftd", api.Version())
		return 0
	case o.CheckConfig:
		err = checkConfig(o, stdout)
	case o.Cleanup:
		err = cleanup(ctx, o, stdout)
	default:
		err = newAgent(o, newLogger(o, stderr)).run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(stderr, "weftd: %v\n", err)
		return 1
	}
	return 0
}
