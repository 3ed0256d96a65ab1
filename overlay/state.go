// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"

	"weft.dev/weft/subnet"
)

// RouteProtocol is the rtnetlink protocol number that marks weft's routes
// (rtm_protocol, linux/rtnetlink.h). See docs/adr/0001 for who uses what.
const RouteProtocol = 87

// A Set holds comparable entries.
type Set[E comparable] map[E]struct{}

// State is everything that weft keeps in one network namespace. Entries are
// comparable values that name devices, never interface indexes.
type State struct {
	Filters Set[Filter] // one, or none where weft leaves nftables alone
	Nodes   Set[Node]
	Sources Set[Source]
	Pods    Set[Pods]
	Links   Set[Link]
	Addrs   Set[Addr]
	FDB     Set[FDB]
	Neighs  Set[Neigh]
	Routes  Set[Route]
}

// An Entry is one element of a State. String renders it as the arguments
// that follow `ip link add`, `ip addr add`, `nft add element` and so on.
type Entry interface {
	entry()
	String() string
}

// Link is a VXLAN device. Changing anything but MAC, MTU, Learning, NoGRO, Up,
// RPFilter and AddrGen means deleting and re-creating it (vxlan_changelink,
// drivers/net/vxlan/vxlan_core.c refuses the rest or weft cannot trust it).
type Link struct {
	Name     string
	VNI      uint32
	Port     uint16     // outer UDP destination port
	Local    netip.Addr // source address of outer packets
	Underlay string     // name of the device that carries them
	MAC      subnet.MAC
	MTU      int // bytes
	Learning bool
	GBP      bool
	NoGRO    bool // what comes out of the tunnel is not merged once more
	Up       bool
	RPFilter uint8  // net.ipv4.conf.DEV.rp_filter; 2 is loose (RFC 3704 section 2.4)
	AddrGen  string // IPv6 address generation: "none" as weft sets it, else as dumped
	Foreign  string // attributes weft never sets, in iproute2 syntax; empty when desired
}

// Addr is an address of a device.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
}

// FDB is a permanent forwarding entry of a VXLAN device: frames to MAC go to
// the VTEP at Dst.
type FDB struct {
	Dev string
	MAC subnet.MAC
	Dst netip.Addr
}

// Neigh is a permanent neighbour: packets via IP are framed to MAC.
type Neigh struct {
	Dev string
	IP  netip.Addr
	MAC subnet.MAC
}

// Route is a unicast route in the main table.
type Route struct {
	Dev    string
	Dst    netip.Prefix
	Via    netip.Addr // zero for a route without gateway
	Src    netip.Addr // preferred source; zero lets the kernel choose
	Metric uint32
	Onlink bool
	Proto  uint8 // RouteProtocol when desired; as dumped otherwise
}

// Guard says what a VXLAN packet for our port and VNI has to show before the
// VXLAN device sees it.
type Guard string

// The modes of the ingress guard.
const (
	GuardBind  Guard = "bind"  // a peer's outer source, with an inner source that is this peer's
	GuardPeers Guard = "peers" // a peer's outer source
	GuardOff   Guard = "off"   // nothing
)

// Filter is nftables table inet weft without its elements: the ingress guard,
// the drop of VXLAN from pods, notrack, masquerading. What is per family
// stands in the order of subnet.Families and is zero where there is none.
// A network that is open (subnet.Network) is the whole of its family.
// Comparable.
type Filter struct {
	Guard      Guard
	Masquerade bool
	Port       uint16          // outer UDP destination port
	VNI        uint32          // 24 bits
	Networks   [2]netip.Prefix // pod networks
	Subnets    [2]netip.Prefix // this node's pod subnets
	Devices    [2]string       // our VXLAN devices by underlay family, there or not
	Bridge     string          // the device that pods are behind, there or not; empty for none known
	Lengths    Lengths         // of the inner prefixes that the guard looks for, and of Pods; single addresses left out
	Foreign    string          // in what the kernel's table is not as weft makes it; empty when desired
}

// Node is an address of a peer, or of this node (Own), that VXLAN packets come
// from or go to: an element of a set of table inet weft.
type Node struct {
	Addr netip.Addr
	Own  bool
}

// Source lets in VXLAN packets from Outer whose inner source is inside Inner:
// an element of a set of table inet weft.
type Source struct {
	Outer netip.Addr
	Inner netip.Prefix
}

// Pods is a peer's subnet in an open network, which packets of pods are not
// masqueraded to: an element of a set of table inet weft.
type Pods struct {
	Subnet netip.Prefix
}
