// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/overlay"
	"weft.dev/weft/policy/kube"
	"weft.dev/weft/subnet"
)

// leaseOf is a lease for one subnet.
func leaseOf(node, instance, addr, sub string) subnet.Lease {
	return subnet.Lease{Node: node, Instance: instance, Backend: subnet.BackendVXLAN, Paths: []subnet.Path{{
		Subnet: netip.MustParsePrefix(sub), Underlay: netip.MustParseAddr(addr), VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, 1},
	}}}
}

func TestWhoFencesANode(t *testing.T) {
	had := leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	a, _ := bare(t)
	for name, c := range map[string]struct {
		others []subnet.Lease
		want   []string // in the text; nil when nobody does
	}{
		"nobody":         {others: []subnet.Lease{leaseOf("n2", "x", "10.0.0.2", "10.42.2.0/24")}},
		"ourselves":      {others: []subnet.Lease{had}},
		"our own ghost":  {others: []subnet.Lease{leaseOf("n1", "id", "10.0.0.1", "10.42.9.0/24")}},
		"another node":   {others: []subnet.Lease{leaseOf("n2", "x", "10.0.0.2", "10.42.1.0/24")}, want: []string{"node n2, at 10.0.0.2", "etcdctl del '/weft/network/subnets/10.42.1.0-24'", "drain"}},
		"a wider subnet": {others: []subnet.Lease{leaseOf("n2", "x", "10.0.0.2", "10.42.0.0/20")}, want: []string{"has leased 10.42.0.0/20", "this node's 10.42.1.0/24"}},
		"flannel":        {others: []subnet.Lease{leaseOf("", "", "10.0.0.2", "10.42.1.0/24")}, want: []string{"another node, at 10.0.0.2"}},
		"our name":       {others: []subnet.Lease{leaseOf("n1", "x", "10.0.0.2", "10.42.1.0/24")}, want: []string{"goes by this node's name n1", "--node-name"}},
		"a clone":        {others: []subnet.Lease{leaseOf("n1", "id", "10.0.0.2", "10.42.1.0/24")}, want: []string{"state directory is a copy", "/var/lib/weft/instance-id", "10.0.0.2"}},
		"a clone elsewhere, and another": {others: []subnet.Lease{leaseOf("n2", "x", "10.0.0.3", "10.42.1.0/24"), leaseOf("n1", "id", "10.0.0.2", "10.42.9.0/24")},
			want: []string{"state directory is a copy"}},
	} {
		rival, taken := fencedBy(c.others, had)
		if taken != (c.want != nil) {
			t.Errorf("%s: %v, %t", name, rival, taken)
			continue
		}
		for _, w := range c.want {
			if text := a.fenceText(had, rival); !strings.Contains(text, w) {
				t.Errorf("%s: %q lacks %q", name, text, w)
			}
		}
	}
}

// What is to be done about a rival is told in the words of the store.
func TestFenceTextsNameTheStoresOwnTool(t *testing.T) {
	a, _ := bare(t)
	a.o.Store = storeKube
	had := leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	rival := leaseOf("n2", "x", "10.0.0.2", "10.42.1.0/24")
	if text, want := a.fenceText(had, rival), "kubectl delete node n2 if"; !strings.Contains(text, want) || strings.Contains(text, "etcdctl") {
		t.Errorf("%q, want %q and nothing of etcdctl", text, want)
	}
}

// fenced is a node that loses the lease of 10.42.1.0/24 as soon as it has it,
// to what others say; it tries again quickly.
type fenced struct {
	*node
	store  *fakeStore
	grants chan subnet.Lease
}

func fence(t *testing.T, pods bool, others ...subnet.Lease) *fenced {
	return fenceWith(t, fmt.Errorf("lease 10.42.1.0-24 is lost: %w", subnet.ErrConflict), pods, others...)
}

func fenceWith(t *testing.T, loss error, pods bool, others ...subnet.Lease) *fenced {
	t.Helper()
	a, s := bare(t)
	cfg := config(t, `{"Network":"10.42.0.0/16"}`)
	a.network.Store(&cfg)
	a.snapshot.Store(&subnet.Snapshot{Leases: subnet.LeasesOf(others...)})
	f := &fenced{store: s, grants: make(chan subnet.Lease, 16)}
	f.node = &node{a: a, retry: 50 * time.Millisecond, settle: time.Millisecond, pods: func(context.Context) bool { return pods }}
	want := leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	s.holds = []func(context.Context, subnet.Config, subnet.Lease, func(subnet.Lease)) error{
		func(_ context.Context, _ subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
			granted(want)
			return loss
		},
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.hold(ctx, want, func(l subnet.Lease) { f.grants <- l }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("hold: %v", err)
		}
	})
	return f
}

