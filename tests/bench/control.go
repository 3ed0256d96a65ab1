// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/bench/crowd"
	"weft.dev/weft/tests/netlab"
)

// request is what one lab measures.
type request struct {
	Peers   int
	Dual    bool
	Starts  int           // from nothing, at least 1
	Changes int           // of one lease, isolated; 0 for none
	Storm   int           // leases that join within a second; 0 for none
	Idle    time.Duration // that CPU time is counted for; 0 for none
	BinDir  string

	Profiles string // directory for profiles of the agent; empty for none
}

func (q request) String() string {
	family := "IPv4"
	if q.Dual {
		family = "dual-stack"
	}
	return fmt.Sprintf("%d %s peers", q.Peers, family)
}

// figures are what was seen in one lab.
type figures struct {
	Request  request
	Starts   []float64 // from exec to the last entry, s
	StartCPU []float64 // CPU to get there, s
	Again    float64   // restart with everything in place: until ready, s
	AgainCPU float64   // CPU of that and 2 s more
	Writes   int       // entries that a restart wrote, by events and by ages
	Drift    float64   // until 1% of entries was back, s
	Changes  []float64 // from etcd's answer to the kernel's event, s; negative: before it
	Storm    float64   // from the last answer to the last entry, s
	Idle     float64   // share of a core
	Peak     float64   // VmHWM after a start from nothing, MiB
	PeakLate float64   // that of the restarted agent after repair, changes, idling and storm, MiB
	Kernel   float64   // what the kernel's slabs grew by at the first start, MiB
}

// node is the one under test.
type node struct {
	*netlab.Node
	lab *netlab.Lab
	q   request
	mon *monitor
}

// slow is a change that is told of.
const slow = 5 * time.Millisecond

// patience bounds each wait.
const patience = 2 * time.Minute

// run measures in the lab that this process controls.
func (q request) run(ctx context.Context, log io.Writer) (figures, error) {
	out := figures{Request: q}
	conf := crowd.Dual
	if !q.Dual {
		conf = crowd.IPv4
	}
	l, err := netlab.New(ctx, netlab.Config{Nodes: 1, Network: conf, BinDir: q.BinDir, Progress: log})
	if err != nil {
		return out, err
	}
	if err := crowd.Enrol(ctx, l.Client(), l.Prefix(), q.Peers, q.Dual); err != nil {
		return out, err
	}
	n := &node{Node: l.Nodes()[0], lab: l, q: q}
	for _, step := range []func(context.Context, *figures) error{n.starts, n.restart, n.drift, n.changes, n.idle, n.storm} {
		if err := step(ctx, &out); err != nil {
			l.Dump(ctx, log)
			return out, fmt.Errorf("%s: %w", q, err)
		}
	}
	out.PeakLate, err = peakOf(n.AgentPID())
	return out, err
}

// entries is how many a number of peers have: neighbour, forwarding entry and
// route in each family.
func (q request) entries(peers int) int {
	if q.Dual {
		return 6 * peers
	}
	return 3 * peers
}

// starts starts the agent on a node that has nothing, so many times.
func (n *node) starts(ctx context.Context, out *figures) error {
	for i := range n.q.Starts {
		if i > 0 {
			if err := n.KillAgent(); err != nil {
				return err
			}
			n.mon.stop()
			if err := n.Reboot(ctx); err != nil {
				return err
			}
		}
		var err error
		if n.mon, err = listen(n.Node); err != nil {
			return err
		}
		slab, err := slabs()
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
		last, err := n.hear(ctx, n.q.entries(n.q.Peers))
		if err != nil {
			return err
		}
		cpu, err := cpuOf(n.AgentPID())
		if err != nil {
			return err
		}
		out.Starts = append(out.Starts, last.Sub(begin).Seconds())
		out.StartCPU = append(out.StartCPU, cpu.Seconds())
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
		after, err := slabs()
		if err != nil {
			return err
		}
		if i == 0 { // later ones meet what the kernel still frees of those before
			out.Kernel = after - slab
		}
		if err := n.check(ctx); err != nil {
			return err
		}
	}
	if err := n.profile(ctx, "heap", "start", 0); err != nil {
		return err
	}
	peak, err := peakOf(n.AgentPID())
	out.Peak = peak
	return err
}

// hear waits until the monitor has heard of so many entries and then of none
// for a moment, and returns when the last one came.
func (n *node) hear(ctx context.Context, entries int) (time.Time, error) {
	const quiet = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		heard, last, err := n.mon.state()
		switch {
		case err != nil:
			return last, err
		case heard >= entries && time.Since(last) > quiet:
			return last, nil
		}
		if err := netlab.Pause(ctx, 10*time.Millisecond); err != nil {
			return last, fmt.Errorf("heard of %d entries, want %d: %w", heard, entries, err)
		}
	}
}

