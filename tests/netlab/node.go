// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/subnet"
)

// A Node is a host of the lab: network, mount and UTS namespaces with a cable
// to the fabric. Commands run in all of them (Run, Start).
type Node struct {
	*Place
	lab      *Lab
	number   int
	dir      string // its files: run, cni, lib, etc, opt
	holder   *os.Process
	agent    agent
	underlay []netip.Addr // guarded by lab.mu; IPv4 first
}

// AddNode adds the next node, with every family of the underlay.
func (l *Lab) AddNode(ctx context.Context) (*Node, error) {
	l.mu.Lock()
	l.last++
	number := l.last
	l.mu.Unlock()
	if number > maxNodes {
		return nil, fmt.Errorf("node %d: a lab has at most %d nodes", number, maxNodes)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("n%d", number)
	n := &Node{Place: &Place{name: name}, lab: l, number: number, dir: filepath.Join(stateDir, "nodes", name)}
	for _, f := range l.cfg.Underlay {
		n.underlay = append(n.underlay, fabricAddr(f, number))
	}
	if err := n.powerOn(); err != nil {
		return nil, err
	}
	if err := l.store.attach(ctx, n.Place); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	slices.SortFunc(l.nodes, func(a, b *Node) int { return a.number - b.number })
	return n, nil
}

// Reboot ends the node as if its power had failed and starts it again with
// what was on its disk: /var/lib and /etc/cni stay; /run, devices, pods and
// processes are gone. No agent runs after it. The underlay addresses are those
// that the node had.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.powerOff(); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.dir, "run")); err != nil {
		return fmt.Errorf("reboot %s: %w", n.name, err)
	}
	if err := n.powerOn(); err != nil {
		return err
	}
	return n.lab.store.attach(ctx, n.Place)
}

// powerOff ends everything on the node and pulls its cable.
func (n *Node) powerOff() error {
	if err := n.KillAgent(); err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	for _, p := range n.Pods() {
		if err := p.forget(); err != nil {
			return err
		}
	}
	if err := n.holder.Kill(); err != nil {
		return fmt.Errorf("end node %s: %w", n.name, err)
	}
	n.holder.Wait()
	n.lab.store.detach(n.Place)
	n.close()
	return n.Unplug() // the cable goes with the namespace, but that is taken apart later
}

// powerOn makes the node's namespaces, over the files that are there, and
// plugs its cable in.
func (n *Node) powerOn() error {
	var err error
	n.holder, err = startHolder(n.name, n.dir, filepath.Join(n.lab.cfg.BinDir, "cni"), n.lab.store.hosts())
	if err != nil {
		return err
	}
	place, err := placeOf(n.name, n.holder.Pid)
	if err != nil {
		return err
	}
	*n.Place = *place // whoever holds the node's place holds this one
	return n.Plug()
}

// RemoveNode ends the node at once, as if its power had failed: agent, pods
// and namespaces go, the lease stays in etcd.
func (l *Lab) RemoveNode(n *Node) error {
	if err := n.powerOff(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = slices.DeleteFunc(l.nodes, func(o *Node) bool { return o == n })
	return nil
}

// Underlay returns the node's addresses on the fabric, IPv4 first.
func (n *Node) Underlay() []netip.Addr {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	return slices.Clone(n.underlay)
}

// Pods returns the node's pods ordered by name.
func (n *Node) Pods() []*Pod {
	return slices.DeleteFunc(n.lab.Pods(), func(p *Pod) bool { return p.node != n })
}

// Path returns where a file of the node is seen from the control process,
// e.g. Path("/run/weft/subnet.env"). Only what lies below /run, /var/lib,
// /etc/cni, and what the node has changed in /etc and /opt, can be named.
func (n *Node) Path(file string) string {
	for _, m := range [][2]string{{"/run/", "run"}, {"/var/lib/", "lib"}, {"/etc/cni/", "cni"}, {"/etc/", "etc/upper"}, {"/opt/", "opt/upper"}} {
		if rest, ok := strings.CutPrefix(file, m[0]); ok {
			return filepath.Join(n.dir, m[1], rest)
		}
	}
	return file
}

// SubnetEnv returns what weftd has written to the node's subnet.env.
func (n *Node) SubnetEnv() (subnet.SubnetEnv, error) {
	env, err := subnet.ReadSubnetEnv(n.Path("/run/weft/subnet.env"))
	if err != nil {
		return subnet.SubnetEnv{}, fmt.Errorf("on %s: %w", n.name, err)
	}
	return env, nil
}

// Subnets returns the node's pod subnets, masked, IPv4 first.
func (n *Node) Subnets() ([]netip.Prefix, error) {
	env, err := n.SubnetEnv()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, p := range env.Subnets {
		out = append(out, p.Masked())
	}
	return out, nil
}

// Routes returns the destinations of the node's main routing tables that
// have a gateway, which is what a route to a peer has.
func (n *Node) Routes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	err := n.Netlink(func(h *netlink.Handle) error {
		routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list routes on %s: %w", n.name, err)
		}
		for _, r := range routes {
			if r.Dst == nil || (r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0) {
				continue
			}
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
				bits, _ := r.Dst.Mask.Size()
				out = append(out, netip.PrefixFrom(a.Unmap(), bits))
			}
		}
		return nil
	})
	return out, err
}

// WaitConverged waits until every node with an agent has a route to every
// subnet that another such node holds.
func (l *Lab) WaitConverged(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range l.Nodes() {
		if !n.agent.running() {
			continue
		}
		g.Go(func() error { return n.waitRoutes(gctx) })
	}
	return g.Wait()
}

func (n *Node) waitRoutes(ctx context.Context) error {
	for {
		missing, err := n.missingRoutes()
		if err == nil && len(missing) == 0 {
			return nil
		}
		if Pause(ctx, 20*time.Millisecond) != nil {
			if err != nil {
				return err
			}
			return fmt.Errorf("%s has no route to %v", n.name, missing)
		}
	}
}

func (n *Node) missingRoutes() ([]netip.Prefix, error) {
	have, err := n.Routes()
	if err != nil {
		return nil, err
	}
	var missing []netip.Prefix
	for _, o := range n.lab.Nodes() {
		if o == n || !o.agent.running() {
			continue
		}
		subnets, err := o.Subnets()
		if err != nil {
			return nil, err
		}
		for _, s := range subnets {
			if !slices.Contains(have, s) {
				missing = append(missing, s)
			}
		}
	}
	return missing, nil
}
