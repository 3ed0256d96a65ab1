// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Family is a table's family. The values are NFPROTO_* (linux/netfilter.h).
type Family uint8

// The families of tables. Those that weft makes are Inet and Bridge.
const (
	Inet   Family = unix.NFPROTO_INET
	IP     Family = unix.NFPROTO_IPV4
	IP6    Family = unix.NFPROTO_IPV6
	ARP    Family = unix.NFPROTO_ARP
	Bridge Family = unix.NFPROTO_BRIDGE
	NetDev Family = unix.NFPROTO_NETDEV
)

// String returns nft's word for f.
func (f Family) String() string {
	switch f {
	case Inet:
		return "inet"
	case IP:
		return "ip"
	case IP6:
		return "ip6"
	case ARP:
		return "arp"
	case Bridge:
		return "bridge"
	case NetDev:
		return "netdev"
	}
	return "unknown"
}

// Hook is where a base chain sits. The values are NF_INET_* (linux/netfilter.h)
// plus one, and Egress; bridge tables count alike. Zero is no hook: a chain
// that is only jumped to.
type Hook uint8

// The hooks.
const (
	Prerouting  Hook = unix.NF_INET_PRE_ROUTING + 1
	Input       Hook = unix.NF_INET_LOCAL_IN + 1
	Forward     Hook = unix.NF_INET_FORWARD + 1
	Output      Hook = unix.NF_INET_LOCAL_OUT + 1
	Postrouting Hook = unix.NF_INET_POST_ROUTING + 1
	Ingress     Hook = Postrouting + 1 // NF_INET_INGRESS
	Egress      Hook = Ingress + 1     // NF_NETDEV_EGRESS
)

// String returns nft's word for h.
func (h Hook) String() string {
	if h < Prerouting || h > Egress {
		return "unknown"
	}
	return [...]string{"prerouting", "input", "forward", "output", "postrouting", "ingress", "egress"}[h-1]
}

// Priorities of base chains (enum nf_ip_hook_priorities,
// linux/netfilter_ipv4.h). Conntrack sits at -200, reassembly at -400.
const (
	PriorityRaw    = -300
	PrioritySrcNAT = 100
)

// Table is one nftables table without the elements of its sets.
type Table struct {
	Family   Family
	Name     string
	Comment  string   // shown by `nft list ruleset`, at most 120 bytes
	Params   string   // stored with the table for who reads it back, at most 130 bytes
	Counters []string // named counters
	Sets     []Set
	Chains   []Chain
}

// Chain is a base chain, or with Hook zero a chain to jump to. The policy of
// our base chains is accept. Names must not be words of nft's language: the
// nft program cannot read back its own listing then.
type Chain struct {
	Name     string
	NAT      bool // type nat instead of filter
	Hook     Hook
	Priority int32
	Rules    []Rule
}

// Rule is a list of expressions that are evaluated in order until one does
// not match. Comment is shown by `nft list ruleset`, at most 120 bytes.
type Rule struct {
	Exprs   []Expr
	Comment string
}

// Set is a hash set, or with Interval a tree of ranges of keys, of which every
// change takes longer the more there are. Its key is the concatenation of its
// fields, at most five of them and 64 bytes; a key of ranges is one field. Of
// says what is looked up, a Load for each field; a set needs it where one of
// them is raw bytes. It serves source addresses of IP headers and bytes of the
// transport header. With Data the set is a map: each element carries a value of
// that type. There are no maps to verdicts: the kernel walks such a map once for
// each rule that uses it whenever any rule of the table is new
// (nft_lookup_validate, net/netfilter/nft_lookup.c).
type Set struct {
	Name     string
	Fields   []Type
	Of       []Load
	Interval bool
	Data     Type
}

// Element is one key of a set: its fields in network byte order, each padded
// to four bytes. An empty Key is the catch-all element, which matches
// everything; weft never adds one. Of a set of ranges, Key is the first of a
// range and End the first after it; empty where the range reaches to the last
// key that there is. Data is the bytes of the value that it carries. Comparable. An element whose Data is to be another is deleted
// and added in one transaction: the kernel changes none.
type Element struct {
	Set  string
	Key  string
	End  string
	Data string
}

// Desired is a table with the elements of its sets, in any order.
type Desired struct {
	Table    Table
	Elements []Element
}

// Type is the data type of a field. It decides how nft shows it.
type Type uint8

// The data types.
const (
	IPv4Addr Type = iota + 1
	IPv6Addr
	EtherAddr
	EtherType
	Protocol // an IP protocol number
	NFProto  // a family, NFPROTO_IPV4 or NFPROTO_IPV6
	Port
	Mark // in the machine's byte order
	IfName
	Number    // bytes without a better name
	PortWords // what PortWord makes
)

// info is what nft knows of a type: its word, its number (enum datatypes in
// the nft program's datatype.h, which sets carry for listing) and its length
// in bytes.
func (t Type) info() (word string, id uint32, size int) {
	switch t {
	case IPv4Addr:
		return "ipv4_addr", 7, 4
	case IPv6Addr:
		return "ipv6_addr", 8, 16
	case EtherAddr:
		return "ether_addr", 9, 6
	case EtherType:
		return "ether_type", 10, 2
	case Protocol:
		return "inet_proto", 12, 1
	case NFProto:
		return "nf_proto", 2, 1
	case Port:
		return "inet_service", 13, 2
	case Mark:
		return "mark", 19, 4
	case IfName:
		return "ifname", 41, 16
	case PortWords: // nft has no word for it
		return "mark", 19, 4
	}
	return "integer", 4, 4
}

// AddrType returns the type of an address field that holds a.
func AddrType(a netip.Addr) Type {
	if a.Unmap().Is4() {
		return IPv4Addr
	}
	return IPv6Addr
}

// Key joins fields into the key of an Element, each padded to four bytes.
func Key(fields ...[]byte) string {
	var b []byte
	for _, f := range fields {
		b = append(b, f...)
		b = append(b, make([]byte, -len(f)&3)...)
	}
	return string(b)
}
