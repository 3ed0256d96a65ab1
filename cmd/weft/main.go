// SPDX-License-Identifier: Apache-2.0

// Command weft shows what the agent on this node knows and does, and tells it
// the one thing that it cannot know: that peers have gone for good.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"weft.dev/weft/cmd/internal/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process. It returns 0 when the node is well, 1 when
// it is not or could not be asked, 2 for wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{}
	root := c.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return c.code
	case c.started:
		fmt.Fprintf(stderr, "weft: %v\n", err)
		return 1
	}
	fmt.Fprintf(stderr, "weft: %v\n`weft --help` shows what there is\n", err)
	return 2
}

// cli holds the flags that all commands share and what they report to run.
type cli struct {
	socket, output string
	started        bool // past usage errors
	code           int
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft",
		Short: "Show what weft's agent on this node knows and does",
		Example: "  weft status            is this node's network well, and if not, why\n" +
			"  weft plan              what the agent would change in the kernel now\n" +
			"  weft status -o json    the same for programs\n" +
			"  weft peers release     remove the peers that the store has lost now, not later\n" +
			"  weft policy explain web/shop db/0:5432     may it pass, by which rule, or what is missing",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return fmt.Errorf("--output %q: want table or json", c.output)
			}
			c.started = true
			return nil
		},
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", api.DefaultSocket, "the agent's unix socket")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "table or json")
	root.AddCommand(
		&cobra.Command{Use: "status", Args: cobra.NoArgs, RunE: c.status,
			Short: "This node: lease, devices, peers, in sync or the difference",
			Long:  "Shows this node's lease, devices and peers, and whether the kernel holds what it\nshould. The exit status is 1 when the node is not ready."},
		&cobra.Command{Use: "plan", Args: cobra.NoArgs, RunE: c.plan,
			Short: "What the agent would change in the kernel now",
			Long:  "Prints the changes the agent would make now, as commands in iproute2 syntax. It\nprints nothing to do when the kernel holds what it should. Nothing is changed."},
		c.peers(),
		c.policy(),
		&cobra.Command{Use: "version", Args: cobra.NoArgs, Short: "The version of this command",
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "weft", api.Version())
				return err
			}},
	)
	return root
}
