// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// massLeast is how many peers' subnets of a family may always go at once.
const massLeast = 3

// held is what stays for a while although no lease asks for it.
type held struct {
	state   State             // the entries
	subnets Set[netip.Prefix] // whose they are
	of      int               // peers' subnets there were, of the families that hold
}

// massRemoval returns what is kept of had, the state before, when want would
// take too much of it at once. That is decided for each family by the peers'
// routes of had: if want has no more any route to the prefixes of more than
// massLeast of them and of more than half, those prefixes are held; else only
// those that were held already, so that peers which come back one after
// another do not give up the last ones. swept says that it was too much,
// however few want is without.
//
// What is held of a subnet is all that makes it reachable and its packets
// welcome: route, neighbour, FDB entry, Nodes, Sources and Pods, and a VXLAN
// device that want has not but could have. Not held is what overlaps a subnet that is
// wanted or our own (it has another holder now), leads nowhere, or stands on a
// device that is not there any more. It is a pure function.
func massRemoval(want, had State, self Self, already Set[netip.Prefix], swept bool) held {
	before := peerRoutes(had)
	wanted := destinations(want.Routes)
	var total, stale [2]int
	for dst := range before {
		i := place(dst.Addr())
		total[i]++
		if !wanted.Has(dst) {
			stale[i]++
		}
	}
	if len(already) == 0 && !swept && !mass(stale[0], total[0]) && !mass(stale[1], total[1]) {
		return held{}
	}
	k := newKeeper(want, had, self, wanted)
	holds := [2]bool{}
	for _, dst := range sortedPrefixes(before) {
		i := place(dst.Addr())
		if wanted.Has(dst) || !already.Has(dst) && !swept && !mass(stale[i], total[i]) {
			continue
		}
		if k.keep(before[dst]) {
			holds[i] = true
		}
	}
	for i, n := range total {
		if holds[i] {
			k.out.of += n
		}
	}
	k.guard()
	return k.out
}

// mass reports whether a removal of n subnets of total is one to wait with.
func mass(n, total int) bool { return n > massLeast && 2*n > total }

// place is the family's place in what is counted per family.
func place(a netip.Addr) int { return slices.Index(familyList(), subnet.FamilyOf(a)) }

func familyList() []subnet.Family {
	f := subnet.Families()
	return f[:]
}

// peerRoutes returns the routes of s that weft, or flannel before it, has made
// for peers; of several to one prefix the one that is ours and counts.
func peerRoutes(s State) map[netip.Prefix]Route {
	out := make(map[netip.Prefix]Route, len(s.Routes))
	for r := range s.Routes {
		flannel := r.Proto == protoBoot && r.Onlink && r.Via == r.Dst.Addr()
		if !r.Dst.IsValid() || !r.Via.IsValid() || r.Proto != RouteProtocol && !flannel {
			continue
		}
		if o, ok := out[r.Dst]; !ok || preferred(r, o) < 0 {
			out[r.Dst] = r
		}
	}
	return out
}

func preferred(a, b Route) int {
	return cmp.Or(compareBool(b.Proto == RouteProtocol, a.Proto == RouteProtocol), cmp.Compare(a.Metric, b.Metric), a.compare(b))
}

func sortedPrefixes[V any](m map[netip.Prefix]V) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare)
}

// keeper collects what is held.
type keeper struct {
	want, had State
	self      Self
	claimed   spans // subnets with a holder: wanted ones and our own
	links     map[string]Link
	wanted    map[string]Link // want's links by name
	ends      map[endpoint]Link
	neighs    map[netip.Addr][]Neigh
	fdb       map[fdbKey]FDB
	wantFDB   map[fdbKey]FDB
	sources   Set[netip.Addr] // addresses that routes can have as source
	outers    Set[netip.Addr] // that held peers' packets come from
	out       held
}

func newKeeper(want, had State, self Self, wanted Set[netip.Prefix]) *keeper {
	taken := slices.Collect(maps.Keys(wanted))
	for _, p := range self.Lease.Paths {
		taken = append(taken, p.Subnet)
	}
	k := &keeper{
		want: want, had: had, self: self, claimed: newSpans(taken),
		links: linksByName(had), wanted: linksByName(want), ends: map[endpoint]Link{},
		neighs: map[netip.Addr][]Neigh{}, fdb: fdbByKey(had), wantFDB: fdbByKey(want),
		sources: Set[netip.Addr]{}, outers: Set[netip.Addr]{},
		out: held{state: NewState(), subnets: Set[netip.Prefix]{}},
	}
	for l := range want.Links {
		k.ends[l.endpoint()] = l
	}
	for _, n := range sorted(had.Neighs) {
		k.neighs[n.IP] = append(k.neighs[n.IP], n)
	}
	for a := range want.Addrs {
		k.sources.Add(a.Prefix.Addr())
	}
	return k
}

