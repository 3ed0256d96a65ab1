// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// An Expr is one step of a rule. String renders it in nft's language, or as
// close to it as that language goes.
type Expr interface {
	String() string
	encode(e *exprEncoder)
}

// Source says where a Load takes its bytes from.
type Source uint8

// The sources. A header's offset is counted from its first byte; the
// transport header is the one after all IPv6 extension headers.
const (
	Meta Source = iota + 1
	LinkHeader
	NetworkHeader
	TransportHeader
	ExtensionHeader // of IPv6
	ExtensionExists // of IPv6: one byte, 1 when it is there
	Conntrack       // the packet's flow; a packet without one does not match
)

// Load is a piece of a packet or of what the kernel knows about it.
// Comparable. A packet that is too short for it does not match the rule.
type Load struct {
	From   Source
	Key    uint32 // NFT_META_* for Meta, NFT_CT_* for Conntrack, the header's number for extensions
	Offset int    // bytes into the header; of Conntrack the tuple, 1 for that of replies
	Len    int    // bytes, at most 16; more only in a Find
	Mask   string // ANDed to the bytes unless empty; Len bytes
	Type   Type
	Name   string // nft's name for it; empty if there is none
}

// Masked returns l ANDed with the mask of a prefix of the given length.
func (l Load) Masked(bits int) Load {
	if bits >= l.Len*8 {
		return l
	}
	l.Mask = string(prefixMask(bits, l.Len))
	return l
}

func prefixMask(bits, size int) []byte {
	m := make([]byte, size)
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// LoadNFProto is the packet's family.
func LoadNFProto() Load {
	return Load{From: Meta, Key: unix.NFT_META_NFPROTO, Len: 1, Type: NFProto, Name: "meta nfproto"}
}

// LoadProtocol is the protocol after the IP header and its extensions.
func LoadProtocol() Load {
	return Load{From: Meta, Key: unix.NFT_META_L4PROTO, Len: 1, Type: Protocol, Name: "meta l4proto"}
}

// LoadInputName is the name of the device that the packet came in by.
func LoadInputName() Load {
	return Load{From: Meta, Key: unix.NFT_META_IIFNAME, Len: unix.IFNAMSIZ, Type: IfName, Name: "iifname"}
}

// LoadOutputName is the name of the device that the packet leaves by.
func LoadOutputName() Load {
	return Load{From: Meta, Key: unix.NFT_META_OIFNAME, Len: unix.IFNAMSIZ, Type: IfName, Name: "oifname"}
}

// LoadMark is the packet's mark.
func LoadMark() Load {
	return Load{From: Meta, Key: unix.NFT_META_MARK, Len: 4, Type: Mark, Name: "meta mark"}
}

// LoadSource is the source address in the IP header (RFC 791 section 3.1,
// RFC 8200 section 3).
func LoadSource(f subnet.Family) Load { return addrLoad(f, "saddr", 12, 8) }

// LoadDest is the destination address in the IP header.
func LoadDest(f subnet.Family) Load { return addrLoad(f, "daddr", 16, 24) }

// addrLoad is an address in a network header; at is its offset for each family.
func addrLoad(f subnet.Family, name string, at4, at16 int) Load {
	if f == subnet.IPv4 {
		return Load{From: NetworkHeader, Offset: at4, Len: 4, Type: IPv4Addr, Name: "ip " + name}
	}
	return Load{From: NetworkHeader, Offset: at16, Len: 16, Type: IPv6Addr, Name: "ip6 " + name}
}

// LoadDestPort is the destination port. The rule has to match the protocol
// first.
func LoadDestPort() Load {
	return Load{From: TransportHeader, Offset: 2, Len: 2, Type: Port, Name: "th dport"}
}

// Match compares bytes of the packet with Value, or with Not the opposite.
type Match struct {
	Load  Load
	Not   bool
	Value string // Len bytes of the Load
}

// In looks the concatenation of the fields up in a set.
type In struct {
	Fields []Load
	Not    bool
	Set    string
}

// Count adds the packet to a named counter.
type Count struct{ Counter string }

// Verdict ends the rule's evaluation. Jump and Goto name a chain.
type Verdict struct {
	Code  int32
	Chain string
}

// The codes of verdicts (linux/netfilter.h, linux/netfilter/nf_tables.h).
const (
	Drop   int32 = 0
	Accept int32 = 1
	Jump   int32 = unix.NFT_JUMP
	Goto   int32 = unix.NFT_GOTO
	Return int32 = unix.NFT_RETURN
)

// Notrack keeps the packet out of conntrack. Only before priority -200.
type Notrack struct{}

// Masquerade gives the flow the address of the device it leaves by, and a
// fully random port: of the range Ports unless that is zero. nft reads its
// listing of a range only after a match of the protocol.
type Masquerade struct{ Ports [2]uint16 }

// FamilyIs matches packets of family f.
func FamilyIs(f subnet.Family) Match {
	v := byte(unix.NFPROTO_IPV4)
	if f == subnet.IPv6 {
		v = unix.NFPROTO_IPV6
	}
	return Match{Load: LoadNFProto(), Value: string([]byte{v})}
}

// ProtocolIs matches packets of an IP protocol, e.g. unix.IPPROTO_UDP.
func ProtocolIs(p uint8) Match { return Match{Load: LoadProtocol(), Value: string([]byte{p})} }

// PortIs matches a 16-bit number such as LoadDestPort.
func PortIs(l Load, port uint16) Match {
	return Match{Load: l, Value: string(binary.BigEndian.AppendUint16(nil, port))}
}

// Within matches addresses inside p, or with Not outside it.
func Within(l Load, p netip.Prefix, not bool) Match {
	return Match{Load: l.Masked(p.Bits()), Not: not, Value: string(p.Masked().Addr().AsSlice())}
}

// InputIs matches packets that came in by the named device.
func InputIs(dev string) Match {
	v := make([]byte, unix.IFNAMSIZ)
	copy(v[:unix.IFNAMSIZ-1], dev)
	return Match{Load: LoadInputName(), Value: string(v)}
}
