// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"weft.dev/weft/tests/netlab"
)

// request is what the launcher asks a campaign's control process for.
type request struct {
	Campaign string
	Only     string // an ID: no other fault; empty for all
	Seeds    int    // injections of each fault
	Deaf     int    // injections of each drift with the agents deaf
	First    uint64 // seed of the first injection
	Full     bool   // at full length
	BinDir   string
}

// wanted reports whether a fault is asked for.
func (q request) wanted(f fault) bool {
	return (q.Only == "" || q.Only == f.ID) && (q.Full || !f.Slow)
}

// runner goes through a campaign in its lab.
type runner struct {
	request
	campaign
	lab     *netlab.Lab
	traffic *traffic
	log     io.Writer
	done    []result
}

// run builds the campaign's lab and injects its faults. What it returns is
// complete also when it failed half-way: faults that could not be injected any
// more are failures.
func (q request) run(ctx context.Context, log io.Writer) ([]result, error) {
	c, err := campaignNamed(q.Campaign)
	if err != nil {
		return nil, err
	}
	r := &runner{request: q, campaign: c, log: log, traffic: &traffic{}}
	defer func() { r.traffic.stop() }()
	r.lab, err = netlab.New(ctx, netlab.Config{
		Nodes: c.Nodes, Network: c.Conf, AgentArgs: c.Args, BinDir: q.BinDir, Progress: log,
	})
	if err != nil {
		return nil, err
	}
	if c.Prepare != nil {
		if err := c.Prepare(ctx, r.lab); err != nil {
			return nil, err
		}
	}
	if !c.Still {
		if err := r.up(ctx); err != nil {
			r.lab.Dump(ctx, log)
			return nil, err
		}
	}
	r.rounds(ctx)
	return r.done, nil
}

// up starts agents, attaches pods, and starts the traffic.
func (r *runner) up(ctx context.Context) (err error) {
	nodes := r.lab.Nodes()
	if len(r.Agents) > 0 {
		nodes = slices.DeleteFunc(nodes, func(n *netlab.Node) bool { return !slices.Contains(r.Agents, n.Name()) })
	}
	if err := r.lab.StartAgents(ctx, nodes...); err != nil {
		return err
	}
	for _, n := range nodes {
		for i := range r.Pods {
			if _, err := n.AddPod(ctx, fmt.Sprintf("%s-p%d", n, i+1)); err != nil {
				return err
			}
		}
	}
	if err := r.lab.Settle(ctx); err != nil {
		return err
	}
	r.lab.Progress("%d agents know each other and have %d pods", len(nodes), len(r.lab.Pods()))
	r.traffic, err = startTraffic(ctx, nodes)
	return err
}

// rounds injects every fault once a round, then those of them that are drift
// with deaf agents.
func (r *runner) rounds(ctx context.Context) {
	sound := true
	for _, mode := range []struct {
		deaf  bool
		seeds int
	}{{false, r.Seeds}, {true, r.Deaf}} {
		for i := range mode.seeds {
			for _, f := range r.Faults {
				if !r.wanted(f) || (f.Seeds > 0 && i >= f.Seeds) || (mode.deaf && !f.Deaf) {
					continue
				}
				res := result{Campaign: r.Name, ID: f.ID, Name: f.Name, Seed: r.First + uint64(i), Audit: mode.deaf || f.Silent}
				if !sound {
					res.Failure = "not injected: the lab did not recover from an earlier fault"
				} else {
					sound = r.injection(ctx, f, mode.deaf, &res)
				}
				r.done = append(r.done, res)
				fmt.Fprintf(r.log, "%s\n", res.line())
			}
		}
	}
}

// line is one injection for the eye.
func (r result) line() string {
	mode := ""
	if r.Audit {
		mode = ", no event"
	}
	s := fmt.Sprintf("%-8s %-4s %s (seed %d%s): %s, %d of %d pings lost", r.Campaign, r.ID, r.Name, r.Seed, mode, r.Took.Round(time.Millisecond), r.Lost, r.Sent)
	if r.Note != "" {
		s += "; " + r.Note
	}
	if r.Failure != "" {
		s += "; FAILED: " + r.Failure
	}
	return s
}

// injection injects one fault and reports whether the lab can take another.
func (r *runner) injection(ctx context.Context, f fault, deaf bool, res *result) (sound bool) {
	limit := 3 * time.Minute
	if r.Full {
		limit = 10 * time.Minute
	}
	campaign := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := &scene{
		newTraffic: func() (*traffic, error) { return startTraffic(campaign, r.lab.Nodes()) },
		Lab:        r.lab, rng: rand.New(rand.NewPCG(res.Seed, hash(f.ID+f.Name))), seed: res.Seed,
		deaf: deaf, full: r.Full, traffic: r.traffic, patient: max(patience, 2*f.Limit), withAgent: r.Agents,
	}
	if err := r.ready(ctx, s); err != nil {
		res.Failure = "the lab is not well before the fault: " + err.Error()
		return false
	}
	err := r.script(ctx, f, s)
	s.settle(ctx)
	res.Took, res.Sent, res.Lost, res.Note = s.took, s.lost.Sent, s.lost.Lost, s.note
	if err == nil && !f.Loses && res.Lost > 0 {
		err = fmt.Errorf("%d pings lost, want none", res.Lost)
	}
	if err == nil && !s.recorded {
		err = errors.New("the script did not say when the lab had recovered")
	}
	if err == nil {
		err = r.well(ctx, s)
	}
	if err == nil {
		return true
	}
	res.Failure = err.Error()
	fmt.Fprintf(r.log, "%s\n", res.line())
	r.lab.Dump(ctx, r.log)
	return r.repair(ctx, s) == nil
}

// script runs the fault, with deaf agents if that is asked for.
func (r *runner) script(ctx context.Context, f fault, s *scene) (err error) {
	if s.deaf {
		for _, n := range r.lab.Nodes() {
			restore, err := deafen(n)
			if err != nil {
				return err
			}
			defer restore() // fails only for an agent that has ended
		}
	}
	s.broke = time.Now()
	s.injected = s.broke
	return f.Run(ctx, s)
}

// ready waits for a lab that is well and remembers what that looks like.
func (r *runner) ready(ctx context.Context, s *scene) error {
	if r.Still {
		return nil
	}
	if err := r.well(ctx, s); err != nil {
		return err
	}
	s.before = map[string]state{}
	for _, n := range r.lab.Nodes() {
		if !s.has(n) {
			continue
		}
		is, err := stateOf(ctx, n)
		if err != nil {
			return err
		}
		s.before[n.Name()] = is
	}
	return nil
}

// well waits until all agents are ready and all pods reach each other.
func (r *runner) well(ctx context.Context, s *scene) error {
	if r.Still {
		return nil
	}
	err := s.wait(ctx, "agents that are ready", func() error { return s.agents(ctx) })
	if err == nil {
		err = s.wait(ctx, "pods that reach each other", s.traffic.flows)
	}
	return err
}

// repair makes a lab usable again after a fault that it did not survive: the
// agents are started anew. It is no part of any measurement.
func (r *runner) repair(ctx context.Context, s *scene) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if r.Still {
		return errors.New("a lab of this kind is not repaired")
	}
	for _, n := range r.lab.Nodes() {
		if !s.has(n) {
			continue
		}
		if n.AgentPID() != 0 {
			if err := n.KillAgent(); err != nil {
				return err
			}
		}
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
	}
	return r.well(ctx, s)
}

// hash spreads a name over seeds (FNV-1a, 64 bits).
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range []byte(s) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}
