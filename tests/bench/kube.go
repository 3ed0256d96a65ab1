// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/bench/crowd"
	"weft.dev/weft/tests/kubetest"
	"weft.dev/weft/tests/netlab"
)

// kubeRequest is what one lab with an API server measures. What the agent has
// to do with Nodes depends on how many there are and how often they change.
type kubeRequest struct {
	Nodes    int           // that do not exist, at least 1
	Rates    []float64     // of heartbeats, a second
	Span     time.Duration // for which there are heartbeats at each rate, and none before
	Changes  int           // of one lease, isolated
	Gzip     bool          // the server compresses watches
	Server   string        // the program kube-apiserver
	Manifest string        // weft's
	BinDir   string
	Profiles string // directory for profiles of the agent; empty for none
}

// kubeFigures are what was seen.
type kubeFigures struct {
	Request  kubeRequest
	Start    float64 // from exec to the last entry, s
	List     float64 // what the agent received until then, bytes
	Quiet    span
	Beating  []span    // one for each rate
	Own      float64   // what one heartbeat of the agent's own Node brings, bytes
	Changes  []float64 // from the server's answer to the kernel's event, s
	Heard    int       // events of these changes: the monitors hear
	Resident float64   // VmRSS after all of it, MiB
	Anon     float64   // RssAnon of it
	Peak     float64   // VmHWM
}

// span is what was seen of the agent for a while.
type span struct {
	Seconds  float64
	Beats    int
	Received uint64  // on its TCP connections to the API server, bytes
	Sent     uint64  // and acknowledged
	CPU      float64 // s
	Writes   int     // to the kernel, by all monitors, and entries that were confirmed anew
}

// kubeNode is the node under test and the cluster around it.
type kubeNode struct {
	*node
	q        kubeRequest
	srv      *kubetest.Server
	admin    *rest.RESTClient
	model    *corev1.Node
	wide     []*monitor // of everything that can be written
	kubelets map[string]*rest.RESTClient
	beats    int // so far
}

// kubeRequestEnv carries the request to the control process of a lab.
const kubeRequestEnv = "WEFT_BENCH_KUBE"

// ownName is the Node of the agent under test.
const ownName = "n1"

// run measures in the lab that this process controls.
func (q kubeRequest) run(ctx context.Context, log io.Writer) (kubeFigures, error) {
	out := kubeFigures{Request: q}
	l, err := netlab.New(ctx, netlab.Config{Nodes: 1, BinDir: q.BinDir, Progress: log})
	if err != nil {
		return out, err
	}
	n := &kubeNode{node: &node{Node: l.Nodes()[0], lab: l, q: request{Peers: q.Nodes, Dual: true, Profiles: q.Profiles}}, q: q, kubelets: map[string]*rest.RESTClient{}}
	if n.model, err = crowd.Model(); err != nil {
		return out, err
	}
	if err := n.build(ctx); err != nil {
		return out, err
	}
	l.Progress("kube-apiserver with %d Nodes", q.Nodes+1)
	for _, step := range []func(context.Context, *kubeFigures) error{n.start, n.quiet, n.beating, n.own, n.changes, n.memory} {
		if err := step(ctx, &out); err != nil {
			l.Dump(ctx, log)
			return out, fmt.Errorf("%d Nodes: %w", q.Nodes, err)
		}
	}
	return out, nil
}

// build starts the server beside the lab's etcd, applies the manifest and makes
// the Nodes, and what the agent's pod would find mounted.
func (n *kubeNode) build(ctx context.Context) error {
	if err := n.serve(ctx); err != nil {
		return err
	}
	text, err := os.ReadFile(n.q.Manifest)
	if err != nil {
		return err
	}
	manifest, err := kubetest.ParseManifest(text)
	if err != nil {
		return err
	}
	if err := manifest.Apply(ctx, n.admin); err != nil {
		return err
	}
	writers, err := n.writers()
	if err != nil {
		return err
	}
	if err := writers.Register(ctx, n.model, ownName, ownCIDRs(), n.Underlay(), nil); err != nil {
		return err
	}
	_, token, err := n.srv.AgentPod(ctx, manifest, ownName)
	if err != nil {
		return err
	}
	if err := writers.EnrolNodes(ctx, n.model, n.q.Nodes, true); err != nil {
		return err
	}
	return errors.Join(n.faithful(ctx), n.srv.WriteKubeconfig(n.Path("/run/kubeconfig"), "", token),
		writeFile(n.Path("/run/net-conf.json"), crowd.KubeDual))
}

