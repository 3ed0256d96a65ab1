// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// node follows what this node is: its addresses as the host changes, the
// configuration, and the lease as the store grants it. One goroutine (follow)
// owns it; tenure belongs to the one that holds the lease.
type node struct {
	a         *agent
	instance  string
	set       func(overlay.Self) // tells the reconciler
	underlays []overlay.Underlay
	addrs     []netip.Addr // of this network namespace
	lease     subnet.Lease
	goneSince map[subnet.Family]time.Time
	tenure    tenure
	conns     []connected // beside the store's

	retry, settle time.Duration                  // fenceRetry and fenceSettle, but in tests
	pods          func(ctx context.Context) bool // havePods, but in tests
}

// follow holds the lease and hands what this node is to set, again whenever
// that changes, until ctx ends. A change of what is announced asks the store
// again; a change of MTU or device alone does not. changed is poked when the
// host or the configuration may have changed.
func (n *node) follow(ctx context.Context, underlays []overlay.Underlay, changed <-chan struct{}) error {
	n.underlays, n.goneSince = underlays, map[subnet.Family]time.Time{}
	n.look(ctx)
	for {
		want, notes, err := n.a.request(n.instance, n.underlays)
		if err != nil {
			return err
		}
		n.a.problems.set(partLease, notes...)
		if err := n.holdUntilOther(ctx, want, changed); err != nil {
			return err
		}
	}
}

// holdUntilOther returns nil when another lease has to be announced, or it has
// to be judged by other networks. The one there is stays in the store meanwhile,
// and in the kernel.
func (n *node) holdUntilOther(outer context.Context, want subnet.Lease, changed <-chan struct{}) error {
	g, ctx := errgroup.WithContext(outer)
	ctx, other := context.WithCancel(ctx)
	defer other()
	networks := n.a.network.Load().Networks
	granted := make(chan subnet.Lease)
	g.Go(func() error {
		return n.hold(ctx, want, func(l subnet.Lease) {
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
			n.tell()
			continue
		case <-changed:
			err = sleep(ctx, underlaySettle)
		case <-time.After(underlayPatience):
		}
		if err != nil {
			break
		}
		n.look(ctx)
		next, ok := n.announcesOther(want)
		if !ok && slices.Equal(networks, n.a.network.Load().Networks) {
			continue
		}
		other()
		_ = g.Wait() // only says that it was ended
		if !sameAddresses(next, want) {
			n.reconnect(outer)
		}
		return nil
	}
	return g.Wait()
}

// connected is what has connections, and drops them.
type connected interface {
	Reconnect(ctx context.Context) error
}

// reconnect drops the connections from an address that this node has no more:
// what was sent from there is not answered.
func (n *node) reconnect(ctx context.Context) {
	for _, c := range append([]connected{n.a.store}, n.conns...) {
		if err := c.Reconnect(ctx); err != nil {
			n.a.log.WithField("err", err).Debug("the connection from the old address")
		}
	}
}

// look finds this node's addresses again and tells when they have changed.
func (n *node) look(ctx context.Context) {
	cfg := *n.a.network.Load()
	found, err := n.a.findUnderlays(ctx, cfg)
	n.a.tellUnderlay(ctx, err)
	if err != nil {
		found = nil // all are gone, for now
	}
	next := settle(n.underlays, found, n.goneSince, time.Now())
	addrs, err := backend.LocalAddrs(ctx)
	if err != nil {
		addrs = n.addrs
		n.a.log.WithField("err", err).Debug("this node's addresses could not be read")
	}
	if slices.Equal(next, n.underlays) && slices.Equal(addrs, n.addrs) {
		return
	}
	if !slices.Equal(next, n.underlays) {
		n.a.logUnderlays(next)
	}
	n.underlays, n.addrs = next, addrs
	n.tell()
}

// tell hands what this node is to the reconciler, once it has a lease.
func (n *node) tell() {
	if len(n.lease.Paths) == 0 {
		return
	}
	o, cfg := n.a.o, *n.a.network.Load()
	self := overlay.Self{
		Lease: n.lease, Underlays: n.underlays, Names: presetFor(o.FlannelCompat).names,
		Guard: o.selfGuard(), Masquerade: o.IPMasq, Bridge: bridge, NoGRO: !o.DeviceGRO, Addresses: ownAddresses(cfg, n.lease, n.addrs),
	}
	n.a.self.Store(&self)
	n.set(self)
}

// ownAddresses are the addresses at which pods reach this node: those found,
// and those that our devices have or will have, so that nothing changes when
// they appear. An address inside the pod networks that is not of our subnets
// is left out: it is left from a subnet that may be another node's by now. Of
// open networks that cannot be told.
func ownAddresses(cfg subnet.Config, lease subnet.Lease, found []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range found {
		inside := func(n subnet.Network) bool { return !n.Open() && n.Prefix.Contains(a) }
		ours := func(p subnet.Path) bool { return p.Subnet.Contains(a) }
		if !slices.ContainsFunc(cfg.Networks, inside) || slices.ContainsFunc(lease.Paths, ours) {
			out = append(out, a)
		}
	}
	for _, p := range lease.Paths {
		out = append(out, p.Subnet.Addr(), gateway(p).Addr())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// announcesOther returns the lease that this node as it is now asks for, and
// whether that is another than want, apart from the subnets.
func (n *node) announcesOther(want subnet.Lease) (subnet.Lease, bool) {
	next, notes, err := n.a.request(n.instance, n.underlays)
	if err != nil {
		return next, false
	}
	n.a.problems.set(partLease, notes...)
	for i := range next.Paths {
		next.Paths[i].Subnet = want.Paths[i].Subnet
	}
	return next, !next.Equal(want)
}

// sameAddresses reports whether a and b announce the same addresses.
func sameAddresses(a, b subnet.Lease) bool {
	same := func(x, y subnet.Path) bool { return x.Underlay == y.Underlay }
	return slices.EqualFunc(a.Paths, b.Paths, same) && slices.Equal(a.Sources, b.Sources)
}
