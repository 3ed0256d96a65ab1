// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/tests/netlab"
)

// patience is how long a lab may take until it counts as unrecovered, or
// twice what the fault promises if that is longer. The promise itself is
// judged over all injections.
const patience = 20 * time.Second

// A scene is one injection: the lab, a source of chance, and the clock.
type scene struct {
	*netlab.Lab
	rng        *rand.Rand
	seed       uint64
	deaf       bool // the agents do not hear of changes in the kernel
	full       bool // at full length; the sample is shorter
	patient    time.Duration
	withAgent  []string // nodes; empty for all
	traffic    *traffic
	newTraffic func() (*traffic, error) // that outlives the injection
	before     map[string]state         // of each node, when the lab was well

	broke    time.Time // when the damage began: pings count from here
	injected time.Time // when it was done: recovery counts from here
	took     time.Duration
	recorded bool // took is set
	lost     *netlab.PingWindow
	note     string
}

// node picks a node by chance.
func (s *scene) node() *netlab.Node { return pick(s, s.Nodes()) }

// has reports whether the node is one with an agent.
func (s *scene) has(n *netlab.Node) bool {
	return len(s.withAgent) == 0 || slices.Contains(s.withAgent, n.Name())
}

// others returns the nodes without n.
func (s *scene) others(n *netlab.Node) []*netlab.Node {
	return slices.DeleteFunc(s.Nodes(), func(o *netlab.Node) bool { return o == n })
}

func pick[T any](s *scene, from []T) T { return from[s.rng.IntN(len(from))] }

// notef adds to what the report tells of this injection.
func (s *scene) notef(format string, args ...any) {
	if s.note != "" {
		s.note += "; "
	}
	s.note += fmt.Sprintf(format, args...)
}

// do runs one command a line in a place. Words are separated by blanks; a
// line that begins with "-" may fail.
func (s *scene) do(ctx context.Context, p *netlab.Place, script string) error {
	for line := range strings.Lines(script) {
		line, tolerant := strings.CutPrefix(strings.TrimSpace(line), "-")
		if line == "" {
			continue
		}
		if _, err := p.Run(ctx, strings.Fields(line)...); err != nil && !tolerant {
			return err
		}
	}
	return nil
}

// nft feeds a script to nft(8) in a place.
func (s *scene) nft(ctx context.Context, p *netlab.Place, script string) error {
	_, err := p.Run(ctx, "nft", script)
	return err
}

// inject does quick damage: the clock starts before it.
func (s *scene) inject(damage func() error) error {
	s.broke = time.Now()
	s.injected = s.broke
	return damage()
}

// outage does damage that lasts: pings count from its beginning, recovery
// from its end.
func (s *scene) outage(damage func() error) error {
	s.broke = time.Now()
	err := damage()
	s.injected = time.Now()
	return err
}

// heals waits until every node's kernel state is what it was before and all
// pods reach each other, and stops the clock.
func (s *scene) heals(ctx context.Context) error {
	return s.until(ctx, "the kernel's state as before", func() error { return s.asBefore(ctx) })
}

// asBefore compares all nodes with what they were.
func (s *scene) asBefore(ctx context.Context) error {
	for _, n := range s.Nodes() {
		was, ok := s.before[n.Name()]
		if !ok {
			continue
		}
		is, err := stateOf(ctx, n)
		if err != nil {
			return err
		}
		if d := was.diff(is); d != "" {
			return fmt.Errorf("%s: %s", n, d)
		}
	}
	return nil
}

// until waits until check returns nil and the traffic flows, and stops the
// clock: at the later of the two, where the traffic is back with the first
// ping after the last lost one.
func (s *scene) until(ctx context.Context, what string, check func() error) error {
	if err := s.wait(ctx, what, check); err != nil {
		return err
	}
	stop := time.Now()
	flowing := func() error { return s.traffic.flows() }
	if err := s.wait(ctx, "pods that reach each other", flowing); err != nil {
		return err
	}
	if err := check(); err != nil { // it has to last
		return fmt.Errorf("%s did not last: %w", what, err)
	}
	w := s.traffic.window(s.broke, time.Now().Add(-answered))
	if back := w.Last.Add(pingEvery); back.After(stop) {
		stop = back
	}
	s.stopClock(stop)
	return nil
}

// stopClock records the recovery; the first call counts.
func (s *scene) stopClock(at time.Time) {
	if !s.recorded {
		s.took, s.recorded = max(at.Sub(s.injected), 0), true
	}
}

// wait polls check for as long as a recovery may take at most.
func (s *scene) wait(ctx context.Context, what string, check func() error) error {
	return poll(ctx, s.patient, what, check)
}

func poll(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if netlab.Pause(ctx, 5*time.Millisecond) != nil {
			return fmt.Errorf("%s: not after %s: %w", what, time.Since(start).Round(time.Millisecond), err)
		}
	}
}

// settle fixes the count of pings: what is lost later is not this fault's.
func (s *scene) settle(ctx context.Context) {
	if s.lost != nil {
		return
	}
	w := s.traffic.settled(ctx, s.broke)
	s.lost = &w
}

// retell starts other traffic, for pods that have come and gone.
func (s *scene) retell() error {
	s.traffic.stop()
	t, err := s.newTraffic()
	if err != nil {
		return err
	}
	*s.traffic = *t
	return nil
}

// agents fails unless every node's agent runs and says that it is ready.
func (s *scene) agents(ctx context.Context) error {
	var all error
	for _, n := range s.Nodes() {
		if !s.has(n) {
			continue
		}
		if n.AgentPID() == 0 {
			all = errors.Join(all, fmt.Errorf("weftd on %s does not run", n))
			continue
		}
		code, body, err := n.HTTP(ctx, "/readyz")
		if err == nil && code != 200 {
			err = fmt.Errorf("weftd on %s is not ready: %s", n, strings.TrimSpace(body))
		}
		all = errors.Join(all, err)
	}
	return all
}
