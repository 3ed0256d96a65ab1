// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

const (
	pingEvery = 25 * time.Millisecond
	// answered is how old a request has to be to say that it has no answer.
	answered = 150 * time.Millisecond
	// streak is how long all pods must have reached each other for a lab to
	// be well.
	streak = 200 * time.Millisecond
	// late is how long an answer is waited for in the end.
	late = 2 * time.Second
)

// traffic is echo requests between pods of different nodes, in both
// directions along a ring of nodes and in all families.
type traffic struct {
	pingers []*netlab.Pinger
}

// startTraffic pings between the first pods of the nodes.
func startTraffic(ctx context.Context, nodes []*netlab.Node) (*traffic, error) {
	t := &traffic{}
	for i, n := range nodes {
		o := nodes[(i+1)%len(nodes)]
		if o == n || len(n.Pods()) == 0 || len(o.Pods()) == 0 {
			continue
		}
		from, to := n.Pods()[0], o.Pods()[0]
		if err := t.add(ctx, from.Place, to); err != nil {
			t.stop()
			return nil, err
		}
	}
	return t, nil
}

// add pings the pod in all families from a place.
func (t *traffic) add(ctx context.Context, from *netlab.Place, to *netlab.Pod) error {
	for _, f := range subnet.Families() {
		a, ok := to.Addr(f)
		if !ok {
			return fmt.Errorf("pod %s has no %s address", to, f)
		}
		p, err := from.StartPing(ctx, a, pingEvery)
		if err != nil {
			return err
		}
		t.pingers = append(t.pingers, p)
	}
	return nil
}

func (t *traffic) stop() {
	if t == nil {
		return
	}
	for _, p := range t.pingers {
		p.Stop()
	}
	t.pingers = nil
}

// window adds up what was sent from from to to.
func (t *traffic) window(from, to time.Time) netlab.PingWindow {
	var sum netlab.PingWindow
	if t == nil {
		return sum
	}
	for _, p := range t.pingers {
		w := p.Window(from, to)
		sum.Sent += w.Sent
		sum.Lost += w.Lost
		if w.Last.After(sum.Last) {
			sum.Last = w.Last
		}
	}
	return sum
}

// flows reports whether all requests of the last streak were answered.
func (t *traffic) flows() error {
	if t == nil || len(t.pingers) == 0 {
		return nil
	}
	to := time.Now().Add(-answered)
	w := t.window(to.Add(-streak), to)
	if w.Sent == 0 {
		return fmt.Errorf("no ping was sent for %s", streak)
	}
	if w.Lost > 0 {
		return fmt.Errorf("%d of %d pings of the last %s have no answer", w.Lost, w.Sent, streak)
	}
	return nil
}

// settled waits for late answers and returns the final count since from.
func (t *traffic) settled(ctx context.Context, from time.Time) netlab.PingWindow {
	to := time.Now()
	w := t.window(from, to)
	for w.Lost > 0 && time.Since(to) < late && netlab.Pause(ctx, 20*time.Millisecond) == nil {
		w = t.window(from, to)
	}
	return w
}
