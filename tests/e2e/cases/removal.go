// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/tests/doccmd"
	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

// A Trace is what can be seen of a network on the nodes and in the API, line
// by line; by node.
type Trace map[string][]string

// traceScript prints what an agent might leave on a node. kube-proxy's tables
// come and go by themselves, and the reference plugins and the directories of
// all CNI networks are the node's (docs/uninstall.md). What libcni remembers in
// results is the runtime's, which forgets it with a DEL that was not killed.
const traceScript = `
ip -o link show | grep -v ' veth' | awk -F'[ :@]+' '{print "link " $2}'
ip -o addr show scope global | awk '{print "addr " $2 " " $4}'
ip route show table all type unicast | grep -v 'dev lo' | sed 's/^/route /'
ip -6 route show table all type unicast | grep -v 'dev lo' | grep -v 'fe80::' | sed 's/ pref .*//; s/ expires .*//; s/^/route6 /'
ip rule show | sed 's/^/rule /'
ip neigh show nud permanent | sed 's/^/neigh /'
nft list tables | grep -v kube-proxy | sed 's/^/nft /'
find /etc/cni/net.d /opt/cni/bin /var/lib/weft /run/weft /var/lib/cni 2>/dev/null |
	grep -vE '^(/opt/cni/bin/(bandwidth|bridge|host-local|loopback|portmap)|/var/lib/cni(/networks|/results(/.*)?)?)$' | sed 's/^/file /'
`

// Look returns what there is now.
func Look(ctx context.Context, c *cluster.Cluster) (Trace, error) {
	out := Trace{}
	for _, n := range c.Nodes() {
		text, err := n.Run(ctx, "sh", "-c", traceScript)
		if err != nil {
			return nil, err
		}
		annotations, err := published(ctx, c, n.Name())
		if err != nil {
			return nil, err
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		for k, v := range annotations {
			lines = append(lines, "annotation "+k+"="+v)
		}
		slices.Sort(lines)
		out[n.Name()] = lines
	}
	return out, nil
}

// differences returns what is in one and not in the other.
func (t Trace) differences(after Trace) error {
	var errs []error
	for node, lines := range t {
		for _, l := range lines {
			if !slices.Contains(after[node], l) {
				errs = append(errs, fmt.Errorf("%s: is missing: %s", node, l))
			}
		}
		for _, l := range after[node] {
			if !slices.Contains(lines, l) {
				errs = append(errs, fmt.Errorf("%s: is left: %s", node, l))
			}
		}
	}
	return errors.Join(errs...)
}

// Removal is the last case: after it, the cluster has no network. before is
// what there was before weft came.
func Removal(before Trace) []Case {
	return []Case{{Name: "kubectl delete and weftd --cleanup leave no trace", Weft: true, Run: func(ctx context.Context, c *cluster.Cluster) error {
		return remove(ctx, c, before)
	}}}
}

// remove removes the pods and does then what docs/uninstall.md says.
func remove(ctx context.Context, c *cluster.Cluster, before Trace) error {
	if err := removePods(ctx, c); err != nil {
		return err
	}
	for _, block := range []string{"uninstall", "uninstall-nodes", "uninstall-annotations", "uninstall-conditions"} {
		if err := follow(ctx, c, c.Fabric(), "docs/uninstall.md", block); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes() {
		if err := follow(ctx, c, n.Place, "docs/uninstall.md", "uninstall-rest"); err != nil {
			return err
		}
	}
	after, err := Look(ctx, c)
	if err != nil {
		return err
	}
	return before.differences(after)
}

// follow runs the commands of the documentation that have a mark, as its
// reader does: at the top of the repository, with kubectl or ctr at hand.
func follow(ctx context.Context, c *cluster.Cluster, at *netlab.Place, doc, block string) error {
	root, err := parts.Root()
	if err != nil {
		return err
	}
	commands, err := doccmd.Commands(filepath.Join(root, doc), block)
	if err != nil {
		return err
	}
	if at == c.Fabric() { // nodes have files of their own
		commands = "cd " + root + "\n" + commands
	}
	cmd := c.Command(ctx, "bash", "-eu", "-c", commands)
	if _, err = at.RunCmd(ctx, cmd); err != nil {
		return fmt.Errorf("%s, commands %s: %w", doc, block, err)
	}
	return nil
}

// removePods removes all pods that have a network of weft.
func removePods(ctx context.Context, c *cluster.Cluster) error {
	for _, args := range [][]string{
		{"-n", "kube-system", "delete", "deployment", "coredns", "--ignore-not-found"},
		{"delete", "daemonset", "web", "--ignore-not-found"},
	} {
		if _, err := c.Kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return eventually(ctx, 90*time.Second, func(ctx context.Context) error {
		pods, err := c.AllPods(ctx)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if !p.HostNetwork {
				return fmt.Errorf("pod %s/%s is still there", p.Namespace, p.Name)
			}
		}
		return nil
	})
}
