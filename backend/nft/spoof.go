// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// SpoofTableName is the name of the table that SpoofTable makes.
const SpoofTableName = "weft_guard"

// Counters of frames that pods may not send, beside RefusedEtherType and
// RefusedRouterAdv.
const (
	RefusedIPv4       = "refused_ipv4_source" // own MAC, source not its own
	RefusedIPv6       = "refused_ipv6_source"
	RefusedMAC        = "refused_mac" // IP from a MAC that is not its own
	RefusedARP        = "refused_arp"
	RefusedNeighbour  = "refused_neighbour" // neighbour or router solicitation, neighbour advertisement
	RefusedRedirect   = "refused_redirect"
	RefusedDHCPServer = "refused_dhcp_server"
	RefusedUnjudged   = "refused_unjudged" // between pods of one bridge, where policies do not see it
)

// Sets of SpoofTable's table. All but the first have the port in their keys, so
// that an element counts for one pod alone.
const (
	spoofPorts   = "ports"    // whose frames are looked at
	spoofMACs    = "macs"     // a port's MAC
	spoofTargets = "targets6" // what a port may speak for in neighbour discovery
	spoofOptions = "options6" // a port's MAC in a link-layer address option
)

// closedPorts is the set of ports that neither get nor give what the bridge
// itself forwards.
const closedPorts = "closed"

// spoofSource is the set of a port's addresses with its MAC.
func spoofSource(f subnet.Family) string {
	return map[subnet.Family]string{subnet.IPv4: "source4", subnet.IPv6: "source6"}[f]
}

// Chains of SpoofTable's table.
const (
	podFrame     = "from_pod"
	podARP       = "pod_arp"
	podICMPv6    = "pod_icmpv6"
	podNeighbour = "pod_neighbour"
)

func podIP(f subnet.Family) string {
	return map[subnet.Family]string{subnet.IPv4: "pod_ipv4", subnet.IPv6: "pod_ipv6"}[f]
}

// Types of ICMPv6 messages (RFC 4861 section 4, RFC 2710 section 3, RFC 3810
// section 5.2).
const (
	icmpMLDReport     = 131
	icmpMLDDone       = 132
	icmpRouterSolicit = 133
	icmpRouterAdvert  = 134
	icmpSolicit       = 135
	icmpAdvert        = 136
	icmpRedirect      = 137
	icmpMLDv2Report   = 143
)

// Server ports (RFC 2131 section 4.1, RFC 8415 section 7.2).
const (
	dhcpServer   = 67
	dhcpv6Server = 547
)

