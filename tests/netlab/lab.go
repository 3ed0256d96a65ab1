// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/subnet"
)

// DefaultNetwork is the network configuration of a lab: both families.
const DefaultNetwork = `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}`

// Config says what lab to build. The zero value is a dual-stack lab without
// nodes.
type Config struct {
	Nodes     int             // 0 to 200, named n1, n2, ...
	Underlay  []subnet.Family // families of the fabric and its nodes; default both
	MTU       int             // of the fabric's links, bytes; default 1500
	Network   string          // net-conf.json; default DefaultNetwork
	BinDir    string          // holds weftd, weft and cni/; default: see FindBin
	Etcd      Outside         // an etcd outside the lab; default: one inside
	Prefix    string          // etcd prefix; default /weft/network, with Etcd /weft-lab/ID/network
	AgentArgs []string        // further arguments of every weftd
	Progress  io.Writer       // one line for each step; default: nowhere
}

// A Lab is a network of nodes. Its methods may be called from any goroutine.
type Lab struct {
	cfg    Config
	id     string
	fabric *Place
	outer  *os.File // the launcher's network namespace
	report *os.File // to the launcher
	store  store
	client *clientv3.Client
	start  time.Time

	mu    sync.Mutex // guards the rest, and the underlay of nodes
	nodes []*Node
	pods  []*Pod
	last  int // number of the node added last
}

// New builds the fabric, etcd and nodes in the lab that this control process
// runs in, and writes the network's configuration to etcd. No agent runs
// yet. New can be called once in a process.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if !Inside() {
		return nil, errors.New("netlab.New works only in the control process that Launch starts")
	}
	l := &Lab{cfg: cfg, id: os.Getenv(IDEnv), start: time.Now()}
	files := ownFiles(2)
	l.report, l.outer = files[0], files[1]
	if err := l.complete(); err != nil {
		return nil, err
	}
	var err error
	if l.fabric, err = Here("fabric"); err != nil {
		return nil, err
	}
	if err := l.buildFabric(); err != nil {
		return nil, err
	}
	l.store = l.newStore()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.openStore(gctx) })
	for range cfg.Nodes {
		g.Go(func() error {
			_, err := l.AddNode(gctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	l.Progress("fabric, etcd and %d nodes", cfg.Nodes)
	return l, nil
}

// complete fills in the defaults and checks the rest.
func (l *Lab) complete() error {
	c := &l.cfg
	if c.Nodes < 0 || c.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: a lab has 0 to %d", c.Nodes, maxNodes)
	}
	if len(c.Underlay) == 0 {
		c.Underlay = []subnet.Family{subnet.IPv4, subnet.IPv6}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Network == "" {
		c.Network = DefaultNetwork
	}
	if c.Prefix == "" {
		c.Prefix = "/weft/network"
		if len(c.Etcd.Endpoints) > 0 {
			c.Prefix = outsidePrefix(l.id) + "network"
		}
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	bin, err := FindBin(c.BinDir)
	c.BinDir = bin
	return err
}

// Progress reports a step, with the time since the lab's start.
func (l *Lab) Progress(format string, args ...any) {
	fmt.Fprintf(l.cfg.Progress, "[%5.1f s] %s\n", l.Elapsed().Seconds(), fmt.Sprintf(format, args...))
}

// Elapsed returns the time since New was called.
func (l *Lab) Elapsed() time.Duration { return time.Since(l.start) }

// ID returns the lab's name.
func (l *Lab) ID() string { return l.id }

// Config returns the configuration, complete.
func (l *Lab) Config() Config { return l.cfg }

// Fabric returns the lab's own network namespace, where etcd runs.
func (l *Lab) Fabric() *Place { return l.fabric }

// Client returns a client of the lab's etcd. It belongs to the lab.
func (l *Lab) Client() *clientv3.Client { return l.client }

// Prefix returns the etcd prefix of the lab's network, e.g. /weft/network.
func (l *Lab) Prefix() string { return l.cfg.Prefix }

// Nodes returns the nodes in the order of their numbers.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.nodes)
}

// Node returns the node with that name, or nil.
func (l *Lab) Node(name string) *Node {
	for _, n := range l.Nodes() {
		if n.name == name {
			return n
		}
	}
	return nil
}

// Pods returns the pods ordered by name.
func (l *Lab) Pods() []*Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pods)
}

// Up starts all agents, waits until the nodes know each other, and attaches
// pods: perNode to each node.
func (l *Lab) Up(ctx context.Context, perNode int) error {
	if err := l.StartAgents(ctx); err != nil {
		return err
	}
	l.Progress("every weftd is ready and knows the others")
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range l.Nodes() {
		for i := range perNode {
			g.Go(func() error {
				_, err := n.AddPod(gctx, fmt.Sprintf("%s-p%d", n.name, i+1))
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.Progress("%d pods attached", len(l.Pods()))
	if err := l.Settle(ctx); err != nil {
		return err
	}
	l.Progress("IPv6 addresses settled")
	return nil
}

// StartAgents starts weftd on the given nodes, or on every node if none is
// given, all at the same time, and waits until they are ready and each has a
// route to every subnet of the others.
func (l *Lab) StartAgents(ctx context.Context, nodes ...*Node) error {
	if len(nodes) == 0 {
		nodes = l.Nodes()
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error {
			if err := n.StartAgent(gctx); err != nil {
				return err
			}
			return n.WaitReady(gctx)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.WaitConverged(ctx)
}

// Stand asks the launcher to leave the lab standing, with the record that
// `weft-lab exec` and `weft-lab down` need, and does not return until the lab
// is ended. The launcher ends with the given status.
func (l *Lab) Stand(ctx context.Context, status int) error {
	return stand(ctx, l.report, l.directory(), l.record(status))
}

// FindBin returns the directory with weft's programs: dir if given, else the
// directory of this program if weftd is there, else bin/ of the repository
// that the working directory is in.
func FindBin(dir string) (string, error) {
	var try []string
	if dir != "" {
		try = append(try, dir)
	} else {
		if exe, err := os.Executable(); err == nil {
			try = append(try, filepath.Dir(exe))
		}
		if wd, err := os.Getwd(); err == nil {
			for d := wd; ; d = filepath.Dir(d) {
				try = append(try, filepath.Join(d, "bin"))
				if d == filepath.Dir(d) {
					break
				}
			}
		}
	}
	for _, d := range try {
		if _, err := os.Stat(filepath.Join(d, "weftd")); err != nil {
			continue
		}
		abs, err := filepath.Abs(d)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(abs, "/run/") {
			return "", fmt.Errorf("programs in %s: a lab hides /run, move them elsewhere", abs)
		}
		return abs, missingPrograms(abs)
	}
	return "", fmt.Errorf("no weftd in %s: run `make build`, or say where it is with --bin-dir", strings.Join(try, ", "))
}

// missingPrograms names what a lab needs and dir does not have.
func missingPrograms(dir string) error {
	var missing []string
	for _, f := range []string{"weftd", "weft", "cni/weft", "cni/bridge", "cni/host-local"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s lacks %s: run `make build`", dir, strings.Join(missing, ", "))
	}
	return nil
}
