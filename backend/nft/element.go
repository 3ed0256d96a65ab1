// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net/netip"

	"weft.dev/weft/subnet"
)

// Names of sets. Peers' and our own addresses have a set for each family; the
// guard has one for each outer family and inner prefix, because one key for
// several lengths would let 10.0.1.0/25 stand for 10.0.1.0/24. So do the
// subnets of an open network. They are hash sets too: of an interval set
// (a tree) every change is two elements, and a lookup takes the longer the more
// there are.

func peerSet(f subnet.Family) string { return fmt.Sprintf("peers%d", f) }

func ownSet(f subnet.Family) string { return fmt.Sprintf("own%d", f) }

func bindSet(outer subnet.Family, inner Length) string {
	return fmt.Sprintf("bind%d_inner%d_%d", outer, inner.Family, inner.Bits)
}

func podSet(l Length) string { return fmt.Sprintf("pods%d_%d", l.Family, l.Bits) }

func addrType(f subnet.Family) Type {
	if f == subnet.IPv4 {
		return IPv4Addr
	}
	return IPv6Addr
}

// inner is the lengths that the guard looks inner sources up with: the pods'
// first, because most packets are theirs, then single addresses.
func (p Params) inner() []Length {
	out := append([]Length(nil), p.Lengths...)
	for _, f := range subnet.Families() {
		out = append(out, single(f))
	}
	return out
}

// sets of Ruleset's table.
func (p Params) sets() []Set {
	var out []Set
	for _, f := range subnet.Families() {
		out = append(out, Set{Name: peerSet(f), Fields: []Type{addrType(f)}}, Set{Name: ownSet(f), Fields: []Type{addrType(f)}})
	}
	for _, l := range p.Lengths {
		if p.open(l.Family) {
			out = append(out, Set{Name: podSet(l), Fields: []Type{addrType(l.Family)}})
		}
	}
	if p.Guard != GuardBind {
		return out
	}
	for _, f := range subnet.Families() {
		for _, in := range p.inner() {
			out = append(out, Set{
				Name:   bindSet(f, in),
				Fields: []Type{addrType(f), addrType(in.Family)},
				Of:     []Load{LoadSource(f), loadInner(in.Family)},
			})
		}
	}
	return out
}

// NodeElement is the element of Ruleset's sets for an address that VXLAN
// packets come from or go to: a peer's, or with own this node's. It fails for
// what no IP header can carry.
func NodeElement(a netip.Addr, own bool) (Element, error) {
	if err := plain(a); err != nil {
		return Element{}, err
	}
	f := subnet.FamilyOf(a)
	if own {
		return Element{Set: ownSet(f), Key: string(a.AsSlice())}, nil
	}
	return Element{Set: peerSet(f), Key: string(a.AsSlice())}, nil
}

// PodsElement is the element of Ruleset's sets for a peer's subnet in an open
// network. Its length must be one of Params.Lengths. It fails for what no IP
// header can carry, and for a single address, which no pod has.
func PodsElement(s netip.Prefix) (Element, error) {
	if err := plain(s.Addr()); err != nil || !s.IsValid() || s.IsSingleIP() {
		return Element{}, fmt.Errorf("subnet %s: want one of IPv4 or IPv6, more than an address", s)
	}
	return Element{Set: podSet(lengthOf(s)), Key: string(s.Addr().AsSlice())}, nil
}

// SourceElement is the element of Ruleset's sets that lets in packets from
// outer with a source inside inner, whose length must be one of Params.Lengths
// or that of a single address. It fails for what no IP header can carry.
func SourceElement(outer netip.Addr, inner netip.Prefix) (Element, error) {
	if err := plain(outer); err != nil {
		return Element{}, err
	}
	if err := plain(inner.Addr()); err != nil || !inner.IsValid() {
		return Element{}, fmt.Errorf("inner prefix %s: want one of IPv4 or IPv6", inner)
	}
	key := make([]byte, 0, 32) // both lengths are multiples of four: no padding
	key = append(key, outer.AsSlice()...)
	key = append(key, inner.Addr().AsSlice()...)
	return Element{Set: bindSet(subnet.FamilyOf(outer), lengthOf(inner)), Key: string(key)}, nil
}

func plain(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("address %v: want one of IPv4 or IPv6 without zone", a)
	}
	return nil
}

// Members tells what the elements of one of Ruleset's sets stand for.
type Members struct {
	Own   bool          // this node's addresses
	Outer subnet.Family // of the addresses; zero where elements are subnets of pods
	Inner Length        // zero where elements are addresses alone
}

// MembersOf returns what stands in the set of that name, and false if Ruleset
// makes none of that name.
func MembersOf(set string) (m Members, ok bool) {
	for _, f := range subnet.Families() {
		switch set {
		case peerSet(f):
			return Members{Outer: f}, true
		case ownSet(f):
			return Members{Outer: f, Own: true}, true
		}
	}
	if n, _ := fmt.Sscanf(set, "pods%d_%d", &m.Inner.Family, &m.Inner.Bits); n == 2 {
		return m, set == podSet(m.Inner) && m.Inner.valid() && m.Inner.Bits < m.Inner.Family.Bits()
	}
	n, _ := fmt.Sscanf(set, "bind%d_inner%d_%d", &m.Outer, &m.Inner.Family, &m.Inner.Bits)
	if n != 3 || set != bindSet(m.Outer, m.Inner) || m.Outer.Bits() == 0 || !m.Inner.valid() {
		return Members{}, false
	}
	return m, true
}

// valid reports whether there are prefixes of that length.
func (l Length) valid() bool {
	return l.Family.Bits() > 0 && l.Bits >= 0 && l.Bits <= l.Family.Bits()
}

// Decode returns the addresses in an element's key: outer and inner as far as
// the set has them, inner masked or not as the kernel has it. ok is false for a
// key that NodeElement, PodsElement and SourceElement do not make, such as the
// catch-all element's.
func (m Members) Decode(key []byte) (outer netip.Addr, inner netip.Prefix, ok bool) {
	n := m.Outer.Bits() / 8
	if len(key) == 0 || len(key) != n+m.Inner.Family.Bits()/8 {
		return netip.Addr{}, netip.Prefix{}, false
	}
	if n > 0 {
		outer, _ = netip.AddrFromSlice(key[:n])
	}
	if m.Inner.Family == 0 {
		return outer, netip.Prefix{}, !outer.Is4In6()
	}
	a, _ := netip.AddrFromSlice(key[n:])
	return outer, netip.PrefixFrom(a, m.Inner.Bits), !outer.Is4In6() && !a.Is4In6()
}
