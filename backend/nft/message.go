// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// message is one netlink message. what names its object for errors.
type message struct {
	typ   uint16 // NFT_MSG_*
	flags uint16 // NLM_F_* besides NLM_F_REQUEST
	body  []byte // struct nfgenmsg and attributes
	what  string
}

// body starts a message's payload with struct nfgenmsg
// (linux/netfilter/nfnetlink.h).
func body(family Family, resource uint16) attrs {
	return binary.BigEndian.AppendUint16([]byte{byte(family), unix.NFNETLINK_V0}, resource)
}

// batch turns a plan into the messages of one transaction, without the two
// that enclose it.
func (p Plan) batch() []message {
	b := batcher{table: p.Table}
	if p.Replace {
		b.declare(p.Counts)
	}
	b.elements(unix.NFT_MSG_DELSETELEM, 0, "delete elements of set ", p.Delete)
	b.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "add elements to set ", p.Add)
	if p.Replace {
		b.rules(p.Table.Chains)
	} else {
		b.rewrite(p.Rewrite)
	}
	if p.Remove {
		// Adding first makes deleting succeed when there is none. The
		// message for that alone exists since Linux 6.3 only.
		b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "add", "", unix.NFTA_TABLE_NAME, nil)
		b.add(unix.NFT_MSG_DELTABLE, 0, "delete", "", unix.NFTA_TABLE_NAME, nil)
	}
	return b.list
}

type batcher struct {
	table Table
	list  []message
}

// add appends a message about the table. Every kind of message has the
// table's name as attribute 1.
func (b *batcher) add(typ, flags uint16, verb, object string, nameAttr uint16, f func(*attrs)) {
	a := body(b.table.Family, 0)
	a.text(nameAttr, b.table.Name)
	if f != nil {
		f(&a)
	}
	what := verb + " table " + b.table.Family.String() + " " + b.table.Name
	if object != "" {
		what = verb + object + " in table " + b.table.Family.String() + " " + b.table.Name
	}
	b.list = append(b.list, message{typ: typ, flags: flags, body: a, what: what})
}

// declare replaces the table by an empty one with its counters, sets and
// chains. Counters start from counts.
func (b *batcher) declare(counts map[string]Counts) {
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "add", "", unix.NFTA_TABLE_NAME, nil)
	b.add(unix.NFT_MSG_DELTABLE, 0, "delete", "", unix.NFTA_TABLE_NAME, nil)
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "add", "", unix.NFTA_TABLE_NAME, func(a *attrs) {
		if u := b.table.userdata(); u != nil {
			a.bytes(nftaTableUser, u)
		}
	})
	for _, name := range b.table.Counters {
		b.add(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, "add counter ", name, unix.NFTA_OBJ_TABLE, func(a *attrs) {
			a.text(unix.NFTA_OBJ_NAME, name)
			a.be32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
			a.nest(unix.NFTA_OBJ_DATA, func(a *attrs) {
				a.be64(unix.NFTA_COUNTER_BYTES, counts[name].Bytes)
				a.be64(unix.NFTA_COUNTER_PACKETS, counts[name].Packets)
			})
		})
	}
	for i, s := range b.table.Sets {
		b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, "add set ", s.Name, unix.NFTA_SET_TABLE, func(a *attrs) {
			s.encode(a, uint32(i+1))
		})
	}
	for _, c := range b.table.Chains {
		b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "add chain ", c.Name, unix.NFTA_CHAIN_TABLE, c.encode)
	}
}

// rewrite gives chains other rules. That takes no rule's handle, so that nobody
// has to read any.
func (b *batcher) rewrite(chains []Chain) {
	for _, c := range chains {
		b.add(unix.NFT_MSG_DELRULE, 0, "delete rules of chain ", c.Name, unix.NFTA_RULE_TABLE, func(a *attrs) {
			a.text(unix.NFTA_RULE_CHAIN, c.Name)
		})
	}
	b.rules(chains)
}

func (b *batcher) rules(chains []Chain) {
	for _, c := range chains {
		for _, r := range c.Rules {
			b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, "add rule to chain ", c.Name, unix.NFTA_RULE_TABLE, func(a *attrs) {
				list := r.encode()
				sum, _ := digest(list) // ours is well formed
				a.text(unix.NFTA_RULE_CHAIN, c.Name)
				a.bytes(unix.NFTA_RULE_EXPRESSIONS, list)
				a.bytes(unix.NFTA_RULE_USERDATA, userdata(r.Comment, sum))
			})
		}
	}
}

