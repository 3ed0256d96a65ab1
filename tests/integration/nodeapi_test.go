// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/subnet/kube/apitest"
	"weft.dev/weft/tests/netlab"
)

// Where nodes have what kubelet would mount into the agent's pod.
const (
	confFile   = "/run/net-conf.json"
	kubeconfig = "/run/kubeconfig"
)

// onNodes starts an API server in the lab, without Nodes, and returns the flags
// of agents with leases there.
func onNodes(ctx context.Context, t *testing.T, l *netlab.Lab) (*apitest.Server, []string) {
	t.Helper()
	const at = "192.168.77.254:6443"
	api := apitest.New()
	listener, err := l.Fabric().Listen(ctx, "tcp", at)
	must(t, err)
	srv := &http.Server{Handler: api}
	go srv.Serve(listener) //nolint:errcheck // ends with the test
	t.Cleanup(func() { srv.Close() })
	for _, n := range l.Nodes() {
		must(t, errors.Join(
			os.WriteFile(n.Path(confFile), []byte(`{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`), 0o600),
			os.WriteFile(n.Path(kubeconfig), []byte("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'http://"+at+"'}}]\ncontexts: [{name: c, context: {cluster: c}}]\n"), 0o600)))
	}
	return api, []string{"--store=kube", "--kubeconfig=" + kubeconfig, "--net-conf=" + confFile}
}

func podCIDRs(i int) []string {
	return []string{fmt.Sprintf("10.42.%d.0/24", i), fmt.Sprintf("fd42:0:0:%d::/64", i)}
}

// reaches waits until from reaches all addresses of to.
func reaches(ctx context.Context, t *testing.T, from, to *netlab.Pod) {
	t.Helper()
	for _, a := range to.Addrs() {
		eventually(ctx, t, fmt.Sprintf("%s reaches %s at %s", from, to, a), func() error { return from.Ping(ctx, a, 1) })
	}
}

// A node whose Node has no podCIDR yet waits for it and says so: in readiness,
// in `weft status`, in an Event and, after a while, in a condition. It goes on
// by itself when one comes.
func TestWaitsForAPodCIDR(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 1}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		api, flags := onNodes(ctx, t, l)
		n := l.Node("n1")
		const waits = "waiting for a podCIDR of Node n1"
		api.Create("n1", nil)
		must(t, n.StartAgent(ctx, flags...))
		eventually(ctx, t, "readiness names it", func() error {
			code, body, err := n.HTTP(ctx, "/readyz")
			if err == nil && (code == http.StatusOK || !strings.Contains(body, waits)) {
				err = fmt.Errorf("%d %s", code, body)
			}
			return err
		})
		eventually(ctx, t, "weft status names it", func() error { return statusSays(ctx, l, n, waits, true) })
		eventually(ctx, t, "the Node's condition names it", func() error { return degradedBy(api, "n1", "StoreWaiting") })
		if !slices.ContainsFunc(api.Events(), func(e apitest.Event) bool {
			return e.Reason == "PodCIDRMissing" && strings.Contains(e.Message, waits)
		}) {
			t.Error("there is no Event PodCIDRMissing")
		}
		api.Assign("n1", podCIDRs(1)...)
		must(t, n.WaitReady(ctx))
		eventually(ctx, t, "weft status is quiet", func() error { return statusSays(ctx, l, n, waits, false) })
		eventually(ctx, t, "so is the Node's condition", func() error { return degradedBy(api, "n1", "") })
	})
}

// A Node that is re-created while its pods run gets another podCIDR. The
// network goes by that at once: new pods have its addresses and are reached.
// Pods from before are named, on the node, in an Event and in a condition of
// the Node, until they are gone.
func TestNodeIsRecreatedWithAnotherPodCIDR(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 2}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		api, flags := onNodes(ctx, t, l)
		n1, n2 := l.Node("n1"), l.Node("n2")
		for i, n := range l.Nodes() {
			api.Create(n.Name(), nil, podCIDRs(i+1)...)
			restart(ctx, t, n, flags...)
		}
		old, err := n1.AddPod(ctx, "old")
		must(t, err)
		far, err := n2.AddPod(ctx, "far")
		must(t, err)
		must(t, l.Settle(ctx))
		reaches(ctx, t, far, old)

		api.Create("n1", nil, podCIDRs(7)...)
		eventually(ctx, t, "pods get addresses of the new podCIDR", func() error {
			got, err := n1.Subnets()
			if want := []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd42:0:0:7::/64")}; err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("they get those of %v", got)
			}
			return err
		})
		fresh, err := n1.AddPod(ctx, "fresh")
		must(t, err)
		must(t, l.Settle(ctx))
		reaches(ctx, t, far, fresh)
		reaches(ctx, t, fresh, far)
		bridge, err := n1.Run(ctx, "ip", "-o", "addr", "show", "dev", "cni0")
		if err != nil || !strings.Contains(bridge, "10.42.7.1/24") || !strings.Contains(bridge, "fd42:0:0:7::1/64") {
			t.Errorf("the bridge has %s, %v", bridge, err)
		}

		for _, cidr := range podCIDRs(1) {
			eventually(ctx, t, "pods of "+cidr+" are named", func() error { return statusSays(ctx, l, n1, "pods of "+cidr+" still run", true) })
			eventually(ctx, t, "the Node's condition names them", func() error { return degradedBy(api, "n1", "PodOutsideLease "+cidr) })
		}
		if !slices.ContainsFunc(api.Events(), func(e apitest.Event) bool {
			return e.Reason == "PodCIDRChanged" && strings.Contains(e.Message, "10.42.1.0/24")
		}) {
			t.Error("there is no Event PodCIDRChanged")
		}
		must(t, old.Delete(ctx))
		eventually(ctx, t, "it is over when they are gone", func() error { return statusSays(ctx, l, n1, "PodOutsideLease", false) })
		eventually(ctx, t, "the gateways of their subnets go", func() error {
			out, err := n1.Run(ctx, "ip", "-o", "addr", "show", "dev", "cni0")
			if err == nil && (strings.Contains(out, " 10.42.1.1/24") || strings.Contains(out, " fd42:0:0:1::1/64")) {
				err = errors.New(out)
			}
			return err
		})
		eventually(ctx, t, "the Node is not degraded", func() error { return degradedBy(api, "n1", "") })

		leaves(ctx, t, l, api, n1, flags)
	})
}

