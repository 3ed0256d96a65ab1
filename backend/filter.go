// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// elementOf translates a Node, a Source or Pods.
func elementOf(e overlay.Entry) (nft.Element, error) {
	switch e := e.(type) {
	case overlay.Node:
		return nft.NodeElement(e.Addr, e.Own)
	case overlay.Source:
		return nft.SourceElement(e.Outer, e.Inner)
	case overlay.Pods:
		return nft.PodsElement(e.Subnet)
	}
	return nft.Element{}, fmt.Errorf("%T is no element of a set", e)
}

// inFilter reports whether e is kept in our nftables table.
func inFilter(e overlay.Entry) bool {
	switch e.(type) {
	case overlay.Filter, overlay.Node, overlay.Source, overlay.Pods:
		return true
	}
	return false
}

// filterCache is what the last dump saw of our table. It holds as long as the
// kernel counts no further transaction of anybody, so the kernel vouches for
// it.
type filterCache struct {
	mu         sync.Mutex
	valid      bool
	generation uint32
	hasher     overlay.Hasher
	filters    overlay.Set[overlay.Filter]
	members    tallies
}

// tallies stand for the elements of our table.
type tallies struct{ nodes, sources, pods overlay.Tally }

func talliesOf(d overlay.Digest) tallies { return tallies{d.Nodes, d.Sources, d.Pods} }

// sinks take the elements of our table.
type sinks struct {
	nodes   sink[overlay.Node]
	sources sink[overlay.Source]
	pods    sink[overlay.Pods]
}

func (s sinks) begin() {
	s.nodes.begin()
	s.sources.begin()
	s.pods.begin()
}

func (s sinks) end() {
	s.nodes.end()
	s.sources.end()
	s.pods.end()
}

// at reports whether the table is as remembered at generation.
func (c *filterCache) at(generation uint32, h overlay.Hasher) bool {
	return c.valid && c.generation == generation && c.hasher == h
}

// has reports whether the elements are those that d stands for.
func (c *filterCache) has(d overlay.Digest) bool { return c.members == talliesOf(d) }

// dumpFilter adds our table to s, without the elements if they are those that
// like stands for. A kernel without nf_tables has no table; that is said when
// one is to be made.
func (k *Kernel) dumpFilter(ctx context.Context, like overlay.Digest, s *overlay.State) error {
	s.Filters, s.Nodes, s.Sources, s.Pods = overlay.Set[overlay.Filter]{}, overlay.Set[overlay.Node]{}, overlay.Set[overlay.Source]{}, overlay.Set[overlay.Pods]{}
	if like.Hasher != (overlay.Hasher{}) && talliesOf(like) == (tallies{}) {
		defer func() {
			if len(s.Nodes)+len(s.Sources)+len(s.Pods) == 0 {
				s.Nodes, s.Sources, s.Pods = nil, nil, nil
			}
		}()
	}
	if k.nft == nil {
		return nil
	}
	k.filter.mu.Lock()
	defer k.filter.mu.Unlock()
	if err := k.readFilter(ctx, like, s); !errors.Is(err, nft.ErrUnsupported) {
		return err
	}
	return nil
}

// readFilter asks the cache whether the table is what like stands for, reads it
// as far as is necessary to know, and all of it if it is not.
func (k *Kernel) readFilter(ctx context.Context, like overlay.Digest, s *overlay.State) error {
	c, h := &k.filter, like.Hasher
	generation, err := k.tables.nft.Generation(ctx)
	if err != nil {
		return err
	}
	if h != (overlay.Hasher{}) {
		if !c.at(generation, h) {
			nodes, sources, pods := counting[overlay.Node]{Hasher: h}, counting[overlay.Source]{Hasher: h}, counting[overlay.Pods]{Hasher: h}
			filters, err := k.decodeFilter(ctx, sinks{&nodes, &sources, &pods})
			if err != nil {
				return err
			}
			if err := k.keepFilter(ctx, generation, h, filters, tallies{nodes.total, sources.total, pods.total}); err != nil {
				return err
			}
		}
		if c.has(like) {
			s.Filters, s.Nodes, s.Sources, s.Pods = maps.Clone(c.filters), nil, nil, nil
			return nil
		}
	}
	nodes, sources, pods := sole[overlay.Node]{room: c.members.nodes.N}, sole[overlay.Source]{room: c.members.sources.N}, sole[overlay.Pods]{room: c.members.pods.N}
	s.Filters, err = k.decodeFilter(ctx, sinks{&nodes, &sources, &pods})
	s.Nodes, s.Sources, s.Pods = nodes.set, sources.set, pods.set
	if err != nil || h == (overlay.Hasher{}) {
		return err
	}
	// What was counted may be wrong, see collector; what was read is not.
	d := overlay.State{Nodes: s.Nodes, Sources: s.Sources, Pods: s.Pods}.Digest(h)
	return k.keepFilter(ctx, generation, h, s.Filters, talliesOf(d))
}

// keepFilter remembers what was read since the kernel was at generation. It
// counts as long as there are no transactions, from then on.
func (k *Kernel) keepFilter(ctx context.Context, generation uint32, h overlay.Hasher, filters overlay.Set[overlay.Filter], members tallies) error {
	after, err := k.tables.nft.Generation(ctx)
	if err != nil {
		return err
	}
	c := &k.filter
	c.valid, c.generation, c.hasher = after == generation, after, h
	c.filters, c.members = maps.Clone(filters), members
	return nil
}

// decodeFilter reads the table and returns what it says it was made from, and
// in what it differs from a table made from that. The elements go to members.
func (k *Kernel) decodeFilter(ctx context.Context, members sinks) (overlay.Set[overlay.Filter], error) {
	var odd map[string]int // elements that weft does not make, by set
	have, err := k.tables.nft.DumpTo(ctx, tableWeft(), func() func(string, []byte) bool {
		odd = map[string]int{}
		members.begin()
		return members.collector(odd)
	})
	if err != nil || !have.Present {
		members.begin()
		return overlay.Set[overlay.Filter]{}, err
	}
	members.end()
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
	return overlay.Set[overlay.Filter]{f: {}}, nil
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

// collector returns what hands elements to s, and counts in odd those that overlay has no words for. Elements of sets that are not ours go
// with those. The kernel may list one twice where it lacks another: a sink that
// does not see that, a tally, is then another than it should be.
func (s sinks) collector(odd map[string]int) func(set string, key []byte) bool {
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
		case !outer.IsValid():
			return s.pods.add(overlay.Pods{Subnet: inner})
		case inner.IsValid():
			return s.sources.add(overlay.Source{Outer: outer, Inner: inner})
		default:
			return s.nodes.add(overlay.Node{Addr: outer, Own: members.Own})
		}
		return true
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
