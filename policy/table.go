// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// A Class is what the policies of one direction say to pods, the same for all
// that have it. An Identity is what an address is to the policies of a node:
// which of their peers it is among, and which ports its names are. The zero
// Identity is that of all addresses, whoever has them. A PortSet is ports.
//
// The numbers follow from what they stand for, by a hash, and are the same
// after a restart and on another node.
type (
	Class    uint32
	Identity uint32
	PortSet  uint32
)

// Anyone is the Identity of pairs that are for every address.
const Anyone Identity = 0

// A Table is all that the kernel of one node has to know.
type Table struct {
	// Known are the addresses of the node's pods. What else is in the node's
	// subnets is let in nowhere.
	Known map[netip.Addr]bool
	// Classes are those of the node's pods that are isolated in a direction.
	Classes [2]map[netip.Addr]Class
	// Identities are those of pods on all nodes. Pods that no peer selects are
	// missing, and those that are to policies what their neighbours in a block
	// are.
	Identities map[netip.Addr]Identity
	// Blocks are disjoint, ascending.
	Blocks []AddrRange
	// Pairs are what may pass at some ports, and which these are.
	Pairs map[Pair]PortSet
	// Rows are the ports of each PortSet.
	Rows map[Row]bool
	// TooLarge are namespaces, sorted, whose policies come to more than there is
	// room for (MaxRows): pods that they isolate have no pairs.
	TooLarge []string
}

// An AddrRange is the addresses From to To, of one family, and their Identity
// where they are no pod's.
type AddrRange struct {
	From, To netip.Addr
	Identity Identity
}

// A Pair is pods of Class, and addresses of Identity that send to them or are
// sent to.
type Pair struct {
	Direction Direction
	Class     Class
	Identity  Identity
}

// A Row says that ports of Proto are in Set; which ones is said by Port and Bits:
//
//	Bits > 0            the 1<<Bits ports from Port on, which is a multiple of
//	                    that; Bits is one of Widths
//	Bits = 0, Port > 0  that port
//	both 0              all; Proto 0 stands for all protocols without ports
type Row struct {
	Set   PortSet
	Proto uint8
	Bits  uint8
	Port  uint16
}

// Widths are the values of Row.Bits but 0, ascending. A range of ports is at
// most 15 rows of each at either end and 14 of the widest between them, whatever
// other ranges there are; that of what no privilege is needed for, 1024 to
// 65535, is 27. Each value is one more lookup.
func Widths() [3]uint8 { return [3]uint8{4, 8, 12} }

// Allows looks k up as the kernel does. In both directions it speaks of the
// node's own pods only: what comes from elsewhere has been judged there.
func (t *Table) Allows(k Packet) bool {
	if k.Src == k.Dst && t.Known[k.Src] {
		return true
	}
	return t.allows(Egress, k.Src, k.Dst, k) && t.allows(Ingress, k.Dst, k.Src, k)
}

func (t *Table) allows(d Direction, pod, peer netip.Addr, k Packet) bool {
	class, isolated := t.Classes[d][pod]
	if !isolated {
		return true
	}
	for _, look := range []func(netip.Addr) (Identity, bool){t.exact, t.anyone, t.block} {
		id, ok := look(peer)
		if !ok {
			continue
		}
		if set, ok := t.Pairs[Pair{d, class, id}]; ok && (t.exactPort(set, k) || t.anyPort(set, k) || t.widePort(set, k)) {
			return true
		}
	}
	return false
}

func (t *Table) exact(a netip.Addr) (Identity, bool) {
	id, ok := t.Identities[a]
	return id, ok
}

func (t *Table) anyone(netip.Addr) (Identity, bool) { return Anyone, true }

func (t *Table) block(a netip.Addr) (Identity, bool) {
	i, ok := slices.BinarySearchFunc(t.Blocks, a, func(r AddrRange, a netip.Addr) int { return locate(r.From, r.To, a) })
	if !ok {
		return 0, false
	}
	return t.Blocks[i].Identity, true
}

func (t *Table) exactPort(s PortSet, k Packet) bool {
	return t.Rows[Row{s, k.Proto, 0, k.Port}]
}

func (t *Table) anyPort(s PortSet, k Packet) bool {
	proto := k.Proto
	if !hasPorts(proto) {
		proto = 0
	}
	return t.Rows[Row{s, proto, 0, 0}]
}

func (t *Table) widePort(s PortSet, k Packet) bool {
	for _, bits := range Widths() {
		if t.Rows[Row{s, k.Proto, bits, k.Port >> bits << bits}] {
			return true
		}
	}
	return false
}
