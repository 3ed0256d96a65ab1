// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// Addresses of the yard, for short.
const (
	a4, b4, c4, gw4 = "10.42.1.10", "10.42.1.11", "10.42.1.12", "10.42.1.1"
	a6, b6, c6, gw6 = "fd42:0:0:1::a", "fd42:0:0:1::b", "fd42:0:0:1::c", "fd42:0:0:1::1"
	nodes6, routers = "ff02::1", "ff02::2"
	toNodes6        = "\x33\x33\x00\x00\x00\x01"
	toRouters       = "\x33\x33\x00\x00\x00\x02"
)

func hello(src, dst string) packet { return udp(addr(src), addr(dst), 40000, 9000, []byte("hello")) }

// padding and routerAlert are hop-by-hop headers: of nothing, and of MLD.
func padding() []byte     { return []byte{0, 0, 1, 4, 0, 0, 0, 0} }
func routerAlert() []byte { return []byte{0, 0, 5, 2, 0, 0, 1, 0} }

// mld is a report (RFC 3810 section 5.2) of one group.
func mld(src string) packet {
	return icmp6(src, "ff02::16", icmpMLDv2Report, []byte{4, 0, 0, 0}, target("ff02::1:ff00:a"))
}

// ownFrames are what pod a may send.
func ownFrames() []frame {
	big := icmp6(a6, c6, 128, bytes.Repeat([]byte("x"), 800)).split(400, 7)
	cut := udp(addr(a4), addr(c4), 40000, 9000, bytes.Repeat([]byte("x"), 800)).split(400, 7)
	ns, na := icmp6(a6, "ff02::1:ff00:c", icmpSolicit, target(c6), option(1, macA)), icmp6(a6, c6, icmpAdvert, target(a6), option(2, macA))
	behind := hello(a6, c6) // options of 16 bytes, of which the first fragment has 8
	behind.payload = append([]byte{behind.proto, 1, 1, 12, 15: 0}, behind.payload...)
	behind.proto = unix.IPPROTO_DSTOPTS
	nonce := []byte{14, 1, 1, 2, 3, 4, 5, 6} // RFC 7527
	return []frame{
		{name: "IPv4", bytes: ip(macC, macA, hello(a4, c4))},
		{name: "IPv4 to the node", bytes: ip(macGateway, macA, hello(a4, gw4))},
		{name: "IPv4 broadcast", bytes: ip(toAll, macA, hello(a4, "255.255.255.255"))},
		{name: "IPv4, first fragment", bytes: ip(macC, macA, cut[0])},
		{name: "IPv4, next fragment", bytes: ip(macC, macA, cut[1])},
		{name: "IPv4, extra address", bytes: ip(macC, macA, hello("192.0.2.7", c4))},
		{name: "IPv4, extra prefix", bytes: ip(macC, macA, hello("198.51.100.15", c4))},
		{name: "DHCP client", bytes: ip(toAll, macA, udp(addr(a4), addr("255.255.255.255"), 68, 67, []byte("x")))},
		{name: "IPv6", bytes: ip(macC, macA, hello(a6, c6))},
		{name: "IPv6, link-local", bytes: ip(macGateway, macA, hello(linkA, linkGateway))},
		{name: "IPv6, extra address", bytes: ip(macC, macA, hello("2001:db8::7", c6))},
		{name: "IPv6 behind options", bytes: nd(macC, macA, hello(a6, c6), padding()...)},
		{name: "IPv6 behind options, first fragment", bytes: ip(macC, macA, behind.split(8, 9)[0])},
		{name: "IPv6 behind options, next fragment", bytes: ip(macC, macA, behind.split(8, 9)[1])},
		{name: "echo", bytes: ip(macC, macA, icmp6(a6, c6, 128))},
		{name: "echo, first fragment", bytes: ip(macC, macA, big[0])},
		{name: "echo, next fragment", bytes: ip(macC, macA, big[1])},
		{name: "ARP request", bytes: arp(toAll, macA, 1, macA, a4, c4)},
		{name: "ARP reply", bytes: arp(macC, macA, 2, macA, a4, c4)},
		{name: "ARP probe", bytes: arp(toAll, macA, 1, macA, "0.0.0.0", a4)},
		{name: "ARP announcement", bytes: arp(toAll, macA, 1, macA, a4, a4)},
		{name: "ARP reply, extra address", bytes: arp(macC, macA, 2, macA, "192.0.2.7", c4)},
		{name: "NS", bytes: nd("\x33\x33\xff\x00\x00\x0c", macA, ns)},
		{name: "NS, unicast without option", bytes: nd(macC, macA, icmp6(linkA, c6, icmpSolicit, target(c6)))},
		{name: "NA", bytes: nd(macC, macA, na)},
		{name: "NA without option", bytes: nd(macC, macA, icmp6(a6, c6, icmpAdvert, target(a6)))},
		{name: "NA from link-local", bytes: nd(macC, macA, icmp6(linkA, c6, icmpAdvert, target(a6), option(2, macA)))},
		{name: "NA of extra address", bytes: nd(macC, macA, icmp6(a6, c6, icmpAdvert, target("2001:db8::7"), option(2, macA)))},
		{name: "DAD", bytes: nd("\x33\x33\xff\x00\x00\x0a", macA, icmp6("::", "ff02::1:ff00:a", icmpSolicit, target(a6)))},
		{name: "DAD with nonce", bytes: nd("\x33\x33\xff\x00\x01\x0a", macA, icmp6("::", "ff02::1:ff00:10a", icmpSolicit, target(linkA), nonce))},
		{name: "RS", bytes: nd(toRouters, macA, icmp6(linkA, routers, icmpRouterSolicit, option(1, macA)))},
		{name: "RS without option", bytes: nd(toRouters, macA, icmp6(linkA, routers, icmpRouterSolicit))},
		{name: "RS from ::", bytes: nd(toRouters, macA, icmp6("::", routers, icmpRouterSolicit))},
		{name: "MLD report", bytes: nd("\x33\x33\x00\x00\x00\x16", macA, mld(linkA), routerAlert()...)},
		{name: "MLD report from ::", bytes: nd("\x33\x33\x00\x00\x00\x16", macA, mld("::"), routerAlert()...)},
		{name: "MLD version 1 report from ::", bytes: nd("\x33\x33\xff\x00\x00\x0a", macA,
			icmp6("::", "ff02::1:ff00:a", icmpMLDReport, target("ff02::1:ff00:a")), routerAlert()...)},
		{name: "MLD done from ::", bytes: nd(toRouters, macA,
			icmp6("::", routers, icmpMLDDone, target("ff02::1:ff00:a")), routerAlert()...)},
	}
}

