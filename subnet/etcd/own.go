// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"weft.dev/weft/subnet"
)

// A standing is what a stored lease is to us.
type standing int

const (
	foreign standing = iota // another node's
	own                     // ours, from before a restart or put there for us
	rival                   // of another node that has our name
)

// standingOf compares a stored lease with the one we want.
//
// A lease with a node name is ours by name and instance, and also by instance
// and address when only the name is another: --node-name was changed, and the
// old lease would be a second one for this underlay. The same name with
// another instance is a host set up anew when it still has one of our
// addresses, and a clone otherwise. A lease without a node name, which
// flannel wrote or an operator put as a reservation, is ours by address: in
// each family in which both have one they must agree, in one at least.
func standingOf(stored, want subnet.Lease) standing {
	shared, differ := compareUnderlays(stored, want)
	switch {
	case stored.Node == "" && shared && !differ:
		return own
	case renamed(stored, want):
		return own
	case stored.Node == "" || stored.Node != want.Node:
		return foreign
	case stored.Instance == want.Instance, stored.Instance == "", want.Instance == "", shared:
		return own
	}
	return rival
}

// compareUnderlays reports whether a and b have an underlay address of some
// family in common, and whether they have different ones of some family.
func compareUnderlays(a, b subnet.Lease) (shared, differ bool) {
	for _, f := range subnet.Families() {
		p, ok := a.VTEP(f)
		q, both := b.VTEP(f)
		if ok && both {
			shared = shared || p.Underlay == q.Underlay
			differ = differ || p.Underlay != q.Underlay
		}
	}
	return shared, differ
}

// sameHolder reports whether a and b carry the same node name and instance.
func sameHolder(a, b subnet.Lease) bool {
	return a.Node != "" && a.Node == b.Node && a.Instance != "" && a.Instance == b.Instance
}

// renamed reports whether stored is of our instance, at our addresses, under
// another node name.
func renamed(stored, want subnet.Lease) bool {
	shared, differ := compareUnderlays(stored, want)
	return stored.Node != "" && stored.Node != want.Node && want.Instance != "" &&
		stored.Instance == want.Instance && shared && !differ
}

// A rivalError says that another node goes by our name.
type rivalError struct {
	stored record
	want   subnet.Lease
}

func (e *rivalError) Error() string {
	return fmt.Sprintf("node name is taken: %s holds %s, and this is %s; give this node another --node-name, or, if the other one is gone: etcdctl del '%s'",
		holderOf(e.stored), e.stored.key, holderOf(record{lease: e.want}), e.stored.key)
}

// Unwrap makes a rivalError a subnet.ErrConflict.
func (e *rivalError) Unwrap() error { return subnet.ErrConflict }

// A claim is what a table says about our own entries.
type claim struct {
	entry *record        // the one to go on with; nil when we have none
	keep  []netip.Prefix // for each network the entry's subnet, or zero
	drop  []record       // older ones of ours, to be deleted
}

// claimOf finds our own entries in t. Of several, the one that keeps most
// subnets counts, and the newest of those; others are dropped only when they
// carry our instance. It fails with a rivalError.
func claimOf(t *table, cfg subnet.Config, want subnet.Lease) (claim, error) {
	named := t.sorted(func(r record) bool { return r.err == nil && standingOf(r.lease, want) != foreign })
	var mine []record
	for _, r := range named {
		if standingOf(r.lease, want) == rival {
			return claim{}, &rivalError{r, want}
		}
		mine = append(mine, r)
	}
	var c claim
	if len(mine) == 0 {
		c.keep = make([]netip.Prefix, len(cfg.Networks))
		return c, nil
	}
	slices.SortStableFunc(mine, func(a, b record) int {
		ka, kb := count(t.keepable(a, cfg, mine)), count(t.keepable(b, cfg, mine))
		return cmp.Or(cmp.Compare(kb, ka), cmp.Compare(b.changed, a.changed))
	})
	c.entry, c.keep = &mine[0], t.keepable(mine[0], cfg, mine)
	for _, r := range mine[1:] {
		if sameHolder(r.lease, want) || renamed(r.lease, want) {
			c.drop = append(c.drop, r)
		}
	}
	return c, nil
}

// keepable returns, for each network of cfg, the subnet that r may keep, or
// the zero Prefix: the network must still hand it out, and no older record
// of another holder than mine's may overlap it.
func (t *table) keepable(r record, cfg subnet.Config, mine []record) []netip.Prefix {
	keep := make([]netip.Prefix, len(cfg.Networks))
	for i, n := range cfg.Networks {
		for _, p := range r.subnets {
			if n.Holds(p) == nil && !t.olderOverlap(r, p, mine) {
				keep[i] = p
			}
		}
	}
	return keep
}

// olderOverlap reports whether a record created before r, and not one of
// mine, overlaps p.
func (t *table) olderOverlap(r record, p netip.Prefix, mine []record) bool {
	for key, o := range t.records {
		if o.created < r.created && o.overlaps(p) &&
			!slices.ContainsFunc(mine, func(m record) bool { return m.key == key }) {
			return true
		}
	}
	return false
}

func count(ps []netip.Prefix) int {
	n := 0
	for _, p := range ps {
		if p.IsValid() {
			n++
		}
	}
	return n
}

// A plan is one transaction that gives us our lease.
type plan struct {
	lease    subnet.Lease // as it will stand in the store
	key      string       // whole
	value    []byte
	entry    *record  // our entry so far: at key, or to be deleted
	drop     []record // further ones to be deleted
	fresh    bool     // key does not exist yet
	reserved bool     // key gets no etcd lease
}

// planFor decides what to write so that want is published: our own entry
// with its subnets if they still fit, else subnets from want or free ones
// chosen with pick. It fails with a rivalError, or with subnet.ErrExhausted.
func planFor(t *table, cfg subnet.Config, want subnet.Lease, pick func(int) int) (*plan, error) {
	c, err := claimOf(t, cfg, want)
	if err != nil {
		return nil, err
	}
	p := &plan{lease: want.Clone(), entry: c.entry, drop: c.drop}
	going := make(map[string]bool)
	if c.entry != nil {
		p.reserved = c.entry.reserved()
		going[c.entry.key] = true
	}
	for _, r := range c.drop {
		going[r.key] = true
	}
	taken := sync.OnceValue(func() []netip.Prefix { return t.taken(going) })
	for i, n := range cfg.Networks {
		if s := c.keep[i]; s.IsValid() {
			p.lease.Paths[i].Subnet = s
			continue
		}
		s, err := subnet.Allocate(subnet.Request{Network: n, Previous: want.Paths[i].Subnet.Masked(), Taken: taken(), Pick: pick})
		if err != nil {
			return nil, err
		}
		p.lease.Paths[i].Subnet = s
	}
	name, value, err := subnet.EncodeLease(p.lease)
	if err != nil {
		return nil, err
	}
	p.key, p.value = t.prefix+name, value
	p.fresh = c.entry == nil || !sameSubnets(c.entry.subnets, p.lease)
	if !p.fresh {
		p.key = c.entry.key // whose spelling of an IPv6 subnet may differ
	}
	return p, nil
}

// sameSubnets reports whether subnets are those of l, in any order.
func sameSubnets(subnets []netip.Prefix, l subnet.Lease) bool {
	if len(subnets) != len(l.Paths) {
		return false
	}
	for _, p := range l.Paths {
		if !slices.Contains(subnets, p.Subnet) {
			return false
		}
	}
	return true
}