// SpoofTable returns table bridge weft_guard without elements: of what comes
// from a port that is an element, only what that pod may say passes.
//
//   - IPv4 and IPv6 from its own addresses and its own MAC, but no answers of a
//     DHCP server. What asks for an address from 0.0.0.0 is dropped too: pods get
//     theirs from CNI.
//   - ARP requests and replies of its own address, with its own MAC in both
//     headers, and probes for its own address (RFC 5227 section 2.1.1).
//   - Neighbour and router solicitations from its own addresses, advertisements
//     of its own addresses, and with the source :: router solicitations and
//     duplicate address detection of its own addresses. A link-layer address
//     option comes first and holds its own MAC. None is behind an extension
//     header or a fragment, where receivers have to ignore it or nobody sends it
//     (RFC 6980).
//   - Multicast listener reports from ::.
//
// All else is dropped and counted: router advertisements, redirects, 802.1Q and
// whatever is neither IP nor ARP. Ports that are no elements pass: uplinks, and
// pods until the agent adds them. The rules are the same on every node and for
// any number of pods; a pod is a few elements of hash sets.
//
// The bridge forwards nothing from or to a port of ClosedPort. It is for pods
// whose policies the bridge's own frames would pass by; what the node routes to
// them and for them is not concerned.
//
// What the bridge learns, it learns behind the hook, except from frames to
// 01:80:c2:00:00:0X, such as LLDP, which pass no prerouting hook: a pod can still
// draw another pod's frames to its port with these unless the bridge has
// no_linklocal_learn set (Linux 4.20).
func SpoofTable() Table {
	ported := func(fields ...Type) []Type { return append([]Type{IfName}, fields...) }
	t := Table{
		Family: Bridge, Name: SpoofTableName, Comment: tableComment,
		Counters: []string{
			RefusedIPv4, RefusedIPv6, RefusedMAC, RefusedARP, RefusedNeighbour,
			RefusedRouterAdv, RefusedRedirect, RefusedDHCPServer, RefusedEtherType,
			RefusedUnjudged,
		},
		Sets: []Set{
			{Name: spoofPorts, Fields: ported()},
			{Name: spoofMACs, Fields: ported(EtherAddr)},
			{Name: spoofTargets, Fields: ported(IPv6Addr, EtherAddr), Of: ofTarget()},
			{Name: spoofOptions, Fields: ported(EtherAddr), Of: ofOption(afterTarget)},
			{Name: closedPorts, Fields: ported()},
		},
		Chains: []Chain{
			{Name: "bridge_prerouting", Hook: Prerouting, Priority: PriorityRaw, Rules: []Rule{
				rule("", In{Fields: []Load{LoadInputName()}, Set: spoofPorts}, Verdict{Goto, podFrame}),
			}},
			{Name: "bridge_forward", Hook: Forward, Priority: PriorityRaw, Rules: []Rule{
				rule("policies would not see it", append([]Expr{In{Fields: []Load{LoadInputName()}, Set: closedPorts}}, verdict(Drop, RefusedUnjudged)...)...),
				rule("policies would not see it", append([]Expr{In{Fields: []Load{LoadOutputName()}, Set: closedPorts}}, verdict(Drop, RefusedUnjudged)...)...),
			}},
			podFrames(),
			podARPs(),
			podICMPs(),
			podNeighbours(),
		},
	}
	for _, f := range subnet.Families() {
		t.Sets = append(t.Sets, Set{Name: spoofSource(f), Fields: ported(addrType(f), EtherAddr)})
		t.Chains = append(t.Chains, podPackets(f))
	}
	return t
}

// podFrames tells frames apart by the type in the frame itself: a tag that the
// kernel has already taken off shows there, and not in the packet's protocol.
func podFrames() Chain {
	c := Chain{Name: podFrame}
	for _, f := range subnet.Families() {
		c.Rules = append(c.Rules, rule("", frameIs(f), Verdict{Goto, podIP(f)}))
	}
	c.Rules = append(c.Rules,
		rule("", frameTypeIs(unix.ETH_P_ARP), Verdict{Goto, podARP}),
		rule("neither IP nor ARP", verdict(Drop, RefusedEtherType)...))
	return c
}

// podPackets decides on IP packets. What pods send most is accepted by the
// second rule. Of a later fragment that starts amid extension headers the kernel
// tells no protocol, so IPv6 has a rule for those. A first fragment that ends
// amid them can hide a DHCP server's port; receivers from Linux 5.11 on drop it.
func podPackets(f subnet.Family) Chain {
	server, refused := uint16(dhcpServer), RefusedIPv4
	own := []Expr{ownSource(f), Verdict{Code: Accept}}
	if f == subnet.IPv6 {
		server, refused = dhcpv6Server, RefusedIPv6
		other := ProtocolIs(unix.IPPROTO_ICMPV6)
		other.Not = true
		own = append([]Expr{other}, own...)
	}
	answers := []Expr{ProtocolIs(unix.IPPROTO_UDP), PortIs(loadSourcePort(), server)}
	c := Chain{Name: podIP(f), Rules: []Rule{
		rule("pods are no DHCP servers", append(answers, verdict(Drop, RefusedDHCPServer)...)...),
		rule("its own address and MAC", append([]Expr{frameIs(f)}, own...)...),
	}}
	if f == subnet.IPv6 {
		later := Match{Load: Load{From: ExtensionHeader, Key: protocolFragment, Offset: 2, Len: 2, Mask: "\xff\xf8", Type: Number, Name: "frag frag-off"}, Not: true, Value: "\x00\x00"}
		c.Rules = append(c.Rules,
			rule("", ProtocolIs(unix.IPPROTO_ICMPV6), Verdict{Goto, podICMPv6}),
			rule("its own, and the protocol was in the first fragment", frameIs(f), later, ownSource(f), Verdict{Code: Accept}))
	}
	c.Rules = append(c.Rules, strangers(refused)...)
	return c
}