// serve starts the server.
func (n *kubeNode) serve(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "apiserver-")
	if err != nil {
		return err
	}
	etcd := n.lab.Client().Endpoints()[0]
	at, err := netip.ParseAddrPort(strings.TrimPrefix(etcd, "http://"))
	if err != nil {
		return fmt.Errorf("the lab's etcd: %w", err)
	}
	// A server of 1.37 and newer compresses a watch, but only one that began with
	// a listing: not after the first time that a watch is renewed.
	gate := fmt.Sprintf("--feature-gates=WatchListCompression=%v", n.q.Gzip)
	if n.srv, err = kubetest.Start(ctx, kubetest.Config{Program: n.q.Server, Dir: dir, Etcd: etcd, Addr: at.Addr(), Args: []string{gate}}); err != nil {
		return err
	}
	n.admin, err = kubetest.Client(n.srv.Admin())
	return err
}

// faithful checks that the server keeps of a copy what it kept of the original:
// who wrote what is most of a Node's metadata.
func (n *kubeNode) faithful(ctx context.Context) error {
	got := &corev1.Node{}
	name := crowd.Peer{N: n.q.Nodes - 1, Dual: true}.NodeName()
	if err := n.admin.Get().Resource("nodes").Name(name).Do(ctx).Into(got); err != nil {
		return fmt.Errorf("read Node %s: %w", name, err)
	}
	if have, want := crowd.Fields(got), crowd.Fields(n.model); !slices.Equal(have, want) {
		return fmt.Errorf("of Node %s the server keeps\n%q, of the one that is copied\n%q", name, have, want)
	}
	if len(got.Status.Images) < len(n.model.Status.Images) || len(got.Status.Conditions) < len(n.model.Status.Conditions) {
		return fmt.Errorf("Node %s has %d images and %d conditions", name, len(got.Status.Images), len(got.Status.Conditions))
	}
	return nil
}

// writers may write on any Node.
func (n *kubeNode) writers() (w crowd.Writers, err error) {
	for name, into := range map[string]**rest.RESTClient{"kubelet": &w.Kubelet, "kube-controller-manager": &w.Controllers, "weftd": &w.Agent} {
		c := n.srv.Admin()
		c.UserAgent = name + "/v1 (linux/amd64)" // the server takes the first word
		if *into, err = kubetest.Client(c); err != nil {
			return w, err
		}
	}
	return w, nil
}

// ownCIDRs are the podCIDRs of the agent's Node, beside those of the crowd.
func ownCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd42:0:0:1::/64")}
}

// start starts the agent on a node that has nothing.
func (n *kubeNode) start(ctx context.Context, out *kubeFigures) (err error) {
	if n.mon, err = listen(n.Node); err != nil {
		return err
	}
	begin := time.Now()
	if err := n.StartAgent(ctx, "--store=kube", "--kubeconfig=/run/kubeconfig", "--net-conf=/run/net-conf.json"); err != nil {
		return err
	}
	last, err := n.hear(ctx, n.node.q.entries(n.q.Nodes))
	if err != nil {
		return err
	}
	out.Start = last.Sub(begin).Seconds()
	received, _, err := n.traffic()
	if err != nil {
		return err
	}
	out.List = float64(received)
	if err := n.WaitReady(ctx); err != nil {
		return err
	}
	if err := n.check(ctx); err != nil {
		return err
	}
	n.wide, err = listenToAll(n.Node)
	return err
}

// quiet looks on while nothing happens.
func (n *kubeNode) quiet(ctx context.Context, out *kubeFigures) (err error) {
	const settles = 10 * time.Second // conditions are reported, Events sent
	if err := netlab.Pause(ctx, settles); err != nil {
		return err
	}
	out.Quiet, err = n.observe(func() error { return netlab.Pause(ctx, n.q.Span) })
	return err
}

// beating has Nodes send heartbeats, each as often as the others, in an order
// drawn for it.
func (n *kubeNode) beating(ctx context.Context, out *kubeFigures) error {
	for _, rate := range n.q.Rates {
		order, beats := rand.Perm(n.q.Nodes+1), int(rate*n.q.Span.Seconds())
		profiled := make(chan error, 1)
		go func() {
			profiled <- n.profile(ctx, "cpu", fmt.Sprintf("%.1f heartbeats a second", rate), min(n.q.Span, 50*time.Second))
		}()
		s, err := n.observe(func() error {
			begin := time.Now()
			for i := range beats {
				if err := n.beat(ctx, order[i%len(order)]); err != nil {
					return err
				}
				due := begin.Add(time.Duration(float64(i+1) / rate * float64(time.Second)))
				if err := netlab.Pause(ctx, time.Until(due)); err != nil {
					return err
				}
			}
			return nil
		})
		if err := errors.Join(err, <-profiled); err != nil {
			return err
		}
		s.Beats = beats
		out.Beating = append(out.Beating, s)
		n.lab.Progress("%d heartbeats in %.0f s, %.1f a second", s.Beats, s.Seconds, float64(s.Beats)/s.Seconds)
	}
	return nil
}

