// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"weft.dev/weft/tests/netlab"
)

// nodeCommands is what an engineer would look at first on a node.
func nodeCommands() [][]string {
	return [][]string{
		{"ip", "-br", "addr"}, {"ip", "-d", "link"}, {"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"ip", "rule"}, {"ip", "nexthop"}, {"ip", "neigh"}, {"bridge", "fdb"}, {"nft", "list", "ruleset"},
		{"conntrack", "-S"}, {"ls", "-lR", "/etc/cni/net.d", "/opt/cni/bin"},
		{"sh", "-c", "cat /etc/cni/net.d/* /run/weft/subnet.env"}, {"ps", "-ef"},
	}
}

// apiCommands is what kubectl is asked.
func apiCommands() [][]string {
	return [][]string{
		{"get", "nodes", "-o", "wide"}, {"get", "pods,services,endpointslices,daemonsets,deployments", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"}, {"get", "nodes", "-o", "yaml"}, {"get", "pods", "-A", "-o", "yaml"},
	}
}

// Collect writes the state of nodes and API, and the logs of all containers,
// into the directory of the logs, beside those of the daemons. It collects as
// much as it can; the error says what it could not.
func (c *Cluster) Collect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var errs []error
	var text strings.Builder
	if c.APIServer != nil && c.APIServer.Running() {
		for _, args := range apiCommands() {
			c.record(ctx, &text, c.fabric, c.Command(ctx, "kubectl", append(args, "--request-timeout=10s")...))
		}
	}
	errs = append(errs, os.WriteFile(filepath.Join(c.cfg.LogDir, "api.txt"), []byte(text.String()), 0o644))
	for _, n := range c.nodes {
		text.Reset()
		for _, args := range nodeCommands() {
			c.record(ctx, &text, n.Place, exec.CommandContext(ctx, args[0], args[1:]...))
		}
		errs = append(errs,
			os.WriteFile(filepath.Join(c.cfg.LogDir, n.Name()+".txt"), []byte(text.String()), 0o644),
			copyLogs(n.Path("/var/log/pods"), filepath.Join(c.cfg.LogDir, n.Name()+"-pods")))
	}
	return errors.Join(errs...)
}

// record runs a command and appends what it prints.
func (c *Cluster) record(ctx context.Context, w io.Writer, p *netlab.Place, cmd *exec.Cmd) {
	name := append([]string{filepath.Base(cmd.Args[0])}, cmd.Args[1:]...)
	fmt.Fprintf(w, "--- %s: %s\n", p.Name(), strings.Join(name, " "))
	out, err := p.RunCmd(ctx, cmd)
	io.WriteString(w, out) // a Builder, which does not fail
	if err != nil {
		fmt.Fprintln(w, err)
	}
}

// Report writes what a person needs to see of a failed cluster: which daemons
// have ended, nodes that are not Ready, and the ends of the agents' logs.
func (c *Cluster) Report(ctx context.Context, w io.Writer) {
	for _, d := range c.daemons() {
		if !d.Running() {
			fmt.Fprintf(w, "--- %s does not run: %s\n%s\n", d.name, d.state(), tailFile(d.log, 15))
		}
	}
	if c.APIServer != nil && c.APIServer.Running() {
		for _, args := range apiCommands()[:2] {
			c.record(ctx, w, c.fabric, c.Command(ctx, "kubectl", append(args, "--request-timeout=10s")...))
		}
	}
	for _, n := range c.nodes {
		logs, err := filepath.Glob(n.Path("/var/log/pods/kube-system_weft*/*/*.log"))
		if err != nil {
			continue // the pattern is a constant
		}
		for _, l := range logs {
			fmt.Fprintf(w, "--- %s: %s\n%s\n", n.Name(), filepath.Base(filepath.Dir(l)), tailFile(l, 20))
		}
	}
	fmt.Fprintf(w, "--- everything else is in %s\n", c.cfg.LogDir)
}

// copyLogs copies a tree of log files.
func copyLogs(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a container that has gone meanwhile, or no pods yet
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
}