// lies are what pod a may not send.
func lies() []frame {
	gatewayNA := icmp6(gw6, nodes6, icmpAdvert, target(gw6), option(2, macA))
	return append(neighbourLies(), []frame{
		{"IPv4 of pod b", ip(macC, macA, hello(b4, c4)), RefusedIPv4},
		{"IPv4 of nobody", ip(macGateway, macA, hello("203.0.113.9", gw4)), RefusedIPv4},
		{"IPv4 beside the extra prefix", ip(macC, macA, hello("198.51.100.16", c4)), RefusedIPv4},
		{"IPv4 from another MAC", ip(macC, macB, hello(a4, c4)), RefusedMAC},
		{"IPv4 and MAC of pod b", ip(macC, macB, hello(b4, c4)), RefusedMAC},
		{"DHCP discover", ip(toAll, macA, udp(addr("0.0.0.0"), addr("255.255.255.255"), 68, 67, []byte("x"))), RefusedIPv4},
		{"DHCP offer", ip(toAll, macA, udp(addr(a4), addr("255.255.255.255"), 67, 68, []byte("x"))), RefusedDHCPServer},
		{"DHCPv6 advertise", ip(macC, macA, udp(addr(linkA), addr(c6), 547, 546, []byte("x"))), RefusedDHCPServer},
		{"DHCPv6 advertise behind options", nd(macC, macA, udp(addr(linkA), addr(c6), 547, 546, []byte("x")), padding()...), RefusedDHCPServer},
		{"IPv6 of pod b", ip(macC, macA, hello(b6, c6)), RefusedIPv6},
		{"IPv6 link-local of pod b", ip(macC, macA, hello(linkB, c6)), RefusedIPv6},
		{"IPv6 from ::", ip(macC, macA, hello("::", c6)), RefusedIPv6},
		{"IPv6 from another MAC", ip(macC, macB, hello(a6, c6)), RefusedMAC},
		{"echo of pod b", ip(macC, macA, icmp6(b6, c6, 128)), RefusedIPv6},
		{"echo from ::", ip(macC, macA, icmp6("::", c6, 128)), RefusedIPv6},
		{"MLD report from :: and another MAC", nd("\x33\x33\x00\x00\x00\x16", macB, mld("::"), routerAlert()...), RefusedMAC},
		{"ARP reply for the gateway", arp(macC, macA, 2, macA, gw4, c4), RefusedARP},
		{"ARP reply for pod b", arp(macC, macA, 2, macA, b4, c4), RefusedARP},
		{"ARP announcement for pod b", arp(toAll, macA, 1, macA, b4, b4), RefusedARP},
		{"ARP probe for pod b", arp(toAll, macA, 1, macA, "0.0.0.0", b4), RefusedARP},
		{"ARP with another MAC inside", arp(macC, macA, 2, macB, a4, c4), RefusedARP},
		{"ARP from another MAC", arp(macC, macB, 2, macA, a4, c4), RefusedARP},
		{"ARP probe with another MAC inside", arp(toAll, macA, 1, macB, "0.0.0.0", a4), RefusedARP},
		{"ARP of an unknown operation", arp(macC, macA, 9, macA, a4, c4), RefusedARP},
		{"802.1Q", ethernet(macC, macA, unix.ETH_P_8021Q, append(be(nil, 5, etherIPv4), hello(a4, c4).bytes()...)), RefusedEtherType},
		{"802.1Q of pod b", ethernet(macC, macA, unix.ETH_P_8021Q, append(be(nil, 5, etherIPv4), hello(b4, c4).bytes()...)), RefusedEtherType},
		{"802.1Q without a VLAN", ethernet(macC, macA, unix.ETH_P_8021Q, append(be(nil, 0, etherIPv4), hello(a4, c4).bytes()...)), RefusedEtherType},
		{"802.1ad", ethernet(macC, macA, unix.ETH_P_8021AD, append(be(nil, 5, etherIPv4), hello(a4, c4).bytes()...)), RefusedEtherType},
		{"unknown type", ethernet(macC, macA, 0x88b5, []byte("whatever this is, of no known kind")), RefusedEtherType},
		{"LLC", ethernet(macC, macA, 38, []byte("\x42\x42\x03 and thirty-five bytes of nothing")), RefusedEtherType},
		{"router advertisement", nd(toNodes6, macA, icmp6(linkA, nodes6, icmpRouterAdvert, make([]byte, 8))), RefusedRouterAdv},
		{"router advertisement behind options", nd(toNodes6, macA, icmp6(linkA, nodes6, icmpRouterAdvert, make([]byte, 8)), padding()...), RefusedRouterAdv},
		{"redirect", nd(macC, macA, icmp6(linkA, c6, icmpRedirect, target(b6), target(b6))), RefusedRedirect},
		{"NA for the gateway behind options", nd(toNodes6, macA, gatewayNA, padding()...), RefusedNeighbour},
		{"NA in fragments", ip(toNodes6, macA, gatewayNA.split(8, 9)[0]), RefusedNeighbour},
	}...)
}

