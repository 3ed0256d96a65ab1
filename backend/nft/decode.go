// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"iter"
	"strings"

	"golang.org/x/sys/unix"
)

// sizeofNfgenmsg is the size of struct nfgenmsg in bytes.
const sizeofNfgenmsg = 4

// fields splits an nf_tables message into struct nfgenmsg and attributes, and
// reports whether it is about the table; attribute 1 names it in every kind
// of message. With ok the last value of each attribute is in the map.
func fields(t Table, msg []byte) (f map[uint16][]byte, ok bool, err error) {
	if f, err = split(msg); err != nil {
		return nil, false, err
	}
	const tableName = 1
	return f, Family(msg[0]) == t.Family && text(f[tableName]) == t.Name, nil
}

// split returns the attributes of an nf_tables message.
func split(msg []byte) (map[uint16][]byte, error) {
	if len(msg) < sizeofNfgenmsg {
		return nil, errTruncated
	}
	f := map[uint16][]byte{}
	err := eachAttr(msg[sizeofNfgenmsg:], func(typ uint16, v []byte) error {
		f[typ] = v
		return nil
	})
	return f, err
}

// text reads a string that may end in a NUL.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// The readers add one message of a dump to c. Messages about other tables
// are passed over.

func (c *Content) readTable(t Table, msg []byte) error {
	f, ok, err := fields(t, msg)
	if !ok {
		return err
	}
	c.Present = true
	c.Userdata = string(f[nftaTableUser])
	if v, ok := f[unix.NFTA_TABLE_FLAGS]; ok {
		c.Flags, err = be32(v)
	}
	return err
}

func (c *Content) readChain(t Table, msg []byte) error {
	f, ok, err := fields(t, msg)
	if !ok {
		return err
	}
	ch, err := decodeChain(f)
	c.Chains[text(f[unix.NFTA_CHAIN_NAME])] = ch
	return err
}

// decodeChain reads a chain's attributes.
func decodeChain(f map[uint16][]byte) (ChainContent, error) {
	ch := ChainContent{Kind: text(f[unix.NFTA_CHAIN_TYPE])}
	if v, ok := f[unix.NFTA_CHAIN_POLICY]; ok {
		policy, err := be32(v)
		if err != nil {
			return ch, err
		}
		ch.Policy = int32(policy)
	}
	err := eachAttr(f[unix.NFTA_CHAIN_HOOK], func(typ uint16, v []byte) error {
		switch typ {
		case unix.NFTA_HOOK_HOOKNUM:
			n, err := be32(v)
			ch.Hook = Hook(min(n+1, 0xff))
			return err
		case unix.NFTA_HOOK_PRIORITY:
			n, err := be32(v)
			ch.Priority = int32(n)
			return err
		}
		return nil
	})
	return ch, err
}

// readRule returns a rule of t and its chain, which is empty for another table's.
func readRule(t Table, msg []byte) (r RuleContent, chain string, err error) {
	f, ok, err := fields(t, msg)
	if !ok {
		return r, "", err
	}
	if r.Does, err = digest(f[unix.NFTA_RULE_EXPRESSIONS]); err != nil {
		return r, "", err
	}
	r.Comment, r.Stamp = readUserdata(f[unix.NFTA_RULE_USERDATA])
	return r, text(f[unix.NFTA_RULE_CHAIN]), nil
}

// readUserdata reads what userdata wrote. Anybody may have written something
// else there: what does not parse counts as absent.
func readUserdata(b []byte) (comment string, sum Digest) {
	for typ, v := range records(b) {
		switch {
		case typ == userComment:
			comment = text(v)
		case typ == userDigest && len(v) == len(sum):
			sum = Digest(v)
		}
	}
	return comment, sum
}

// records walks user data: type and value. It ends at the first that does not
// fit.
func records(b []byte) iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for len(b) >= 2 && len(b) >= 2+int(b[1]) {
			typ, v := b[0], b[2:2+int(b[1])]
			if !yield(typ, v) {
				return
			}
			b = b[2+len(v):]
		}
	}
}

func (c *Content) readSet(t Table, msg []byte) error {
	f, ok, err := fields(t, msg)
	if !ok {
		return err
	}
	var s SetContent
	for typ, to := range map[uint16]*uint32{
		unix.NFTA_SET_KEY_TYPE: &s.KeyType, unix.NFTA_SET_KEY_LEN: &s.KeyLen, unix.NFTA_SET_FLAGS: &s.Flags,
		unix.NFTA_SET_DATA_TYPE: &s.DataType, unix.NFTA_SET_DATA_LEN: &s.DataLen,
	} {
		if v, ok := f[typ]; ok {
			if *to, err = be32(v); err != nil {
				return err
			}
		}
	}
	s.Userdata = string(f[unix.NFTA_SET_USERDATA])
	for _, extra := range []uint16{
		unix.NFTA_SET_TIMEOUT, unix.NFTA_SET_GC_INTERVAL,
		unix.NFTA_SET_OBJ_TYPE, nftaSetExpr, nftaSetExprs,
	} {
		if _, ok := f[extra]; ok {
			s.Extra = true
		}
	}
	err = eachAttr(f[unix.NFTA_SET_DESC], func(typ uint16, _ []byte) error {
		s.Extra = s.Extra || typ == unix.NFTA_SET_DESC_SIZE
		return nil
	})
	if err != nil {
		return err
	}
	name := text(f[unix.NFTA_SET_NAME])
	c.Sets[name] = s
	if v, ok := f[nftaSetCount]; ok {
		n, err := be32(v)
		if err != nil {
			return err
		}
		c.sizes[name] = int(n)
	}
	return nil
}

func (c *Content) readFlowtable(t Table, msg []byte) error {
	_, ok, err := fields(t, msg)
	if ok {
		c.flowtables++
	}
	return err
}

func (c *Content) readObject(t Table, msg []byte) error {
	f, ok, err := fields(t, msg)
	if !ok {
		return err
	}
	kind, err := be32(f[unix.NFTA_OBJ_TYPE])
	if err != nil {
		return err
	}
	if kind != unix.NFT_OBJECT_COUNTER {
		c.Other++
		return nil
	}
	var n Counts
	err = eachAttr(f[unix.NFTA_OBJ_DATA], func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.NFTA_COUNTER_BYTES:
			n.Bytes, err = be64(v)
		case unix.NFTA_COUNTER_PACKETS:
			n.Packets, err = be64(v)
		}
		return err
	})
	c.Counters[text(f[unix.NFTA_OBJ_NAME])] = n
	return err
}

// readElements adds the elements of one message to a list.
func readElements(t Table, msg []byte, keys *keyList) error {
	f, ok, err := fields(t, msg)
	if !ok {
		return err
	}
	return eachAttr(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, elem []byte) error {
		var key, data []byte
		var flags uint32
		err := eachAttr(elem, func(typ uint16, v []byte) (err error) {
			switch typ {
			case unix.NFTA_SET_ELEM_KEY:
				key, err = readData(v)
			case unix.NFTA_SET_ELEM_DATA:
				data, err = readData(v)
			case unix.NFTA_SET_ELEM_FLAGS:
				flags, err = be32(v)
			}
			return err
		})
		keys.add(key, data, flags&unix.NFT_SET_ELEM_INTERVAL_END != 0)
		return err
	})
}

// readData returns the bytes of a value.
func readData(data []byte) (out []byte, err error) {
	err = eachAttr(data, func(typ uint16, v []byte) error {
		if typ == unix.NFTA_DATA_VALUE {
			out = v
		}
		return nil
	})
	return out, err
}