func (c Chain) encode(a *attrs) {
	a.text(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook == 0 {
		return
	}
	a.text(unix.NFTA_CHAIN_TYPE, c.kind())
	a.be32(unix.NFTA_CHAIN_POLICY, uint32(Accept))
	a.nest(unix.NFTA_CHAIN_HOOK, func(a *attrs) {
		a.be32(unix.NFTA_HOOK_HOOKNUM, uint32(c.Hook-1))
		a.be32(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
	})
}

// keyType packs the fields' types as the nft program does (6 bits each, the
// first field highest) and sums their padded lengths.
func (s Set) keyType() (id, size uint32) {
	for i, f := range s.Fields {
		_, t, n := f.info()
		if s.Of != nil && s.Of[i].Name == "" {
			_, t, _ = Number.info()
		}
		id = id<<6 | t
		if len(s.Fields) > 1 {
			n = 4 * words(n)
		}
		size += uint32(n)
	}
	return id, size
}

func (s Set) flags() (f uint32) {
	if len(s.Fields) > 1 {
		f |= nftSetConcat
	}
	if s.Interval {
		f |= unix.NFT_SET_INTERVAL
	}
	if s.Data != 0 {
		f |= unix.NFT_SET_MAP
	}
	return f
}

// dataType is what nft and the kernel know of what elements of a map carry.
func (s Set) dataType() (word string, id, size uint32) {
	word, id, n := s.Data.info()
	return word, id, uint32(n)
}

// userdata is nil for a set that nft understands without.
func (s Set) userdata() []byte {
	switch {
	case s.Of != nil:
		return typeofData(s.Of)
	case s.Interval || s.Data != 0 || len(s.Fields) == 1 && s.Fields[0] == IfName: // names are read backwards else
		return s.orderData()
	}
	return nil
}

func (s Set) encode(a *attrs, id uint32) {
	typ, size := s.keyType()
	a.text(unix.NFTA_SET_NAME, s.Name)
	a.be32(unix.NFTA_SET_FLAGS, s.flags())
	a.be32(unix.NFTA_SET_KEY_TYPE, typ)
	a.be32(unix.NFTA_SET_KEY_LEN, size)
	a.be32(unix.NFTA_SET_ID, id)
	if s.Data != 0 {
		_, data, n := s.dataType()
		a.be32(unix.NFTA_SET_DATA_TYPE, data)
		a.be32(unix.NFTA_SET_DATA_LEN, n)
	}
	if u := s.userdata(); u != nil {
		a.bytes(unix.NFTA_SET_USERDATA, u)
	}
	if len(s.Fields) < 2 {
		return
	}
	a.nest(unix.NFTA_SET_DESC, func(a *attrs) {
		a.nest(nftaSetDescCat, func(a *attrs) {
			for _, f := range s.Fields {
				_, _, n := f.info()
				a.nest(unix.NFTA_LIST_ELEM, func(a *attrs) { a.be32(nftaSetFieldLen, uint32(n)) })
			}
		})
	})
}

// elements appends messages that add or delete elements, set by set, each
// small enough for the 16-bit length of an attribute.
func (b *batcher) elements(typ, flags uint16, verb string, elements []Element) {
	for len(elements) > 0 {
		set := elements[0].Set
		var list attrs
		n := 0
		for n < len(elements) && elements[n].Set == set && len(list) < maxElementsBytes {
			elements[n].encode(&list, typ == unix.NFT_MSG_NEWSETELEM)
			n++
		}
		elements = elements[n:]
		b.add(typ, flags, verb, set, unix.NFTA_SET_ELEM_LIST_TABLE, func(a *attrs) {
			a.text(unix.NFTA_SET_ELEM_LIST_SET, set)
			a.bytes(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		})
	}
}

// encode appends e to a list of elements, with its data if that is wanted. A
// range is two.
func (e Element) encode(list *attrs, data bool) {
	if e.Key != "" || e.End == "" {
		list.nest(unix.NFTA_LIST_ELEM, func(a *attrs) {
			if e.Key == "" {
				a.be32(unix.NFTA_SET_ELEM_FLAGS, nftElemCatchall)
			} else {
				a.data(unix.NFTA_SET_ELEM_KEY, e.Key)
			}
			if data && e.Data != "" {
				a.data(unix.NFTA_SET_ELEM_DATA, e.Data)
			}
		})
	}
	if e.End != "" {
		list.nest(unix.NFTA_LIST_ELEM, func(a *attrs) {
			a.data(unix.NFTA_SET_ELEM_KEY, e.End)
			a.be32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		})
	}
}

// Types of the records in the user data of a rule or a table, which the kernel
// stores and the nft program writes and reads: type, length, value, a byte each
// for the first two, 256 bytes in all. The comment is nft's own (libnftnl
// udata.h); nft skips the others.
const (
	userComment = 0
	userDigest  = 0x57 // of a rule
	userParams  = 0x58 // of a table
	maxComment  = 120
)

func appendComment(b []byte, comment string) []byte {
	if comment == "" {
		return b
	}
	comment = comment[:min(len(comment), maxComment)]
	b = append(b, userComment, byte(len(comment)+1))
	return append(append(b, comment...), 0)
}

func userdata(comment string, sum Digest) []byte {
	b := append(appendComment(nil, comment), userDigest, byte(len(sum)))
	return append(b, sum[:]...)
}

// userdata is nil for a table without comment and parameters.
func (t Table) userdata() []byte {
	b := appendComment(nil, t.Comment)
	if t.Params != "" {
		b = append(append(b, userParams, byte(len(t.Params))), t.Params...)
	}
	return b
}
