// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// Bits of LoadState (linux/netfilter/nf_conntrack_common.h,
// NF_CT_STATE_INVALID_BIT and NF_CT_STATE_UNTRACKED_BIT).
const (
	StateInvalid   uint32 = 1 << 0
	StateUntracked uint32 = 1 << 6
)

// labelBytes is the size of a flow's labels (NF_CT_LABELS_MAX_SIZE,
// net/netfilter/nf_conntrack_labels.h).
const labelBytes = 16

// Labels is how many labels a flow can have.
const Labels = 8 * labelBytes

// A Tuple is one of the two that a flow has: that of its first packet as it
// came, before any translation, or that of the replies, which come from where
// the first packet went after translation.
type Tuple uint8

// The tuples. The values are IP_CT_DIR_* (linux/netfilter/nf_conntrack_tuple_common.h).
const (
	Original Tuple = iota
	Reply
)

// String returns nft's word for t.
func (t Tuple) String() string {
	if t == Reply {
		return "reply"
	}
	return "original"
}

// LoadTupleSource is the source address of a tuple; a flow of another family
// does not match.
func LoadTupleSource(f subnet.Family, t Tuple) Load {
	l := Load{From: Conntrack, Key: unix.NFT_CT_SRC_IP, Offset: int(t), Len: 4, Type: IPv4Addr, Name: fmt.Sprintf("ct %s ip saddr", t)}
	if f == subnet.IPv6 {
		l.Key, l.Len, l.Type, l.Name = unix.NFT_CT_SRC_IP6, 16, IPv6Addr, fmt.Sprintf("ct %s ip6 saddr", t)
	}
	return l
}

// LoadTupleSourcePort is the source port of a tuple. Where the protocol has no
// ports it is something else.
func LoadTupleSourcePort(t Tuple) Load {
	return Load{From: Conntrack, Key: unix.NFT_CT_PROTO_SRC, Offset: int(t), Len: 2, Type: Port, Name: fmt.Sprintf("ct %s proto-src", t)}
}

// LoadFlowProtocol is the protocol of the flow that the packet belongs to. Of
// an ICMP error it is that of the packet which the error is about.
func LoadFlowProtocol() Load {
	return Load{From: Conntrack, Key: unix.NFT_CT_PROTOCOL, Len: 1, Type: Protocol, Name: "ct protocol"}
}

// DirectionIs matches packets that go the way of the flow's first one, or back.
func DirectionIs(t Tuple) Match {
	l := Load{From: Conntrack, Key: unix.NFT_CT_DIRECTION, Len: 1, Type: Number, Name: "ct direction"}
	return Match{Load: l, Value: string([]byte{byte(t)})}
}

// ofTuple reports whether l asks one of the flow's tuples.
func (l Load) ofTuple() bool {
	switch l.Key {
	case unix.NFT_CT_PROTO_SRC, unix.NFT_CT_SRC_IP, unix.NFT_CT_SRC_IP6:
		return true
	}
	return false
}

// StateIs matches packets of any of the states whose bits are set.
func StateIs(bits uint32) Match {
	mask := string(binary.NativeEndian.AppendUint32(nil, bits))
	l := Load{From: Conntrack, Key: unix.NFT_CT_STATE, Len: 4, Mask: mask, Type: Mark, Name: "ct state"}
	return Match{Load: l, Not: true, Value: "\x00\x00\x00\x00"}
}

// LabelSet matches packets of flows that have label n, below Labels.
func LabelSet(n int) Match {
	l := Load{From: Conntrack, Key: unix.NFT_CT_LABELS, Len: labelBytes, Mask: label(n), Type: Number, Name: "ct label"}
	return Match{Load: l, Not: true, Value: string(make([]byte, labelBytes))}
}

// label is the labels of a flow that has n alone. Which bit of the bytes it is
// counts for nobody but us, as long as all of them are different.
func label(n int) string {
	b := make([]byte, labelBytes)
	b[n/8] = 1 << (n % 8)
	return string(b)
}

// AddLabel gives the packet's flow label N. A flow that began when nothing in
// the namespace asked for labels has no room for any, and stays without.
type AddLabel struct{ N int }

func (l AddLabel) encode(e *exprEncoder) {
	e.add("immediate", func(a *attrs) {
		a.be32(unix.NFTA_IMMEDIATE_DREG, register(0))
		a.data(unix.NFTA_IMMEDIATE_DATA, label(l.N))
	})
	e.add("ct", func(a *attrs) {
		a.be32(unix.NFTA_CT_KEY, unix.NFT_CT_LABELS)
		a.be32(unix.NFTA_CT_SREG, register(0))
	})
}

// String renders the statement.
func (l AddLabel) String() string { return "ct label set 0x" + fmt.Sprintf("%x", label(l.N)) }
