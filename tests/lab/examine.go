// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// atOnce bounds how many checks run at a time: enough to hide waiting, not so
// many that two CPUs are late with answers.
const atOnce = 8

// examine runs all checks on a lab that is up. What does not work is in the
// report; an error means that a check could not be made.
func examine(ctx context.Context, l *netlab.Lab, o options) (*Report, error) {
	r := &Report{Lab: l.ID(), CPUs: runtime.NumCPU(), Kernel: kernel(), Underlay: o.Underlay, Etcd: []string{}}
	for _, e := range o.Etcd.Endpoints {
		r.Etcd = append(r.Etcd, e.URL)
	}
	for _, p := range l.Pods() {
		r.Pods = append(r.Pods, PodReport{Name: p.Name(), Node: p.Node().Name(), Addresses: p.Addrs(), MTU: p.MTU()})
	}
	r.pingAll(ctx, l.Pods())
	l.Progress("%d pings between pods", len(r.Pings))
	r.sizeAll(ctx, l)
	l.Progress("%d packet sizes", len(r.Sizes))
	if err := r.addressAll(ctx, l); err != nil {
		return nil, err
	}
	l.Progress("%d client addresses", len(r.Addresses))
	if o.IperfSeconds > 0 && o.Rounds > 0 {
		if err := r.measure(ctx, l, o); err != nil {
			return nil, err
		}
		l.Progress("throughput")
	}
	if err := r.statusAll(ctx, l); err != nil {
		return nil, err
	}
	r.Failures = append(r.Failures, r.failures()...)
	r.OK = len(r.Failures) == 0
	r.Seconds = l.Elapsed().Seconds()
	return r, ctx.Err()
}

// pingAll fills the matrix of all pairs of pods in all families.
func (r *Report) pingAll(ctx context.Context, pods []*netlab.Pod) {
	type job struct {
		from *netlab.Pod
		to   netip.Addr
	}
	var jobs []job
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, a := range to.Addrs() {
				r.Pings = append(r.Pings, Ping{From: from.Name(), To: to.Name(), Family: familyNumber(subnet.FamilyOf(a))})
				jobs = append(jobs, job{from: from, to: a})
			}
		}
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, j := range jobs {
		out := &r.Pings[i]
		g.Go(func() error {
			out.OK, out.Error = verdict(j.from.Ping(ctx, j.to, 2))
			return nil
		})
	}
	g.Wait() // each verdict is in the report
}

func verdict(err error) (bool, string) {
	if err != nil {
		return false, err.Error()
	}
	return true, ""
}

// sizeAll sends packets of the pod MTU and one byte more between the first
// pods of every two nodes.
func (r *Report) sizeAll(ctx context.Context, l *netlab.Lab) {
	var g errgroup.Group
	g.SetLimit(atOnce)
	var jobs []func() Size
	for _, from := range l.Nodes() {
		for _, to := range l.Nodes() {
			if from == to || len(from.Pods()) == 0 || len(to.Pods()) == 0 {
				continue
			}
			a, b := from.Pods()[0], to.Pods()[0]
			for _, addr := range b.Addrs() {
				jobs = append(jobs, func() Size { return checkSize(ctx, a, b, addr) })
			}
		}
	}
	r.Sizes = make([]Size, len(jobs))
	for i, job := range jobs {
		g.Go(func() error {
			r.Sizes[i] = job()
			return nil
		})
	}
	g.Wait() // each verdict is in the report
}

// checkSize fails if the agent announces another MTU than the pod has, or a
// packet of that size does not pass, or a larger one does.
func checkSize(ctx context.Context, from, to *netlab.Pod, addr netip.Addr) Size {
	s := Size{From: from.Name(), To: to.Name(), Family: familyNumber(subnet.FamilyOf(addr)), MTU: from.MTU()}
	env, err := from.Node().SubnetEnv()
	if err == nil && env.MTU != s.MTU {
		err = fmt.Errorf("the pod's MTU is %d, subnet.env says %d", s.MTU, env.MTU)
	}
	if err == nil {
		err = from.PingSize(ctx, addr, s.MTU)
	}
	if err == nil {
		err = from.PingTooLong(ctx, addr, s.MTU+1)
	}
	s.OK, s.Error = verdict(err)
	return s
}

// A connection is one client address to check.
type connection struct {
	from *netlab.Place
	Address
}

