// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"net/netip"

	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

// The generators draw from a universe so small that entries collide often.

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// host returns the n-th underlay address of a family.
func host(f subnet.Family, n int) netip.Addr {
	if f == subnet.IPv4 {
		return addr(fmt.Sprintf("10.0.%d.%d", n>>8, n&255))
	}
	return addr(fmt.Sprintf("fd01::%x", n))
}

// link returns the prefix of the link that the first 255 underlay addresses of
// a family are on.
func link(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return prefix("10.0.0.0/24")
	}
	return prefix("fd01::/120")
}

// pods returns the n-th pod subnet of a family.
func pods(f subnet.Family, n int) netip.Prefix {
	if f == subnet.IPv4 {
		return prefix(fmt.Sprintf("10.%d.%d.0/24", 5+n>>8, n&255))
	}
	return prefix(fmt.Sprintf("fd00:5:0:%x::/64", n))
}

func mac(n int) subnet.MAC { return subnet.MAC{0x0a, 0, 0, 0, byte(n >> 8), byte(n)} }

func drawLink(t *rapid.T, name string, up bool) Link {
	l := Link{
		Name: name, VNI: rapid.SampledFrom([]uint32{1, 1, 2}).Draw(t, "vni"), Port: 8472,
		Local: rapid.SampledFrom([]netip.Addr{addr("10.0.0.1"), addr("10.0.0.1"), addr("fd01::1")}).Draw(t, "local"),
		MAC:   mac(rapid.IntRange(1, 2).Draw(t, "mac")), Underlay: "eth0",
		MTU: rapid.SampledFrom([]int{1450, 1450, 1350}).Draw(t, "mtu"), Up: true, RPFilter: 2, AddrGen: "none",
	}
	if !up {
		l.Up = rapid.Bool().Draw(t, "up")
		l.Foreign = rapid.SampledFrom([]string{"", "", "ttl 5"}).Draw(t, "foreign")
	}
	return l
}

// drawState draws what a kernel can hold: one link a name and endpoint, one
// MAC a neighbour, entries on links that are up, sources that exist. A wanted
// state has in addition one destination for each FDB entry, one route for
// each prefix and metric, and our mark on every route.
func drawState(t *rapid.T, wanted bool) State {
	s := NewState()
	if rapid.IntRange(0, 2).Draw(t, "has a filter") > 0 {
		s.Filters.Add(drawFilter(t, wanted))
	}
	for _, name := range []string{"weft.1", "weft6.1", "flannel.1"} {
		if rapid.IntRange(0, 3).Draw(t, "has "+name) > 0 {
			l := drawLink(t, name, wanted)
			if applyModel(s, Change{Op: Add, Entry: l}) != nil {
				continue
			}
		}
	}
	n := rapid.IntRange(0, 14).Draw(t, "entries")
	for range n {
		e := drawEntry(t, wanted)
		if f, ok := e.(FDB); ok && !wanted && s.dev(f.Dev) != nil && s.dev(f.Dev).Up {
			s.FDB.Add(f)
			continue
		}
		if r, ok := e.(Route); ok && !wanted && s.anyDev(r.Dev) != nil && s.anyDev(r.Dev).Up && (!r.Src.IsValid() || s.hasAddr(r.Src)) {
			s.Routes.Add(r)
			continue
		}
		_ = applyModel(s, Change{Op: Add, Entry: e}) // what does not fit is left out
	}
	return s
}

// drawFilter draws a table with sets for the prefixes of drawEntry, or
// without.
func drawFilter(t *rapid.T, wanted bool) Filter {
	f := Filter{Guard: rapid.SampledFrom([]Guard{GuardBind, GuardBind, GuardPeers, GuardOff}).Draw(t, "guard"), VNI: 1, Port: 8472}
	if rapid.Bool().Draw(t, "open") {
		f.Masquerade, f.Networks = true, [2]netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}
	}
	if (f.Guard == GuardBind || f.Masquerade) && rapid.Bool().Draw(t, "with lengths") {
		f.Lengths = Lengths{}.WithLength(4, 24).WithLength(6, 64)
	}
	if !wanted {
		f.Foreign = rapid.SampledFrom([]string{"", "", "chain input: no rule 2"}).Draw(t, "tampered")
	}
	return f
}

func drawEntry(t *rapid.T, wanted bool) Entry {
	dev := rapid.SampledFrom([]string{"weft.1", "weft.1", "weft6.1", "flannel.1"}).Draw(t, "dev")
	f := rapid.SampledFrom([]subnet.Family{subnet.IPv4, subnet.IPv6}).Draw(t, "family")
	i := rapid.IntRange(1, 3).Draw(t, "i")
	base := pods(f, i).Addr()
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return Addr{Dev: dev, Prefix: netip.PrefixFrom(base, base.BitLen())}
	case 1:
		return FDB{Dev: dev, MAC: mac(i), Dst: host(subnet.IPv4, rapid.IntRange(1, 3).Draw(t, "dst"))}
	case 2:
		return Neigh{Dev: dev, IP: base, MAC: mac(rapid.IntRange(1, 3).Draw(t, "mac"))}
	case 3:
		return Node{Addr: host(f, i), Own: rapid.Bool().Draw(t, "own")}
	case 4:
		return Source{Outer: host(f, i), Inner: rapid.SampledFrom([]netip.Prefix{pods(f, i), pods(f.Other(), i), single(base)}).Draw(t, "inner")}
	}
	if rapid.IntRange(0, 3).Draw(t, "no route") == 0 {
		return Pods{pods(f, i)}
	}
	r := Route{Dev: dev, Dst: pods(f, i), Via: base, Metric: 1024, Onlink: true, Proto: RouteProtocol}
	if rapid.IntRange(0, 2).Draw(t, "direct") == 0 {
		r.Dev, r.Via = underlayDev, host(f, rapid.IntRange(1, 2).Draw(t, "via"))
	}
	if rapid.Bool().Draw(t, "with src") {
		r.Src = pods(f, rapid.IntRange(1, 3).Draw(t, "src")).Addr()
	}
	if !wanted {
		r.Metric = rapid.SampledFrom([]uint32{0, 1024, 1024}).Draw(t, "metric")
		r.Proto = rapid.SampledFrom([]uint8{RouteProtocol, protoBoot, 4}).Draw(t, "proto")
		r.Onlink = rapid.Bool().Draw(t, "onlink")
	}
	return r
}