func linksByName(s State) map[string]Link {
	out := make(map[string]Link, len(s.Links))
	for l := range s.Links {
		out[l.Name] = l
	}
	return out
}

// fdbByKey returns one entry of s for each key.
func fdbByKey(s State) map[fdbKey]FDB {
	out := make(map[fdbKey]FDB, len(s.FDB))
	for f := range s.FDB {
		if o, ok := out[f.key()]; !ok || f.compare(o) < 0 {
			out[f.key()] = f
		}
	}
	return out
}

// keep holds what belongs to r if that can be.
func (k *keeper) keep(r Route) bool {
	if _, ours := k.self.Lease.Path(subnet.FamilyOf(r.Dst.Addr())); !ours || k.claimed.overlaps(r.Dst) {
		return false
	}
	if _, ok := k.links[r.Dev]; !ok {
		return k.keepDirect(r)
	}
	link, ok := k.device(r.Dev, r.Dst.Addr())
	if !ok {
		return false
	}
	n, f, ok := k.chain(r.Dev, r.Via)
	if !ok || k.ourAddr(f.Dst) {
		return false
	}
	k.keepLink(link, r.Dev)
	r.Dev, n.Dev, f.Dev = link.Name, link.Name, link.Name
	if w, ok := k.wantFDB[f.key()]; ok {
		f = w // the same VTEP, for another subnet too
	}
	k.out.state.Neighs.Add(n)
	k.out.state.FDB.Add(f)
	k.hold(r, f.Dst)
	return true
}

// keepDirect holds a route that needs no VXLAN device, and what the same peer
// has on one for the way back.
func (k *keeper) keepDirect(r Route) bool {
	there := slices.ContainsFunc(k.self.Underlays, func(u Underlay) bool { return u.Dev == r.Dev })
	if !there || k.ourAddr(r.Via) || r.Dst.Contains(r.Via) {
		return false
	}
	for _, n := range k.neighs[r.Dst.Addr()] {
		n, f, ok := k.chain(n.Dev, n.IP)
		if _, wanted := k.wanted[n.Dev]; !ok || !wanted || k.ourAddr(f.Dst) {
			continue
		}
		if _, other := k.wantFDB[f.key()]; !other {
			k.out.state.FDB.Add(f)
		}
		k.out.state.Neighs.Add(n)
	}
	k.hold(r, r.Via)
	return true
}

// hold holds r, whose packets go to and come from outer.
func (k *keeper) hold(r Route, outer netip.Addr) {
	if r.Src.IsValid() && !k.sources.Has(r.Src) {
		r.Src = netip.Addr{} // gone: the kernel chooses another
	}
	k.out.state.Routes.Add(r)
	k.out.subnets.Add(r.Dst)
	k.outers.Add(outer)
	for _, inner := range []netip.Prefix{r.Dst, single(outer)} {
		k.out.state.Sources.Add(Source{Outer: outer, Inner: inner})
	}
}

// chain returns the neighbour and the FDB entry behind a gateway.
func (k *keeper) chain(dev string, via netip.Addr) (Neigh, FDB, bool) {
	for _, n := range k.neighs[via] {
		if f, ok := k.fdb[fdbKey{dev, n.MAC}]; ok && n.Dev == dev {
			return n, f, true
		}
	}
	return Neigh{}, FDB{}, false
}

// device returns the device on which the entries of device name can be: the
// wanted one of that name or in its place, or itself if its underlay is there.
func (k *keeper) device(name string, pod netip.Addr) (Link, bool) {
	was := k.links[name]
	l, ok := k.wanted[name]
	if !ok {
		l, ok = k.ends[was.endpoint()]
	}
	if !ok {
		l, ok = was, slices.ContainsFunc(k.self.Underlays, func(u Underlay) bool {
			return u.Dev == was.Underlay && u.Addr.Unmap() == was.Local
		})
	}
	return l, ok && l.carries(subnet.FamilyOf(pod))
}

// keepLink holds l, with the addresses of device was, unless it is wanted.
func (k *keeper) keepLink(l Link, was string) {
	if _, ok := k.wanted[l.Name]; ok || k.out.state.Links.Has(l) {
		return
	}
	k.out.state.Links.Add(l)
	for a := range k.had.Addrs {
		if a.Dev == was {
			k.out.state.Addrs.Add(a)
			k.sources.Add(a.Prefix.Addr())
		}
	}
}