// beat sends a heartbeat of the i-th Node, the last of which is the agent's.
func (n *kubeNode) beat(ctx context.Context, i int) error {
	name, peer := ownName, crowd.Peer{N: i, Dual: true}
	if i < n.q.Nodes {
		name = peer.NodeName()
	}
	kubelet := n.kubelets[name]
	if kubelet == nil {
		var err error
		if kubelet, err = kubetest.Client(n.srv.Kubelet(name)); err != nil {
			return err
		}
		n.kubelets[name] = kubelet
	}
	n.beats++ // two heartbeats within a second have other times, too
	patch, err := crowd.Heartbeat(n.model, time.Now().Add(time.Duration(n.beats)*time.Second))
	if err != nil {
		return err
	}
	return crowd.Beat(ctx, kubelet, name, patch)
}

// own counts what heartbeats of the agent's own Node bring, of which it reads
// all.
func (n *kubeNode) own(ctx context.Context, out *kubeFigures) error {
	const some = 10
	s, err := n.observe(func() error {
		for range some {
			if err := n.beat(ctx, n.q.Nodes); err != nil {
				return err
			}
			if err := netlab.Pause(ctx, 200*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
	out.Own = float64(s.Received) / some
	return err
}

// changes moves one peer after the other to another underlay address. That the
// monitors hear of it is what makes their silence before mean something.
func (n *kubeNode) changes(ctx context.Context, out *kubeFigures) error {
	before, err := n.heard()
	if err != nil {
		return err
	}
	for i := range n.q.Changes {
		p := crowd.Peer{N: (i * 7919) % n.q.Nodes, Dual: true, Move: byte(1 + i%8)}
		came := n.mon.await(fdb{p.MAC(subnet.IPv4), p.Underlay(subnet.IPv4)})
		doc := fmt.Sprintf(`{"metadata":{"annotations":{"%s/public-ip":%q}}}`, subnet.Domain, p.Underlay(subnet.IPv4))
		if err := n.admin.Patch(types.MergePatchType).Resource("nodes").Name(p.NodeName()).Body([]byte(doc)).Do(ctx).Error(); err != nil {
			return fmt.Errorf("move Node %s: %w", p.NodeName(), err)
		}
		answered := time.Now()
		select {
		case at := <-came:
			out.Changes = append(out.Changes, at.Sub(answered).Seconds())
		case <-time.After(10 * time.Second):
			return fmt.Errorf("peer %s did not move", p.NodeName())
		}
		if err := netlab.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	after, err := n.heard()
	out.Heard = after - before
	if err == nil && out.Heard < 2*n.q.Changes { // a forwarding entry and an element of a set, at least
		err = fmt.Errorf("the monitors heard of %d writes for %d changes: they do not hear all", out.Heard, n.q.Changes)
	}
	return err
}

func (n *kubeNode) memory(_ context.Context, out *kubeFigures) (err error) {
	status := fmt.Sprintf("/proc/%d/status", n.AgentPID())
	for name, into := range map[string]*float64{"VmRSS:": &out.Resident, "RssAnon:": &out.Anon, "VmHWM:": &out.Peak} {
		if *into, err = mib(status, name); err != nil {
			return err
		}
	}
	return nil
}

// launch measures in a lab of its own.
func (q kubeRequest) launch(ctx context.Context, log io.Writer) (f kubeFigures, err error) {
	err = netlab.Launch{Stderr: log}.Ask(ctx, kubeRequestEnv, q, &f)
	if err == nil && f.Start == 0 {
		err = errors.New("nothing was measured")
	}
	if err != nil {
		err = fmt.Errorf("Node API: %w", err)
	}
	return f, err
}

// complete finds what the lab needs.
func (q *kubeRequest) complete() (err error) {
	if q.Server, err = kubetest.Program(); err != nil {
		return err
	}
	q.Manifest = filepath.Join(filepath.Dir(q.BinDir), "dist", "manifests", "weft.yaml")
	if _, err := os.Stat(q.Manifest); err != nil {
		return fmt.Errorf("weft's manifest: %w; programs are looked for in bin/ of the repository", err)
	}
	return nil
}