// strangers drops what no rule has accepted, and tells why.
func strangers(refused string) []Rule {
	foreign := []Expr{In{Fields: []Load{LoadInputName(), loadSourceMAC()}, Not: true, Set: spoofMACs}}
	return []Rule{
		rule("from another MAC", append(foreign, verdict(Drop, RefusedMAC)...)...),
		rule("from another address", verdict(Drop, refused)...),
	}
}

// podARPs decides on ARP for IPv4 over Ethernet. The address of probes, 0.0.0.0,
// is not in the set: IPv4 from there would pass.
func podARPs() Chain {
	kind := func(op byte) []Expr {
		return []Expr{frameTypeIs(unix.ETH_P_ARP), Match{Load: loadARPKind(), Value: string([]byte{0, 1, 8, 0, 6, 4, 0, op})}}
	}
	sender, none := loadARP("saddr ip", 14), Match{Load: loadARP("saddr ip", 14), Value: "\x00\x00\x00\x00"}
	both := func(l Load) []Expr {
		payload := Load{From: NetworkHeader, Offset: 8, Len: 6, Type: EtherAddr, Name: "arp saddr ether"}
		return []Expr{portHas(spoofSource(subnet.IPv4), l, loadSourceMAC()), portHas(spoofSource(subnet.IPv4), l, payload), Verdict{Code: Accept}}
	}
	const request, reply = 1, 2 // RFC 826; linux/if_arp.h
	return Chain{Name: podARP, Rules: []Rule{
		rule("asks for itself", append(kind(request), both(sender)...)...),
		rule("answers for itself", append(kind(reply), both(sender)...)...),
		rule("is its own address free?", append(append(kind(request), none), both(loadARP("daddr ip", 24))...)...),
		rule("all other ARP", verdict(Drop, RefusedARP)...),
	}}
}

// podICMPs decides on ICMPv6. Rules that drop by type are first, so that one that
// does not show its type, as later fragments do, has to have its own source.
func podICMPs() Chain {
	c := Chain{Name: podICMPv6, Rules: []Rule{
		rule("pods are no routers", append(icmpIs(icmpRouterAdvert), verdict(Drop, RefusedRouterAdv)...)...),
		rule("pods are no routers", append(icmpIs(icmpRedirect), verdict(Drop, RefusedRedirect)...)...),
	}}
	for _, typ := range []byte{icmpRouterSolicit, icmpSolicit, icmpAdvert} {
		c.Rules = append(c.Rules, rule("", append(icmpIs(typ), Verdict{Goto, podNeighbour})...))
	}
	c.Rules = append(c.Rules, rule("its own address and MAC", frameIs(subnet.IPv6), ownSource(subnet.IPv6), Verdict{Code: Accept}))
	for _, typ := range []byte{icmpMLDReport, icmpMLDDone, icmpMLDv2Report} { // RFC 3590
		c.Rules = append(c.Rules, rule("what it listens to, before it has an address",
			append([]Expr{fromNowhere()}, append(icmpIs(typ), portHas(spoofMACs, loadSourceMAC()), Verdict{Code: Accept})...)...))
	}
	c.Rules = append(c.Rules, strangers(RefusedIPv6)...)
	return c
}

// Bytes before the first option of ICMPv6 messages (RFC 4861 section 4).
const (
	afterRouterSolicit = 8
	afterTarget        = 8 + 16
)

