// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"slices"
	"sync"

	"weft.dev/weft/subnet"
)

// protoBoot is RTPROT_BOOT (linux/rtnetlink.h), which flannel v0.28 and an
// `ip route add` without `proto` leave on their routes.
const protoBoot = 3

// Diff returns the changes that turn have into want, in the order in which
// they must be made: links, addresses, FDB entries, neighbours and routes are
// put in place, then what is stale goes in reverse. So a route appears after
// its neighbour and its FDB entry, a neighbour never names a MAC that has no
// FDB entry, and an old path is there until the new one is.
//
// Entries with one kernel key (a link's name, an FDB entry's device and MAC, a
// neighbour's device and address, a route's prefix and metric) are one
// Replace; further stale entries under that key are deleted.
//
// What a link change takes with it is not deleted again, and is added again
// if wanted: see cascade. Everything in have is ours except routes; of those
// Diff deletes only what ours reports. Diff changes neither argument, and
// Diff(s, s) is empty.
func Diff(want, have State) Changes {
	links := diffLinks(want.Links, have.Links)
	c, early := links.cascade(want, have)
	now := c.survivors(have)
	wanted := sync.OnceValue(func() Set[netip.Prefix] { return destinations(want.Routes) })

	addrs := diffSet(want.Addrs, now.Addrs, func(a Addr) Addr { return a }, func(a Addr) bool { return !links.dying[a.Dev] })
	fdb := diffSet(want.FDB, now.FDB, FDB.key, func(f FDB) bool { return !links.dying[f.Dev] })
	neighs := diffSet(want.Neighs, now.Neighs, Neigh.key, func(n Neigh) bool { return !links.dying[n.Dev] })
	routes := diffSet(want.Routes, now.Routes, Route.key, func(r Route) bool {
		return !links.dying[r.Dev] && r.ours(wanted)
	})
	return slices.Concat(
		links.first, links.put,
		addrs.put, early, fdb.put, neighs.put, routes.put,
		routes.del, neighs.del, fdb.del, addrs.del, links.last,
	)
}

// fdbKey is what a unicast FDB entry is known by.
type fdbKey struct {
	dev string
	mac subnet.MAC
}

// neighKey is what a neighbour is known by.
type neighKey struct {
	dev string
	ip  netip.Addr
}

// routeKey is what a route is known by: a request with NLM_F_REPLACE meets
// the route of the same table, prefix, TOS and metric, on whatever device
// (net/ipv4/fib_trie.c fib_table_insert, net/ipv6/ip6_fib.c fib6_add_rt2node).
type routeKey struct {
	dst    netip.Prefix
	metric uint32
}

func (f FDB) key() fdbKey     { return fdbKey{f.Dev, f.MAC} }
func (n Neigh) key() neighKey { return neighKey{n.Dev, n.IP} }
func (r Route) key() routeKey { return routeKey{r.Dst, r.Metric} }

// ours reports whether a route that stands on one of our devices and is not
// wanted is ours to delete: it carries our mark, or it has the shape of
// flannel's peer routes (a node taken over from flannel), or it shadows, or is
// shadowed by, a route that we want to the same prefix.
func (r Route) ours(wanted func() Set[netip.Prefix]) bool {
	flannel := r.Proto == protoBoot && r.Onlink && r.Via == r.Dst.Addr()
	return r.Proto == RouteProtocol || flannel || wanted().Has(r.Dst)
}

func destinations(routes Set[Route]) Set[netip.Prefix] {
	out := make(Set[netip.Prefix], len(routes))
	for r := range routes {
		out.Add(r.Dst)
	}
	return out
}

// delta is what to do about the entries of one kind.
type delta struct{ put, del Changes }

// diffSet compares the entries of one kind. An entry of have that is not
// wanted is replaced by a wanted one of the same key, or else deleted if
// stale says so.
func diffSet[E entryOf[E], K comparable](want, have Set[E], key func(E) K, stale func(E) bool) delta {
	var missing, extra []E
	for e := range want {
		if !have.Has(e) {
			missing = append(missing, e)
		}
	}
	if len(missing) == 0 && len(want) == len(have) {
		return delta{} // the same
	}
	for e := range have {
		if !want.Has(e) {
			extra = append(extra, e)
		}
	}
	slices.SortFunc(missing, E.compare)
	slices.SortFunc(extra, E.compare)
	twins := make(map[K]E, len(extra))
	for _, e := range slices.Backward(extra) {
		twins[key(e)] = e
	}
	var d delta
	replaced := make(Set[E])
	for _, e := range missing {
		k := key(e)
		if twin, ok := twins[k]; ok {
			delete(twins, k)
			replaced.Add(twin)
			d.put = append(d.put, Change{Op: Replace, Entry: e, Was: twin})
			continue
		}
		d.put = append(d.put, Change{Op: Add, Entry: e})
	}
	for _, e := range extra {
		if !replaced.Has(e) && stale(e) {
			d.del = append(d.del, Change{Op: Delete, Entry: e})
		}
	}
	return d
}
