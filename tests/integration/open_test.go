// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube/apitest"
	"weft.dev/weft/tests/netlab"
)

// openLab is a lab on the Node API whose configuration is a file.
type openLab struct {
	*netlab.Lab
	api   *apitest.Server
	flags []string
}

// configure puts the configuration on all nodes, whole.
func (o *openLab) configure(t *testing.T, content string) {
	t.Helper()
	for _, n := range o.Nodes() {
		path := n.Path(confFile)
		must(t, os.WriteFile(path+".new", []byte(content), 0o644))
		must(t, os.Rename(path+".new", path))
	}
}

// start starts the agent of the n-th node and attaches a pod.
func (o *openLab) start(ctx context.Context, t *testing.T, i int) *netlab.Pod {
	t.Helper()
	n := o.Nodes()[i]
	o.api.Create(n.Name(), nil, scattered(i+1)...)
	must(t, n.StartAgent(ctx, o.flags...))
	must(t, n.WaitReady(ctx))
	p, err := n.AddPod(ctx, "pod-"+n.Name())
	must(t, err)
	must(t, p.ServeAddress(ctx))
	return p
}

// Nobody says which the pod networks are: the Nodes' podCIDRs have nothing in
// common, and the cluster has no kubeadm. Pods see each other's own addresses
// across nodes, and the world outside sees the node's. A node that joins is
// among them at once, and one that leaves is not any more. A network that comes
// into the configuration is judged by what is leased.
func TestNetworksThatNobodyNames(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 3}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		api, flags := onNodes(ctx, t, l)
		o := &openLab{l, api, flags}
		o.configure(t, `{}`)
		first, second := o.start(ctx, t, 0), o.start(ctx, t, 1)
		must(t, l.Fabric().ServeAddress(ctx))

		seenAsItself := func(from, at *netlab.Pod) error {
			for _, f := range subnet.Families() {
				server, _ := at.Addr(f)
				own, _ := from.Addr(f)
				if seen, _, err := from.AskAddress(ctx, server); err != nil || seen != own {
					return fmt.Errorf("%s at %s is seen as %v, %w, want %v", from, at, seen, err, own)
				}
			}
			return nil
		}
		eventually(ctx, t, "pods of two nodes see each other", func() error { return seenAsItself(first, second) })
		eventually(ctx, t, "and back", func() error { return seenAsItself(second, first) })
		outside := fabricIPv4(t)
		seen, _, err := first.AskAddress(ctx, outside)
		if must(t, err); seen != nodeIPv4(first.Node()) {
			t.Errorf("outside, the pod is seen as %v, want its node's %v", seen, nodeIPv4(first.Node()))
		}
		if env, err := first.Node().SubnetEnv(); err != nil || fmt.Sprint(env.Networks) != "[10.101.7.0/24 fd00:101::/64]" {
			t.Errorf("subnet.env has networks %v, %v", env.Networks, err)
		}

		listed := func(p netip.Prefix) func() error {
			return func() error { return inSet(ctx, first.Node(), p, true) }
		}
		gone := func(p netip.Prefix) func() error {
			return func() error { return inSet(ctx, first.Node(), p, false) }
		}
		joins := netip.MustParsePrefix(scattered(3)[0])
		must(t, gone(joins)())
		third := o.start(ctx, t, 2)
		eventually(ctx, t, "the third node's subnet is in the set", listed(joins))
		eventually(ctx, t, "its pod is reached", func() error { return seenAsItself(first, third) })
		o.api.Delete("n3")
		eventually(ctx, t, "it is not any more", gone(joins))

		status := func(words string) func() error {
			return func() error {
				out, err := first.Node().Run(ctx, filepath.Join(l.Config().BinDir, "weft"), "status")
				if !strings.Contains(out, words) {
					return fmt.Errorf("weft status (%w):\n%s", err, out)
				}
				return nil
			}
		}
		eventually(ctx, t, "status says where the networks come from",
			status("IPv4 as leased (ConfigMap kube-system/kubeadm-config: not there; ConfigMap kube-system/kube-proxy: not there)"))
		o.configure(t, `{"Network":"10.101.0.0/16"}`)
		eventually(ctx, t, "a network that leaves out a node is a Problem that names both",
			status("the pod network 10.101.0.0/16 does not contain 10.102.7.0/24, the subnet of node n2"))
		must(t, seenAsItself(first, second))
		o.api.Delete("n2")
		eventually(ctx, t, "it is followed when that node is gone", status("10.101.0.0/16 (configured)"))
		o.api.Create("n2", nil, scattered(2)...)
		o.configure(t, `{"Network":"10.96.0.0/11"}`)
		eventually(ctx, t, "one that does not is followed", status("10.96.0.0/11 (configured)"))
		eventually(ctx, t, "in the kernel", func() error {
			out, err := first.Node().Run(ctx, "nft", "list", "table", "inet", "weft")
			if err != nil || !strings.Contains(out, "ip saddr 10.96.0.0/11") || strings.Contains(out, "set pods4_24") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		eventually(ctx, t, "the node that is back is let in", func() error { return seenAsItself(first, second) })
		if seen, _, err := first.AskAddress(ctx, outside); err != nil || seen != nodeIPv4(first.Node()) {
			t.Errorf("outside, the pod is seen as %v, %v", seen, err)
		}
		o.configure(t, `{}`)
		eventually(ctx, t, "and one that goes", listed(netip.MustParsePrefix(scattered(2)[0])))
		must(t, seenAsItself(first, second))
	})
}

// fabricIPv4 is the fabric's address, whose network namespace this process has.
func fabricIPv4(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	t.Fatalf("no IPv4 address among %v", addrs)
	return netip.Addr{}
}

// scattered returns podCIDRs of the n-th node: of no common network.
func scattered(n int) []string {
	return []string{fmt.Sprintf("10.%d.7.0/24", 100+n), fmt.Sprintf("fd00:%d::/64", 100+n)}
}

func nodeIPv4(n *netlab.Node) netip.Addr {
	for _, a := range n.Underlay() {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// inSet returns an error unless subnet p is among what pods are not masqueraded
// to, or with want false is not.
func inSet(ctx context.Context, n *netlab.Node, p netip.Prefix, want bool) error {
	out, err := n.Run(ctx, "nft", "list", "set", "inet", "weft", fmt.Sprintf("pods%d_%d", subnet.FamilyOf(p.Addr()), p.Bits()))
	if err != nil {
		return err
	}
	if strings.Contains(out, p.Addr().String()) != want {
		return fmt.Errorf("%s in the set: %v\n%s", p, !want, out)
	}
	return nil
}
