// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

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

// tellUnderlay makes it a Problem that no underlay is found: the devices stay,
// but what they send goes nowhere.
func (a *agent) tellUnderlay(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		a.problems.set(partUnderlay)
	default:
		a.problems.set(partUnderlay, subnet.Problem{Kind: "NoUnderlay", Object: a.o.NodeName, Detail: err.Error()})
	}
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

// nodeAddresser is a store of a cluster, which knows this node by addresses of
// its own: those that kubelet reports.
type nodeAddresser interface {
	NodeAddresses(ctx context.Context) ([]netip.Addr, error)
}

// nodeAddrs returns the addresses by which the store's cluster knows this node,
// the last known ones while it does not say.
func (a *agent) nodeAddrs(ctx context.Context) ([]netip.Addr, error) {
	s, ok := a.store.(nodeAddresser)
	if !ok {
		return nil, nil
	}
	addrs, err := s.NodeAddresses(ctx)
	// A Node that has been registered anew may have none for a moment.
	if last := a.known.Load(); last != nil && len(addrs) == 0 {
		return *last, nil
	}
	if err == nil {
		a.known.Store(&addrs)
	}
	return addrs, err
}

// findUnderlays looks for this node's underlays as they are now.
func (a *agent) findUnderlays(ctx context.Context, cfg subnet.Config) ([]overlay.Underlay, error) {
	spec := a.spec(cfg)
	if len(spec.Ifaces)+len(spec.Regexes)+len(spec.CanReach) == 0 {
		var err error
		if spec.NodeAddrs, err = a.nodeAddrs(ctx); err != nil {
			return nil, err
		}
	}
	return backend.FindUnderlays(ctx, spec, families(cfg))
}

// spec says where to look for underlays: never on our own devices.
func (a *agent) spec(cfg subnet.Config) backend.UnderlaySpec {
	skip := deviceNames(presetFor(a.o.FlannelCompat).names, cfg.Backend.VNI)
	spec := backend.UnderlaySpec{Skip: skip, Ifaces: a.o.Ifaces, Regexes: a.o.IfaceRegexes, CanReach: a.o.CanReach, PublicIPs: a.o.PublicIPs}
	if self := a.self.Load(); self != nil {
		for _, u := range self.Underlays {
			spec.Keep = append(spec.Keep, u.Addr)
		}
	}
	return spec
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
		found, err := a.findUnderlays(ctx, cfg)
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

func underlayOf(list []overlay.Underlay, f subnet.Family) (overlay.Underlay, bool) {
	for _, u := range list {
		if subnet.FamilyOf(u.Addr) == f {
			return u, true
		}
	}
	return overlay.Underlay{}, false
}
