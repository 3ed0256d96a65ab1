// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// A crowd knows how many leases claim each name, MAC, address and subnet, so
// that of a change of a few it can be told that it concerns nobody else.
// Claims are kept as hashes: where two meet by chance, a change looks less
// independent than it is.
//
// Nor may an address be among another lease's pods. A network that is known
// keeps nodes' addresses out. In an open one it is noted in which subnet each
// address would be: many may be in one, but then no lease may claim it.
type crowd struct {
	cfg    *subnet.Config
	leases subnet.Leases // as last seen; nothing in them is changed
	seed   maphash.Seed
	claims map[uint64]uint32
	shared int                     // claims of more than one lease
	within map[netip.Prefix]uint32 // addresses in each subnet of open networks
	met    int                     // subnets that are claimed and have addresses in them
	odd    int                     // leases whose subnets or addresses may meet others' without being equal to them
}

func newCrowd(cfg *subnet.Config, leases subnet.Leases) *crowd {
	// About a name and, for each of two families, a subnet, a MAC and an
	// address.
	c := &crowd{cfg: cfg, leases: leases, seed: maphash.MakeSeed(), claims: make(map[uint64]uint32, 7*leases.Len()), within: map[netip.Prefix]uint32{}}
	for l := range leases.All() {
		c.count(l, 1)
	}
	return c
}

// movedMost bounds the search for leases that have only moved: with more the
// change is no small one, whatever has moved.
const movedMost = 1 << 16

// differences returns the leases that are in one of both lists only, however
// they are ordered, unless there are many. Neighbours in time share most of
// their leases at the same place, and in memory.
func differences(before, after subnet.Leases) (removed, added []subnet.Lease) {
	for was, is := range before.Changed(after) {
		for i := range max(len(was), len(is)) {
			switch {
			case i >= len(was):
				added = append(added, is[i])
			case i >= len(is):
				removed = append(removed, was[i])
			case !sameLease(&was[i], &is[i]):
				removed, added = append(removed, was[i]), append(added, is[i])
			}
		}
	}
	if len(removed)*len(added) > movedMost {
		return removed, added
	}
	// What has only moved in the list.
	removed = slices.DeleteFunc(removed, func(l subnet.Lease) bool {
		i := slices.IndexFunc(added, l.Equal)
		if i >= 0 {
			added = slices.Delete(added, i, i+1)
		}
		return i >= 0
	})
	return removed, added
}

// sameLease is Equal, and quicker for one that was copied.
func sameLease(a, b *subnet.Lease) bool {
	if len(a.Paths) > 0 && len(a.Paths) == len(b.Paths) && &a.Paths[0] == &b.Paths[0] && len(a.Sources) == len(b.Sources) &&
		(len(a.Sources) == 0 || &a.Sources[0] == &b.Sources[0]) && a.Node == b.Node && a.Instance == b.Instance && a.Backend == b.Backend {
		return true
	}
	return a.Equal(*b)
}

// follow makes leases the ones that c knows. It reports false when one that is
// removed or added claims what another does, or could overlap it.
func (c *crowd) follow(leases subnet.Leases, removed, added []subnet.Lease) bool {
	alone := c.odd == 0
	for i := range removed {
		alone = alone && c.alone(&removed[i])
		c.count(&removed[i], -1)
	}
	for i := range added {
		c.count(&added[i], 1)
	}
	for i := range added {
		alone = alone && c.alone(&added[i])
	}
	c.leases = leases
	return alone && c.odd == 0
}

// apart reports whether no lease claims what another does.
func (c *crowd) apart() bool { return c.shared == 0 && c.met == 0 && c.odd == 0 }

// alone reports whether nobody but l claims what it does, or is where it is.
func (c *crowd) alone(l *subnet.Lease) bool {
	var space [claimsMost]uint64
	return c.meets(l) == 0 && !slices.ContainsFunc(c.hashes(space[:0], l), func(h uint64) bool { return c.claims[h] > 1 })
}

