// SPDX-License-Identifier: Apache-2.0

package nft

import "golang.org/x/sys/unix"

// Content is what the kernel has under a table's name. The zero Content is
// no table.
type Content struct {
	Present  bool
	Flags    uint32 // NFT_TABLE_F_*; weft sets none
	Userdata string // of the table, as stored; Params reads it
	Chains   map[string]ChainContent
	Sets     map[string]SetContent
	Counters map[string]Counts
	Other    int                  // objects of kinds that weft does not make, and flowtables
	Elements map[Element]struct{} // nil from DumpTo

	flowtables int            // weft makes none
	sizes      map[string]int // of sets, as the kernel counts them, where it says so
}

func newContent() Content {
	return Content{
		Chains: map[string]ChainContent{}, Sets: map[string]SetContent{}, Counters: map[string]Counts{}, sizes: map[string]int{},
	}
}

// forget drops what the answers to one kind of question told, because it is
// asked again.
func (c *Content) forget(typ uint16) {
	switch typ {
	case unix.NFT_MSG_GETCHAIN:
		clear(c.Chains)
	case unix.NFT_MSG_GETSET:
		clear(c.Sets)
		clear(c.sizes)
	case unix.NFT_MSG_GETOBJ:
		clear(c.Counters)
		c.Other = 0
	case unix.NFT_MSG_GETFLOWTABLE:
		c.flowtables = 0
	}
}

// ChainContent is one chain. For a chain that is only jumped to, all but
// Rules is zero.
type ChainContent struct {
	Kind     string // "filter", "nat" or "route"
	Hook     Hook
	Priority int32
	Policy   int32 // Drop or Accept
	Rules    []RuleContent
}

// RuleContent identifies one rule. Does is the hash of its expressions as the
// kernel has them, Stamp the one that was stored with the rule, zero if none:
// nft drops it from a rule that it replaces. Comparable.
type RuleContent struct {
	Does    Digest
	Stamp   Digest
	Comment string
}

// SetContent is one set. Comparable.
type SetContent struct {
	KeyType  uint32
	KeyLen   uint32 // bytes
	DataType uint32 // of a map
	DataLen  uint32 // bytes
	Flags    uint32 // NFT_SET_*
	Userdata string // as stored
	Extra    bool   // it has a size, a timeout or statements, which weft sets nowhere
}

// Params returns what the table was made from, as it says itself: ErrNoParams
// if it does not, or another error if that is none that this weft writes.
func (c Content) Params() (Params, error) {
	for t, v := range records([]byte(c.Userdata)) {
		if t == userParams {
			return decodeParams(v)
		}
	}
	return Params{}, ErrNoParams
}

// Counts is the value of a counter. Comparable.
type Counts struct{ Packets, Bytes uint64 }

// Content returns what a kernel that holds exactly d dumps. Counters are zero.
func (d Desired) Content() Content {
	c := Content{
		Present:  true,
		Userdata: string(d.Table.userdata()),
		Chains:   make(map[string]ChainContent, len(d.Table.Chains)),
		Sets:     make(map[string]SetContent, len(d.Table.Sets)),
		Counters: make(map[string]Counts, len(d.Table.Counters)),
		Elements: make(map[Element]struct{}, len(d.Elements)),
	}
	for _, ch := range d.Table.Chains {
		c.Chains[ch.Name] = ch.content()
	}
	for _, s := range d.Table.Sets {
		c.Sets[s.Name] = s.content()
	}
	for _, n := range d.Table.Counters {
		c.Counters[n] = Counts{}
	}
	for _, e := range d.Elements {
		c.Elements[e] = struct{}{}
	}
	return c
}

func (s Set) content() SetContent {
	typ, size := s.keyType()
	out := SetContent{KeyType: typ, KeyLen: size, Flags: s.flags(), Userdata: string(s.userdata())}
	if s.Data != 0 {
		_, out.DataType, size = s.dataType()
		out.DataLen = size
	}
	return out
}

func (c Chain) content() ChainContent {
	var out ChainContent
	if c.Hook != 0 {
		out = ChainContent{Kind: c.kind(), Hook: c.Hook, Priority: c.Priority, Policy: Accept}
	}
	for _, r := range c.Rules {
		sum, _ := digest(r.encode()) // ours is well formed
		out.Rules = append(out.Rules, RuleContent{Does: sum, Stamp: sum, Comment: r.Comment[:min(len(r.Comment), maxComment)]})
	}
	return out
}
