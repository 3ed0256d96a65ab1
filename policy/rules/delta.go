// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"net/netip"
	"slices"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// content is what the table's elements are made from.
type content struct {
	table   *policy.Table
	subnets []netip.Prefix
	stale   map[policy.Row]bool // rows beside the table's, of sets that no pair has
}

// delta returns what turns the elements of one content into those of another,
// and that with what stays. Rows of sets that no pair has any more stay until
// the next change, or the next Sync: a packet on its way may have found the pair
// as it was, and would find nothing.
func delta(is, to content) (nft.Plan, content) {
	var add, del builder
	add.lacking(is.table, to.table)
	add.leases(is.subnets, to.subnets)
	del.lacking(to.table, is.table)
	del.leases(to.subnets, is.subnets)
	for r := range missing(is.table.Rows, to.table.Rows) {
		if !is.stale[r] {
			add.row(r)
		}
	}
	used := setsOf(to.table)
	to.stale = map[policy.Row]bool{}
	for r := range missing(to.table.Rows, is.table.Rows) {
		if used[r.Set] {
			del.row(r)
		} else {
			to.stale[r] = true
		}
	}
	for r := range missing(to.table.Rows, is.stale) { // that change is over
		del.row(r)
	}
	return nft.Plan{Add: add.out, Delete: del.out}, to
}

// setsOf are the sets of ports that pairs of t have.
func setsOf(t *policy.Table) map[policy.PortSet]bool {
	out := map[policy.PortSet]bool{}
	for _, set := range t.Pairs {
		out[set] = true
	}
	return out
}

// held is what the kernel's table has, as far as revokes asks.
type held struct {
	knows func(netip.Addr) bool   // the address of a pod
	pairs map[policy.PortSet]bool // sets of ports that a pair has
}

// revokes reports whether plan may forbid what a flow was let do, given what the
// table has. What is deleted let something pass, but for rows that no pair led to,
// and for classes and leases, which forbid; so it is they that must not be added. Where a known pod
// becomes isolated, its flows were let pass; where a pod becomes known, it had
// none, if its address is of a subnet that is guarded already.
func revokes(plan nft.Plan, is held, subnets []netip.Prefix) bool {
	forbids := forbidding()
	for _, e := range plan.Delete {
		if row, ok := rowOfElement(e); ok && !is.pairs[row.Set] {
			continue
		}
		if _, ok := forbids[e.Set]; !ok {
			return true
		}
	}
	for _, e := range plan.Add {
		class, ok := forbids[e.Set]
		if !ok {
			continue
		}
		a, _ := netip.AddrFromSlice([]byte(e.Key)) // no address is in no subnet
		if !class || is.knows(a) || !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

// forbidding returns the sets whose elements forbid something; true are those of
// classes, whose keys are addresses of pods.
func forbidding() map[string]bool {
	out := map[string]bool{}
	for _, f := range subnet.Families() {
		out[leaseSet(f)] = false
		for _, d := range policy.Directions() {
			out[classSet(d, f)] = true
		}
	}
	return out
}
