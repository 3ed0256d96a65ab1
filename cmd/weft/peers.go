// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"weft.dev/weft/cmd/internal/api"
)

// peers is the group of commands about peers.
func (c *cli) peers() *cobra.Command {
	peers := &cobra.Command{Use: "peers", Short: "What the agent does about peers that are gone",
		// Both are needed for an unknown subcommand to be an error.
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	peers.AddCommand(&cobra.Command{Use: "release", Args: cobra.NoArgs, RunE: c.release,
		Short: "Remove now the peers that the store has lost, instead of waiting",
		Long: "When the store loses most of the peers at once, the agent keeps their routes for a\n" +
			"while (weftd --mass-removal-hold), because an emptied or restored store is likelier\n" +
			"than the end of most nodes. This removes them on this node now. It does nothing\n" +
			"when nothing is held."})
	return peers
}

func (c *cli) release(cmd *cobra.Command, _ []string) error {
	var r api.Released
	if err := ask(cmd, api.Post, c.socket, api.ReleasePath, &r); err != nil {
		return err
	}
	if c.output == "json" {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	text := fmt.Sprintf("released: %d routes of peers that the store has lost are being removed", r.Routes)
	if r.Routes == 0 {
		text = "nothing to release: no peers are held"
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
