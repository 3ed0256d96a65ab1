// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MarkOf is the bytes of a field of type Mark.
func MarkOf(v uint32) string { return string(markBytes(v)) }

// PortWord is the bytes of a field of type PortWords: what loading a port into
// four bytes makes.
func PortWord(port uint16) string {
	return string(append(binary.BigEndian.AppendUint16(nil, port), 0, 0))
}

// Has matches what a map to values of four bytes has something for.
type Has struct {
	Load Load
	Map  string
}

// A Part is one field of four bytes of a key: a constant, or with a Load the
// bytes that it loads, or with a Map too what that has for them, or for Key. A
// packet that a map has nothing for does not match.
type Part struct {
	Value string // of a constant; without one, zeros
	Load  Load
	Key   []Part // at most four, none of which has a Key
	Map   string
}

// Find looks the concatenation of at most four parts up in a set. The first has
// no Key.
type Find struct {
	Parts []Part
	Set   string
}

// Registers, of four bytes each: a key begins at the first, one of a Part that is
// looked up for it at inner, and addresses are loaded into parked and what
// follows it.
const (
	inner  = 4
	parked = 8
)

// mapped puts what a map has for the key in register from into register to.
func (e *exprEncoder) mapped(name string, from, to int) {
	e.add("lookup", func(a *attrs) {
		a.text(unix.NFTA_LOOKUP_SET, name)
		a.be32(unix.NFTA_LOOKUP_SREG, register(from))
		a.be32(unix.NFTA_LOOKUP_DREG, register(to))
	})
}

// encode compares what the map has in a way that is always true: a rule of
// lookups alone reads in nft's listing as if it matched everything.
func (h Has) encode(e *exprEncoder) {
	h.Load.encode(e, 0)
	e.mapped(h.Map, 0, 0)
	e.add("cmp", func(a *attrs) {
		a.be32(unix.NFTA_CMP_SREG, register(0))
		a.be32(unix.NFTA_CMP_OP, unix.NFT_CMP_GTE)
		a.data(unix.NFTA_CMP_DATA, "\x00\x00\x00\x00")
	})
}

// encode encodes the lookup.
func (f Find) encode(e *exprEncoder) {
	e.concat(f.Parts, 0)
	e.add("lookup", func(a *attrs) {
		a.text(unix.NFTA_LOOKUP_SET, f.Set)
		a.be32(unix.NFTA_LOOKUP_SREG, register(0))
	})
}

// concat puts parts into registers, the first into base. It begins with a load as
// wide as all of them, whose bytes are then made the constants: the nft program
// takes what a map has for nothing at all, looks for a key register by register
// and aborts, unless it has found one expression as long as the key in the first
// (netlink_parse_concat_expr, src/netlink_delinearize.c of nftables 1.0.6). Every
// IP header is 20 bytes.
func (e *exprEncoder) concat(parts []Part, base int) {
	n := 4 * len(parts)
	Load{From: NetworkHeader, Len: n}.encode(e, base)
	constant := make([]byte, n)
	for i, p := range parts {
		if p.Load == (Load{}) && p.Key == nil {
			copy(constant[4*i:], p.Value)
		}
	}
	e.add("bitwise", func(a *attrs) {
		a.be32(unix.NFTA_BITWISE_SREG, register(base))
		a.be32(unix.NFTA_BITWISE_DREG, register(base))
		a.be32(unix.NFTA_BITWISE_LEN, uint32(n))
		a.data(unix.NFTA_BITWISE_MASK, string(make([]byte, n)))
		a.data(unix.NFTA_BITWISE_XOR, string(constant))
	})
	for i, p := range parts {
		switch {
		case p.Key != nil:
			e.concat(p.Key, inner)
			e.mapped(p.Map, inner, base+i)
		case p.Load == Load{}:
		case p.Map == "":
			p.Load.encode(e, base+i)
		default:
			p.Load.encode(e, parked)
			e.mapped(p.Map, parked, base+i)
		}
	}
}

// String renders the lookup.
func (h Has) String() string { return fmt.Sprintf("%s map @%s >= 0x00000000", h.Load, h.Map) }

// String renders the lookup. nft lists it as raw bytes of a header, which it
// cannot load again.
func (f Find) String() string { return partsText(f.Parts) + " @" + f.Set }

func partsText(parts []Part) string {
	words := make([]string, len(parts))
	for i, p := range parts {
		words[i] = p.String()
	}
	return strings.Join(words, " . ")
}

// String renders the part.
func (p Part) String() string {
	switch {
	case p.Key != nil:
		return "(" + partsText(p.Key) + ") map @" + p.Map
	case p.Load == Load{}:
		return fmt.Sprintf("0x%x", p.Value+strings.Repeat("\x00", 4-min(len(p.Value), 4)))
	case p.Load.Mask != "":
		return fmt.Sprintf("%s & 0x%x", p.Load, p.Load.Mask)
	case p.Map == "":
		return p.Load.String()
	}
	return p.Load.String() + " map @" + p.Map
}
