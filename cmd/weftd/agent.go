// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend"
	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
)

// hostProbe is the pause between two looks at what the host must provide.
const hostProbe = 30 * time.Second

// agent joins the packages for the lifetime of the process. Its goroutines
// share nothing but the atomic values here; each holds the latest of what
// one goroutine writes and others read.
type agent struct {
	o     *options
	log   *logrus.Logger
	store *etcd.Store

	phase      atomic.Pointer[string]           // what the start waits for; nil when done
	held       atomic.Pointer[subnet.Problem]   // why the lease is lost; nil while held
	host       atomic.Pointer[[]subnet.Problem] // what is wrong with the host
	snapshot   atomic.Pointer[subnet.Snapshot]
	reconciler atomic.Pointer[overlay.Reconciler]
	network    atomic.Pointer[subnet.Config]
	published  atomic.Bool                    // subnet.env and the CNI configuration are in place
	unwritten  atomic.Pointer[string]         // why they are not
	underlay   atomic.Pointer[subnet.Problem] // why no underlay is found now; nil while one is
}

func newAgent(o *options, log *logrus.Logger) *agent { return &agent{o: o, log: log} }

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
	a.store, err = etcd.New(storeOptions(a.o, a.log.WithField("node", a.o.NodeName)))
	if err != nil {
		return err
	}
	defer a.store.Close() // nothing is lost by closing late

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
	a.waitFor("waiting for the network configuration in etcd")
	cfg, err := a.store.Config(ctx)
	if err != nil {
		return err
	}
	a.network.Store(&cfg)
	unlock, err := lock(lockDir(filepath.Dir(api.DefaultSocket), filepath.Dir(a.o.Socket)), cfg.Backend.VNI, a.o.NodeName)
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
func (a *agent) keep(ctx context.Context, cfg subnet.Config, instance string, underlays []overlay.Underlay) error {
	names := presetFor(a.o.FlannelCompat).names
	devices := deviceNames(names, cfg.Backend.VNI)
	kernel, err := backend.New(backend.Options{Devices: devices, Log: a.log})
	if err != nil {
		return err
	}
	defer kernel.Close()
	monitor, err := backend.NewMonitor(devices)
	if err != nil {
		return err
	}

	changed := make(chan struct{}, 1)
	r := overlay.NewReconciler(kernel, overlay.Options{
		Config: cfg, Log: a.log.WithField("node", a.o.NodeName),
		OnStatus: func(overlay.Status) { poke(changed) },
	})
	a.reconciler.Store(r)
	a.waitFor("")

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.Run(ctx) })
	g.Go(func() error { return a.watchHost(ctx) })
	g.Go(func() error {
		return a.store.Watch(ctx, cfg, func(s subnet.Snapshot) {
			a.snapshot.Store(&s)
			r.SetSnapshot(s)
		})
	})
	hostChanged := make(chan struct{}, 1)
	g.Go(func() error { return monitor.Run(ctx, r.Poke, func() { poke(hostChanged) }) })
	g.Go(func() error {
		n := node{a: a, cfg: cfg, instance: instance, set: func(l subnet.Lease, u []overlay.Underlay) {
			r.SetSelf(overlay.Self{Lease: l, Underlays: u, Names: names})
		}}
		return n.follow(ctx, underlays, hostChanged)
	})
	g.Go(func() error {
		err := a.publish(ctx, changed, cfg, r)
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

// probe looks once at the host, and at the configuration in the store. A
// kernel that cannot carry the overlay is an error; what an operator can mend
// is a Problem, logged when it appears and when it is gone.
func (a *agent) probe(ctx context.Context) error {
	problems, err := backend.Probe(ctx)
	if err != nil {
		return err
	}
	problems = append(problems, a.configChange(ctx)...)
	var before []subnet.Problem
	if last := a.host.Swap(&problems); last != nil {
		before = *last
	}
	for _, p := range problems {
		if !slices.Contains(before, p) {
			a.log.Warn(p.String())
		}
	}
	for _, p := range before {
		if !slices.Contains(problems, p) {
			a.log.Infof("%s %s: solved", p.Kind, p.Object)
		}
	}
	return nil
}

// configChange reports a configuration in the store that is not the one this
// agent runs with: new and restarted nodes would join another network. While
// the store does not answer there is nothing to report.
func (a *agent) configChange(ctx context.Context) []subnet.Problem {
	cfg := a.network.Load()
	if cfg == nil {
		return nil
	}
	what, err := a.store.ConfigChange(ctx, *cfg)
	if err != nil || what == "" {
		return nil
	}
	return []subnet.Problem{{Kind: "ConfigChanged", Object: a.o.EtcdPrefix + "/config", Detail: what}}
}

// watchHost probes from time to time: forwarding may be switched on or off
// under a running agent.
func (a *agent) watchHost(ctx context.Context) error {
	for {
		if err := sleep(ctx, hostProbe); err != nil {
			return err
		}
		if err := a.probe(ctx); err != nil {
			a.log.WithField("err", err).Debug("the host could not be probed")
		}
	}
}

// hold keeps the lease. When it is lost for good the agent stays, not ready
// and saying why: the pods of this node still have their data plane, and only
// an operator can tell which of two claimants is right.
func (a *agent) hold(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
	a.held.Store(nil)
	err := a.store.Hold(ctx, cfg, want, granted)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if a.o.Once {
		return err
	}
	a.held.Store(&subnet.Problem{Kind: "LeaseLost", Object: a.o.NodeName, Detail: err.Error()})
	a.log.WithField("err", err).Error("lease lost; this node no longer takes part until weftd is restarted")
	<-ctx.Done()
	return ctx.Err()
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

func storeOptions(o *options, log logrus.FieldLogger) etcd.Options {
	return etcd.Options{
		Endpoints: o.EtcdEndpoints, Prefix: o.EtcdPrefix,
		CAFile: o.EtcdCAFile, CertFile: o.EtcdCertFile, KeyFile: o.EtcdKeyFile,
		Username: o.EtcdUsername, Password: o.EtcdPassword, Insecure: o.EtcdInsecure,
		LeaseTTL: o.LeaseTTL, RenewMargin: o.RenewMargin,
		Defaults: subnet.Defaults{Flannel: o.FlannelCompat}, Log: log,
	}
}
