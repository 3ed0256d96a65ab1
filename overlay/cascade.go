// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"maps"
	"net/netip"

	"weft.dev/weft/subnet"
)

// linkPlan is what to do about the links, and to which of them.
type linkPlan struct {
	first, put, last Changes // before everything else, then, and after everything else
	gone             map[string]bool
	dying            map[string]bool
	downed           map[string]bool
	rekeyed          map[string]bool
}

// diffLinks compares links by name. A link is modified where that is
// possible, else deleted and created again.
func diffLinks(want, have Set[Link]) linkPlan {
	p := linkPlan{gone: map[string]bool{}, dying: map[string]bool{}, downed: map[string]bool{}, rekeyed: map[string]bool{}}
	byName := map[string]Link{}
	for l := range have {
		byName[l.Name] = l
	}
	var create []Link
	for _, l := range sorted(want) {
		was, ok := byName[l.Name]
		if ok && l.changeable(was) {
			delete(byName, l.Name)
			p.modify(l, was)
			continue
		}
		create = append(create, l)
	}
	for _, l := range create {
		p.makeRoom(l, byName)
	}
	for _, l := range create {
		if was, ok := byName[l.Name]; ok {
			delete(byName, l.Name)
			p.gone[l.Name] = true
			p.put = append(p.put, Change{Op: Replace, Entry: l, Was: was})
			continue
		}
		p.put = append(p.put, Change{Op: Add, Entry: l})
	}
	for _, l := range sorted(have) {
		if _, ok := byName[l.Name]; ok {
			p.dying[l.Name] = true
			p.last = append(p.last, Change{Op: Delete, Entry: l})
		}
	}
	return p
}

// changeable reports whether was can become l in place.
func (l Link) changeable(was Link) bool {
	was.MAC, was.MTU, was.Learning = l.MAC, l.MTU, l.Learning
	was.Up, was.RPFilter, was.AddrGen = l.Up, l.RPFilter, l.AddrGen
	return l == was
}

func (p *linkPlan) modify(l, was Link) {
	if l == was {
		return
	}
	p.put = append(p.put, Change{Op: Modify, Entry: l, Was: was})
	if l.MAC != was.MAC {
		p.rekeyed[l.Name] = true
	}
	if was.Up && !l.Up {
		p.downed[l.Name] = true
	}
}

// makeRoom deletes, before anything else, those of the links in the way of l
// under another name: the kernel has one VXLAN device for a VNI, port and
// underlay family (vxlan_vni_in_use, drivers/net/vxlan/vxlan_core.c).
func (p *linkPlan) makeRoom(l Link, stale map[string]Link) {
	for _, name := range sortedKeys(stale) {
		if s := stale[name]; name != l.Name && s.endpoint() == l.endpoint() {
			delete(stale, name)
			p.gone[name] = true
			p.first = append(p.first, Change{Op: Delete, Entry: s})
		}
	}
}

type endpoint struct {
	vni    uint32
	port   uint16
	family subnet.Family
}

// endpoint is what no two VXLAN devices share. A device without a local
// address is an IPv4 one.
func (l Link) endpoint() endpoint {
	return endpoint{l.VNI, l.Port, cmp.Or(subnet.FamilyOf(l.Local), subnet.IPv4)}
}

// cascade is what the kernel removes by itself as a consequence of changes
// that come before those of routes and neighbours:
//
//   - a deleted link takes everything on it;
//   - a changed MAC flushes the link's neighbours, permanent ones too;
//   - setting a link down flushes its routes and neighbours;
//   - with the last IPv4 address of a link go its IPv4 routes and neighbours
//     (fib_disable_ip, net/ipv4/fib_frontend.c);
//   - with an IPv4 address go all routes that have it as source
//     (fib_sync_down_addr, net/ipv4/fib_semantics.c), even when another link
//     has got it meanwhile.
//
// The last two only matter here when wanted entries would go; their addresses
// are then removed early, while those can still be added again.
type cascade struct {
	linkPlan
	early   Set[Addr]
	bare    map[string]bool // links that lose their last IPv4 address early
	sources Set[netip.Addr] // addresses that go early or with a link
}

// cascade returns what goes by itself, and the early deletes.
func (p linkPlan) cascade(want, have State) (cascade, Changes) {
	c := cascade{linkPlan: p, early: Set[Addr]{}, bare: map[string]bool{}, sources: Set[netip.Addr]{}}
	needed := needs(want)
	stale := func(a Addr) bool { return a.Prefix.Addr().Is4() && !want.Addrs.Has(a) && !p.gone[a.Dev] }
	for a := range have.Addrs {
		if stale(a) && !needed.addressed[a.Dev] && (needed.devs[a.Dev] || needed.sources.Has(a.Prefix.Addr())) {
			c.bare[a.Dev] = true
		}
		if p.gone[a.Dev] && a.Prefix.Addr().Is4() {
			c.sources.Add(a.Prefix.Addr())
		}
	}
	var changes Changes
	for _, a := range sorted(have.Addrs) {
		if stale(a) && (c.bare[a.Dev] || needed.sources.Has(a.Prefix.Addr())) {
			c.sources.Add(a.Prefix.Addr())
			c.early.Add(a)
			changes = append(changes, Change{Op: Delete, Entry: a})
		}
	}
	return c, changes
}

// need is what IPv4 entries of a wanted state depend on.
type need struct {
	addressed map[string]bool // links with an address
	devs      map[string]bool // links with routes or neighbours
	sources   Set[netip.Addr] // preferred sources of routes
}

func needs(want State) need {
	n := need{addressed: map[string]bool{}, devs: map[string]bool{}, sources: Set[netip.Addr]{}}
	for a := range want.Addrs {
		if a.Prefix.Addr().Is4() {
			n.addressed[a.Dev] = true
		}
	}
	for e := range want.Neighs {
		if e.IP.Is4() {
			n.devs[e.Dev] = true
		}
	}
	for r := range want.Routes {
		if r.Dst.Addr().Is4() {
			n.devs[r.Dev] = true
			n.sources.Add(r.Src)
		}
	}
	return n
}

// survivors returns what is left of have. It returns have itself when the
// kernel removes nothing, the common case.
func (c cascade) survivors(have State) State {
	if len(c.gone) == 0 && len(c.downed) == 0 && len(c.rekeyed) == 0 && len(c.early) == 0 {
		return have
	}
	lost := func(dev string, a netip.Addr) bool {
		return c.gone[dev] || c.downed[dev] || c.bare[dev] && a.Is4()
	}
	s := have.Clone()
	maps.DeleteFunc(s.Addrs, func(a Addr, _ struct{}) bool { return c.gone[a.Dev] || c.early.Has(a) })
	maps.DeleteFunc(s.FDB, func(f FDB, _ struct{}) bool { return c.gone[f.Dev] })
	maps.DeleteFunc(s.Neighs, func(n Neigh, _ struct{}) bool { return lost(n.Dev, n.IP) || c.rekeyed[n.Dev] })
	maps.DeleteFunc(s.Routes, func(r Route, _ struct{}) bool {
		return lost(r.Dev, r.Dst.Addr()) || c.sources.Has(r.Src)
	})
	return s
}
