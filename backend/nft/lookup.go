// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Decided is the Data of an element that carries v.
func Decided(v Verdict) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(v.Code))) + v.Chain
}

// decided is the verdict that Decided was given.
func decided(data string) Verdict {
	if len(data) < 4 {
		return Verdict{}
	}
	return Verdict{Code: int32(binary.BigEndian.Uint32([]byte(data))), Chain: data[4:]}
}

// MarkOf is the bytes of a field of type Mark.
func MarkOf(v uint32) string { return string(markBytes(v)) }

// PortWord is the bytes of a field of type Ports: a range, a single port that
// has no end, or zeros for none. A port that is loaded into such a field is the
// same bytes.
func PortWord(from, to uint16) string {
	return string(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to))
}

// Has matches what a map to values of four bytes has something for.
type Has struct {
	Load Load
	Map  string
}

// A Part is one field of four bytes of the key of a Decide: a constant, or with
// a Load the bytes that it loads, or with a Map too what that has for them. A
// packet that it has nothing for does not match.
type Part struct {
	Value string // of a constant; without one, zeros
	Load  Load
	Map   string
}

// Decide looks the concatenation of parts up in a map to verdicts, and does what
// the verdict says; where there is none the packet does not match. At most four
// parts may be constants before the first that is none, and the fifth is none.
type Decide struct {
	Parts []Part
	Map   string
}

const (
	// parked is the register that addresses are loaded into to be looked up.
	parked = 8
	// maxBitwise is how many bytes one expression masks.
	maxBitwise = 16
)

func (e *exprEncoder) lookup(set string, from int, to uint32) {
	e.add("lookup", func(a *attrs) {
		a.text(unix.NFTA_LOOKUP_SET, set)
		a.be32(unix.NFTA_LOOKUP_SREG, register(from))
		a.be32(unix.NFTA_LOOKUP_DREG, to)
	})
}

// encode compares what the map has in a way that is always true: a rule of
// lookups alone reads in nft's listing as if it matched everything.
func (h Has) encode(e *exprEncoder) {
	h.Load.encode(e, 0)
	e.lookup(h.Map, 0, register(0))
	e.add("cmp", func(a *attrs) {
		a.be32(unix.NFTA_CMP_SREG, register(0))
		a.be32(unix.NFTA_CMP_OP, unix.NFT_CMP_GTE)
		a.data(unix.NFTA_CMP_DATA, "\x00\x00\x00\x00")
	})
}

// encode begins with a load as wide as the key, whose bytes are then made the
// constants: the nft program takes what a map has for nothing at all, looks for
// a key register by register and aborts, unless it has found one expression as
// long as the key in the first (netlink_parse_concat_expr,
// src/netlink_delinearize.c of nftables 1.0.6). Every IP header is 20 bytes.
func (d Decide) encode(e *exprEncoder) {
	Load{From: NetworkHeader, Len: 4 * len(d.Parts)}.encode(e, 0)
	n := min(4*len(d.Parts), maxBitwise)
	constant := make([]byte, n)
	for i, p := range d.Parts {
		if p.Load == (Load{}) && 4*i < n {
			copy(constant[4*i:], p.Value)
		}
	}
	e.add("bitwise", func(a *attrs) {
		a.be32(unix.NFTA_BITWISE_SREG, register(0))
		a.be32(unix.NFTA_BITWISE_DREG, register(0))
		a.be32(unix.NFTA_BITWISE_LEN, uint32(n))
		a.data(unix.NFTA_BITWISE_MASK, string(make([]byte, n)))
		a.data(unix.NFTA_BITWISE_XOR, string(constant))
	})
	for i, p := range d.Parts {
		switch {
		case p.Load == Load{}:
		case p.Map == "":
			p.Load.encode(e, i)
		default:
			p.Load.encode(e, parked)
			e.lookup(p.Map, parked, register(i))
		}
	}
	e.lookup(d.Map, 0, unix.NFT_REG_VERDICT)
}

// String renders the lookup.
func (h Has) String() string { return fmt.Sprintf("%s map @%s >= 0x00000000", h.Load, h.Map) }

// String renders the lookup. nft lists it as raw bytes of a header, which it
// cannot load again.
func (d Decide) String() string {
	words := make([]string, len(d.Parts))
	for i, p := range d.Parts {
		words[i] = p.String()
	}
	return strings.Join(words, " . ") + " vmap @" + d.Map
}

// String renders the part.
func (p Part) String() string {
	switch {
	case p.Load == Load{}:
		return fmt.Sprintf("0x%x", p.Value+strings.Repeat("\x00", 4-min(len(p.Value), 4)))
	case p.Map == "":
		return p.Load.String()
	}
	return p.Load.String() + " map @" + p.Map
}