// podNeighbours decides on solicitations and on neighbour advertisements.
func podNeighbours() Chain {
	direct := Match{Load: Load{From: NetworkHeader, Offset: 6, Len: 1, Type: Protocol, Name: "ip6 nexthdr"}, Not: true, Value: string([]byte{unix.IPPROTO_ICMPV6})}
	foreign := ownSource(subnet.IPv6)
	foreign.Not = true
	target := In{Fields: ofTarget(), Set: spoofTargets}
	mac := portHas(spoofMACs, loadSourceMAC())
	accept := func(comment string, match ...Expr) Rule {
		return rule(comment, append(match, Verdict{Code: Accept})...)
	}
	drop := func(comment string, match ...Expr) Rule {
		return rule(comment, append(match, verdict(Drop, RefusedNeighbour)...)...)
	}
	c := Chain{Name: podNeighbour, Rules: []Rule{
		drop("behind an extension header", frameIs(subnet.IPv6), direct),
		accept("is its own address free?", append([]Expr{fromNowhere()}, append(icmpIs(icmpSolicit), target)...)...),
		accept("where is a router?", append([]Expr{fromNowhere(), lengthIs(afterRouterSolicit)}, append(icmpIs(icmpRouterSolicit), mac)...)...),
		drop("from another address or MAC", frameIs(subnet.IPv6), foreign),
	}}
	for _, m := range []struct {
		typ    byte
		size   int
		target []Expr
	}{{icmpSolicit, afterTarget, nil}, {icmpAdvert, afterTarget, []Expr{target}}, {icmpRouterSolicit, afterRouterSolicit, nil}} {
		// 1 is the option of the source, 2 that of the target; both are 1 unit of
		// 8 bytes (RFC 4861 section 4.6.1).
		kind := byte(1)
		if m.target != nil {
			kind = 2
		}
		option := Match{Load: Load{From: TransportHeader, Offset: m.size, Len: 2, Type: Number}, Value: string([]byte{kind, 1})}
		c.Rules = append(c.Rules,
			accept("with its own MAC", append(append(icmpIs(m.typ), m.target...), option, In{Fields: ofOption(m.size), Set: spoofOptions})...),
			accept("without options", append(append([]Expr{lengthIs(m.size)}, icmpIs(m.typ)...), m.target...)...))
	}
	c.Rules = append(c.Rules, drop("for another address or MAC"))
	return c
}

// portHas looks up what belongs to the port that the frame came in by.
func portHas(set string, fields ...Load) In {
	return In{Fields: append([]Load{LoadInputName()}, fields...), Set: set}
}

func ownSource(f subnet.Family) In { return portHas(spoofSource(f), LoadSource(f), loadSourceMAC()) }

// ofTarget is the port, the target of neighbour discovery, and the MAC.
func ofTarget() []Load {
	target := Load{From: TransportHeader, Offset: 8, Len: 16, Type: IPv6Addr}
	return []Load{LoadInputName(), target, loadSourceMAC()}
}

// ofOption is the port and the MAC in an option at the given offset.
func ofOption(at int) []Load {
	return []Load{LoadInputName(), {From: TransportHeader, Offset: at + 2, Len: 6, Type: EtherAddr}}
}

func loadSourceMAC() Load {
	return Load{From: LinkHeader, Offset: 6, Len: 6, Type: EtherAddr, Name: "ether saddr"}
}

func loadSourcePort() Load {
	return Load{From: TransportHeader, Len: 2, Type: Port, Name: "th sport"}
}

// loadARPKind is what is spoken about and the operation (RFC 826).
func loadARPKind() Load { return Load{From: NetworkHeader, Len: 8, Type: Number} }

func loadARP(name string, at int) Load {
	return Load{From: NetworkHeader, Offset: at, Len: 4, Type: IPv4Addr, Name: "arp " + name}
}

func frameTypeIs(typ uint16) Match {
	l := Load{From: LinkHeader, Offset: 12, Len: 2, Type: EtherType, Name: "ether type"}
	return Match{Load: l, Value: string(binary.BigEndian.AppendUint16(nil, typ))}
}

func frameIs(f subnet.Family) Match {
	if f == subnet.IPv6 {
		return frameTypeIs(etherIPv6)
	}
	return frameTypeIs(etherIPv4)
}

// icmpIs matches a type of ICMPv6 messages. It says the protocol again because
// nft names the field only then.
func icmpIs(typ byte) []Expr {
	l := Load{From: TransportHeader, Len: 1, Type: Number, Name: "icmpv6 type"}
	return []Expr{ProtocolIs(unix.IPPROTO_ICMPV6), Match{Load: l, Value: string([]byte{typ})}}
}

// fromNowhere matches the source ::.
func fromNowhere() Match {
	return Match{Load: LoadSource(subnet.IPv6), Value: string(make([]byte, 16))}
}

// lengthIs matches IPv6 with so many bytes after the header.
func lengthIs(n int) Match {
	l := Load{From: NetworkHeader, Offset: 4, Len: 2, Type: Number, Name: "ip6 length"}
	return Match{Load: l, Value: string(binary.BigEndian.AppendUint16(nil, uint16(n)))}
}
