// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// The compare methods order entries by device and then by what an operator
// looks for. They look at every field, so that 0 means equal.

func (l Link) compare(o Link) int {
	return cmp.Or(
		cmp.Compare(l.Name, o.Name),
		cmp.Compare(l.VNI, o.VNI),
		cmp.Compare(l.Port, o.Port),
		l.Local.Compare(o.Local),
		cmp.Compare(l.Underlay, o.Underlay),
		compareMAC(l.MAC, o.MAC),
		cmp.Compare(l.MTU, o.MTU),
		compareBool(l.Learning, o.Learning),
		compareBool(l.GBP, o.GBP),
		compareBool(l.NoGRO, o.NoGRO),
		compareBool(l.Up, o.Up),
		cmp.Compare(l.RPFilter, o.RPFilter),
		cmp.Compare(l.AddrGen, o.AddrGen),
		cmp.Compare(l.Foreign, o.Foreign),
	)
}

func (f Filter) compare(o Filter) int {
	return cmp.Or(
		cmp.Compare(f.VNI, o.VNI),
		cmp.Compare(f.Port, o.Port),
		cmp.Compare(f.Guard, o.Guard),
		compareBool(f.Masquerade, o.Masquerade),
		slices.CompareFunc(f.Networks[:], o.Networks[:], netip.Prefix.Compare),
		slices.CompareFunc(f.Subnets[:], o.Subnets[:], netip.Prefix.Compare),
		slices.Compare(f.Devices[:], o.Devices[:]), cmp.Compare(f.Bridge, o.Bridge),
		f.Lengths.compare(o.Lengths),
		cmp.Compare(f.Foreign, o.Foreign),
	)
}

func (n Node) compare(o Node) int {
	return cmp.Or(compareBool(n.Own, o.Own), n.Addr.Compare(o.Addr))
}

func (s Source) compare(o Source) int {
	return cmp.Or(s.Outer.Compare(o.Outer), s.Inner.Compare(o.Inner))
}

func (p Pods) compare(o Pods) int { return p.Subnet.Compare(o.Subnet) }

func (a Addr) compare(o Addr) int {
	return cmp.Or(cmp.Compare(a.Dev, o.Dev), a.Prefix.Compare(o.Prefix))
}

func (f FDB) compare(o FDB) int {
	return cmp.Or(cmp.Compare(f.Dev, o.Dev), f.Dst.Compare(o.Dst), compareMAC(f.MAC, o.MAC))
}

func (n Neigh) compare(o Neigh) int {
	return cmp.Or(cmp.Compare(n.Dev, o.Dev), n.IP.Compare(o.IP), compareMAC(n.MAC, o.MAC))
}

func (r Route) compare(o Route) int {
	return cmp.Or(
		cmp.Compare(r.Dev, o.Dev),
		r.Dst.Compare(o.Dst),
		cmp.Compare(r.Metric, o.Metric),
		r.Via.Compare(o.Via),
		r.Src.Compare(o.Src),
		compareBool(r.Onlink, o.Onlink),
		cmp.Compare(r.Proto, o.Proto),
	)
}

func compareMAC(a, b subnet.MAC) int { return bytes.Compare(a[:], b[:]) }

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
