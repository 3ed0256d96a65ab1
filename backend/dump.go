// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// Dump implements overlay.Kernel. A device of ours that does not exist adds
// nothing; one that is no VXLAN device is a ForeignDeviceError.
//
// It returns, of each own device: all addresses but IPv6 link-local ones;
// permanent unicast neighbours; FDB entries with a destination; unicast routes
// of the main table except those the kernel made itself (protocol 2). Of other
// devices it returns the main table's routes that carry our mark, and of
// protocol 3 (boot) gateway routes of the kind that flannel's host-gw and
// DirectRouting leave: whose those are only their prefix and gateway can tell.
// Some things that overlay's types cannot say are made to differ from anything
// wanted, so that Diff replaces or removes them:
//
//   - an FDB entry with a port, VNI, device or nexthop group of its own, or
//     one that ages, has the zero Dst (Apply deletes exactly those);
//   - a route with attributes that weft never sets (TOS, metrics, encapsulation,
//     nexthop object, further paths) has Onlink false;
//   - an address with a peer is the peer's.
//
// With Options.Filter it returns table inet weft too. The table carries what it
// was made from; a Filter's Foreign tells in what the table is another than
// weft makes from that.
//
// What like stands for costs no memory, and what is otherwise is read twice. A
// dump given up by its context leaves the rest of a table to be skipped by the
// next.
//
// An entry that somebody changes meanwhile may be missing or stale in the
// result; a table that changed under the dump is read again.
func (k *Kernel) Dump(ctx context.Context, like overlay.Digest) (overlay.State, error) {
	fdb, neighs, routes := filling[overlay.FDB]{}, filling[overlay.Neigh]{}, filling[overlay.Route]{}
	to := entries{&fdb, &neighs, &routes}
	var s overlay.State
	var err error
	if like.Hasher != (overlay.Hasher{}) {
		if s, err = k.compare(ctx, like, &to); err != nil {
			return overlay.State{}, err
		}
	}
	if !to.none() {
		if s, err = k.dumpLinks(ctx, to); err != nil {
			return overlay.State{}, err
		}
	}
	s.FDB, s.Neighs, s.Routes = filled(to.fdb, fdb.set), filled(to.neighs, neighs.set), filled(to.routes, routes.set)
	return s, k.dumpFilter(ctx, like, &s)
}

// entries are where the entries of each kind go.
type entries struct {
	fdb    sink[overlay.FDB]
	neighs sink[overlay.Neigh]
	routes sink[overlay.Route]
}

// none reports whether no entries need to be read.
func (e entries) none() bool { return !wanted(e.fdb) && !wanted(e.neighs) && !wanted(e.routes) }

// compare finds out of which kinds the kernel has what like stands for. Those
// need not be read: what is in to for them is replaced by nowhere. It returns
// the links and addresses.
func (k *Kernel) compare(ctx context.Context, like overlay.Digest, to *entries) (overlay.State, error) {
	h := like.Hasher
	fdb, neighs, routes := counting[overlay.FDB]{Hasher: h}, counting[overlay.Neigh]{Hasher: h}, counting[overlay.Route]{Hasher: h}
	s, err := k.dumpLinks(ctx, entries{&fdb, &neighs, &routes})
	if err == nil && fdb.total == like.FDB {
		to.fdb = nowhere[overlay.FDB]{}
	}
	if err == nil && neighs.total == like.Neighs {
		to.neighs = nowhere[overlay.Neigh]{}
	}
	if err == nil && routes.total == like.Routes {
		to.routes = nowhere[overlay.Route]{}
	}
	return s, err
}

// filled returns the set that was filled, or nil if it needed not to be.
func filled[E comparable](to sink[E], set overlay.Set[E]) overlay.Set[E] {
	switch {
	case !wanted(to):
		return nil
	case set == nil: // there was no table
		return overlay.Set[E]{}
	}
	return set
}

// dumpLinks returns our links and their addresses. The entries go to to.
func (k *Kernel) dumpLinks(ctx context.Context, to entries) (overlay.State, error) {
	s := overlay.NewState()
	var own []int
	for _, name := range k.devices {
		l, found, err := k.ownLink(ctx, name)
		if err != nil {
			return overlay.State{}, err
		}
		if !found {
			continue
		}
		own = append(own, l.index)
		if err := k.dumpDevice(ctx, l, s, to); err != nil {
			return overlay.State{}, fmt.Errorf("dump device %s: %w", name, err)
		}
	}
	if !wanted(to.routes) {
		return s, nil
	}
	if err := k.dumpDirect(ctx, own, to.routes); err != nil {
		return overlay.State{}, fmt.Errorf("dump other devices: %w", err)
	}
	return s, nil
}

// dumpDevice adds l and its addresses to s.
func (k *Kernel) dumpDevice(ctx context.Context, l rawLink, s overlay.State, to entries) error {
	link, err := k.overlayLink(ctx, l)
	if err != nil {
		return err
	}
	s.Add(link)
	dev := device{name: l.name, index: l.index, learning: link.Learning}
	if wanted(to.fdb) {
		if err := k.dumpFDB(ctx, dev, to.fdb); err != nil {
			return fmt.Errorf("FDB: %w", err)
		}
	}
	for _, f := range subnet.Families() {
		if err := k.dumpAddrs(ctx, dev, f, s.Addrs); err != nil {
			return fmt.Errorf("%v addresses: %w", f, err)
		}
		if wanted(to.neighs) {
			if err := k.dumpNeighs(ctx, dev, f, to.neighs); err != nil {
				return fmt.Errorf("%v neighbours: %w", f, err)
			}
		}
		if wanted(to.routes) {
			if err := k.dumpRoutes(ctx, dev, f, to.routes); err != nil {
				return fmt.Errorf("%v routes: %w", f, err)
			}
		}
	}
	return nil
}

// device is one of ours as it stands at the moment.
type device struct {
	name     string
	index    int
	learning bool
}
