// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// Desired returns all of table inet weft_policy: of t, on the node whose pods
// have addresses of subnets, in generation g.
func Desired(p Params, g Generation, t *policy.Table, subnets []netip.Prefix) nft.Desired {
	return nft.Desired{Table: Structure(p, g), Elements: Elements(t, subnets)}
}

// Elements returns what the table's sets hold.
func Elements(t *policy.Table, subnets []netip.Prefix) []nft.Element {
	b := builder{out: make([]nft.Element, 0, len(t.Pairs)+len(t.Rows)+len(t.Identities)+4*len(t.Known)+len(t.Blocks)+64)}
	b.lacking(&policy.Table{}, t)
	for r := range t.Rows {
		b.row(r)
	}
	b.leases(nil, subnets)
	b.protocols()
	return b.out
}

type builder struct{ out []nft.Element }

func (b *builder) add(set, key, end, data string) {
	b.out = append(b.out, nft.Element{Set: set, Key: key, End: end, Data: data})
}

func (b *builder) addresses(set string, from, to netip.Addr, data string) {
	end := ""
	if next := to.Next(); next.IsValid() {
		end = key(next)
	}
	b.add(set, key(from), end, data)
}

// lacking adds what is to have and is not, one set after another, but for rows.
func (b *builder) lacking(is, to *policy.Table) {
	for _, f := range subnet.Families() {
		for a := range missing(is.Known, to.Known) {
			if familyOf(a) == f && to.Known[a] {
				b.add(knownSet(f), key(a), "", "")
			}
		}
		for a := range missing(is.Known, to.Known) {
			if familyOf(a) == f && to.Known[a] {
				b.add(hairpinSet(f), key(a)+key(a), "", "")
			}
		}
		for _, d := range policy.Directions() {
			for a, c := range missing(is.Classes[d], to.Classes[d]) {
				if familyOf(a) == f {
					b.add(classSet(d, f), key(a), "", nft.MarkOf(uint32(c)))
				}
			}
		}
		for a, id := range missing(is.Identities, to.Identities) {
			if familyOf(a) == f {
				b.add(identitySet(f), key(a), "", nft.MarkOf(uint32(id)))
			}
		}
		for r := range missing(members(is.Blocks), members(to.Blocks)) {
			if familyOf(r.From) == f {
				b.addresses(blockSet(f), r.From, r.To, nft.MarkOf(uint32(r.Identity)))
			}
		}
	}
	for p, set := range missing(is.Pairs, to.Pairs) {
		b.add(pairMap, pairKey(p), "", nft.MarkOf(uint32(set)))
	}
}

func (b *builder) row(r policy.Row) { b.add(rowSet, rowKey(r), "", "") }

// leases adds the subnets of to that is lacks.
func (b *builder) leases(is, to []netip.Prefix) {
	for _, f := range subnet.Families() {
		for s := range missing(members(disjoint(is)), members(disjoint(to))) {
			if familyOf(s.Addr()) == f {
				b.addresses(leaseSet(f), s.Addr(), policy.Last(s), "")
			}
		}
	}
}

// missing goes through what to has and is has not, or not the same.
func missing[K, V comparable](is, to map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range to {
			if was, ok := is[k]; (!ok || was != v) && !yield(k, v) {
				return
			}
		}
	}
}

func members[E comparable](list []E) map[E]bool {
	out := make(map[E]bool, len(list))
	for _, e := range list {
		out[e] = true
	}
	return out
}

// protocols says of each protocol by which number rows know it that are for all
// ports: those without ports are one. They are ranges because an element for
// whatever is no other's takes Linux 5.13.
func (b *builder) protocols() {
	byteKey := func(n int) string { return string([]byte{byte(n)}) }
	from := 0
	for _, p := range portProtocols() {
		b.add(protocolSet, byteKey(from), byteKey(int(p)), byteKey(0))
		b.add(protocolSet, byteKey(int(p)), byteKey(int(p)+1), byteKey(int(p)))
		from = int(p) + 1
	}
	b.add(protocolSet, byteKey(from), "", byteKey(0))
}

func familyOf(a netip.Addr) subnet.Family {
	if a.Is4() {
		return subnet.IPv4
	}
	return subnet.IPv6
}

func key(a netip.Addr) string { return string(a.AsSlice()) }

func pairKey(p policy.Pair) string {
	return nft.MarkOf(uint32(p.Direction)) + nft.MarkOf(uint32(p.Identity)) + nft.MarkOf(uint32(p.Class))
}

func rowKey(r policy.Row) string {
	return nft.MarkOf(uint32(r.Bits)) + nft.MarkOf(uint32(r.Set)) + string([]byte{r.Proto, 0, 0, 0}) + nft.PortWord(r.Port)
}

// rowOfElement reads what row made; false for another set's.
func rowOfElement(e nft.Element) (policy.Row, bool) {
	if e.Set != rowSet || len(e.Key) != 16 {
		return policy.Row{}, false
	}
	k := []byte(e.Key)
	return policy.Row{Bits: uint8(binary.NativeEndian.Uint32(k)), Set: policy.PortSet(binary.NativeEndian.Uint32(k[4:])), Proto: k[8], Port: binary.BigEndian.Uint16(k[12:])}, true
}

// disjoint leaves out prefixes that are in others.
func disjoint(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var out []netip.Prefix
	for _, p := range list {
		if p.IsValid() && !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p.Masked())
		}
	}
	return out
}
