// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"net/netip"
	"slices"
	"strings"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// delta returns the plan that turns have into want, without its table, and want
// as a set.
func delta(have map[nft.Element]struct{}, want []nft.Element) (nft.Plan, map[nft.Element]struct{}) {
	var plan nft.Plan
	now := make(map[nft.Element]struct{}, len(want))
	for _, e := range want {
		now[e] = struct{}{}
		if _, ok := have[e]; !ok {
			plan.Add = append(plan.Add, e)
		}
	}
	for e := range have {
		if _, ok := now[e]; !ok {
			plan.Delete = append(plan.Delete, e)
		}
	}
	bySet := func(a, b nft.Element) int { return strings.Compare(a.Set, b.Set) } // a message is about one
	slices.SortFunc(plan.Add, bySet)
	slices.SortFunc(plan.Delete, bySet)
	return plan, now
}

// revokes reports whether plan may forbid what a flow was let do, given what
// the table has. What is deleted let something pass, but for classes and
// leases, which forbid; so it is they that must not be added. Where a known pod
// becomes isolated, its flows were let pass; where a pod becomes known, it had
// none, if its address is of a subnet that is guarded already.
func revokes(plan nft.Plan, have map[nft.Element]struct{}, subnets []netip.Prefix) bool {
	forbids := forbidding()
	for _, e := range plan.Delete {
		if _, ok := forbids[e.Set]; !ok {
			return true
		}
	}
	for _, e := range plan.Add {
		known, ok := forbids[e.Set]
		switch {
		case !ok:
			continue
		case known == "":
			return true
		}
		if _, was := have[nft.Element{Set: known, Key: e.Key}]; was || !within(e.Key, subnets) {
			return true
		}
	}
	return false
}

// forbidding returns the sets whose elements forbid something: of classes with
// the set of the pods that are known, of leases with nothing.
func forbidding() map[string]string {
	out := map[string]string{}
	for _, f := range subnet.Families() {
		out[leaseSet(f)] = ""
		for _, d := range policy.Directions() {
			out[classSet(d, f)] = knownSet(f)
		}
	}
	return out
}

func within(key string, subnets []netip.Prefix) bool {
	a, _ := netip.AddrFromSlice([]byte(key)) // no address is in no subnet
	return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}
