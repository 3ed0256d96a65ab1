// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/tests/netlab"
)

// A Cluster is a Kubernetes cluster. Its methods may be called from any
// goroutine.
type Cluster struct {
	Etcd, APIServer, Controllers, Scheduler *Daemon

	cfg    Config
	tenant *netlab.Tenant
	fabric *netlab.Place
	cgroup string // name of its control group in each hierarchy
	pki    *authority
	client *http.Client
	nodes  []*Node
	start  time.Time
}

// New builds a cluster in the lab that this control process runs in. When it
// returns, all nodes have registered, and are NotReady for want of a network.
// New can be called once in a process. What it has built when it fails can be
// dumped.
func New(ctx context.Context, cfg Config) (*Cluster, error) {
	c, err := enter(cfg)
	if err != nil {
		return c, err
	}
	if err := c.assemble(); err != nil {
		return c, err
	}
	return c, c.boot(ctx)
}

// enter returns a cluster of nothing, in this process's lab.
func enter(cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg, start: time.Now(), cgroup: os.Getenv(cgroupEnv)}
	if c.cfg.Progress == nil {
		c.cfg.Progress = io.Discard
	}
	if err := cfg.Check(); err != nil {
		return c, err
	}
	if c.cgroup == "" {
		return c, fmt.Errorf("a cluster is built in the control process that Launcher.Run starts: no %s", cgroupEnv)
	}
	var err error
	if c.tenant, err = netlab.NewTenant(); err != nil {
		return c, err
	}
	c.fabric, err = netlab.Here("fabric")
	return c, err
}

// assemble makes the machines: their network, files and credentials.
func (c *Cluster) assemble() error {
	if err := c.buildFabric(); err != nil {
		return err
	}
	if err := c.prepareControlPlane(); err != nil {
		return err
	}
	for i := range c.cfg.Nodes {
		n, err := c.newNode(i + 1)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	c.Progress("%d nodes, without anything on them", len(c.nodes))
	return nil
}

// boot starts everything, in the order in which one thing needs another.
func (c *Cluster) boot(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		g.Go(func() error { return n.startContainerd(gctx) })
	}
	g.Go(func() error { return c.startControlPlane(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	c.Progress("control plane ready, images on all nodes")
	g, gctx = errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		g.Go(func() error { return n.startKubelet(gctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.Progress("all nodes have registered")
	return nil
}

// env is the environment of what the cluster runs.
func (c *Cluster) env() []string {
	// A home for what kubectl caches, which is not the user's.
	return []string{"PATH=" + c.cfg.Parts.Path(), "HOME=/run/home", "KUBECONFIG=" + AdminConfig}
}

// Progress reports a step, with the time since New was called.
func (c *Cluster) Progress(format string, args ...any) {
	fmt.Fprintf(c.cfg.Progress, "[%5.1f s] %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

// Config returns the cluster's configuration.
func (c *Cluster) Config() Config { return c.cfg }

// Fabric returns the host in the nodes' network that is no node.
func (c *Cluster) Fabric() *netlab.Place { return c.fabric }

// Nodes returns the nodes in the order of their numbers.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Stand leaves the cluster standing, for Exec and Down, and does not return
// until it is ended. The launcher ends with the given status.
func (c *Cluster) Stand(ctx context.Context, status int) error {
	places := map[string]int{}
	for _, n := range c.nodes {
		places[n.Name()] = n.holder.Pid
	}
	return c.tenant.Stand(ctx, status, c.cfg.Parts.Path(), places)
}

// daemons returns all daemons that are defined.
func (c *Cluster) daemons() []*Daemon {
	all := []*Daemon{c.Etcd, c.APIServer, c.Controllers, c.Scheduler}
	for _, n := range c.nodes {
		all = append(all, n.Containerd, n.Kubelet, n.Proxy)
	}
	var out []*Daemon
	for _, d := range all {
		if d != nil {
			out = append(out, d)
		}
	}
	return out
}
