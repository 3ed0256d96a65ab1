// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"weft.dev/weft/subnet"
)

// guarded adds to s, a desired state of two peers or more, the table with the
// elements of peer n in mode g.
func guarded(s State, g Guard, peers ...int) State {
	s = s.Clone()
	f := Filter{Guard: g, Port: 8472, VNI: 1, Lengths: Lengths{}.WithLength(subnet.IPv4, 24)}
	s.Filters.Add(f)
	s.Nodes.Add(Node{Addr: host(4, 1), Own: true})
	for _, n := range peers {
		s.Nodes.Add(Node{Addr: host(4, n)})
		s.Nodes.Add(Node{Addr: translated(n)})
		if g != GuardBind {
			continue
		}
		for _, outer := range []netip.Addr{host(4, n), translated(n)} {
			for _, inner := range []netip.Prefix{pods(4, n), single(pods(4, n).Addr()), single(host(4, n)), single(translated(n))} {
				s.Sources.Add(Source{outer, inner})
			}
		}
	}
	return s
}

// translated is a further address of node n.
func translated(n int) netip.Addr { return addr(fmt.Sprintf("192.0.2.%d", n)) }

// The guard goes on accepting what it accepted from held peers, from their
// further addresses too, and no more.
func TestTheGuardAcceptsHeldPeers(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	peers := func(from, to int) (out []subnet.Lease, n []int) {
		for i := from; i <= to; i++ {
			out, n = append(out, lease(i, [2]subnet.Family{4, 4})), append(n, i)
		}
		return out, n
	}
	state := func(g Guard, from, to int) State {
		leases, n := peers(from, to)
		s, _ := Desired(self, testConfig(), leases, NewState())
		return guarded(s, g, n...)
	}
	bare := func(from, to int) State {
		leases, _ := peers(from, to)
		s, _ := Desired(self, testConfig(), leases, NewState())
		return s
	}
	for _, tt := range []struct {
		name            string
		had, want, gets State
	}{
		{"as before, bind", state(GuardBind, 2, 8), state(GuardBind, 2, 3), state(GuardBind, 2, 8)},
		{"as before, peers", state(GuardPeers, 2, 8), state(GuardPeers, 2, 3), state(GuardPeers, 2, 8)},
		{"the table goes", state(GuardBind, 2, 8), bare(2, 3), bare(2, 8)},
		{"the guard is weakened", state(GuardBind, 2, 8), state(GuardPeers, 2, 3), state(GuardPeers, 2, 8)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := massRemoval(tt.want, tt.had, self, nil, false).over(tt.want)
			if !got.Equal(tt.gets) {
				t.Errorf("got\n%swant\n%s", got, tt.gets)
			}
		})
	}

	// The agent of before had no guard: what follows from the routes is let in.
	got := massRemoval(state(GuardBind, 2, 3), bare(2, 8), self, nil, false).over(state(GuardBind, 2, 3))
	for n := 4; n <= 8; n++ {
		for _, inner := range []netip.Prefix{pods(4, n), single(host(4, n))} {
			if s := (Source{host(4, n), inner}); !got.Sources.Has(s) || !got.Nodes.Has(Node{Addr: host(4, n)}) {
				t.Errorf("%s is not accepted", s)
			}
		}
	}

	// Another holder has the subnet of node 4 now.
	moved := edit(lease(40, [2]subnet.Family{4, 4}), func(p *subnet.Path) { p.Subnet = pods(4, 4) })
	want, _ := Desired(self, testConfig(), []subnet.Lease{moved}, NewState())
	want = guarded(want, GuardBind)
	got = massRemoval(want, state(GuardBind, 2, 8), self, nil, false).over(want)
	for s := range got.Sources {
		if s.Inner.Overlaps(pods(4, 4)) {
			t.Errorf("still accepted: %s", s)
		}
	}
	if n := len(got.Sources); n != 6*8 {
		t.Errorf("%d sources, want those of six peers", n)
	}
}