// statusSays returns an error unless text is in `weft status` on n, or is not.
func statusSays(ctx context.Context, l *netlab.Lab, n *netlab.Node, text string, want bool) error {
	out, err := n.Run(ctx, filepath.Join(l.Config().BinDir, "weft"), "status")
	if strings.Contains(out, text) != want {
		return fmt.Errorf("weft status: %v\n%s", err, out)
	}
	return nil
}

// degradedBy returns an error unless the Node's condition OverlayDegraded says
// text, or, when there is none, that nothing is wrong.
func degradedBy(api *apitest.Server, node, text string) error {
	for _, c := range api.Node(node).Status.Conditions {
		if c.Type == "OverlayDegraded" && (c.Status == "True") == (text != "") && strings.Contains(c.Message, text) {
			return nil
		}
	}
	return fmt.Errorf("conditions %+v", api.Node(node).Status.Conditions)
}

// leaves takes weft off n and looks at what is left on its Node.
func leaves(ctx context.Context, t *testing.T, l *netlab.Lab, api *apitest.Server, n *netlab.Node, flags []string) {
	t.Helper()
	must(t, n.TermAgent())
	weftd := filepath.Join(l.Config().BinDir, "weftd")
	out, err := n.Run(ctx, weftd, "--cleanup")
	if err != nil || !strings.Contains(out, "removed from Node n1: annotations weft.dev/backend-data") {
		t.Errorf("%v\n%s", err, out)
	}
	if node := api.Node(n.Name()); len(node.Annotations) != 0 || len(node.Status.Conditions) != 0 {
		t.Errorf("left on the Node: %v %v", node.Annotations, node.Status.Conditions)
	}
	if out, err := n.Run(ctx, append([]string{weftd, "--cleanup", "--node-name=" + n.Name()}, flags...)...); err != nil || strings.Contains(out, "removed from") {
		t.Errorf("again: %v\n%s", err, out)
	}
}

// Where nobody names the underlay it is what the cluster knows the node by, and
// not what the default route says: other addresses are refused by the admission
// policy, and peers may not reach them. A family that the Node has no address of
// is carried by the other one. When kubelet reports other addresses, the node
// moves there.
func TestUnderlayIsWhatTheNodeIsKnownBy(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 2}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		api, flags := onNodes(ctx, t, l)
		n1, n2 := l.Node("n1"), l.Node("n2")
		const second = "192.168.77.101"
		_, err := n1.Run(ctx, "ip", "addr", "add", second+"/24", "dev", "eth0")
		must(t, err)
		report := func(n *netlab.Node, addrs ...netip.Addr) {
			api.Edit(n.Name(), func(o *corev1.Node) {
				o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name()}}
				for _, a := range addrs {
					o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
				}
			})
		}
		announces := func(want string) func() error {
			return func() error {
				ann := api.Node("n1").Annotations
				if ann["weft.dev/public-ip"] != want || ann["weft.dev/public-ipv6"] == nodeIPv6(n1).String() != (want != second) {
					return fmt.Errorf("n1 announces %v", ann)
				}
				return nil
			}
		}
		for i, n := range l.Nodes() {
			api.Create(n.Name(), nil, podCIDRs(i+1)...)
		}
		report(n1, netip.MustParseAddr(second))
		report(n2, n2.Underlay()...)
		var pods []*netlab.Pod
		for _, n := range l.Nodes() {
			must(t, n.StartAgent(ctx, flags...))
			must(t, n.WaitReady(ctx))
			p, err := n.AddPod(ctx, "pod-"+n.Name())
			must(t, err)
			pods = append(pods, p)
		}
		eventually(ctx, t, "the reported address is announced, and no other", announces(second))
		reaches(ctx, t, pods[0], pods[1])
		report(n1, n1.Underlay()...)
		_, err = n1.Run(ctx, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo") // the agent looks at events of the host, and else every half minute
		must(t, err)
		eventually(ctx, t, "what is reported now is announced", announces(nodeIPv4(n1).String()))
		reaches(ctx, t, pods[1], pods[0])
	})
}

func nodeIPv6(n *netlab.Node) netip.Addr {
	for _, a := range n.Underlay() {
		if a.Is6() {
			return a
		}
	}
	return netip.Addr{}
}
