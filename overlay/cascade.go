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
	was.NoGRO, was.Up, was.RPFilter, was.AddrGen = l.NoGRO, l.Up, l.RPFilter, l.AddrGen
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
// that come before those of routes and neighbours, all seen on Linux 6.18:
//
//   - a deleted link takes everything on it;
//   - a changed MAC flushes the link's neighbours, permanent ones too;
//   - setting a link down flushes its routes and neighbours;
//   - with the last IPv4 address of a link go its IPv4 routes and neighbours
//     (fib_disable_ip, net/ipv4/fib_frontend.c);
//   - with an IPv4 address that is left nowhere go all routes that have it as
//     source (fib_sync_down_addr, net/ipv4/fib_semantics.c). Wanted routes only
//     have wanted sources, so here this follows from a deleted link, or from
//     an address that is removed early.
type cascade struct {
	linkPlan
	early   Set[Addr]       // last IPv4 addresses of links that are removed early
	sources Set[netip.Addr] // IPv4 addresses that go with a link or early, and are nowhere else
}

// cascade returns what goes by itself. Where a link keeps IPv4 routes or
// neighbours but no IPv4 address, its stale addresses have to go before those
// are added and not after; these deletes are returned too.
func (p linkPlan) cascade(want, have State) (cascade, Changes) {
	c := cascade{linkPlan: p, early: Set[Addr]{}, sources: Set[netip.Addr]{}}
	bare := needy(want)
	var changes Changes
	for _, a := range sorted(have.Addrs) {
		ip := a.Prefix.Addr()
		switch {
		case !ip.Is4():
		case p.gone[a.Dev]:
			c.sources.Add(ip)
		case bare[a.Dev] && !want.Addrs.Has(a):
			c.early.Add(a)
			if !placed(want, ip) { // addresses are added before
				c.sources.Add(ip)
			}
			changes = append(changes, Change{Op: Delete, Entry: a})
		}
	}
	for a := range have.Addrs {
		if !p.gone[a.Dev] && !c.early.Has(a) {
			delete(c.sources, a.Prefix.Addr())
		}
	}
	return c, changes
}

// placed reports whether s has ip on some link.
func placed(s State, ip netip.Addr) bool {
	for a := range s.Addrs {
		if a.Prefix.Addr() == ip {
			return true
		}
	}
	return false
}

// needy returns the links on which IPv4 routes or neighbours are wanted, but
// no IPv4 address.
func needy(want State) map[string]bool {
	out := map[string]bool{}
	for n := range want.Neighs {
		if n.IP.Is4() {
			out[n.Dev] = true
		}
	}
	for r := range want.Routes {
		if r.Dst.Addr().Is4() {
			out[r.Dev] = true
		}
	}
	for a := range want.Addrs {
		if a.Prefix.Addr().Is4() {
			delete(out, a.Dev)
		}
	}
	return out
}

// survivors returns what is left of have. It returns have itself when the
// kernel removes nothing, the common case.
func (c cascade) survivors(have State) State {
	if len(c.gone) == 0 && len(c.downed) == 0 && len(c.rekeyed) == 0 && len(c.early) == 0 {
		return have
	}
	flushed := map[string]bool{}
	for a := range c.early {
		flushed[a.Dev] = true
	}
	lost := func(dev string, a netip.Addr) bool {
		return c.gone[dev] || c.downed[dev] || flushed[dev] && a.Is4()
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
