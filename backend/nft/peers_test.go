// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"slices"
	"testing"

	"weft.dev/weft/subnet"
)

// node is a node as tests describe one: its rules and its own addresses.
type node struct {
	Params
	Own []netip.Addr
}

// params is node 10.0.0.1 / fd00::1 of a dual-stack network.
func params() node {
	return node{
		Params: Params{
			Guard:      GuardBind,
			Masquerade: true,
			Port:       8472,
			VNI:        1,
			Networks:   [2]netip.Prefix(prefixes("10.42.0.0/16", "fd42::/48")),
			Subnets:    [2]netip.Prefix(prefixes("10.42.1.0/24", "fd42:0:0:1::/64")),
			Devices:    [2]string{"weft.1", "weft6.1"},
			Lengths:    []Length{{4, 24}, {6, 64}},
		},
		Own: addrs("10.0.0.1", "fd00::1"),
	}
}

// opens makes p's pod networks those that are leased.
func (p *node) opens() {
	p.Networks = [2]netip.Prefix(prefixes("0.0.0.0/0", "::/0"))
}

// Peer is another node: the addresses that its packets come from, and its pod
// subnets and VTEP addresses. What the node itself sends to a pod carries its
// outer addresses inside too.
type Peer struct {
	Outer []netip.Addr
	Inner []netip.Prefix
}

// peers: 2 and 3 are ordinary, 4 has a long prefix, 7 is behind address
// translation.
func peers() []Peer {
	return []Peer{
		{Outer: addrs("10.0.0.2", "fd00::2"), Inner: prefixes("10.42.2.0/24", "fd42:0:0:2::/64")},
		{Outer: addrs("10.0.0.3", "fd00::3"), Inner: prefixes("10.42.3.0/24", "fd42:0:0:3::/64")},
		{Outer: addrs("10.0.0.4", "fd00::4"), Inner: prefixes("10.42.4.0/25", "fd42:0:0:4::/72")},
		{Outer: addrs("198.51.100.7", "10.0.0.7", "2001:db8::7", "fd00::7"), Inner: prefixes("10.42.7.0/24", "fd42:0:0:7::/64")},
	}
}

func (p Peer) inner() []netip.Prefix {
	out := slices.Clone(p.Inner)
	for _, a := range p.Outer {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// WithLengths returns p with Lengths extended by what peers need.
func (p node) WithLengths(peers []Peer) node {
	all := slices.Clone(p.Lengths)
	for _, peer := range peers {
		for _, in := range peer.inner() {
			all = append(all, lengthOf(in))
		}
	}
	all = slices.DeleteFunc(all, func(l Length) bool { return l == single(l.Family) })
	slices.SortFunc(all, Length.compare)
	p.Lengths = slices.Compact(all)
	return p
}

// Elements returns the elements for p and its peers, sorted.
func Elements(p node, peers []Peer) []Element {
	all := map[Element]struct{}{}
	add := func(e Element, err error) {
		if err != nil {
			panic(err)
		}
		all[e] = struct{}{}
	}
	for _, a := range p.Own {
		add(NodeElement(a, true))
	}
	for _, peer := range peers {
		for _, in := range peer.Inner {
			if p.Params.open(lengthOf(in).Family) {
				add(PodsElement(in))
			}
		}
		for _, a := range peer.Outer {
			add(NodeElement(a, false))
			if p.Guard != GuardBind {
				continue
			}
			for _, in := range peer.inner() {
				add(SourceElement(a, in))
			}
		}
	}
	return sorted(all)
}

// Weft is table inet weft for a node and its peers.
func Weft(p node, peers []Peer) Desired {
	p = p.WithLengths(peers)
	return Desired{Table: Ruleset(p.Params), Elements: Elements(p, peers)}
}

// manyPeers is n dual-stack peers.
func manyPeers(n int) []Peer {
	out := make([]Peer, n)
	for i := range out {
		hi, lo := byte(i>>8), byte(i)
		out[i] = Peer{
			Outer: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, hi, lo}), netip.AddrFrom16([16]byte{0xfd, 1, 14: hi, 15: lo})},
			Inner: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, hi, lo, 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 2, 6: hi, 7: lo}), 64),
			},
		}
	}
	return out
}