// Peers with subnets of another length need a guard that looks for them.
func TestTheGuardKeepsTheLengthsOfHeldPeers(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	var leases []subnet.Lease
	for i := 16; i < 32; i += 2 {
		leases = append(leases, edit(lease(i, [2]subnet.Family{4, 4}), func(p *subnet.Path) {
			p.Subnet = netip.PrefixFrom(p.Subnet.Addr(), 23)
		}))
	}
	had, _ := Desired(self, testConfig(), leases, NewState())
	none, _ := Desired(self, testConfig(), nil, NewState())
	want := guarded(none, GuardBind)
	got := massRemoval(want, had, self, nil, false).over(want)
	if f := sorted(got.Filters); len(f) != 1 || f[0].Lengths.String() != "IPv4/23,IPv4/24" {
		t.Errorf("filters %v", f)
	}
	if f := sorted(want.Filters); f[0].Lengths.String() != "IPv4/24" {
		t.Error("over changes its argument")
	}
}

// Routes without a VXLAN device are held as they are, with what the peer has
// on a device for the way back.
func TestDirectRoutesAreHeld(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	vxlan, _ := Desired(self, testConfig(), []subnet.Lease{
		lease(2, [2]subnet.Family{4, 4}), lease(3, [2]subnet.Family{4, 4}),
		lease(4, [2]subnet.Family{4, 4}), lease(5, [2]subnet.Family{4, 4}),
	}, NewState())
	direct := vxlan.Clone()
	clear(direct.Routes)
	for r := range vxlan.Routes {
		via, _ := chain(vxlan, r)
		direct.Routes.Add(Route{Dev: "eth0", Dst: r.Dst, Via: via, Metric: r.Metric, Onlink: true, Proto: RouteProtocol})
	}
	none, _ := Desired(self, testConfig(), nil, NewState())
	if got := massRemoval(none, direct, self, nil, false).over(none); !got.Equal(direct) {
		t.Errorf("got\n%swant\n%s", got, direct)
	}
	hostGW := NewState()
	maps.Copy(hostGW.Routes, direct.Routes)
	if got := massRemoval(NewState(), hostGW, self, nil, false).over(NewState()); !got.Equal(hostGW) {
		t.Errorf("got\n%swant\n%s", got, hostGW)
	}
	// A wanted state without devices, the peers on one: it stays with them.
	if got := massRemoval(NewState(), vxlan, self, nil, false).over(NewState()); !got.Equal(vxlan) {
		t.Errorf("got\n%swant\n%s", got, vxlan)
	}
}

// A device of another name that cannot be there beside ours, as flannel's.
func TestHeldPeersMoveToTheDeviceInPlaceOfTheirs(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	flannel := self
	flannel.Names = Names{subnet.IPv4: "flannel.", subnet.IPv6: "flannel-v6."}
	var leases []subnet.Lease
	for n := 2; n < 7; n++ {
		leases = append(leases, lease(n, [2]subnet.Family{4, 4}))
	}
	had, _ := Desired(flannel, testConfig(), leases, NewState())
	same, _ := Desired(self, testConfig(), leases, NewState())
	want, _ := Desired(self, testConfig(), nil, NewState())
	got := massRemoval(want, had, self, nil, false).over(want)
	if !got.Equal(same) {
		t.Errorf("got\n%swant\n%s", got, same)
	}
	if err := applyAll(had.Clone(), Diff(got, had)); err != nil {
		t.Error(err)
	}
}

// Where the network is open, what pods send to held peers is not masqueraded
// either.
func TestHeldPeersStayAmongThePods(t *testing.T) {
	self, cfg := guardedSelf([2]subnet.Family{4, 4}), opened(testConfig(), "4")
	self.Guard = GuardOff
	var leases []subnet.Lease
	for i := 16; i < 32; i += 2 {
		leases = append(leases, edit(lease(i, [2]subnet.Family{4, 4}), func(p *subnet.Path) {
			p.Subnet = netip.PrefixFrom(p.Subnet.Addr(), 23)
		}))
	}
	had, _ := Desired(self, cfg, leases, NewState())
	want, _ := Desired(self, cfg, leases[:1], NewState())
	got := massRemoval(want, had, self, nil, false).over(want)
	if len(had.Pods) != len(leases) || !maps.Equal(got.Pods, had.Pods) || !maps.Equal(got.Filters, had.Filters) {
		t.Errorf("got\n%swant the pods of\n%s", got, had)
	}
	known, _ := Desired(self, testConfig(), leases[:1], NewState())
	if got := massRemoval(known, had, self, nil, false).over(known); len(got.Pods) != 0 || applyAll(NewState(), Diff(got, NewState())) != nil {
		t.Errorf("in a network that is known by now:\n%s", got)
	}
}
