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
}

// delta returns what turns the elements of one content into those of another.
func delta(is, to content) (plan nft.Plan) {
	var add, del builder
	add.lacking(is.table, to.table)
	add.leases(is.subnets, to.subnets)
	del.lacking(to.table, is.table)
	del.leases(to.subnets, is.subnets)
	plan.Add, plan.Delete = add.out, del.out
	return plan
}

// revokes reports whether plan may forbid what a flow was let do, given the pods
// that the table knows. What is deleted let something pass, but for classes and
// leases, which forbid; so it is they that must not be added. Where a known pod
// becomes isolated, its flows were let pass; where a pod becomes known, it had
// none, if its address is of a subnet that is guarded already.
func revokes(plan nft.Plan, knows func(netip.Addr) bool, subnets []netip.Prefix) bool {
	forbids := forbidding()
	for _, e := range plan.Delete {
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
		if !class || knows(a) || !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
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
