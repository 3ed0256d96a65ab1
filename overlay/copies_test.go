// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"slices"
	"testing"

	"weft.dev/weft/subnet"
)

// Whoever copies what is published of a programmed peer, its MAC above all,
// takes nothing of it, although the copy has the lower address.
func TestCopiesTakeNothing(t *testing.T) {
	both := [][2]subnet.Family{{4, 4}, {6, 6}}
	n := node{guardedSelf(both...), testConfig()}
	holder := lease(40, both...)
	have, _ := n.desired([]subnet.Lease{holder}, NewState())
	for name, copied := range map[string]func(*subnet.Lease){
		"at another address": func(l *subnet.Lease) { l.Paths[0].Underlay = host(4, 3) },
		"of a wider subnet": func(l *subnet.Lease) {
			l.Paths[0].Subnet = netip.PrefixFrom(l.Paths[0].Subnet.Addr(), l.Paths[0].Subnet.Bits()-1).Masked()
		},
		"of a narrower subnet": func(l *subnet.Lease) {
			l.Paths[0].Subnet = netip.PrefixFrom(l.Paths[0].Subnet.Addr(), l.Paths[0].Subnet.Bits()+1)
		},
		"under the same name":            func(l *subnet.Lease) { l.Node, l.Paths[1].Subnet = holder.Node, pods(6, 77) },
		"with another subnet beside":     func(l *subnet.Lease) { l.Paths[1].Subnet = pods(6, 77) },
		"with another address beside":    func(l *subnet.Lease) { l.Paths[1].Underlay = host(6, 3) },
		"with a source":                  func(l *subnet.Lease) { l.Sources = append(l.Sources, host(4, 3)) },
		"with its own address as source": func(l *subnet.Lease) { l.Sources = append(l.Sources, l.Paths[0].Underlay, l.Paths[0].Underlay) },
		"without VXLAN": func(l *subnet.Lease) {
			l.Backend = subnet.BackendHostGW
			for i := range l.Paths {
				l.Paths[i].MAC, l.Paths[i].VNI = subnet.MAC{}, 0
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := holder.Clone()
			c.Node, c.Instance = "copy", "copy"
			copied(&c)
			before := have
			for range 3 { // what the copy has by then must not help it either
				for _, order := range [][]subnet.Lease{{holder, c}, {c, holder}} {
					s, problems := n.desired(order, before)
					for _, e := range slices.Concat(entries(have.FDB), entries(have.Neighs), entries(have.Routes), entries(have.Sources), entries(have.Nodes), entries(have.Pods)) {
						if !slices.Contains(slices.Concat(entries(s.FDB), entries(s.Neighs), entries(s.Routes), entries(s.Sources), entries(s.Nodes), entries(s.Pods)), e) {
							t.Fatalf("gone: %s; problems %v", e, problems)
						}
					}
					before = s
				}
			}
		})
	}
}

// Nobody lets further addresses in as a peer's pods by a copy of its lease, as
// junk of tests/store had it: not by publishing an address together with
// others, and not by leaving out a family that the peer announces, from whose
// addresses nothing could come otherwise.
func TestCopiesLetNobodyIn(t *testing.T) {
	both := [][2]subnet.Family{{4, 4}, {6, 6}}
	n := node{guardedSelf(both...), testConfig()}
	holder := lease(40, both...)
	holder.Sources = []netip.Addr{host(4, 140), host(6, 140)}
	have, _ := n.desired([]subnet.Lease{holder}, NewState())
	half := holder.Clone()
	half.Paths = half.Paths[:1]
	wide := holder.Clone()
	wide.Node, wide.Sources = "copy", append(slices.Clone(holder.Sources), host(4, 3))
	publisher, announcer := lease(50, both...), lease(51, both...)
	publisher.Sources = []netip.Addr{host(4, 3)}
	announcer.Paths[0].Underlay, announcer.Paths[1].Underlay = host(4, 140), host(6, 140)
	announcer.Paths[0].Subnet, announcer.Paths[1].Subnet = holder.Paths[0].Subnet, holder.Paths[1].Subnet
	for name, rivals := range map[string][]subnet.Lease{
		"an address that another publishes too":           {wide, publisher},
		"a family less":                                   {half},
		"a family less, and addresses that one announces": {half, announcer},
	} {
		t.Run(name, func(t *testing.T) {
			before := have
			for range 3 {
				for _, order := range [][]subnet.Lease{append([]subnet.Lease{holder}, rivals...), append(slices.Clone(rivals), holder)} {
					s, problems := n.desired(order, before)
					for src := range s.Sources {
						if src.Inner.Overlaps(holder.Paths[0].Subnet) && !have.Sources.Has(src) {
							t.Fatalf("let in: %s; problems %v", src, problems)
						}
					}
					before = s
				}
			}
		})
	}
}

