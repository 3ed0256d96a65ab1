// SPDX-License-Identifier: Apache-2.0

package store

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// judge computes what the kernel should hold after snap and compares it with
// the baseline.
func (c *campaign) judge(snap subnet.Snapshot) {
	c.e.Helper()
	state, problems := overlay.Desired(c.self, c.cfg, snap.Leases.Slice(), c.before)
	c.before = state
	c.checked++
	for _, p := range append(problems, snap.Problems...) {
		c.seen[p.Kind]++
		if len(p.Object) > 400 || len(p.Detail) > 1000 {
			c.e.Errorf("problem %s of %d and %d bytes quotes the store at length", p.Kind, len(p.Object), len(p.Detail))
		}
	}
	c.accepted = max(c.accepted, len(state.Routes)-len(c.baseline.Routes)-2)
	missing(c, "FDB entry", c.baseline.FDB, state.FDB)
	missing(c, "neighbour", c.baseline.Neighs, state.Neighs)
	missing(c, "route", c.baseline.Routes, state.Routes)
	missing(c, "node", c.baseline.Nodes, state.Nodes)
	missing(c, "source", c.baseline.Sources, state.Sources)
	missing(c, "link", c.baseline.Links, state.Links)
	missing(c, "address", c.baseline.Addrs, state.Addrs)
	if len(state.Links) != len(c.baseline.Links) || len(state.Addrs) != len(c.baseline.Addrs) || len(state.Filters) != 1 {
		c.e.Errorf("links %v, addresses %v, filters %v", state.Links, state.Addrs, state.Filters)
	}
	for f := range state.Filters {
		for g := range c.baseline.Filters {
			if f.Lengths = g.Lengths; f != g {
				c.e.Errorf("filter %+v, want %+v", f, g)
			}
		}
	}
	c.intruders(state)
	if c.e.Failed() {
		c.explain(snap, problems)
		c.e.FailNow()
	}
}

// explain logs what of the snapshot has to do with good peers.
func (c *campaign) explain(snap subnet.Snapshot, problems []subnet.Problem) {
	names := make(map[string]bool)
	for key, l := range c.good {
		names[l.Node] = l.Node != ""
		names[strings.TrimPrefix(key, c.e.key(""))] = true
	}
	for _, p := range problems {
		if names[p.Object] {
			c.e.Log(p)
		}
	}
	for _, l := range snap.Leases.Slice() {
		if slices.ContainsFunc(slices.Collect(maps.Values(c.good)), func(g subnet.Lease) bool { return !l.Equal(g) && alike(l, g) }) {
			c.e.Logf("mutant %+v", l)
		}
	}
}

// alike reports whether two leases claim a MAC or overlapping subnets.
func alike(a, b subnet.Lease) bool {
	return slices.ContainsFunc(a.Paths, func(p subnet.Path) bool {
		return slices.ContainsFunc(b.Paths, func(q subnet.Path) bool {
			return p.Subnet.Overlaps(q.Subnet) || p.MAC == q.MAC && p.MAC != subnet.MAC{}
		})
	})
}

// missing reports what of want is not in have.
func missing[E interface {
	comparable
	overlay.Entry
}](c *campaign, what string, want, have overlay.Set[E]) {
	c.e.Helper()
	for x := range want {
		if _, ok := have[x]; !ok {
			c.e.Errorf("%s of a good peer is gone: %s", what, x)
		}
	}
}

// intruders reports entries beside the baseline that would lead packets of
// good peers, or our own, elsewhere, or let somebody speak for them.
func (c *campaign) intruders(state overlay.State) {
	c.e.Helper()
	type vtep struct {
		dev string
		mac subnet.MAC
	}
	macs, ips := map[vtep]bool{}, map[netip.Addr]bool{}
	for x := range c.baseline.FDB {
		macs[vtep{x.Dev, x.MAC}] = true
	}
	for x := range c.baseline.Neighs {
		ips[x.IP] = true
	}
	ours := map[netip.Addr]bool{}
	for _, a := range c.self.Addresses {
		ours[a] = true
	}
	var pods []netip.Prefix
	for _, l := range c.good {
		pods = append(pods, subnets(l)...)
	}
	own := subnets(c.self.Lease)
	overlaps := func(p netip.Prefix, list []netip.Prefix) bool {
		for _, q := range list {
			if q.Overlaps(p) {
				return true
			}
		}
		return false
	}
	bad := func(known bool, x overlay.Entry, intrudes bool) {
		if !known && intrudes {
			c.e.Errorf("beside the good peers: %s", x)
		}
	}
	for x := range state.FDB {
		bad(has(c.baseline.FDB, x), x, macs[vtep{x.Dev, x.MAC}] || ours[x.Dst] || !x.MAC.IsUnicast())
	}
	for x := range state.Neighs {
		bad(has(c.baseline.Neighs, x), x, ips[x.IP] || overlaps(netip.PrefixFrom(x.IP, x.IP.BitLen()), own))
	}
	for x := range state.Routes {
		outside := true
		for _, n := range c.cfg.Networks {
			outside = outside && !(n.Prefix.Contains(x.Dst.Addr()) && x.Dst.Bits() >= n.Prefix.Bits())
		}
		bad(has(c.baseline.Routes, x), x, outside || overlaps(x.Dst, pods) || overlaps(x.Dst, own))
	}
	for x := range state.Nodes {
		bad(has(c.baseline.Nodes, x), x, x.Own || ours[x.Addr] || x.Addr.IsMulticast() || x.Addr.IsUnspecified())
	}
	for x := range state.Sources {
		bad(has(c.baseline.Sources, x), x, ours[x.Outer] || ours[x.Inner.Addr()] && x.Inner.IsSingleIP() || overlaps(x.Inner, pods) || overlaps(x.Inner, own))
	}
}

func has[E comparable](s overlay.Set[E], x E) bool {
	_, ok := s[x]
	return ok
}
