// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Constants of linux/netfilter/nf_tables.h that x/sys/unix lacks.
const (
	nftaBitwiseOp    = 6
	nftaSetDescCat   = 2    // NFTA_SET_DESC_CONCAT
	nftaSetFieldLen  = 1    // NFTA_SET_FIELD_LEN
	nftaSetExpr      = 17   // NFTA_SET_EXPR
	nftaSetExprs     = 18   // NFTA_SET_EXPRESSIONS
	nftaSetCount     = 20   // NFTA_SET_COUNT: elements, dumped by newer kernels (6.18 does)
	nftSetConcat     = 0x80 // NFT_SET_CONCAT
	nftElemCatchall  = 2    // NFT_SET_ELEM_CATCHALL
	nftaTableUser    = 6    // NFTA_TABLE_USERDATA
	natPortRange     = 2    // NF_NAT_RANGE_PROTO_SPECIFIED
	natRandomFully   = 16   // NF_NAT_RANGE_PROTO_RANDOM_FULLY, linux/netfilter/nf_nat.h
	maxElementsBytes = 60000
)

// exprEncoder collects the expressions of one rule.
type exprEncoder struct{ list attrs }

func (e *exprEncoder) add(name string, f func(*attrs)) {
	e.list.nest(unix.NFTA_LIST_ELEM, func(a *attrs) {
		a.text(unix.NFTA_EXPR_NAME, name)
		a.nest(unix.NFTA_EXPR_DATA, f)
	})
}

// register is the number of the n-th 4-byte register. Those at a 16-byte
// border carry the older number in the kernel's dumps (nft_dump_register,
// net/netfilter/nf_tables_api.c).
func register(n int) uint32 {
	if n%4 == 0 {
		return uint32(unix.NFT_REG_1 + n/4)
	}
	return uint32(unix.NFT_REG32_00 + n)
}

// words is how many registers size bytes take.
func words(size int) int { return (size + 3) / 4 }

func (a *attrs) data(typ uint16, v string) {
	a.nest(typ, func(a *attrs) { a.bytes(unix.NFTA_DATA_VALUE, []byte(v)) })
}

// encode puts l's bytes into registers from the n-th on.
func (l Load) encode(e *exprEncoder, n int) {
	switch l.From {
	case Meta:
		e.add("meta", func(a *attrs) {
			a.be32(unix.NFTA_META_KEY, l.Key)
			a.be32(unix.NFTA_META_DREG, register(n))
		})
	case Conntrack:
		e.add("ct", func(a *attrs) {
			a.be32(unix.NFTA_CT_DREG, register(n))
			a.be32(unix.NFTA_CT_KEY, l.Key)
			if l.ofTuple() {
				a.bytes(unix.NFTA_CT_DIRECTION, []byte{byte(l.Offset)}) // not the four bytes of other numbers
			}
		})
	case ExtensionHeader, ExtensionExists:
		e.add("exthdr", func(a *attrs) {
			a.be32(unix.NFTA_EXTHDR_DREG, register(n))
			a.bytes(unix.NFTA_EXTHDR_TYPE, []byte{byte(l.Key)})
			a.be32(unix.NFTA_EXTHDR_OFFSET, uint32(l.Offset))
			a.be32(unix.NFTA_EXTHDR_LEN, uint32(l.Len))
			if l.From == ExtensionExists {
				a.be32(unix.NFTA_EXTHDR_FLAGS, unix.NFT_EXTHDR_F_PRESENT)
			}
		})
	default:
		e.add("payload", func(a *attrs) {
			a.be32(unix.NFTA_PAYLOAD_DREG, register(n))
			a.be32(unix.NFTA_PAYLOAD_BASE, uint32(l.From-LinkHeader)+unix.NFT_PAYLOAD_LL_HEADER)
			a.be32(unix.NFTA_PAYLOAD_OFFSET, uint32(l.Offset))
			a.be32(unix.NFTA_PAYLOAD_LEN, uint32(l.Len))
		})
	}
	if l.Mask == "" {
		return
	}
	e.add("bitwise", func(a *attrs) {
		a.be32(unix.NFTA_BITWISE_SREG, register(n))
		a.be32(unix.NFTA_BITWISE_DREG, register(n))
		a.be32(unix.NFTA_BITWISE_LEN, uint32(l.Len))
		a.data(unix.NFTA_BITWISE_MASK, l.Mask)
		a.data(unix.NFTA_BITWISE_XOR, string(make([]byte, l.Len)))
	})
}