// A lease by a peer's name that claims one of its subnets as the peer does,
// together with a lease that claims half of it, takes nothing of it.
func TestCopiesThatHelpEachOtherTakeNothing(t *testing.T) {
	both := [][2]subnet.Family{{4, 4}, {6, 6}}
	n := node{guardedSelf(both...), testConfig()}
	holder := lease(40, both...)
	have, _ := n.desired([]subnet.Lease{holder}, NewState())
	namesake, half := holder.Clone(), holder.Clone()
	namesake.Paths[1].Subnet = pods(6, 3)
	half.Node = "another"
	half.Paths[0].Subnet = pods(4, 4)
	half.Paths[1].Subnet = netip.PrefixFrom(half.Paths[1].Subnet.Addr(), 68)
	got, problems := n.desired([]subnet.Lease{namesake, half, holder}, have)
	for _, c := range Diff(have, got) {
		if c.Op != Delete && c.Kind() != "filter" {
			t.Errorf("gone: %s; problems %v", c, problems)
		}
	}
}

// What random leases have found: those that looked programmed, in a second
// pass, and were not.
func TestLeasesThatLookProgrammed(t *testing.T) {
	path := func(s netip.Prefix, at netip.Addr, m subnet.MAC) subnet.Path {
		return subnet.Path{Subnet: s, Underlay: at, MAC: m}
	}
	of := func(name string, b subnet.BackendType, paths ...subnet.Path) subnet.Lease {
		return subnet.Lease{Node: name, Backend: b, Paths: paths}
	}
	v4, all := [2]subnet.Family{4, 4}, shapes()
	peer, dual := lease(2, v4), lease(2, v4, [2]subnet.Family{6, 6})
	for name, c := range map[string]struct {
		shape  string
		edit   func(*node)
		first  []subnet.Lease // what the node has seen before
		leases []subnet.Lease
	}{
		"an FDB entry that another path of the peer has": {"dual over v4", func(*node) {}, nil,
			[]subnet.Lease{dual, of("", subnet.BackendHostGW, path(pods(4, 2), host(4, 2), subnet.MAC{}))}},
		"a direct route, which has no MAC": {"v4", func(n *node) { n.cfg.Backend.DirectRouting = true }, []subnet.Lease{peer},
			[]subnet.Lease{peer, of("", subnet.BackendVXLAN, path(pods(4, 2), host(4, 2), mac(1)))}},
		"an address that is ours": {"crossed", func(*node) {}, nil,
			[]subnet.Lease{peer, of("", subnet.BackendHostGW, path(pods(4, 9), host(4, 1), mac(210)), path(pods(4, 2), host(4, 2), mac(2)))}},
		"the path of another, by a name that is taken": {"crossed", func(n *node) {
			n.self.Guard, n.self.Lease = GuardPeers, hostGW(n.self.Lease)
			n.cfg.Backend.Type = subnet.BackendHostGW
		}, nil, []subnet.Lease{
			of("", subnet.BackendVXLAN, path(pods(4, 2), host(4, 99), mac(210))),
			of("node-1", subnet.BackendVXLAN, path(pods(4, 200), host(4, 2), mac(211))),
			of("node-1", subnet.BackendVXLAN, path(pods(4, 1), host(4, 210), mac(210)), path(pods(4, 2), host(4, 99), mac(2)))}},
	} {
		t.Run(name, func(t *testing.T) {
			n := node{guardedSelf(all[c.shape]...), testConfig()}
			c.edit(&n)
			if c.first == nil {
				c.first = c.leases
			}
			first, _ := n.desired(c.first, NewState())
			second, problems := n.desired(c.leases, first)
			if changes := Diff(second, first); !changes.Empty() {
				t.Errorf("%v: the second pass would\n%s", problems, changes)
			}
		})
	}
}

func entries[E interface {
	comparable
	Entry
}](s Set[E]) []Entry {
	var out []Entry
	for e := range s {
		out = append(out, e)
	}
	return out
}
