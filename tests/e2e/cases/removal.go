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

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
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

// traceKinds are the kinds of the manifest's objects, and those they make.
const traceKinds = "daemonsets,pods,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings," +
	"validatingadmissionpolicies,validatingadmissionpolicybindings"

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
	objects, err := c.Kubectl(ctx, "get", traceKinds, "--all-namespaces", "-l", agentLabel, "-o", "name")
	if err != nil {
		return nil, err
	}
	conditions, err := c.Kubectl(ctx, "get", "nodes", "-o",
		`jsonpath={range .items[*]}{.metadata.name}{range .status.conditions[?(@.type=="NetworkUnavailable")]} {.type}{end}{range .status.conditions[?(@.type=="OverlayDegraded")]} {.type}{end}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	out["the API"] = slices.Concat(strings.Split(strings.TrimSpace(objects), "\n"), strings.Split(strings.TrimSpace(conditions), "\n"))
	return out, nil
}

// without returns t without some lines.
func (t Trace) without(some []string) Trace {
	out := Trace{}
	for node, lines := range t {
		out[node] = slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return slices.Contains(some, l) })
	}
	return out
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

// Removal are the last cases: after each, the cluster has no network. before is
// what there was before weft came; helm asks for Helm's as well.
func Removal(before Trace, helm bool) []Case {
	out := []Case{{Name: "kubectl delete and weftd --cleanup leave no trace", Weft: true, Run: func(ctx context.Context, c *cluster.Cluster) error {
		return remove(ctx, c, before, "uninstall", cleanFirst)
	}}}
	if helm {
		out = append(out, Case{Name: "helm install gives the network, helm upgrade loses nothing, helm uninstall leaves no trace", Weft: true,
			Run: func(ctx context.Context, c *cluster.Cluster) error { return chart(ctx, c, before) }})
	}
	return out
}

// chart does with Helm what the other cases do with the manifest. The nodes do
// not have weft's image any more.
func chart(ctx context.Context, c *cluster.Cluster, before Trace) error {
	for _, n := range c.Nodes() {
		for _, archive := range c.Config().Images {
			if err := n.Import(ctx, archive); err != nil {
				return err
			}
		}
	}
	if err := follow(ctx, c, c.Fabric(), "docs/install.md", "helm-install"); err != nil {
		return err
	}
	if err := c.WaitReady(ctx, 2*time.Minute); err != nil {
		return err
	}
	if err := checkPods(ctx, c); err != nil {
		return err
	}
	if err := underTraffic(ctx, c, nil, func(ctx context.Context) error { return upgradeChart(ctx, c) }); err != nil {
		return err
	}
	return remove(ctx, c, before, "helm-uninstall", nil)
}

// upgradeChart gives the release another value, for which its agents are replaced,
// and then does what docs/upgrade.md says, which keeps that value.
func upgradeChart(ctx context.Context, c *cluster.Cluster) error {
	root, err := parts.Root()
	if err != nil {
		return err
	}
	helm := func(args ...string) (string, error) {
		return c.Fabric().RunCmd(ctx, c.Command(ctx, "helm", append(args, "--namespace", agentSystem)...))
	}
	if _, err := helm("upgrade", "weft", filepath.Join(root, "dist/chart/weft"), "--set", "networkPolicy.enabled=false"); err != nil {
		return err
	}
	if err := follow(ctx, c, c.Fabric(), "docs/upgrade.md", "helm-upgrade"); err != nil {
		return err
	}
	values, err := helm("get", "values", "weft", "--output", "json")
	if err == nil && strings.TrimSpace(values) != `{"networkPolicy":{"enabled":false}}` {
		err = fmt.Errorf("docs/upgrade.md, commands helm-upgrade: values of the release are %s", values)
	}
	return err
}

// remove removes the pods and does then what docs/uninstall.md says, with agents
// first for the agents. between, if not nil, is done when they are gone.
func remove(ctx context.Context, c *cluster.Cluster, before Trace, agents string, between func(context.Context, *cluster.Cluster) error) error {
	if err := removePods(ctx, c); err != nil {
		return err
	}
	if err := follow(ctx, c, c.Fabric(), "docs/uninstall.md", agents); err != nil {
		return err
	}
	if between != nil {
		if err := between(ctx, c); err != nil {
			return err
		}
	}
	if err := follow(ctx, c, c.Fabric(), "docs/uninstall.md", "uninstall-nodes", "uninstall-annotations", "uninstall-conditions"); err != nil {
		return err
	}
	if after, err := Look(ctx, c); err != nil {
		return err
	} else if err := before.differences(after.without(documentedRest())); err != nil {
		return err
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

// documentedRest is what docs/uninstall.md says that weftd --cleanup leaves. The
// directory of a hostPath is there as long as its pod.
func documentedRest() []string {
	return []string{"file /opt/cni/bin/weft", "file /var/lib/weft", "file /var/lib/weft/instance-id", "file /var/lib/weft/node.json", "file /run/weft"}
}

// cleanFirst cleans the first node from its own shell and looks whether it has
// been.
func cleanFirst(ctx context.Context, c *cluster.Cluster) error {
	n := c.Nodes()[0]
	if err := follow(ctx, c, n.Place, "docs/uninstall.md", "uninstall-node"); err != nil {
		return err
	}
	left, err := n.Run(ctx, "sh", "-c", `
set -e
ip -o link show type vxlan
tables=$(nft list tables)
case "$tables" in *weft*) echo "$tables";; esac
for d in /run/weft /etc/cni/net.d; do [ ! -d $d ] || find $d ! -type d; done`)
	if err == nil && strings.TrimSpace(left) != "" {
		err = fmt.Errorf("%s after docs/uninstall.md, commands uninstall-node: is left: %s", n.Name(), left)
	}
	return err
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
