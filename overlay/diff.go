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
// they must be made: the filter and its elements, links, addresses, FDB
// entries, neighbours and routes are put in place, then what is stale goes in
// reverse. So no device is there before its guard, a route appears after its
// neighbour, its FDB entry and what lets the answers in, a neighbour never
// names a MAC that has no FDB entry, and an old path is there until the new
// one is.
//
// Entries with one kernel key (a link's name, an FDB entry's device and MAC, a
// neighbour's device and address, a route's prefix and metric, on whatever
// device) are one Replace; further stale entries under that key are deleted.
//
// What a change takes with it is not deleted again, and is added again if
// wanted: of a link see cascade, of the filter all elements, which follow it
// at once. Everything in have is ours except routes; of those Diff deletes
// only what ours reports. Diff changes neither argument, and Diff(s, s) is
// empty.
func Diff(want, have State) Changes {
	guard := diffFilter(want, have)
	links := diffLinks(want.Links, have.Links)
	c, early := links.cascade(want, have)
	now := c.survivors(have)
	known := sync.OnceValue(func() routing { return newRouting(want, have) })

	addrs := diffSet(want.Addrs, now.Addrs, func(a Addr) Addr { return a }, func(a Addr) bool { return !links.dying[a.Dev] })
	fdb := diffSet(want.FDB, now.FDB, FDB.key, func(f FDB) bool { return !links.dying[f.Dev] })
	neighs := diffSet(want.Neighs, now.Neighs, Neigh.key, func(n Neigh) bool { return !links.dying[n.Dev] })
	routes := diffSet(want.Routes, now.Routes, Route.key, func(r Route) bool {
		return !links.dying[r.Dev] && known().ours(r)
	})
	stones := steppingStones(routes.put, now.Routes)
	return slices.Concat(
		guard.put, links.first, links.put,
		addrs.put, early, fdb.put, neighs.put, stones.put, routes.put,
		stones.del, routes.del, neighs.del, fdb.del, addrs.del, links.last, guard.del,
	)
}

// diffFilter compares table inet weft and its elements. There is one table at
// most; one that is deleted or replaced loses its elements.
func diffFilter(want, have State) delta {
	table := func(Filter) struct{} { return struct{}{} }
	filters := diffSet(want.Filters, have.Filters, table, func(Filter) bool { return len(want.Filters) == 0 })
	if len(filters.put)+len(filters.del) > 0 {
		have.Nodes, have.Sources, have.Pods = nil, nil, nil
	}
	nodes := diffSet(want.Nodes, have.Nodes, func(n Node) Node { return n }, func(Node) bool { return true })
	sources := diffSet(want.Sources, have.Sources, func(s Source) Source { return s }, func(Source) bool { return true })
	pods := diffSet(want.Pods, have.Pods, func(p Pods) Pods { return p }, func(Pods) bool { return true })
	return delta{
		put: slices.Concat(filters.put, nodes.put, sources.put, pods.put),
		del: slices.Concat(pods.del, sources.del, nodes.del, filters.del),
	}
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

// routing is what it takes to tell whose a route is.
type routing struct {
	devs   map[string]bool // our devices
	dsts   Set[netip.Prefix]
	direct Set[gateway] // wanted
}

// gateway is a prefix and where packets to it go.
type gateway struct {
	dst netip.Prefix
	via netip.Addr
}

func newRouting(want, have State) routing {
	r := routing{devs: map[string]bool{}, dsts: destinations(want.Routes), direct: Set[gateway]{}}
	for _, links := range []Set[Link]{want.Links, have.Links} {
		for l := range links {
			r.devs[l.Name] = true
		}
	}
	for w := range want.Routes {
		if !r.devs[w.Dev] {
			r.direct.Add(gateway{w.Dst, w.Via})
		}
	}
	return r
}

// ours reports whether a route that is not wanted is ours to delete: it carries
// our mark; or it is what flannel leaves, on our device to whatever peer (a
// node taken over from flannel), on another only where we want the same with
// another metric; or it stands on our device and shadows, or is shadowed by, a
// route that we want to the same prefix.
func (s routing) ours(r Route) bool {
	switch {
	case r.Proto == RouteProtocol:
		return true
	case !s.devs[r.Dev]:
		return r.Proto == protoBoot && s.direct.Has(gateway{r.Dst, r.Via})
	}
	flannel := r.Proto == protoBoot && r.Onlink && r.Via == r.Dst.Addr()
	return flannel || s.dsts.Has(r.Dst)
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
	if want.is(have) {
		return delta{}
	}
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
