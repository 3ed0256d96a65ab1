// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"strings"
)

// The nft program refuses to load its own listing of a lookup of raw packet
// bytes in a set of addresses, and with it the whole file: who saves the
// ruleset with ours in it could not restore any of it. Sets declared by
// `typeof` can be loaded. How nft notes that in a set's user data is below:
// records of type, length and value with a byte each for the first two, and
// numbers in the machine's byte order (libnftnl udata.h; enum expr_types,
// enum proto_desc_id and the header fields of the nft program's expression.h,
// proto.h; nft 0.9.4 and later).
const (
	udataByteOrder = 0 // of the set's keys
	udataDataOrder = 1 // of what its elements carry
	orderHost      = 1 // enum byteorder, datatype.h
	orderBig       = 2
	udataKeyTypeof = 3
	udataExpr      = 0 // of a typeof
	udataData      = 1
	exprPayload    = 7
	exprMeta       = 9
	exprConcat     = 13
	descIP         = 12
	descIPv6       = 13
	descEther      = 17
	baseTransport  = 3
)

type udata []byte

func (u *udata) bytes(typ byte, v []byte) {
	*u = append(append(*u, typ, byte(len(v))), v...)
}

func (u *udata) number(typ byte, v uint32) {
	u.bytes(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// typeofData is the user data of a set of concatenated loads.
func typeofData(loads []Load) []byte {
	var fields, concat, set udata
	for i, l := range loads {
		var f udata
		if l.From == Meta {
			f.number(udataExpr, exprMeta)
		} else {
			f.number(udataExpr, exprPayload)
		}
		f.bytes(udataData, l.typeofData())
		fields.bytes(byte(i), f)
	}
	concat.number(udataExpr, exprConcat)
	concat.bytes(udataData, fields)
	set.number(udataByteOrder, 0)
	set.bytes(udataKeyTypeof, concat)
	return set
}

// typeofData names a header and a field, or for raw bytes of the transport
// header the offset and length in bits.
func (l Load) typeofData() []byte {
	var u udata
	if l.From == Meta {
		u.number(0, l.Key)
		return u
	}
	header, field := uint32(0), uint32(0)
	switch l.Name {
	case "ip saddr":
		header, field = descIP, 11
	case "ip6 saddr":
		header, field = descIPv6, 8
	case "ether saddr":
		header, field = descEther, 2
	}
	u.number(0, header)
	u.number(1, field)
	if header == 0 {
		u.number(2, baseTransport)
		u.number(3, uint32(l.Offset*8))
		u.number(4, uint32(l.Len*8))
	}
	return u
}

// orderData says in which order bytes are, without which nft shows numbers
// turned round and cannot tell where a range ends.
func (s Set) orderData() []byte {
	var set udata
	key := uint32(0)
	if len(s.Fields) == 1 {
		key = s.Fields[0].order()
	}
	set.number(udataByteOrder, key)
	if s.Data != 0 {
		set.number(udataDataOrder, s.Data.order())
	}
	return set
}

func (t Type) order() uint32 {
	if t == Mark || t == PortWords || t == IfName {
		return orderHost
	}
	return orderBig
}

// typeText is how the set's key is declared.
func (s Set) typeText() string {
	words, kind := make([]string, len(s.Fields)), "type "
	for i, f := range s.Fields {
		words[i], _, _ = f.info()
	}
	if s.Of != nil {
		kind = "typeof "
		for i, l := range s.Of {
			words[i] = l.String()
		}
	}
	text := kind + strings.Join(words, " . ")
	if s.Data != 0 {
		word, _, _ := s.dataType()
		text += " : " + word
	}
	if s.Interval {
		text += "; flags interval"
	}
	return text
}
