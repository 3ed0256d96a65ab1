// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"fmt"
	"path/filepath"

	"weft.dev/weft/tests/doccmd"
	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

// Documents are cases of what the documentation tells its readers to type, as far
// as that is no case of its own: the rollout is in Faults, removal and Helm are in
// Removal. On a cluster that has weft, manifests that are applied again change
// nothing.
func Documents() []Case {
	return []Case{
		{Name: "the commands of docs/install.md and docs/upgrade.md work", Weft: true, Documented: true, Run: documents},
	}
}

func documents(ctx context.Context, c *cluster.Cluster) error {
	if err := follow(ctx, c, c.Fabric(), "docs/install.md", "install", "kustomize-install", "look"); err != nil {
		return err
	}
	return follow(ctx, c, c.Fabric(), "docs/upgrade.md", "upgrade")
}

// follow runs the commands of a document that have these marks, as its reader
// does: at the top of the repository, with kubectl, helm or ctr at hand.
func follow(ctx context.Context, c *cluster.Cluster, at *netlab.Place, doc string, blocks ...string) error {
	root, err := parts.Root()
	if err != nil {
		return err
	}
	for _, block := range blocks {
		commands, err := doccmd.Commands(filepath.Join(root, doc), block)
		if err != nil {
			return err
		}
		if at == c.Fabric() { // nodes have files of their own
			commands = "cd " + root + "\n" + commands
		}
		if _, err = at.RunCmd(ctx, c.Command(ctx, "bash", "-eu", "-c", commands)); err != nil {
			return fmt.Errorf("%s, commands %s: %w", doc, block, err)
		}
	}
	return nil
}
