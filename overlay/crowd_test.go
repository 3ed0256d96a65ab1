// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"testing"

	"weft.dev/weft/subnet"
)

// In an open network nothing but the leases tells a node's address from a
// pod's. Addresses share a link, as they do; but one among another's pods
// concerns that one, and is found whoever comes first, and over when it goes.
func TestAddressesAmongPodsOfOpenNetworks(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	cfg := opened(testConfig(), "46")
	ordinary := []subnet.Lease{lease(2, v4), lease(3, v4), lease(4, [2]subnet.Family{6, 6}), lease(5, v4, [2]subnet.Family{6, 6})}
	inside := edit(lease(6, v4), func(p *subnet.Path) { p.Underlay = pods(4, 3).Addr().Next() })
	source := lease(7, v4)
	source.Sources = append(source.Sources, pods(6, 5).Addr().Next())
	for name, odd := range map[string]subnet.Lease{"an underlay address": inside, "a source": source} {
		c := newCrowd(&cfg, subnet.LeasesOf(ordinary...))
		if !c.apart() {
			t.Fatal("ordinary leases are in each other's way")
		}
		with := subnet.LeasesOf(append(ordinary[:len(ordinary):len(ordinary)], odd)...)
		if c.follow(with, nil, []subnet.Lease{odd}) || c.apart() {
			t.Errorf("%s among pods is thought to be apart", name)
		}
		if again := newCrowd(&cfg, with); again.apart() {
			t.Errorf("%s among pods is thought to be apart from the first", name)
		}
		late := lease(8, v4)
		if !c.follow(subnet.LeasesOf(append(ordinary[:len(ordinary):len(ordinary)], odd, late)...), nil, []subnet.Lease{late}) {
			t.Errorf("%s: one that has nothing to do with it is not let by", name)
		}
		if c.follow(subnet.LeasesOf(append(ordinary[:len(ordinary):len(ordinary)], late)...), []subnet.Lease{odd}, nil) || !c.apart() || len(c.within) == 0 {
			t.Errorf("%s: it is not over when it goes", name)
		}
		if !c.follow(subnet.LeasesOf(), append(ordinary[:len(ordinary):len(ordinary)], late), nil) || len(c.within) != 0 || len(c.claims) != 0 {
			t.Errorf("%s: something is left of nobody: %v", name, c.within)
		}
	}
}
