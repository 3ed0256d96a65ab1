// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend"
	"weft.dev/weft/overlay"
	"weft.dev/weft/policy/enforce"
	"weft.dev/weft/subnet"
)

// agent joins the packages for the lifetime of the process. Its goroutines
// share nothing but the values here; each atomic one holds the latest of what
// one goroutine writes and others read.
type agent struct {
	o        *options
	log      *logrus.Logger
	store    store
	problems *board

	phase      atomic.Pointer[string]         // what the start waits for; nil when done
	network    atomic.Pointer[subnet.Config]  // in force
	held       atomic.Pointer[subnet.Problem] // why the lease is lost; nil while held
	downSince  atomic.Pointer[time.Time]      // of this node's own data plane; nil while it is not down
	self       atomic.Pointer[overlay.Self]   // what the reconciler was told of this node
	known      atomic.Pointer[[]netip.Addr]   // by which the store's cluster knows this node, as last told
	snapshot   atomic.Pointer[subnet.Snapshot]
	reconciler atomic.Pointer[overlay.Reconciler]
	counters   atomic.Pointer[counters]
	enforcer   atomic.Pointer[enforce.Enforcer] // nil where there is none, or not yet
	noCopies   atomic.Bool                      // the kernel copies no refused packets
	bound      atomic.Pointer[os.FileInfo]      // the socket as it was made
	published  atomic.Bool                      // subnet.env and the CNI configuration are in place
	unwritten  atomic.Pointer[string]           // why they are not
}

// counters reads what the ingress guard has refused, by reason.
type counters func(context.Context) (map[string]uint64, error)

func newAgent(o *options, log *logrus.Logger) *agent {
	return &agent{o: o, log: log, problems: &board{log: log}}
}

// run returns when ctx ends, after the first sync with --once, or when the
// node cannot be served at all. It leaves the data plane and the lease.
func (a *agent) run(ctx context.Context) error {
	for _, n := range a.o.notes {
		a.log.Info(n)
	}
	instance, err := instanceID(a.o.StateDir)
	if err != nil {
		return err
	}
	if err := a.o.remember(); err != nil {
		return err
	}
	a.store, err = newStore(a.o, a.log.WithField("node", a.o.NodeName))
	if err != nil {
		return err
	}
	defer func() { _ = a.store.Close() }() // nothing is lost by closing late

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.serve(ctx) })
	g.Go(func() error {
		err := a.runOverlay(ctx, instance)
		if a.o.Once && err == nil { // after an error the group ends by itself, and with it
			cancel()
		}
		return err
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// runOverlay waits for what the overlay needs, in order, then keeps it.
func (a *agent) runOverlay(ctx context.Context, instance string) error {
	a.waitFor("waiting for the network configuration, " + a.o.configText())
	cfg, err := a.store.Config(ctx)
	if err != nil {
		return err
	}
	a.network.Store(&cfg)
	unlock, err := a.claim(ctx, cfg.Backend.VNI)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.probe(ctx); err != nil {
		return err
	}
	underlays, err := a.underlays(ctx, cfg)
	if err != nil {
		return err
	}
	return a.keep(ctx, cfg, instance, underlays)
}

// keep holds the lease, watches the others and reconciles, until ctx ends.
// The first two goroutines are the path of a peer's lease, from the store to
// the kernel; the others are about this node.
func (a *agent) keep(ctx context.Context, cfg subnet.Config, instance string, underlays []overlay.Underlay) error {
	devices := deviceNames(presetFor(a.o.FlannelCompat).names, cfg.Backend.VNI)
	kernel, err := backend.New(backend.Options{Devices: devices, Filter: a.o.filters(), Log: a.log})
	if err != nil {
		return err
	}
	defer kernel.Close()
	monitor, err := kernel.Monitor()
	if err != nil {
		return err
	}
	passed, moved, probe, health := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	r := overlay.NewReconciler(kernel, a.reconcilerOptions(cfg, passed, health))
	a.reconciler.Store(r)
	a.countWith(kernel)
	a.waitFor("")
	told, leased := make(chan struct{}, 1), make(chan struct{}, 1)
	policies, err := a.newPolicies(ctx)
	if err != nil {
		return err
	}
	defer policies.close()
	set := func(s overlay.Self) {
		r.SetSelf(s)
		policies.setPlace(s, a.network.Load().Networks)
		poke(told)
		poke(leased)
	}
	n := &node{a: a, instance: instance, set: set, retry: fenceRetry, settle: fenceSettle, pods: havePods, conns: policies.connections()}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.store.Watch(ctx, cfg, func(s subnet.Snapshot) {
			a.snapshot.Store(&s)
			r.SetSnapshot(s)
			poke(leased)
		})
	})
	g.Go(func() error { return r.Run(ctx) })
	g.Go(func() error { return n.follow(ctx, underlays, moved) })
	g.Go(func() error {
		return a.followConfig(ctx, cfg, leased, func(c subnet.Config) { r.SetConfig(c); poke(moved) })
	})
	g.Go(func() error {
		return monitor.Run(ctx, r.Poke, func() { poke(moved); poke(probe) })
	})
	g.Go(func() error { return policies.run(ctx) })
	g.Go(func() error { return a.watchHost(ctx, probe) })
	g.Go(func() error { return a.sweep(ctx, told) })
	g.Go(func() error { return a.reportHealth(ctx, health) })
	g.Go(func() error {
		err := a.publish(ctx, passed, r)
		if a.o.Once && err == nil {
			cancel()
		}
		return err
	})
	err = g.Wait()
	if a.o.Once && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// reconcilerOptions make the reconciler poke each of passed after a pass.
func (a *agent) reconcilerOptions(cfg subnet.Config, passed ...chan<- struct{}) overlay.Options {
	hold := a.o.MassRemovalHold
	if hold == 0 {
		hold = -1 // to the reconciler, 0 is the default
	}
	return overlay.Options{
		Config: cfg, Log: a.log.WithField("node", a.o.NodeName), MassRemovalHold: hold,
		OnStatus: func(st overlay.Status) {
			a.watchDown(st)
			for _, p := range passed {
				poke(p)
			}
		},
	}
}

func deviceNames(names overlay.Names, vni uint32) []string {
	var out []string
	for _, f := range subnet.Families() {
		out = append(out, fmt.Sprint(names[f], vni))
	}
	return out
}

// waitFor notes what the start waits for; "" when it waits for nothing.
func (a *agent) waitFor(what string) {
	if what == "" {
		a.phase.Store(nil)
		return
	}
	a.phase.Store(&what)
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
