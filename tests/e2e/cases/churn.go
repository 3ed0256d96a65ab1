// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

const (
	churnRounds = 4
	churnPods   = 50 // a round
	churnKills  = 25 // while they come, and while they go
	bridgeName  = "cni0"
)

// Churn is the case in which CNI plugins are killed at random moments.
func Churn() []Case {
	return []Case{{Name: fmt.Sprintf("%d pods come and go, plugins killed at random: nothing is left", churnRounds*churnPods), Run: churn, Weft: true}}
}

// churnManifest runs pods that do nothing.
const churnManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: churn, namespace: default}
spec:
  replicas: 0
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}}
    spec:
      terminationGracePeriodSeconds: 0
      enableServiceLinks: false
      containers:
      - name: nothing
        image: ` + parts.PauseImage + `
        imagePullPolicy: Never
`

// churn makes and deletes pods while it kills plugins, then restarts the
// agents, which sweep when they start, and compares what nodes have with the
// pods that are.
func churn(ctx context.Context, c *cluster.Cluster) error {
	if err := c.Apply(ctx, churnManifest); err != nil {
		return err
	}
	n, err := comeAndGo(ctx, c)
	c.Progress("  %d plugins killed", n)
	if _, e := c.Kubectl(ctx, "delete", "deployment", "churn", "--wait=true"); e != nil {
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return errors.New("no plugin was killed, which proves nothing")
	}
	if _, err := c.Kubectl(ctx, "-n", agentSystem, "rollout", "restart", "daemonset/weft"); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "-n", agentSystem, "rollout", "status", "daemonset/weft", "--timeout=120s"); err != nil {
		return err
	}
	return eventually(ctx, time.Minute, func(ctx context.Context) error { return nothingLeft(ctx, c) })
}

// comeAndGo scales the deployment up and down, and returns how many plugins
// were killed meanwhile.
func comeAndGo(ctx context.Context, c *cluster.Cluster) (int, error) {
	killed := 0
	for range churnRounds {
		n, err := whilePluginsDie(ctx, func(ctx context.Context) error { return allReady(ctx, c) })
		killed += n
		if err != nil {
			return killed, err
		}
		n, err = whilePluginsDie(ctx, func(ctx context.Context) error { return allGone(ctx, c) })
		killed += n
		if err != nil {
			return killed, err
		}
	}
	return killed, nil
}

func allReady(ctx context.Context, c *cluster.Cluster) error {
	if _, err := c.Kubectl(ctx, "scale", "deployment/churn", fmt.Sprintf("--replicas=%d", churnPods)); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "rollout", "status", "deployment/churn", "--timeout=240s")
	return err
}

func allGone(ctx context.Context, c *cluster.Cluster) error {
	if _, err := c.Kubectl(ctx, "scale", "deployment/churn", "--replicas=0"); err != nil {
		return err
	}
	return eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
		pods, err := c.Pods(ctx, "default", "app=churn")
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d pods are still there", len(pods))
		}
		return err
	})
}

// whilePluginsDie runs step while plugins are killed, and returns how many were.
func whilePluginsDie(ctx context.Context, step func(context.Context) error) (int, error) {
	killing, stop := context.WithCancel(ctx)
	killed := make(chan int)
	go func() { killed <- killPlugins(killing, churnKills) }()
	err := step(ctx)
	stop()
	return <-killed, err
}

// killPlugins kills a CNI plugin of the cluster, whichever runs, several times
// a second until ctx ends or most were killed, and returns how many it was.
// Without an end the last pods of a round would never start: kubelet tries them
// again one by one, and each would meet the next kill. One that only answers
// whether there is a network is spared, or kubelet would find that there is none.
func killPlugins(ctx context.Context, most int) int {
	n := 0
	plugin := func(dir string) bool {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !strings.HasPrefix(exe, "/opt/cni/bin/") {
			return false
		}
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		return err == nil && !bytes.Contains(env, []byte("CNI_COMMAND=STATUS"))
	}
	next := time.Now()
	for n < most && netlab.Pause(ctx, time.Duration(rand.IntN(10))*time.Millisecond) == nil {
		if time.Now().Before(next) {
			continue
		}
		pids, err := cluster.Processes(plugin)
		if err != nil || len(pids) == 0 {
			continue
		}
		if syscall.Kill(pids[rand.IntN(len(pids))], syscall.SIGKILL) == nil {
			n++
			next = time.Now().Add(time.Duration(100+rand.IntN(400)) * time.Millisecond)
		}
	}
	return n
}

// nothingLeft compares each node's interfaces and allocated addresses with the
// pods that it runs.
func nothingLeft(ctx context.Context, c *cluster.Cluster) error {
	pods, err := c.AllPods(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range c.Nodes() {
		want := map[netip.Addr]bool{}
		veths := 0
		for _, p := range pods {
			if p.Node != n.Name() || p.HostNetwork {
				continue
			}
			veths++
			for _, ip := range p.IPs {
				want[ip] = true
			}
		}
		have, err := ports(n)
		if err != nil {
			return err
		}
		if len(have) != veths {
			errs = append(errs, fmt.Errorf("%s has %d interfaces on %s for %d pods: %v", n.Name(), len(have), bridgeName, veths, have))
		}
		allocated, err := allocations(n)
		if err != nil {
			return err
		}
		for _, a := range allocated {
			if !want[a] {
				errs = append(errs, fmt.Errorf("%s has %s allocated for no pod", n.Name(), a))
			}
			delete(want, a)
		}
		for a := range want {
			errs = append(errs, fmt.Errorf("%s has a pod with %s, which is not allocated", n.Name(), a))
		}
	}
	return errors.Join(errs...)
}

// ports returns the interfaces on a node's bridge of pods.
func ports(n *cluster.Node) ([]string, error) {
	var out []string
	err := n.Netlink(func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", bridgeName, n.Name(), err)
		}
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("interfaces of %s: %w", n.Name(), err)
		}
		for _, l := range links {
			if l.Attrs().MasterIndex == bridge.Attrs().Index {
				out = append(out, l.Attrs().Name)
			}
		}
		return nil
	})
	return out, err
}

// allocations returns the addresses that host-local has given out on a node.
func allocations(n *cluster.Node) ([]netip.Addr, error) {
	entries, err := os.ReadDir(n.Path("/var/lib/cni/networks/weft"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("allocated addresses of %s: %w", n.Name(), err)
	}
	var out []netip.Addr
	for _, e := range entries {
		if a, err := netip.ParseAddr(e.Name()); err == nil {
			out = append(out, a)
		}
	}
	return out, nil
}

// addresses returns the global addresses of an interface.
func addresses(p *netlab.Place, dev string) ([]netip.Addr, error) {
	var out []netip.Addr
	err := p.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", dev, p.Name(), err)
		}
		list, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("addresses of %s on %s: %w", dev, p.Name(), err)
		}
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLinkLocalUnicast() {
				out = append(out, ip.Unmap())
			}
		}
		return nil
	})
	return out, err
}