// restart kills the agent and starts it again where all is in place.
func (n *node) restart(ctx context.Context, out *figures) error {
	before, _, err := n.mon.state()
	if err != nil {
		return err
	}
	if err := n.KillAgent(); err != nil {
		return err
	}
	begin := time.Now()
	if err := n.StartAgent(ctx); err != nil {
		return err
	}
	profiled := make(chan error, 1)
	go func() { profiled <- n.profile(ctx, "cpu", "restart", 3*time.Second) }()
	if err := n.WaitReady(ctx); err != nil {
		return err
	}
	out.Again = time.Since(begin).Seconds()
	if err := netlab.Pause(ctx, 2*time.Second); err != nil {
		return err
	}
	cpu, err := cpuOf(n.AgentPID())
	if err != nil {
		return err
	}
	out.AgainCPU = cpu.Seconds()
	after, _, err := n.mon.state()
	if err != nil {
		return err
	}
	fresh, err := n.confirmedSince(begin)
	out.Writes = after - before + fresh
	return errors.Join(err, <-profiled)
}

// drift deletes an entry of each kind of every hundredth peer while the agent
// is stopped, and waits for them to come back.
func (n *node) drift(ctx context.Context, out *figures) error {
	var script strings.Builder
	gone := 0
	for i := 0; i < n.q.Peers; i += 100 {
		p := crowd.Peer{N: i, Dual: n.q.Dual}
		for _, f := range p.Families() {
			s, dev := p.Subnet(f), map[subnet.Family]string{subnet.IPv4: "weft.1", subnet.IPv6: "weft6.1"}[f]
			fmt.Fprintf(&script, "neigh del %s dev %s\nroute del %s proto 87\n", s.Addr(), dev, s)
			gone += 2
		}
	}
	if err := n.SignalAgent(stop); err != nil {
		return err
	}
	if err := writeFile(n.Path("/run/drift"), script.String()); err != nil {
		return err
	}
	if _, err := n.Run(ctx, "ip", "-batch", "/run/drift"); err != nil {
		return err
	}
	before, err := n.settled(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := n.SignalAgent(goOn); err != nil {
		return err
	}
	last, err := n.hear(ctx, before+gone)
	if err != nil {
		return err
	}
	out.Drift = last.Sub(begin).Seconds()
	return n.check(ctx)
}

// settled waits until the monitor hears nothing for a moment, and returns how
// much it has heard.
func (n *node) settled(ctx context.Context) (int, error) {
	if _, err := n.hear(ctx, 0); err != nil {
		return 0, err
	}
	heard, _, err := n.mon.state()
	return heard, err
}

// changes moves one peer after the other to another underlay address, five a
// second.
func (n *node) changes(ctx context.Context, out *figures) error {
	for i := range n.q.Changes {
		p := crowd.Peer{N: (i * 7919) % n.q.Peers, Dual: n.q.Dual, Move: byte(1 + i%8)}
		came := n.mon.await(fdb{p.MAC(subnet.IPv4), p.Underlay(subnet.IPv4)})
		next := time.Now().Add(200 * time.Millisecond)
		if _, err := n.lab.Client().Put(ctx, p.Key(n.lab.Prefix()), p.Value()); err != nil {
			return err
		}
		answered := time.Now()
		select {
		case at := <-came:
			out.Changes = append(out.Changes, at.Sub(answered).Seconds())
			if at.Sub(answered) > slow {
				n.lab.Progress("%s: change %d at %s took %v", n.q, i, answered.Format("15:04:05.000"), at.Sub(answered))
			}
		case <-time.After(10 * time.Second):
			return fmt.Errorf("peer %d did not move", p.N)
		}
		if err := netlab.Pause(ctx, time.Until(next)); err != nil {
			return err
		}
	}
	return nil
}

// storm has new peers join within a second.
func (n *node) storm(ctx context.Context, out *figures) error {
	if n.q.Storm == 0 {
		return nil
	}
	before, err := n.settled(ctx)
	if err != nil {
		return err
	}
	begin, answered := time.Now(), time.Time{}
	for i := range n.q.Storm {
		p := crowd.Peer{N: n.q.Peers + i, Dual: n.q.Dual}
		if _, err := n.lab.Client().Put(ctx, p.Key(n.lab.Prefix()), p.Value()); err != nil {
			return err
		}
		answered = time.Now()
		if err := netlab.Pause(ctx, time.Until(begin.Add(time.Duration(i)*time.Second/time.Duration(n.q.Storm)))); err != nil {
			return err
		}
	}
	last, err := n.hear(ctx, before+n.q.entries(n.q.Storm))
	if err != nil {
		return err
	}
	out.Storm = last.Sub(answered).Seconds()
	return nil
}

// idle counts CPU time while nothing happens.
func (n *node) idle(ctx context.Context, out *figures) error {
	if n.q.Idle == 0 {
		return nil
	}
	if err := netlab.Pause(ctx, 5*time.Second); err != nil {
		return err
	}
	before, err := cpuOf(n.AgentPID())
	if err != nil {
		return err
	}
	begin := time.Now()
	profiled := make(chan error, 1)
	go func() { profiled <- n.profile(ctx, "cpu", "idle", min(n.q.Idle, 50*time.Second)) }()
	if err := netlab.Pause(ctx, n.q.Idle); err != nil {
		return err
	}
	after, err := cpuOf(n.AgentPID())
	out.Idle = (after - before).Seconds() / time.Since(begin).Seconds()
	return errors.Join(err, <-profiled)
}

// launch measures in a lab of its own.
func (q request) launch(ctx context.Context, log io.Writer) (f figures, err error) {
	err = netlab.Launch{Stderr: log}.Ask(ctx, requestEnv, q, &f)
	if err == nil && len(f.Starts) == 0 {
		err = errors.New("nothing was measured")
	}
	return f, err
}
