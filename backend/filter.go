// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
)

// maxReasons bounds how many differences Filter.Foreign names.
const maxReasons = 4

// tableWeft names our table.
func tableWeft() nft.Table { return nft.Table{Family: nft.Inet, Name: nft.TableName} }

// paramsOf translates a Filter. It fails for one that no table can be made
// from.
func paramsOf(f overlay.Filter) (nft.Params, error) {
	p := nft.Params{
		Guard: nft.Guard(f.Guard), Masquerade: f.Masquerade, Port: f.Port, VNI: f.VNI,
		Networks: f.Networks, Subnets: f.Subnets, Devices: f.Devices, Bridge: f.Bridge,
	}
	for family, n := range f.Lengths.All() {
		p.Lengths = append(p.Lengths, nft.Length{Family: family, Bits: n})
	}
	return p, p.Check()
}

// filterOf is the inverse of paramsOf.
func filterOf(p nft.Params) overlay.Filter {
	f := overlay.Filter{
		Guard: overlay.Guard(p.Guard), Masquerade: p.Masquerade, Port: p.Port, VNI: p.VNI,
		Networks: p.Networks, Subnets: p.Subnets, Devices: p.Devices, Bridge: p.Bridge,
	}
	for _, l := range p.Lengths {
		f.Lengths = f.Lengths.WithLength(l.Family, l.Bits)
	}
	return f
}

// elementOf translates a Node or a Source.
func elementOf(e overlay.Entry) (nft.Element, error) {
	switch e := e.(type) {
	case overlay.Node:
		return nft.NodeElement(e.Addr, e.Own)
	case overlay.Source:
		return nft.SourceElement(e.Outer, e.Inner)
	}
	return nft.Element{}, fmt.Errorf("%T is no element of a set", e)
}

// inFilter reports whether e is kept in our nftables table.
func inFilter(e overlay.Entry) bool {
	switch e.(type) {
	case overlay.Filter, overlay.Node, overlay.Source:
		return true
	}
	return false
}

// filterCache is what the last Dump read of our table. It holds as long as the
// kernel counts no further transaction of anybody, so the kernel vouches for
// it. Its sets are handed out and never changed; the counts tell if somebody
// did.
type filterCache struct {
	mu         sync.Mutex
	valid      bool
	generation uint32
	content    overlay.State // Filters, Nodes, Sources
	counts     overlay.Counts
}

// dumpFilter adds our table to s. A kernel without nf_tables has no table;
// that is said when one is to be made.
func (k *Kernel) dumpFilter(ctx context.Context, s *overlay.State) error {
	if k.nft == nil {
		return nil
	}
	k.filter.mu.Lock()
	defer k.filter.mu.Unlock()
	content, err := k.readFilter(ctx)
	if errors.Is(err, nft.ErrUnsupported) {
		return nil
	} else if err != nil {
		return err
	}
	s.Filters, s.Nodes, s.Sources = content.Filters, content.Nodes, content.Sources
	return nil
}

// readFilter returns the table from the cache, or reads it anew.
func (k *Kernel) readFilter(ctx context.Context) (overlay.State, error) {
	c := &k.filter
	before, err := k.nft.Generation(ctx)
	if err != nil {
		return overlay.State{}, err
	}
	if c.valid && c.generation == before && c.content.Counts() == c.counts {
		return c.content, nil
	}
	c.valid, c.content = false, overlay.State{}
	for range 2 { // with transactions all the time, what is read is not kept
		content, err := k.decodeFilter(ctx)
		if err != nil {
			return overlay.State{}, err
		}
		after, err := k.nft.Generation(ctx)
		if err != nil {
			return overlay.State{}, err
		}
		c.valid, c.generation, c.content, c.counts = after == before, after, content, content.Counts()
		if c.valid {
			break
		}
		before = after
	}
	return c.content, nil
}

// decodeFilter reads the table: what it says it was made from, in what it
// differs from a table made from that, and the elements.
func (k *Kernel) decodeFilter(ctx context.Context) (overlay.State, error) {
	var s overlay.State
	var odd map[string]int // elements that weft does not make, by set
	have, err := k.nft.DumpTo(ctx, tableWeft(), func() func(string, []byte) bool {
		s, odd = overlay.NewState(), map[string]int{}
		// As many as there were: growing costs more than they do.
		s.Nodes = make(overlay.Set[overlay.Node], k.filter.counts.Nodes)
		s.Sources = make(overlay.Set[overlay.Source], k.filter.counts.Sources)
		return collector(s, odd)
	})
	if err != nil || !have.Present {
		return overlay.NewState(), err
	}
	var f overlay.Filter
	var why []string
	if p, err := have.Params(); err != nil {
		why = append(why, err.Error())
	} else {
		f = filterOf(p)
		why = nft.Structure(nft.Ruleset(p), have)
	}
	for set, n := range odd {
		why = append(why, fmt.Sprintf("set %s: %d elements not ours", set, n))
	}
	f.Foreign = reasons(why)
	s.Filters.Add(f)
	return s, nil
}

// reasons joins why to one line of bounded length, always the same for the
// same differences.
func reasons(why []string) string {
	slices.Sort(why)
	if n := len(why) - maxReasons; n > 0 {
		why = append(why[:maxReasons:maxReasons], fmt.Sprintf("%d more", n))
	}
	return strings.Join(why, "; ")
}

// collector returns what puts elements into s, and counts in odd those that
// overlay has no words for. Elements of sets that are not ours go with those.
func collector(s overlay.State, odd map[string]int) func(set string, key []byte) bool {
	var last string
	var members nft.Members
	var known bool
	return func(set string, key []byte) bool {
		if set != last {
			members, known = nft.MembersOf(set)
			last = set
		}
		if !known {
			return true
		}
		outer, inner, ok := members.Decode(key)
		switch {
		case !ok:
			odd[set]++
			return true
		case inner.IsValid():
			n := len(s.Sources)
			s.Sources.Add(overlay.Source{Outer: outer, Inner: inner})
			return len(s.Sources) > n
		}
		n := len(s.Nodes)
		s.Nodes.Add(overlay.Node{Addr: outer, Own: members.Own})
		return len(s.Nodes) > n
	}
}

// refusedPrefix begins the names of our table's counters.
const refusedPrefix = "refused_"

// Refused returns how many packets our table has dropped, by reason
// ("ethertype", "fragment", "inner", "outer", "pod_vxlan",
// "router_advertisement"), since it was first made; the values survive its
// repair. nil without Options.Filter, empty where there is no table.
func (k *Kernel) Refused(ctx context.Context) (map[string]uint64, error) {
	if k.nft == nil {
		return nil, nil
	}
	counts, err := k.nft.Counters(ctx, tableWeft())
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for name, c := range counts {
		if reason, ok := strings.CutPrefix(name, refusedPrefix); ok {
			out[reason] = c.Packets
		}
	}
	return out, nil
}