func (c *crowd) count(l *subnet.Lease, by int) {
	var space [claimsMost]uint64
	c.met -= c.meets(l)
	defer func() { c.met += c.meets(l) }()
	for s := range c.addresses(l) {
		if c.within[s] += uint32(by); c.within[s] == 0 {
			delete(c.within, s)
		}
	}
	for _, h := range c.hashes(space[:0], l) {
		was := int(c.claims[h])
		if n := was + by; n > 0 {
			c.claims[h] = uint32(n)
			c.shared += crowded(n) - crowded(was)
		} else {
			delete(c.claims, h)
		}
	}
	if !c.ordinary(l) {
		c.odd += by
	}
}

// meets returns how many of the subnets of open networks that l claims, or has
// an address in, are claimed and have addresses in them.
func (c *crowd) meets(l *subnet.Lease) (n int) {
	if !slices.ContainsFunc(c.cfg.Networks, subnet.Network.Open) {
		return 0
	}
	var space [claimsMost]netip.Prefix
	seen := space[:0]
	look := func(s netip.Prefix) {
		if slices.Contains(seen, s) {
			return
		}
		seen = append(seen, s)
		if c.within[s] > 0 && c.claims[c.hash('s', s.Addr())] > 0 {
			n++
		}
	}
	for _, p := range l.Paths {
		look(p.Subnet)
	}
	for s := range c.addresses(l) {
		look(s)
	}
	return n
}

// addresses yields for each address of l the subnet of an open network that it
// would be in. One that stands there twice comes twice.
func (c *crowd) addresses(l *subnet.Lease) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for i := range len(l.Paths) + len(l.Sources) {
			var a netip.Addr
			if i < len(l.Paths) {
				a = l.Paths[i].Underlay.Unmap()
			} else {
				a = l.Sources[i-len(l.Paths)].Unmap()
			}
			n, ok := c.cfg.Network(subnet.FamilyOf(a))
			s, err := a.Prefix(n.SubnetLen)
			if ok && err == nil && n.Open() && !yield(s) {
				return
			}
		}
	}
}

// crowded is 1 for a claim that more than one lease has.
func crowded(n int) int {
	if n > 1 {
		return 1
	}
	return 0
}

// claimsMost is how many claims a lease of two families with two further
// sources has; more are possible.
const claimsMost = 9

// hashes appends the hash of each thing that l claims, each once.
func (c *crowd) hashes(out []uint64, l *subnet.Lease) []uint64 {
	add := func(s uint64) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	address := func(kind byte, a netip.Addr) { add(c.hash(kind, a)) }
	if l.Node != "" {
		add(c.hashOf('n', []byte(l.Node)))
	}
	for _, p := range l.Paths {
		address('s', p.Subnet.Addr())
		address('a', p.Underlay)
		if p.MAC != (subnet.MAC{}) {
			add(c.hashOf('m', p.MAC[:]))
		}
	}
	for _, a := range l.Sources {
		address('a', a)
	}
	return out
}

func (c *crowd) hash(kind byte, a netip.Addr) uint64 {
	b := a.Unmap().As16()
	return c.hashOf(kind, b[:])
}

func (c *crowd) hashOf(kind byte, what []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	_ = h.WriteByte(kind)
	_, _ = h.Write(what)
	return h.Sum64()
}

// ordinary reports whether what l claims can meet what another ordinary lease
// claims only by being equal to it: its subnets are of the network's length,
// and its addresses are no pods', as far as the network tells.
func (c *crowd) ordinary(l *subnet.Lease) bool {
	for _, p := range l.Paths {
		n, ok := c.cfg.Network(subnet.FamilyOf(p.Subnet.Addr()))
		if !ok || p.Subnet.Bits() != n.SubnetLen || p.Subnet != p.Subnet.Masked() || !n.Prefix.Contains(p.Subnet.Addr()) || c.isPod(p.Underlay) {
			return false
		}
	}
	return !slices.ContainsFunc(l.Sources, c.isPod)
}

func (c *crowd) isPod(a netip.Addr) bool {
	a = a.Unmap()
	n, ok := c.cfg.Network(subnet.FamilyOf(a))
	return ok && !n.Open() && n.Prefix.Contains(a)
}
