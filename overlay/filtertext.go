// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"weft.dev/weft/subnet"
)

// tableName is how nft calls the table that is a Filter; backend/nft makes it.
const tableName = "inet weft"

// String renders f in words on one line, for nft would need all of the table.
func (f Filter) String() string {
	s := fmt.Sprintf("%s guard %s masquerade %t udp dport %d vni %d networks %s subnets %s devices %s lengths %s", tableName, f.Guard, f.Masquerade, f.Port, f.VNI,
		perFamily(f.Networks), perFamily(f.Subnets), strings.Join(f.Devices[:], ","), f.Lengths)
	if f.Bridge != "" {
		s += " bridge " + f.Bridge
	}
	if f.Foreign != "" {
		s += " # " + strings.Join(strings.Fields(f.Foreign), " ")
	}
	return s
}

// perFamily renders what there is of each family as "10.5.0.0/16,fd00:5::/48".
func perFamily(list [2]netip.Prefix) string {
	var out [2]string
	for i, p := range list {
		if p.IsValid() {
			out[i] = p.String()
		}
	}
	return strings.Join(out[:], ",")
}

// String renders n as the arguments of `nft add element`:
// "inet weft peers4 { 10.0.0.2 }", or own4 for an address of this node.
func (n Node) String() string {
	set := "peers"
	if n.Own {
		set = "own"
	}
	return fmt.Sprintf("%s %s%d { %s }", tableName, set, subnet.FamilyOf(n.Addr), n.Addr)
}

// String renders s as the arguments of `nft add element`:
// "inet weft bind4_inner4_24 { 10.0.0.2 . 0xa050200 } # 10.5.2.0/24". The name
// of the set says the family of the outer address, and the family and length of
// the inner prefix. To nft that is raw packet bytes, a number, which reads like
// an address in the comment only.
func (s Source) String() string {
	in := s.Inner.Addr()
	number := strings.TrimLeft(fmt.Sprintf("%x", in.AsSlice()), "0")
	return fmt.Sprintf("%s bind%d_inner%d_%d { %s . 0x%s } # %s",
		tableName, subnet.FamilyOf(s.Outer), subnet.FamilyOf(in), s.Inner.Bits(), s.Outer, cmp.Or(number, "0"), s.Inner)
}

// String renders p as the arguments of `nft add element`:
// "inet weft pods4_24 { 10.5.2.0 }". The name of the set says the family and
// the length.
func (p Pods) String() string {
	a := p.Subnet.Addr()
	return fmt.Sprintf("%s pods%d_%d { %s }", tableName, subnet.FamilyOf(a), p.Subnet.Bits(), a)
}
