// SPDX-License-Identifier: Apache-2.0

package nft

// Content is what the kernel has under a table's name. The zero Content is
// no table.
type Content struct {
	Present  bool
	Dormant  bool // the table is switched off (flag dormant)
	Chains   map[string]ChainContent
	Sets     map[string]SetContent
	Counters map[string]Counts
	Other    int // objects of kinds that weft does not make
	Elements map[Element]struct{}

	sizes map[string]int // of sets, as the kernel counts them, where it says so
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
	KeyType uint32
	KeyLen  uint32 // bytes
	Flags   uint32 // NFT_SET_*
}

// Counts is the value of a counter. Comparable.
type Counts struct{ Packets, Bytes uint64 }

// Content returns what a kernel that holds exactly d dumps. Counters are zero.
func (d Desired) Content() Content {
	c := Content{
		Present:  true,
		Chains:   make(map[string]ChainContent, len(d.Table.Chains)),
		Sets:     make(map[string]SetContent, len(d.Table.Sets)),
		Counters: make(map[string]Counts, len(d.Table.Counters)),
		Elements: make(map[Element]struct{}, len(d.Elements)),
	}
	for _, ch := range d.Table.Chains {
		c.Chains[ch.Name] = ch.content()
	}
	for _, s := range d.Table.Sets {
		typ, size := s.keyType()
		c.Sets[s.Name] = SetContent{KeyType: typ, KeyLen: size, Flags: s.flags()}
	}
	for _, n := range d.Table.Counters {
		c.Counters[n] = Counts{}
	}
	for _, e := range d.Elements {
		c.Elements[e] = struct{}{}
	}
	return c
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