// Every element can be read back, and junk is refused or read back as it is.
func TestElementsDecode(t *testing.T) {
	p := params().WithLengths(peers())
	p.opens()
	nodes, sources, pods := 0, 0, 0
	for _, e := range Elements(p, peers()) {
		m, ok := MembersOf(e.Set)
		if !ok {
			t.Fatalf("set %s has no members", e.Set)
		}
		outer, inner, ok := m.Decode([]byte(e.Key))
		if !ok {
			t.Fatalf("%+v does not decode", e)
		}
		again, err := NodeElement(outer, m.Own)
		switch {
		case !outer.IsValid():
			pods++
			again, err = PodsElement(inner)
		case inner.IsValid():
			sources++
			again, err = SourceElement(outer, inner)
		default:
			nodes++
		}
		if err != nil || again != e {
			t.Errorf("%+v decodes to %v %v, which is %+v, %v", e, outer, inner, again, err)
		}
	}
	if nodes == 0 || sources == 0 || pods == 0 {
		t.Errorf("%d nodes, %d sources, %d subnets of pods", nodes, sources, pods)
	}
	for _, key := range []string{"", "123", "1234", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x01\x02\x03\x04"} {
		if outer, inner, ok := (Members{Outer: subnet.IPv6, Inner: Length{subnet.IPv4, 24}}).Decode([]byte(key)); ok {
			t.Errorf("key %q decodes to %v %v", key, outer, inner)
		}
		if outer, _, ok := (Members{Outer: subnet.IPv6}).Decode([]byte(key)); ok {
			t.Errorf("key %q decodes to %v", key, outer)
		}
		if _, inner, ok := (Members{Inner: Length{subnet.IPv6, 64}}).Decode([]byte(key)); ok {
			t.Errorf("key %q decodes to %v", key, inner)
		}
	}
}

func TestMembersOfForeignSets(t *testing.T) {
	for _, set := range []string{
		"", "peers", "peers5", "peers44", "bind4_inner4_", "bind4_inner4_33", "bind4_inner4_-1", "bind4_inner6_129",
		"bind5_inner4_24", "bind4_inner5_24", "bind4_inner4_024", "bind4_inner4_24x", "bind260_inner4_24", "theirs", "pods4", "pods4_", "pods4_32", "pods4_-1", "pods4_024", "pods5_24", "pods6_128", "pods4_24x",
	} {
		if m, ok := MembersOf(set); ok {
			t.Errorf("%q: %+v", set, m)
		}
	}
}

func TestElementsOfJunk(t *testing.T) {
	for _, a := range []netip.Addr{{}, addr("::ffff:10.0.0.1"), addr("fe80::1%eth0")} {
		if e, err := NodeElement(a, false); err == nil {
			t.Errorf("%v is element %+v", a, e)
		}
		if e, err := SourceElement(a, netip.MustParsePrefix("10.42.2.0/24")); err == nil {
			t.Errorf("%v is element %+v", a, e)
		}
	}
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.42.0.0/120"), netip.PrefixFrom(addr("10.42.0.0"), 33)} {
		if e, err := SourceElement(addr("10.0.0.2"), p); err == nil {
			t.Errorf("%v is element %+v", p, e)
		}
		if e, err := PodsElement(p); err == nil {
			t.Errorf("%v is element %+v", p, e)
		}
	}
}

// No pod has a subnet that is one address.
func TestNoPodsAtOneAddress(t *testing.T) {
	for _, p := range prefixes("10.42.2.0/32", "fd42::2/128") {
		if e, err := PodsElement(p); err == nil {
			t.Errorf("%v is element %+v", p, e)
		}
	}
}
