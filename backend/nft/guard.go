// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// Offsets of VXLAN fields from the outer UDP header, bytes (RFC 7348
// section 5: 8 of UDP, 8 of VXLAN, 14 of Ethernet, then the inner IP header).
const (
	atVNI       = 8 + 4
	atEtherType = 8 + 8 + 12
	atInner     = 8 + 8 + 14
)

// Ethernet types (linux/if_ether.h).
const (
	etherIPv4 = unix.ETH_P_IP
	etherIPv6 = unix.ETH_P_IPV6
)

// protocolFragment is the number of IPv6's fragment header (RFC 8200 section 4.5).
const protocolFragment = unix.IPPROTO_FRAGMENT

func loadVNI() Load {
	return Load{From: TransportHeader, Offset: atVNI, Len: 3, Type: Number}
}

func loadEtherType() Load {
	return Load{From: TransportHeader, Offset: atEtherType, Len: 2, Type: EtherType}
}

// loadInner is the inner source address (RFC 791 section 3.1, RFC 8200
// section 3).
func loadInner(f subnet.Family) Load {
	l := LoadSource(f)
	return Load{From: TransportHeader, Offset: atInner + l.Offset, Len: l.Len, Type: l.Type}
}

func (p Params) vniIs(not bool) Match {
	return Match{Load: loadVNI(), Not: not, Value: string(binary.BigEndian.AppendUint32(nil, p.VNI)[1:])}
}

func etherIs(f subnet.Family, not bool) Match {
	typ := uint16(etherIPv4)
	if f == subnet.IPv6 {
		typ = etherIPv6
	}
	return Match{Load: loadEtherType(), Not: not, Value: string(binary.BigEndian.AppendUint16(nil, typ))}
}

func markBytes(m uint32) []byte { return binary.NativeEndian.AppendUint32(nil, m) }

func outerChain(f subnet.Family) string {
	return map[subnet.Family]string{subnet.IPv4: "vxlan_outer4", subnet.IPv6: "vxlan_outer6"}[f]
}

// input is the base chain of everything that comes to this node.
func (p Params) input() Chain {
	c := Chain{Name: "early_input", Hook: Input, Priority: PriorityRaw}
	if p.guarded() {
		for _, f := range subnet.Families() {
			match := append([]Expr{FamilyIs(f)}, p.vxlan()...)
			c.Rules = append(c.Rules, rule("our VXLAN", append(match, p.vniIs(false), Verdict{Jump, outerChain(f)})...))
		}
		exists := Load{From: ExtensionExists, Key: protocolFragment, Len: 1, Type: Number, Name: "exthdr frag"}
		c.Rules = append(c.Rules, rule("fragments that hide what they are",
			FamilyIs(subnet.IPv6), Match{Load: exists, Value: "\x01"}, Verdict{Jump, "vxlan_fragment"}))
	}
	for _, dev := range p.Devices {
		if dev == "" {
			continue
		}
		match := []Expr{InputIs(dev), ProtocolIs(unix.IPPROTO_ICMPV6), Match{Load: Load{
			From: TransportHeader, Len: 1, Type: Number, Name: "icmpv6 type",
		}, Value: "\x86"}} // 134, RFC 4861 section 4.2
		c.Rules = append(c.Rules, rule("no router lives in the overlay", append(match, verdict(Drop, RefusedRouterAdv)...)...))
	}
	return c
}

// outer decides on VXLAN packets of ours that came over the given family.
func (p Params) outer(f subnet.Family) Chain {
	c := Chain{Name: outerChain(f)}
	source := LoadSource(f)
	if p.Guard == GuardPeers {
		for _, in := range subnet.Families() {
			c.Rules = append(c.Rules, rule("from a peer", FamilyIs(f), etherIs(in, false),
				In{Fields: []Load{source}, Set: peerSet(f)}, Verdict{Code: Accept}))
		}
	} else {
		for _, in := range p.inner() {
			c.Rules = append(c.Rules, rule("from a peer, its own addresses inside", FamilyIs(f), etherIs(in.Family, false),
				In{Fields: []Load{source, loadInner(in.Family).Masked(in.Bits)}, Set: bindSet(f, in)}, Verdict{Code: Accept}))
		}
	}
	neither := []Expr{etherIs(subnet.IPv4, true), etherIs(subnet.IPv6, true)}
	unknown := []Expr{FamilyIs(f), In{Fields: []Load{source}, Not: true, Set: peerSet(f)}}
	c.Rules = append(c.Rules,
		rule("neither IPv4 nor IPv6 inside", append(neither, verdict(Drop, RefusedEtherType)...)...),
		rule("not from a peer", append(unknown, verdict(Drop, RefusedOuter)...)...),
		rule("inside is not the peer's", verdict(Drop, RefusedInner)...),
	)
	return c
}

// fragments drops first fragments that are too short to show the UDP port or
// the VNI and could be our VXLAN. A load that does not fit the packet ends a
// rule without a match; so the rules say what lets a fragment pass. Later
// fragments are no harm without the first.
func (p Params) fragments() Chain {
	first := Load{From: ExtensionHeader, Key: protocolFragment, Offset: 2, Len: 2, Mask: "\xff\xf8", Type: Number, Name: "frag frag-off"}
	udp := ProtocolIs(unix.IPPROTO_UDP)
	other := PortIs(LoadDestPort(), p.Port)
	notUDP := udp
	notUDP.Not, other.Not = true, true
	match := []Expr{FamilyIs(subnet.IPv6), Match{Load: first, Value: "\x00\x00"}}
	return Chain{Name: "vxlan_fragment", Rules: []Rule{
		rule("", notUDP, Verdict{Code: Return}),
		rule("", udp, other, Verdict{Code: Return}),
		rule("", udp, p.vniIs(true), Verdict{Code: Return}),
		rule("too short to tell", append(match, verdict(Drop, RefusedFragment)...)...),
	}}
}