// connections lists every pod with every other pod and with every node, both
// ways.
func connections(l *netlab.Lab) ([]connection, error) {
	var out []connection
	add := func(kind string, from *netlab.Place, to string, servers []netip.Addr) {
		for _, s := range servers {
			out = append(out, connection{from, Address{Kind: kind, From: from.Name(), To: to, Server: s}})
		}
	}
	for _, p := range l.Pods() {
		for _, q := range l.Pods() {
			if p != q {
				add("pod to pod", p.Place, q.Name(), q.Addrs())
			}
		}
		for _, n := range l.Nodes() {
			add("node to pod", n.Place, p.Name(), p.Addrs())
			env, err := n.SubnetEnv()
			if err != nil {
				return nil, err
			}
			var inside []netip.Addr
			for _, s := range env.Subnets {
				inside = append(inside, s.Addr()) // the bridge's, its pods' gateway
			}
			if n == p.Node() {
				inside = append(inside, n.Underlay()...)
			} else {
				out = append(out, throughUnderlay(p, n)...)
			}
			add("pod to node", p.Place, n.Name(), within(p, inside))
		}
	}
	return out, nil
}

// masqueraded is the kind of connection whose client shows its node's address.
const masqueraded = "pod to underlay"

// throughUnderlay is p's connections to another node's underlay addresses.
func throughUnderlay(p *netlab.Pod, n *netlab.Node) []connection {
	var out []connection
	for _, server := range within(p, n.Underlay()) {
		for _, own := range p.Node().Underlay() {
			if subnet.FamilyOf(own) == subnet.FamilyOf(server) {
				out = append(out, connection{p.Place, Address{Kind: masqueraded, From: p.Name(), To: n.Name(), Server: server, Want: own}})
			}
		}
	}
	return out
}

// addressAll makes all connections and compares the client's address at both
// ends.
func (r *Report) addressAll(ctx context.Context, l *netlab.Lab) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, n := range l.Nodes() {
		if err := n.ServeAddress(ctx); err != nil {
			return err
		}
	}
	for _, p := range l.Pods() {
		if err := p.ServeAddress(ctx); err != nil {
			return err
		}
	}
	all, err := connections(l)
	if err != nil {
		return err
	}
	r.Addresses = make([]Address, len(all))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, c := range all {
		g.Go(func() error {
			a := c.Address
			var err error
			a.Seen, a.Own, err = c.from.AskAddress(ctx, a.Server)
			want := a.Own
			if a.Want.IsValid() {
				want = a.Want
			}
			if err == nil && a.Seen != want {
				err = fmt.Errorf("the client is %s and %s sees %s, want %s", a.Own, a.Server, a.Seen, want)
			}
			a.OK, a.Error = verdict(err)
			r.Addresses[i] = a
			return nil
		})
	}
	return g.Wait()
}

// within returns those of the addresses whose family the pod has.
func within(p *netlab.Pod, addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		_, ok := p.Addr(subnet.FamilyOf(a))
		return !ok
	})
}

// statusAll asks `weft status` on every node, and checks once more that the
// agent has no more privileges than it should.
func (r *Report) statusAll(ctx context.Context, l *netlab.Lab) error {
	for _, n := range l.Nodes() {
		env, err := n.SubnetEnv()
		if err != nil {
			return err
		}
		subnets, err := n.Subnets()
		if err != nil {
			return err
		}
		node := NodeReport{Name: n.Name(), Underlay: n.Underlay(), Subnets: subnets, PodMTU: env.MTU}
		if err := n.CheckPrivileges(); err != nil {
			r.Failures = append(r.Failures, err.Error())
		} else {
			node.Capabilities = netlab.AgentCapabilities
		}
		if err := node.status(ctx, n, l.Config().BinDir); err != nil {
			r.Failures = append(r.Failures, err.Error())
		} else if want := len(l.Nodes()) - 1; !node.InSync || node.Peers != want {
			r.Failures = append(r.Failures, fmt.Sprintf("%s: in sync %t with %d peers, want true with %d", n.Name(), node.InSync, node.Peers, want))
		}
		r.Nodes = append(r.Nodes, node)
	}
	return nil
}

// status fills in what `weft status -o json` says.
func (node *NodeReport) status(ctx context.Context, n *netlab.Node, bin string) error {
	out, err := n.Run(ctx, filepath.Join(bin, "weft"), "status", "-o", "json")
	if err != nil {
		return err
	}
	var s struct {
		InSync   bool              `json:"inSync"`
		Peers    []json.RawMessage `json:"peers"`
		Problems []subnet.Problem  `json:"problems"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return fmt.Errorf("weft status on %s: %w", n.Name(), err)
	}
	node.InSync, node.Peers = s.InSync, len(s.Peers)
	node.Problems = []string{}
	for _, p := range s.Problems {
		node.Problems = append(node.Problems, p.String())
	}
	slices.Sort(node.Problems)
	return nil
}

// kernel returns the running kernel's release.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
