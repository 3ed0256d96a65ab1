// SPDX-License-Identifier: Apache-2.0

package data

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// The variants, in the order of samples' columns.
const (
	host        = iota // node to node over the wire of the few
	weftFew            // pods of weft, two peers
	byhand             // pods of the pair by hand
	weftMany           // pods of weft, as many peers as asked for
	weftFree           // as weftFew, with nodes whose bridges do not call the rules for IP
	weftPlain          // pods of weft, whose devices do not merge packets
	weftOpen           // pods of weft without ingress guard
	weftTwin           // as weftFew, on nodes of their own: what differs is noise
	weftTen            // as weftFew, under fewPolicies that isolate both pods
	weftMuch           // as weftFew, under manyPolicies
	weftGuarded        // as weftTen, and pods are kept to their addresses
	variants
)

// A trial is one kind of traffic in one family on one kind of wire.
type trial struct {
	kind   string
	family subnet.Family
	wire   wire
	bare   bool  // without kube-proxy's rules
	of     []int // variants
}

// A wire is how packets of a stream go from node to node.
type wire string

const (
	gso      wire = "GSO wire"                       // as large as the sender has them
	merging  wire = "segmented wire"                 // at most the MTU, merged by the receiving end
	separate wire = "segmented wire without merging" // and left as they are
)

// samples are what a trial has seen: for each variant one answer a round.
type samples struct {
	trial
	got [variants][]seen
}

// span is how long one sample takes.
func (t trial) span() time.Duration {
	switch t.kind {
	case pingers, packets:
		return 150 * time.Millisecond
	}
	return 300 * time.Millisecond
}

// trials are all of them.
func (q Request) trials() []trial {
	most := []int{host, weftFew, byhand, weftMany, weftPlain}
	var out []trial
	for _, f := range subnet.Families() {
		out = append(out,
			trial{stream, f, gso, false, []int{host, weftFew, byhand, weftPlain}},
			trial{stream, f, merging, false, most},
			// Without merging, the host's own TCP would not be merged either, as
			// cards that fail at tunnels only do merge it: it is no measure.
			trial{stream, f, separate, false, []int{weftFew, byhand, weftPlain}},
			trial{pingers, f, gso, false, append(slices.Clone(most), weftOpen, weftTwin)},
			trial{packets, f, gso, false, append(slices.Clone(most), weftOpen, weftTwin, weftTen, weftMuch, weftGuarded)},
			trial{connect, f, gso, false, []int{host, weftFew, byhand, weftPlain, weftOpen, weftTwin, weftTen, weftMuch, weftGuarded}})
	}
	for _, f := range subnet.Families() {
		of := []int{host, weftFew, byhand, weftFree, weftOpen}
		out = append(out, trial{pingers, f, gso, true, of}, trial{connect, f, gso, true, of})
	}
	return slices.DeleteFunc(out, func(t trial) bool { return len(q.Kinds) > 0 && !slices.Contains(q.Kinds, t.kind) })
}

// lane is where a variant's traffic runs.
type lane struct {
	client, server *worker
	at             [2]netip.Addr // the server's, by family
}

// stageSet is a scene with workers.
type stageSet struct {
	*scene
	lanes  [variants]lane
	hired  []*worker
	police [2]*police
}

// staff hires the workers.
func (s *scene) staff() (*stageSet, error) {
	st := &stageSet{scene: s}
	pair := func(v int, client, server *netlab.Place, at func(f subnet.Family) netip.Addr) error {
		l := &st.lanes[v]
		for _, e := range []struct {
			w **worker
			p *netlab.Place
		}{{&l.client, client}, {&l.server, server}} {
			w, err := hire(e.p)
			if err != nil {
				return err
			}
			*e.w = w
			st.hired = append(st.hired, w)
		}
		for i, f := range subnet.Families() {
			l.at[i] = at(f)
		}
		return nil
	}
	err := pair(host, s.nodes[few][0].Place, s.nodes[few][1].Place, func(f subnet.Family) netip.Addr { return wireAddr(f, few, 1).Addr() })
	for v, p := range map[int]int{weftFew: few, byhand: hand, weftMany: many, weftPlain: plain, weftOpen: unguarded, weftTwin: twin} {
		if err == nil {
			err = pair(v, s.pods[p][0].Place, s.pods[p][1].Place, func(f subnet.Family) netip.Addr {
				a, _ := s.pods[p][1].Addr(f)
				return a
			})
		}
	}
	for _, v := range []int{weftFree, weftTen, weftMuch, weftGuarded} {
		st.lanes[v] = st.lanes[weftFew]
	}
	return st, err
}