// neighbourLies are those of neighbour discovery.
func neighbourLies() []frame {
	na := func(src, of, mac string) packet {
		return icmp6(src, c6, icmpAdvert, target(of), option(2, mac))
	}
	ns := func(src, mac string) packet { return icmp6(src, c6, icmpSolicit, target(c6), option(1, mac)) }
	return []frame{
		{"NA for the gateway", nd(macC, macA, na(a6, gw6, macA)), RefusedNeighbour},
		{"NA of the gateway", nd(macC, macA, na(gw6, gw6, macA)), RefusedNeighbour},
		{"NA for pod b", nd(macC, macA, na(linkA, b6, macA)), RefusedNeighbour},
		{"NA from pod b", nd(macC, macA, na(b6, a6, macA)), RefusedNeighbour},
		{"NA with another MAC inside", nd(macC, macA, na(a6, a6, macB)), RefusedNeighbour},
		{"NA from another MAC", nd(macC, macB, na(a6, a6, macA)), RefusedNeighbour},
		{"NA with an option before the MAC", nd(macC, macA, icmp6(a6, c6, icmpAdvert, target(a6), make([]byte, 8), option(2, macB))), RefusedNeighbour},
		{"own NA behind options", nd(macC, macA, na(a6, a6, macA), padding()...), RefusedNeighbour},
		{"NS of pod b", nd(macC, macA, ns(b6, macA)), RefusedNeighbour},
		{"NS with another MAC inside", nd(macC, macA, ns(a6, macB)), RefusedNeighbour},
		{"DAD for pod b", nd("\x33\x33\xff\x00\x00\x0b", macA, icmp6("::", "ff02::1:ff00:b", icmpSolicit, target(b6))), RefusedNeighbour},
		{"DAD from another MAC", nd("\x33\x33\xff\x00\x00\x0a", macB, icmp6("::", "ff02::1:ff00:a", icmpSolicit, target(a6))), RefusedNeighbour},
		{"RS with another MAC inside", nd(toRouters, macA, icmp6(linkA, routers, icmpRouterSolicit, option(1, macB))), RefusedNeighbour},
	}
}
