// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

const (
	// underlayRetry is the pause between looks for an underlay address: at
	// boot the agent may be up before the network is.
	underlayRetry = 2 * time.Second
	// underlaySettle is how long to wait after an event on the host before
	// looking: events come in bursts.
	underlaySettle = 300 * time.Millisecond
	// underlayPatience is how long a family keeps its underlay after its
	// address has gone. A link that flaps loses IPv6 addresses for a moment;
	// moving to the other family and back would cost more than waiting.
	underlayPatience = 30 * time.Second
)

// node follows what this node is: its underlay addresses as the host changes,
// and the lease as the store grants it. One goroutine (follow) owns it.
type node struct {
	a         *agent
	cfg       subnet.Config
	instance  string
	set       func(subnet.Lease, []overlay.Underlay) // tells the reconciler
	underlays []overlay.Underlay
	lease     subnet.Lease
	goneSince map[subnet.Family]time.Time
}

// follow holds the lease and hands lease and underlays to set, again whenever
// either changes, until ctx ends. A change of the announced addresses asks
// the store again; a change of MTU or device alone does not.
func (n *node) follow(ctx context.Context, underlays []overlay.Underlay, changed <-chan struct{}) error {
	n.underlays, n.goneSince = underlays, map[subnet.Family]time.Time{}
	for {
		want, err := n.a.request(n.cfg, n.instance, n.underlays)
		if err != nil {
			return err
		}
		if err := n.holdUntilMoved(ctx, want, changed); err != nil {
			return err
		}
	}
}

// holdUntilMoved returns nil when other addresses have to be announced.
func (n *node) holdUntilMoved(outer context.Context, want subnet.Lease, changed <-chan struct{}) error {
	g, ctx := errgroup.WithContext(outer)
	ctx, moved := context.WithCancel(ctx)
	defer moved()
	granted := make(chan subnet.Lease)
	g.Go(func() error {
		return n.a.hold(ctx, n.cfg, want, func(l subnet.Lease) {
			select {
			case granted <- l:
			case <-ctx.Done():
			}
		})
	})
	var err error
	for err == nil {
		select {
		case <-ctx.Done():
			return g.Wait()
		case l := <-granted:
			n.lease = l
			n.set(n.lease, n.underlays)
			continue
		case <-changed:
			err = sleep(ctx, underlaySettle)
		case <-time.After(underlayPatience):
		}
		if err == nil && n.look(ctx) && n.announcesOther(want) {
			moved()
			_ = g.Wait() // only says that it was ended
			// What was sent from the old address is not answered any more.
			if err := n.a.store.Reconnect(outer); err != nil {
				n.a.log.WithField("err", err).Debug("the connection from the old address")
			}
			return nil
		}
	}
	return g.Wait()
}

// look finds the underlays again and reports whether they have changed.
func (n *node) look(ctx context.Context) bool {
	found, err := backend.FindUnderlays(ctx, n.a.spec(n.cfg), families(n.cfg))
	n.a.tellUnderlay(ctx, err)
	if err != nil {
		found = nil // all are gone, for now
	}
	next := settle(n.underlays, found, n.goneSince, time.Now())
	if slices.Equal(next, n.underlays) {
		return false
	}
	n.a.logUnderlays(next)
	n.underlays = next
	if len(n.lease.Paths) > 0 {
		n.set(n.lease, n.underlays)
	}
	return true
}

// tellUnderlay makes it a Problem, and logs the edges, that no underlay is
// found: the devices stay, but what they send goes nowhere.
func (a *agent) tellUnderlay(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if a.underlay.Swap(nil) != nil {
			a.log.Info("there is an underlay again")
		}
	default:
		if a.underlay.Swap(&subnet.Problem{Kind: "NoUnderlay", Object: a.o.NodeName, Detail: err.Error()}) == nil {
			a.log.WithField("err", err).Warn("the underlay is gone")
		}
	}
}

// announcesOther reports whether the underlays as they are now make another
// lease than want, apart from the subnets.
func (n *node) announcesOther(want subnet.Lease) bool {
	next, err := n.a.request(n.cfg, n.instance, n.underlays)
	if err != nil {
		return false
	}
	for i := range next.Paths {
		next.Paths[i].Subnet = want.Paths[i].Subnet
	}
	return !next.Equal(want)
}