// A fenced node says so, goes on, and asks for nothing but its own subnets as
// long as pods have addresses of them.
func TestFencedNodeTakesItsOwnSubnetBack(t *testing.T) {
	f := fence(t, true, leaseOf("n2", "x", "10.0.0.2", "10.42.1.0/24"))
	<-f.store.calls
	eventually(t, "no problem", func() bool { p := f.a.held.Load(); return p != nil && strings.Contains(p.Detail, "node n2") })
	if s := f.a.status(); s.Ready || !slices.ContainsFunc(s.Problems, func(p subnet.Problem) bool { return p.Kind == "LeaseLost" }) {
		t.Errorf("status %+v", s)
	}
	base := netip.MustParseAddr("10.42.1.0")
	for range 2 { // tries end and are made again
		c := <-f.store.calls
		if n := c.cfg.Networks[0]; n.SubnetMin != base || n.SubnetMax != base || c.want.Paths[0].Subnet.Addr() != base {
			t.Errorf("asks for %v to %v, with %v", n.SubnetMin, n.SubnetMax, c.want.Paths[0].Subnet)
		}
	}
	f.store.mu.Lock()
	f.store.holds = append(f.store.holds, func(ctx context.Context, _ subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error {
		granted(want)
		<-ctx.Done()
		return ctx.Err()
	})
	f.store.mu.Unlock()
	<-f.grants // the first
	if l := <-f.grants; l.Paths[0].Subnet.Addr() != base {
		t.Errorf("got %v", l)
	}
	eventually(t, "still a problem", func() bool { return f.a.held.Load() == nil })
	for len(f.store.calls) > 0 {
		<-f.store.calls
	}
	select {
	case c := <-f.store.calls:
		t.Errorf("a lease that is held is asked for again: %+v", c)
	case <-time.After(4 * f.retry):
	}
}

// Without pods any subnet will do.
func TestFencedNodeWithoutPodsTakesAnotherSubnet(t *testing.T) {
	f := fence(t, false, leaseOf("n2", "x", "10.0.0.2", "10.42.1.0/24"))
	<-f.store.calls
	if c := <-f.store.calls; c.cfg.Networks[0] != f.a.network.Load().Networks[0] {
		t.Errorf("asks for %+v", c.cfg.Networks[0])
	}
}

// Whoever has our name and id would be taken for us by the store, so that two
// clones would take the lease from each other for ever.
func TestFencedNodeDoesNotFightItsTwin(t *testing.T) {
	lost := fmt.Errorf("lost: %w", subnet.ErrConflict)
	for name, f := range map[string]*fenced{
		"a copied disk":              fenceWith(t, lost, true, leaseOf("n1", "id", "10.0.0.2", "10.42.1.0/24")),
		"an agent at the same place": fenceWith(t, fmt.Errorf("%w: %w", lost, subnet.ErrTwin), true, leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")),
	} {
		<-f.store.calls
		select {
		case c := <-f.store.calls:
			t.Errorf("%s: asked for %+v", name, c)
		case <-time.After(6 * f.retry):
		}
		f.a.snapshot.Store(&subnet.Snapshot{}) // the twin has gone
		<-f.store.calls
	}
}

// asksInVain is a node that had a lease and cannot have it now; the others'
// leases are no reason to be fenced.
func asksInVain(t *testing.T, a *agent, s *fakeStore, leases ...subnet.Lease) {
	t.Helper()
	cfg := config(t, `{"Network":"10.42.0.0/16"}`)
	a.network.Store(&cfg)
	a.snapshot.Store(&subnet.Snapshot{Leases: subnet.LeasesOf(leases...)})
	had := leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	n := &node{a: a, retry: 20 * time.Millisecond, pods: func(context.Context) bool { return true }, tenure: tenure{had: had}}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.hold(ctx, had, func(subnet.Lease) {}) }()
	asked := 0
	eventually(t, "asks no more", func() bool {
		select {
		case <-s.calls:
			asked++
		default:
		}
		return asked == 3
	})
	if p := a.held.Load(); p != nil {
		t.Errorf("fenced: %v", p)
	}
	stop()
	<-done
	if got := a.snapshot.Load().Leases.Len(); got != len(leases) {
		t.Errorf("%d of %d leases are left in the snapshot", got, len(leases))
	}
}

// On the Node API what stands on our own Node is ours, whoever wrote it last:
// an operator's overwrite of the address is there before it is granted.
func TestNoFenceByWhatStandsOnOurNode(t *testing.T) {
	a, s := bare(t)
	a.o.Store, a.o.NodeName = storeKube, "n1"
	asksInVain(t, a, s, leaseOf("n1", "id", "203.0.113.1", "10.42.1.0/24"), leaseOf("n2", "x", "10.0.0.2", "10.42.2.0/24"))
}

// An outage of the store while the lease is asked for again is no loss of it.
func TestNoFenceWhileTheStoreIsAway(t *testing.T) {
	a, s := bare(t)
	asksInVain(t, a, s)
}

func TestOwnAddresses(t *testing.T) {
	cfg := config(t, `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`)
	lease := leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	var found []netip.Addr
	for _, a := range []string{"10.0.0.1", "10.42.1.1", "10.42.9.0", "10.42.9.1", "192.0.2.7", "fd00::1", "fd42::1"} {
		found = append(found, netip.MustParseAddr(a))
	}
	got := fmt.Sprint(ownAddresses(cfg, lease, found))
	if want := "[10.0.0.1 10.42.1.0 10.42.1.1 192.0.2.7 fd00::1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// What the reconciler is told of this node follows lease and options.
func TestSelf(t *testing.T) {
	a, _ := bare(t, "--ingress-guard=peers", "--ip-masq=false")
	cfg := config(t, `{"Network":"10.42.0.0/16"}`)
	a.network.Store(&cfg)
	var told []overlay.Self
	n := &node{a: a, set: func(s overlay.Self) { told = append(told, s) }, underlays: underlays("10.0.0.1")}
	if n.tell(); len(told) != 0 {
		t.Error("told without a lease")
	}
	n.lease = leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	n.tell()
	s := told[0]
	if s.Guard != overlay.GuardPeers || s.Masquerade || !s.Lease.Equal(n.lease) || len(s.Underlays) != 1 || len(s.Addresses) != 2 || s.Names[subnet.IPv4] != "weft." {
		t.Errorf("%+v", s)
	}
	if a.self.Load().Guard != overlay.GuardPeers {
		t.Error("probes do not see it")
	}
}

// A switch of the backend publishes the lease anew, on the connection there
// is; only other addresses need another.
func TestBackendSwitchPublishesTheLease(t *testing.T) {
	a, s := bare(t)
	cfg := config(t, `{"Network":"10.42.0.0/16"}`)
	a.network.Store(&cfg)
	n := &node{a: a, underlays: underlays("10.0.0.1"), goneSince: map[subnet.Family]time.Time{}}
	want, _, err := a.request("", n.underlays)
	if err != nil {
		t.Fatal(err)
	}
	if _, other := n.announcesOther(want); other {
		t.Error("announces another lease without a change")
	}
	routed := config(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`)
	a.network.Store(&routed)
	next, other := n.announcesOther(want)
	if !other || next.Backend != subnet.BackendHostGW || !sameAddresses(next, want) {
		t.Errorf("%t, %+v", other, next)
	}
	n.underlays = underlays("10.0.0.11")
	if next, other = n.announcesOther(want); !other || sameAddresses(next, want) {
		t.Errorf("moved: %t, %+v", other, next)
	}
	if s.reconnects.Load() != 0 {
		t.Error("reconnected")
	}
}

// All that talks to the API from an address that is gone drops its connections.
func TestReconnect(t *testing.T) {
	a, s := bare(t)
	var other fakeStore
	if n := len((&policies{}).connections()) + len((&policies{source: &kube.Source{}}).connections()); n != 1 {
		t.Errorf("%d connections without policies and with them, want 0 and 1", n)
	}
	n := &node{a: a, conns: []connected{&other}}
	n.reconnect(t.Context())
	if s.reconnects.Load() != 1 || other.reconnects.Load() != 1 {
		t.Errorf("the store reconnects %d times, the other %d", s.reconnects.Load(), other.reconnects.Load())
	}
}
