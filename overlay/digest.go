// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// A Tally stands for a collection of entries: how many there are, and the sum
// of a hash of each with a seed that only this process knows. Collections
// whose tallies are equal are equal, but for a chance of one in 2^64. One that
// has an entry twice and lacks another is not.
type Tally struct {
	N   int
	Sum uint64
}

// Plus returns the tally of both collections together.
func (t Tally) Plus(o Tally) Tally { return Tally{t.N + o.N, t.Sum + o.Sum} }

// Minus returns the tally of a collection without another that it contains.
func (t Tally) Minus(o Tally) Tally { return Tally{t.N - o.N, t.Sum - o.Sum} }

// A Hasher makes tallies that can be compared with each other. The zero value
// makes none. Comparable.
type Hasher struct{ seed maphash.Seed }

// NewHasher returns a Hasher with a seed of its own.
func NewHasher() Hasher { return Hasher{maphash.MakeSeed()} }

// Tally returns the tally of e alone: an FDB, a Neigh, a Route, a Node, a
// Source or Pods. It hashes bytes of ours: the pointers in netip's types would have
// each entry moved to the heap.
func (h Hasher) Tally(e Entry) Tally {
	var space [96]byte // of a route, the largest: its name, three addresses, and 7 bytes
	return Tally{1, maphash.Bytes(h.seed, appendEntry(space[:0], e))}
}

func tallyOf[E entryOf[E]](h Hasher, s Set[E]) Tally {
	var t Tally
	for e := range s {
		t = t.Plus(h.Tally(e))
	}
	return t
}

// A Digest stands for the sets of a State that grow with the number of peers.
// The zero value stands for none. Comparable.
type Digest struct {
	Hasher                                    Hasher
	Nodes, Sources, Pods, FDB, Neighs, Routes Tally
}

// Digest returns what stands for s.
func (s State) Digest(h Hasher) Digest {
	return Digest{h, tallyOf(h, s.Nodes), tallyOf(h, s.Sources), tallyOf(h, s.Pods), tallyOf(h, s.FDB), tallyOf(h, s.Neighs), tallyOf(h, s.Routes)}
}

// plus and minus are Tally's.

func (d Digest) plus(o Digest) Digest {
	return Digest{d.Hasher, d.Nodes.Plus(o.Nodes), d.Sources.Plus(o.Sources), d.Pods.Plus(o.Pods), d.FDB.Plus(o.FDB), d.Neighs.Plus(o.Neighs), d.Routes.Plus(o.Routes)}
}

func (d Digest) minus(o Digest) Digest {
	return Digest{d.Hasher, d.Nodes.Minus(o.Nodes), d.Sources.Minus(o.Sources), d.Pods.Minus(o.Pods), d.FDB.Minus(o.FDB), d.Neighs.Minus(o.Neighs), d.Routes.Minus(o.Routes)}
}

// of returns where the tally of e's kind is, nil for a kind without.
func (d *Digest) of(e Entry) *Tally {
	switch e.(type) {
	case FDB:
		return &d.FDB
	case Neigh:
		return &d.Neighs
	case Route:
		return &d.Routes
	case Node:
		return &d.Nodes
	case Source:
		return &d.Sources
	case Pods:
		return &d.Pods
	}
	return nil
}

// change makes one change.
func (d *Digest) change(c Change) {
	t := d.of(c.Entry)
	if t == nil {
		return
	}
	e := d.Hasher.Tally(c.Entry)
	if c.Op == Delete {
		*t = t.Minus(e)
		return
	}
	if c.Was != nil {
		*t = t.Minus(d.Hasher.Tally(c.Was))
	}
	*t = t.Plus(e)
}

// appendEntry appends what tells e from others of its type.
func appendEntry(b []byte, e Entry) []byte {
	switch e := e.(type) {
	case FDB:
		return appendName(appendAddr(append(b, e.MAC[:]...), e.Dst), e.Dev)
	case Neigh:
		return appendName(appendAddr(append(b, e.MAC[:]...), e.IP), e.Dev)
	case Route:
		b = binary.NativeEndian.AppendUint32(appendPrefix(b, e.Dst), e.Metric)
		return appendName(append(appendAddr(appendAddr(b, e.Via), e.Src), e.Proto, bit(e.Onlink)), e.Dev)
	case Node:
		return append(appendAddr(b, e.Addr), bit(e.Own))
	case Source:
		return appendPrefix(appendAddr(b, e.Outer), e.Inner)
	case Pods:
		return appendPrefix(b, e.Subnet)
	}
	return b
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// appendName appends a name that ends what it is in.
func appendName(b []byte, name string) []byte { return append(b, name...) }

func appendPrefix(b []byte, p netip.Prefix) []byte {
	return append(appendAddr(b, p.Addr()), byte(p.Bits()))
}

// appendAddr appends an address without zone, or none.
func appendAddr(b []byte, a netip.Addr) []byte {
	switch {
	case a.Is4():
		v := a.As4()
		return append(append(b, 4), v[:]...)
	case a.Is6():
		v := a.As16()
		return append(append(b, 6), v[:]...)
	}
	return append(b, 0)
}