func (st *stageSet) dismiss() (err error) {
	for _, w := range st.hired {
		if e := w.dismiss(); err == nil {
			err = e
		}
	}
	return err
}

// run makes all rounds of a trial, each in an order of its own.
func (st *stageSet) run(ctx context.Context, t trial) (out samples, err error) {
	out.trial = t
	for p := range pairs {
		for _, n := range st.nodes[p] {
			if err := segmented(n.Place, wireDev, t.wire != gso, t.wire == merging); err != nil {
				return out, err
			}
		}
	}
	if err := st.proxied(ctx, !t.bare); err != nil {
		return out, err
	}
	stop, err := st.wake(t)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	order := rand.New(rand.NewPCG(3, 4))           // the same in each run
	for round := -1; round < st.q.Pairs; round++ { // the first is to warm up
		for _, i := range order.Perm(len(t.of)) {
			v := t.of[i]
			s, err := st.sample(ctx, t, v)
			if err != nil {
				return out, fmt.Errorf("%s: %w", t, err)
			}
			if round >= 0 {
				out.got[v] = append(out.got[v], s)
			}
		}
	}
	return out, nil
}

// wake keeps the CPUs awake during trials whose figure is a time: a virtual
// CPU that sleeps takes longer to wake than a packet on its way. What CPU
// time is counted for must not be spoilt by it.
func (st *stageSet) wake(t trial) (stop func() error, err error) {
	var awake []*worker
	stop = func() (err error) {
		for _, w := range awake {
			err = errors.Join(err, w.dismiss())
		}
		return err
	}
	if t.kind == stream || t.kind == packets { // the latter has no sleeper
		return stop, nil
	}
	for cpu := range 2 { // those that samples use
		w, err := hire(st.lab.Fabric())
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		awake = append(awake, w)
		if err := w.tell(order{Kind: spin, CPU: cpu}); err != nil {
			return nil, errors.Join(err, stop())
		}
	}
	return stop, nil
}

func (t trial) String() string {
	s := fmt.Sprintf("%s %s, %s", t.family, t.kind, t.wire)
	if t.bare {
		s += ", no kube-proxy"
	}
	return s
}

// sample is one measurement of a variant.
func (st *stageSet) sample(ctx context.Context, t trial, v int) (s seen, err error) {
	if err := ctx.Err(); err != nil {
		return s, err
	}
	if v == weftFree {
		if err := st.free(true); err != nil {
			return s, err
		}
		defer func() {
			if e := st.free(false); err == nil {
				err = e
			}
		}()
	}
	if count := map[int]int{weftTen: fewPolicies, weftMuch: manyPolicies, weftGuarded: fewPolicies}[v]; count > 0 {
		if err := st.enforce(ctx, count, v == weftGuarded); err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, st.lift(context.WithoutCancel(ctx))) }()
		if err := netlab.Pause(ctx, policySettle); err != nil {
			return s, err
		}
	}
	l := st.lanes[v]
	at := l.at[0]
	if t.family == subnet.IPv6 {
		at = l.at[1]
	}
	o := order{Kind: t.kind, Server: true, At: netip.AddrPortFrom(at, 0), For: t.span()}
	if t.kind == stream || t.kind == packets {
		o.CPU = 1 // both ends work at the same time
	}
	if err := l.server.tell(o); err != nil {
		return s, err
	}
	listening, err := l.server.hear()
	if err != nil {
		return s, err
	}
	o.Server, o.CPU, o.At = false, 0, netip.AddrPortFrom(at, listening.Port)
	if err := l.client.tell(o); err != nil {
		return s, err
	}
	sent, err := l.client.hear()
	if err != nil {
		l.server.cmd.Process.Kill() // it may wait for a client that is not to come
		_, other := l.server.hear()
		return s, errors.Join(err, other)
	}
	got, err := l.server.hear()
	switch {
	case err != nil:
		return s, err
	case t.kind == stream:
		return got, nil
	case t.kind == packets && got.Count == 0: // most may find the socket full, but that is at the end of the path
		return s, fmt.Errorf("variant %d: %d of %d packets came", v, got.Count, sent.Count)
	}
	return sent, nil
}

// free has the bridges of the few call no rules for IP, or call them again.
func (st *stageSet) free(on bool) error {
	for _, n := range st.nodes[few] {
		if err := bridgeCalls(n.Place, !on); err != nil {
			return err
		}
	}
	return nil
}