// drift returns s as somebody's meddling might leave it: some entries gone,
// some of other's added.
func drift(t *rapid.T, s State) State {
	other := drawState(t, false)
	out := NewState()
	lose := func() bool { return rapid.IntRange(0, 4).Draw(t, "lose") == 0 }
	for _, l := range sorted(s.Links) {
		if !lose() {
			out.Links.Add(l)
		}
	}
	for _, l := range sorted(other.Links) {
		_ = applyModel(out, Change{Op: Add, Entry: l})
	}
	merge(t, out, sorted(s.Filters), sorted(other.Filters), lose)
	merge(t, out, sorted(s.Nodes), sorted(other.Nodes), lose)
	merge(t, out, sorted(s.Sources), sorted(other.Sources), lose)
	merge(t, out, sorted(s.Pods), sorted(other.Pods), lose)
	merge(t, out, sorted(s.Addrs), sorted(other.Addrs), lose)
	merge(t, out, sorted(s.FDB), sorted(other.FDB), lose)
	merge(t, out, sorted(s.Neighs), sorted(other.Neighs), lose)
	merge(t, out, sorted(s.Routes), sorted(other.Routes), lose)
	return out
}

func merge[E entryOf[E]](t *rapid.T, out State, own, other []E, lose func() bool) {
	for _, e := range own {
		if !lose() {
			_ = applyModel(out, Change{Op: Add, Entry: e})
		}
	}
	for _, e := range other {
		_ = applyModel(out, Change{Op: Add, Entry: e})
	}
}

// drawPeer draws a lease of node n with paths of its own; fresh makes its MAC
// and underlay unlike those of an earlier drawing with another value.
func drawPeer(t *rapid.T, n, fresh int) subnet.Lease {
	l := subnet.Lease{Node: fmt.Sprintf("node-%d", n), Instance: "i", Backend: subnet.BackendVXLAN}
	stack := rapid.SampledFrom([][2]subnet.Family{
		{subnet.IPv4, subnet.IPv4}, {subnet.IPv6, subnet.IPv6}, {subnet.IPv4, subnet.IPv6}, {subnet.IPv6, subnet.IPv4}, {0, 0},
	}).Draw(t, "stack")
	for _, pod := range subnet.Families() {
		under := pod
		if stack[0] != 0 {
			if pod != stack[0] {
				continue
			}
			under = stack[1]
		}
		id := n + 16*rapid.SampledFrom([]int{0, fresh}).Draw(t, "changed")
		l.Paths = append(l.Paths, subnet.Path{
			Subnet: pods(pod, n), Underlay: host(under, id), MAC: mac(2*id + int(under)/6), VNI: 1,
		})
	}
	return l
}

// drawJunk draws a lease that may be wrong in any way.
func drawJunk(t *rapid.T, n int) subnet.Lease {
	l := subnet.Lease{
		Node:     rapid.SampledFrom([]string{"", "self", fmt.Sprintf("junk-%d", n), "junk-0", "node-1"}).Draw(t, "node"),
		Instance: rapid.SampledFrom([]string{"", "x"}).Draw(t, "instance"),
		Backend:  rapid.SampledFrom([]subnet.BackendType{subnet.BackendVXLAN, subnet.BackendVXLAN, subnet.BackendVXLAN, subnet.BackendHostGW, ""}).Draw(t, "backend"),
	}
	subnets := []netip.Prefix{pods(4, 1), pods(4, 2), pods(4, 200), pods(4, 201), prefix("10.5.200.0/23"), prefix("10.5.0.0/16"),
		prefix("10.5.200.128/25"), prefix("10.9.1.0/24"), prefix("0.0.0.0/0"), pods(6, 1), pods(6, 200), prefix("fd00:5::/48"), {}}
	underlays := []netip.Addr{host(4, 1), host(4, 99), host(4, 210), host(4, 211), host(6, 1), host(6, 210), addr("224.0.0.1"),
		addr("127.0.0.1"), addr("255.255.255.255"), addr("fe80::1"), addr("fe80::1%eth0"), addr("::ffff:10.0.0.2"), addr("10.5.200.7"), {}}
	macs := []subnet.MAC{mac(210), mac(211), mac(2), mac(3), mac(999), {1}, {}}
	for range rapid.IntRange(0, 2).Draw(t, "sources") {
		l.Sources = append(l.Sources, rapid.SampledFrom(append(underlays, host(4, 2), host(4, 3), addr("192.0.2.1"), host(4, 152))).Draw(t, "source"))
	}
	for range rapid.IntRange(0, 3).Draw(t, "paths") {
		l.Paths = append(l.Paths, subnet.Path{
			Subnet: rapid.SampledFrom(subnets).Draw(t, "subnet"), Underlay: rapid.SampledFrom(underlays).Draw(t, "underlay"),
			MAC: rapid.SampledFrom(macs).Draw(t, "mac"), VNI: rapid.SampledFrom([]uint32{0, 1, 1, 7}).Draw(t, "vni"),
		})
	}
	return l
}