// settle decides what to go by: what was found, and for a family of which
// nothing was found what it had, until it has been gone for underlayPatience.
// The last underlay is never given up: there would be nothing to go by. Nor
// does time count while nothing is found at all: after an outage of the link,
// IPv6 comes back seconds later than IPv4.
func settle(had, found []overlay.Underlay, goneSince map[subnet.Family]time.Time, now time.Time) []overlay.Underlay {
	if len(found) == 0 {
		clear(goneSince)
		return slices.Clone(had)
	}
	next := slices.Clone(found)
	for _, u := range found {
		delete(goneSince, subnet.FamilyOf(u.Addr))
	}
	for _, u := range had {
		f := subnet.FamilyOf(u.Addr)
		if _, ok := underlayOf(found, f); ok {
			continue
		}
		since, ok := goneSince[f]
		if !ok {
			since = now
			goneSince[f] = now
		}
		if now.Sub(since) < underlayPatience {
			next = append(next, u)
		}
	}
	slices.SortFunc(next, func(x, y overlay.Underlay) int { return int(subnet.FamilyOf(x.Addr)) - int(subnet.FamilyOf(y.Addr)) })
	return next
}

// spec says where to look for underlays: never on our own devices.
func (a *agent) spec(cfg subnet.Config) backend.UnderlaySpec {
	skip := deviceNames(presetFor(a.o.FlannelCompat).names, cfg.Backend.VNI)
	return backend.UnderlaySpec{Skip: skip, Ifaces: a.o.Ifaces, Regexes: a.o.IfaceRegexes, CanReach: a.o.CanReach, PublicIPs: a.o.PublicIPs}
}

func (a *agent) logUnderlays(list []overlay.Underlay) {
	for _, u := range list {
		a.log.WithFields(logrus.Fields{"dev": u.Dev, "dst": u.Addr}).Infof("underlay with MTU %d", u.MTU)
	}
}

// underlays finds the devices that carry outer packets, waiting until there
// is one.
func (a *agent) underlays(ctx context.Context, cfg subnet.Config) ([]overlay.Underlay, error) {
	last := ""
	for {
		found, err := backend.FindUnderlays(ctx, a.spec(cfg), families(cfg))
		if err == nil {
			a.logUnderlays(found)
			return found, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if a.o.Once {
			return nil, err
		}
		if err.Error() != last {
			last = err.Error()
			a.log.WithField("err", err).Warn("no underlay yet; looking again every " + underlayRetry.String())
		}
		a.waitFor("waiting for an underlay address: " + last)
		if err := sleep(ctx, underlayRetry); err != nil {
			return nil, err
		}
	}
}

// families returns the underlay families to look for: first those of the pod
// networks, then the other, which serves where the first is missing.
func families(cfg subnet.Config) []subnet.Family {
	var out []subnet.Family
	for _, n := range cfg.Networks {
		out = append(out, subnet.FamilyOf(n.Prefix.Addr()))
	}
	if len(out) == 1 {
		out = append(out, out[0].Other())
	}
	return out
}

// request is the lease this node asks for: one path for each pod network, on
// the underlay of its own family where there is one and else on the other;
// the subnets held before, from the subnet file, are hints.
func (a *agent) request(cfg subnet.Config, instance string, underlays []overlay.Underlay) (subnet.Lease, error) {
	l := subnet.Lease{Node: a.o.NodeName, Instance: instance, Backend: cfg.Backend.Type}
	if cfg.Backend.Type != subnet.BackendVXLAN {
		return l, fmt.Errorf("backend type %q in the network configuration: this version of weftd programs %q only", cfg.Backend.Type, subnet.BackendVXLAN)
	}
	previous, err := subnet.ReadSubnetEnv(a.o.SubnetFile)
	if err != nil {
		a.log.WithField("err", err).Debug("no previous subnet")
	}
	for _, n := range cfg.Networks {
		f := subnet.FamilyOf(n.Prefix.Addr())
		u, ok := underlayOf(underlays, f)
		if !ok {
			if u, ok = underlayOf(underlays, f.Other()); !ok {
				return l, fmt.Errorf("no underlay address of either family for network %s", n.Prefix)
			}
		}
		uf := subnet.FamilyOf(u.Addr)
		p := subnet.Path{
			Underlay: a.announced(u), VNI: cfg.Backend.VNI,
			MAC: subnet.DeriveMAC(a.o.EtcdPrefix, cfg.Backend.VNI, uf, a.o.NodeName),
		}
		for _, s := range previous.Subnets {
			if subnet.FamilyOf(s.Addr()) == f {
				p.Subnet = s.Masked()
			}
		}
		l.Paths = append(l.Paths, p)
	}
	return l, nil
}

// announced is the address peers send to: the public address given for this
// family, else the underlay's own.
func (a *agent) announced(u overlay.Underlay) netip.Addr {
	for _, ip := range a.o.PublicIPs {
		if subnet.FamilyOf(ip) == subnet.FamilyOf(u.Addr) {
			return ip
		}
	}
	return u.Addr
}

func underlayOf(list []overlay.Underlay, f subnet.Family) (overlay.Underlay, bool) {
	for _, u := range list {
		if subnet.FamilyOf(u.Addr) == f {
			return u, true
		}
	}
	return overlay.Underlay{}, false
}