func (m Match) encode(e *exprEncoder) {
	m.Load.encode(e, 0)
	op := uint32(unix.NFT_CMP_EQ)
	if m.Not {
		op = unix.NFT_CMP_NEQ
	}
	e.add("cmp", func(a *attrs) {
		a.be32(unix.NFTA_CMP_SREG, register(0))
		a.be32(unix.NFTA_CMP_OP, op)
		a.data(unix.NFTA_CMP_DATA, m.Value)
	})
}

func (i In) encode(e *exprEncoder) {
	n := 0
	for _, f := range i.Fields {
		f.encode(e, n)
		n += words(f.Len)
	}
	e.add("lookup", func(a *attrs) {
		a.text(unix.NFTA_LOOKUP_SET, i.Set)
		a.be32(unix.NFTA_LOOKUP_SREG, register(0))
		if i.Not {
			a.be32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
		}
	})
}

func (c Count) encode(e *exprEncoder) {
	e.add("objref", func(a *attrs) {
		a.be32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
		a.text(unix.NFTA_OBJREF_IMM_NAME, c.Counter)
	})
}

func (v Verdict) encode(e *exprEncoder) {
	e.add("immediate", func(a *attrs) {
		a.be32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		a.nest(unix.NFTA_IMMEDIATE_DATA, func(a *attrs) {
			a.nest(unix.NFTA_DATA_VERDICT, func(a *attrs) {
				a.be32(unix.NFTA_VERDICT_CODE, uint32(v.Code))
				if v.Chain != "" {
					a.text(unix.NFTA_VERDICT_CHAIN, v.Chain)
				}
			})
		})
	})
}

func (Notrack) encode(e *exprEncoder) { e.add("notrack", func(*attrs) {}) }

func (m Masquerade) encode(e *exprEncoder) {
	if m.Ports == [2]uint16{} {
		e.add("masq", func(a *attrs) { a.be32(unix.NFTA_MASQ_FLAGS, natRandomFully) })
		return
	}
	for n, port := range m.Ports {
		e.add("immediate", func(a *attrs) {
			a.be32(unix.NFTA_IMMEDIATE_DREG, uint32(unix.NFT_REG_1+n))
			a.data(unix.NFTA_IMMEDIATE_DATA, string(binary.BigEndian.AppendUint16(nil, port)))
		})
	}
	e.add("masq", func(a *attrs) {
		a.be32(unix.NFTA_MASQ_FLAGS, natRandomFully|natPortRange)
		a.be32(unix.NFTA_MASQ_REG_PROTO_MIN, unix.NFT_REG_1)
		a.be32(unix.NFTA_MASQ_REG_PROTO_MAX, unix.NFT_REG_2)
	})
}

// encode returns the rule's list of expressions.
func (r Rule) encode() []byte {
	var e exprEncoder
	for _, x := range r.Exprs {
		x.encode(&e)
	}
	return e.list
}

// Digest identifies what a rule does: a hash of its expressions in a form
// that is the same for what is sent and for what the kernel dumps.
type Digest [16]byte

// digest hashes a list of expressions, either ours or as dumped. The order of
// attributes does not count, nor does one that holds the 32-bit number zero:
// the kernel dumps defaults that the sender left out.
func digest(list []byte) (Digest, error) {
	var canon []byte
	err := eachAttr(list, func(_ uint16, expr []byte) error {
		return eachAttr(expr, func(typ uint16, v []byte) error {
			if typ == unix.NFTA_EXPR_NAME {
				canon = append(append(canon, 0xff), v...)
				return nil
			}
			var parts []string
			err := eachAttr(v, func(t uint16, v []byte) error {
				if string(v) == "\x00\x00\x00\x00" {
					return nil
				}
				var a attrs
				a.bytes(t, v)
				parts = append(parts, string(a))
				return nil
			})
			slices.Sort(parts)
			for _, p := range parts {
				canon = append(canon, p...)
			}
			return err
		})
	})
	sum := sha256.Sum256(canon)
	return Digest(sum[:16]), err
}