// guard settles what the guard goes on accepting: what held peers had, and
// what follows from their entries, for the guard may be newer than those.
func (k *keeper) guard() {
	held := newSpans(slices.Collect(maps.Keys(k.out.subnets)))
	follow := k.out.state.Sources
	k.out.state.Sources = Set[Source]{}
	if len(k.out.subnets) == 0 || len(k.want.Filters) == 0 {
		return
	}
	for s := range k.had.Sources {
		if held.overlaps(s.Inner) && !k.ourAddr(s.Outer) {
			k.outers.Add(s.Outer) // one that is translated
		}
	}
	for s := range k.had.Sources {
		if k.outers.Has(s.Outer) && (held.overlaps(s.Inner) || s.Inner.IsSingleIP() && !k.ourAddr(s.Inner.Addr())) {
			follow.Add(s)
		}
	}
	for s := range k.out.subnets {
		if slices.ContainsFunc(sorted(k.want.Filters), func(f Filter) bool { return f.lists(s) }) {
			k.out.state.Pods.Add(Pods{s})
		}
	}
	binds := slices.ContainsFunc(sorted(k.want.Filters), func(f Filter) bool { return f.Guard == GuardBind })
	for s := range follow {
		if binds && !k.claimed.overlaps(s.Inner) {
			k.out.state.Sources.Add(s)
		}
	}
	// In mode "peers" nothing says whose a further address is: all stay.
	for n := range k.had.Nodes {
		if !n.Own && !k.ourAddr(n.Addr) {
			k.out.state.Nodes.Add(n)
		}
	}
	for a := range k.outers {
		k.out.state.Nodes.Add(Node{Addr: a})
	}
}

// ourAddr reports whether a is an address of this node.
func (k *keeper) ourAddr(a netip.Addr) bool {
	return slices.ContainsFunc(k.self.Underlays, func(u Underlay) bool { return u.Addr.Unmap() == a }) ||
		slices.ContainsFunc(k.self.Lease.Paths, func(p subnet.Path) bool { return p.Underlay.Unmap() == a }) ||
		slices.Contains(k.self.Addresses, a)
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// over returns want and what is held. Both parts stay as they are.
func (h held) over(want State) State {
	if len(h.subnets) == 0 {
		return want
	}
	s := want.with(h.state)
	for f := range want.Filters {
		wider := f
		for src := range h.state.Sources {
			if !src.Inner.IsSingleIP() {
				wider.Lengths = wider.Lengths.With(src.Inner)
			}
		}
		for pods := range h.state.Pods {
			wider.Lengths = wider.Lengths.With(pods.Subnet)
		}
		delete(s.Filters, f)
		s.Filters.Add(wider)
	}
	return s
}

// with returns the entries of s and of o.
func (s State) with(o State) State {
	u := s.Clone()
	maps.Copy(u.Filters, o.Filters)
	maps.Copy(u.Nodes, o.Nodes)
	maps.Copy(u.Sources, o.Sources)
	maps.Copy(u.Pods, o.Pods)
	maps.Copy(u.Links, o.Links)
	maps.Copy(u.Addrs, o.Addrs)
	maps.Copy(u.FDB, o.FDB)
	maps.Copy(u.Neighs, o.Neighs)
	maps.Copy(u.Routes, o.Routes)
	return u
}

// spans answers which of many prefixes overlap another.
type spans struct {
	all     Set[netip.Prefix]
	lengths []int // of them, ascending
	byAddr  []netip.Prefix
}

func newSpans(list []netip.Prefix) spans {
	s := spans{all: make(Set[netip.Prefix], len(list))}
	seen := map[int]bool{}
	for _, p := range list {
		if p.IsValid() {
			s.all.Add(p.Masked())
			seen[p.Bits()] = true
		}
	}
	s.lengths = slices.Sorted(maps.Keys(seen))
	s.byAddr = slices.SortedFunc(maps.Keys(s.all), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return s
}

// overlaps reports whether any of the prefixes overlaps p.
func (s spans) overlaps(p netip.Prefix) bool {
	p = p.Masked()
	for _, n := range s.lengths {
		if around, err := p.Addr().Prefix(n); err == nil && n <= p.Bits() && s.all.Has(around) {
			return true
		}
	}
	i, _ := slices.BinarySearchFunc(s.byAddr, p.Addr(), func(q netip.Prefix, a netip.Addr) int { return q.Addr().Compare(a) })
	return i < len(s.byAddr) && p.Contains(s.byAddr[i].Addr())
}
