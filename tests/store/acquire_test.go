// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
)

func acquire(e *env) {
	cfg := v4(e)
	w := want(cfg, 1)
	l := e.hold(e.store(), cfg, w).granted()
	if err := cfg.Networks[0].Holds(l.Paths[0].Subnet); err != nil {
		e.Fatal(err)
	}
	got := e.only()
	if !got.Equal(l) {
		e.Errorf("stored %+v, granted %+v", got.Lease, l)
	}
	name := strings.ReplaceAll(l.Paths[0].Subnet.String(), "/", "-")
	if got.key != e.key(name) {
		e.Errorf("key %s, want %s", got.key, e.key(name))
	}
	value := fmt.Sprintf(`{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"},"Weft":{"Node":"n1","Instance":"i1"}}`, w.Paths[0].MAC)
	if got.value != value {
		e.Errorf("value\n%s, want\n%s", got.value, value)
	}
	if got.lease == clientv3.NoLease {
		e.Error("the key has no etcd lease")
	}
}

func acquireDual(e *env) {
	cfg := dual(e)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if len(l.Paths) != 2 {
		e.Fatalf("%d paths, want 2", len(l.Paths))
	}
	for i, n := range cfg.Networks {
		if err := n.Holds(l.Paths[i].Subnet); err != nil {
			e.Error(err)
		}
	}
	if got := e.only(); !got.Equal(l) || !strings.Contains(got.key, "&fd42:") {
		e.Errorf("stored %s %+v, granted %+v", got.key, got.Lease, l)
	}
}

func acquireIPv6Alone(e *env) {
	cfg := config(e, `{"IPv6Network":"fd42::/48"}`)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if got := e.only(); !got.Equal(l) {
		e.Errorf("stored %+v, granted %+v", got.Lease, l)
	}
}

// alive counts those of the given etcd leases that have not expired.
func (e *env) alive(ids ...clientv3.LeaseID) int {
	e.Helper()
	n := 0
	for _, id := range ids {
		resp, err := e.c.TimeToLive(e.Context(), id)
		if err != nil {
			e.Fatal(err)
		}
		if resp.TTL > 0 {
			n++
		}
	}
	return n
}

func restartReuses(e *env) {
	cfg := dual(e)
	long := func(o *etcd.Options) { o.LeaseTTL = time.Hour }
	h := e.hold(e.store(long), cfg, want(cfg, 1))
	first := h.granted()
	before := e.only()
	h.stop()
	again := e.hold(e.store(long), cfg, want(cfg, 1)).granted()
	if !again.Equal(first) {
		e.Errorf("granted %+v after %+v", again, first)
	}
	after := e.only()
	if after.lease == before.lease {
		e.Error("the etcd lease of the earlier life is used: two processes could not be told apart")
	}
	e.eventually("the earlier etcd lease revoked", func() bool { return e.alive(before.lease) == 0 })
	if e.alive(after.lease) != 1 {
		e.Error("the present etcd lease is gone")
	}
}

func restartNewAddress(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(oneHour), cfg, want(cfg, 1))
	first := h.granted()
	h.stop()
	w := want(cfg, 1)
	w.Paths[0].Underlay = netip.MustParseAddr("192.168.77.77")
	again := e.hold(e.store(oneHour), cfg, w).granted()
	if again.Paths[0].Subnet != first.Paths[0].Subnet {
		e.Errorf("subnet %v after %v", again.Paths[0].Subnet, first.Paths[0].Subnet)
	}
	if got := e.only(); got.Paths[0].Underlay != w.Paths[0].Underlay {
		e.Errorf("stored underlay %v, want %v", got.Paths[0].Underlay, w.Paths[0].Underlay)
	}
}

func reinstalledReuses(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(oneHour), cfg, want(cfg, 1))
	first := h.granted()
	h.stop()
	w := want(cfg, 1)
	w.Instance = "fresh"
	if again := e.hold(e.store(oneHour), cfg, w).granted(); again.Paths[0].Subnet != first.Paths[0].Subnet {
		e.Errorf("subnet %v after %v", again.Paths[0].Subnet, first.Paths[0].Subnet)
	}
	if got := e.only(); got.Instance != "fresh" {
		e.Errorf("stored instance %q", got.Instance)
	}
}

func takesOverFlannel(e *env) {
	cfg := v4(e)
	w := want(cfg, 1)
	old := at(flannel(w), "10.42.7.0/24")
	old.Paths[0].MAC = subnet.MAC{2, 2, 2, 2, 2, 2}
	e.putLease(old, 60)
	l := e.hold(e.store(), cfg, w).granted()
	if !slices.Equal(subnets(l), prefixes("10.42.7.0/24")) {
		e.Errorf("granted %v, want flannel's 10.42.7.0/24", subnets(l))
	}
	if got := e.only(); !got.Equal(l) {
		e.Errorf("stored %+v, granted %+v", got.Lease, l)
	}
}

func coexistsWithFlannel(e *env) {
	cfg := config(e, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.3.0"}`)
	two := at(flannel(want(cfg, 2)), "10.42.1.0/24")
	three := at(flannel(want(dual(e), 3)), "10.42.2.0/24", "fd42:0:0:9::/64")
	keys := []string{e.putLease(two, 0), e.putLease(three, 60)}
	before := e.entries()
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if !slices.Equal(subnets(l), prefixes("10.42.3.0/24")) {
		e.Errorf("granted %v, want the only free 10.42.3.0/24", subnets(l))
	}
	for i, got := range e.entries()[:2] {
		if got.key != keys[i] || got.value != before[i].value || got.lease != before[i].lease {
			e.Errorf("flannel's %s is %+v, was %+v", keys[i], got, before[i])
		}
	}
	snap := e.watch(e.store()).last()
	if snap.Leases.Len() != 3 || len(snap.Problems) != 0 {
		e.Errorf("snapshot %+v, want 3 leases and no problem", snap)
	}
}

func incompatibleReplaced(e *env) {
	old := v4(e)
	e.putLease(at(want(old, 1), "10.42.7.0/24"), 60)
	cfg := config(e, `{"Network":"10.42.0.0/16","SubnetLen":25}`)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if got := e.only(); !got.Equal(l) || got.Paths[0].Subnet.Bits() != 25 {
		e.Errorf("stored %+v, granted %+v, want one /25", got.Lease, l)
	}
}

// flannel guards only equal keys, so that leases of two lengths may overlap.
func overlappedReplaced(e *env) {
	cfg := v4(e)
	other := at(flannel(want(cfg, 2)), "10.42.7.128/25")
	key := e.putLease(other, 60)
	mine := e.putLease(at(want(cfg, 1), "10.42.7.0/24"), 60)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if l.Paths[0].Subnet.Overlaps(other.Paths[0].Subnet) {
		e.Errorf("granted %v, which overlaps the older %v", subnets(l), subnets(other))
	}
	for _, got := range e.entries() {
		if got.key == mine {
			e.Errorf("%s is still there", mine)
		}
	}
	if list := e.entries(); len(list) != 2 || !slices.ContainsFunc(list, func(x entry) bool { return x.key == key }) {
		e.Errorf("entries %+v, want the other's and ours", list)
	}
}

func familyAdded(e *env) {
	h := e.hold(e.store(oneHour), v4(e), want(v4(e), 1))
	first := h.granted()
	h.stop()
	cfg := dual(e)
	l := e.hold(e.store(oneHour), cfg, want(cfg, 1)).granted()
	if l.Paths[0].Subnet != first.Paths[0].Subnet {
		e.Errorf("IPv4 subnet %v after %v", l.Paths[0].Subnet, first.Paths[0].Subnet)
	}
	if got := e.only(); !got.Equal(l) {
		e.Errorf("stored %+v, granted %+v", got.Lease, l)
	}
}

func duplicateRemoved(e *env) {
	cfg := v4(e)
	e.putLease(at(want(cfg, 1), "10.42.7.0/24"), 60)
	e.putLease(at(want(cfg, 1), "10.42.8.0/24"), 60)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if got := e.only(); !got.Equal(l) || !slices.Equal(subnets(l), prefixes("10.42.8.0/24")) {
		e.Errorf("stored %+v, granted %v, want the newer 10.42.8.0/24 alone", got.Lease, subnets(l))
	}
}

func previousSubnet(e *env) {
	cfg := dual(e)
	l := e.hold(e.store(), cfg, at(want(cfg, 1), "10.42.200.0/24", "fd42:0:0:abc::/64")).granted()
	if !slices.Equal(subnets(l), prefixes("10.42.200.0/24", "fd42:0:0:abc::/64")) {
		e.Errorf("granted %v", subnets(l))
	}
}

func previousTaken(e *env) {
	cfg := dual(e)
	e.putLease(at(want(cfg, 2), "10.42.200.0/24", "fd42:0:0:abd::/64"), 60)
	l := e.hold(e.store(), cfg, at(want(cfg, 1), "10.42.200.0/24", "fd42:0:0:abc::/64")).granted()
	if l.Paths[0].Subnet == netip.MustParsePrefix("10.42.200.0/24") {
		e.Error("granted the subnet of another node")
	}
	if l.Paths[1].Subnet != netip.MustParsePrefix("fd42:0:0:abc::/64") {
		e.Errorf("IPv6 subnet %v: want the previous one, which is free", l.Paths[1].Subnet)
	}
}

func junkOccupies(e *env) {
	cfg := config(e, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.2.0"}`)
	e.put(e.key("10.42.1.0-24"), "not json")
	e.put(e.key("garbage"), "x")
	if l := e.hold(e.store(), cfg, want(cfg, 1)).granted(); !slices.Equal(subnets(l), prefixes("10.42.2.0/24")) {
		e.Errorf("granted %v, want 10.42.2.0/24", subnets(l))
	}
}

func ipv6AloneBesideFlannel(e *env) {
	shared := func(o *etcd.Options) { o.Defaults.Flannel = true }
	s := e.store(shared)
	cfg := config(e, `{"IPv6Network":"fd42::/48"}`)
	err := s.Hold(e.Context(), cfg, want(cfg, 1), func(subnet.Lease) { e.Error("granted") })
	if err == nil || !strings.Contains(err.Error(), "flannel") {
		e.Errorf("Hold returned %v, want an error about flannel", err)
	}
	e.put(e.prefix+"/config", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd42::/48"}`)
	go s.Config(e.Context()) //nolint:errcheck // ends with the test
	e.reason(s, "flannel", e.prefix+"/config")
	if n := len(e.entries()); n != 0 {
		e.Errorf("%d keys written", n)
	}
}

// raceOfTwoLengths is a change of SubnetLen while nodes start: their keys
// differ, so that a guard of equal keys would let them overlap.
func raceOfTwoLengths(e *env) {
	long := config(e, `{"Network":"10.42.0.0/16","SubnetLen":24,"SubnetMin":"10.42.8.0","SubnetMax":"10.42.31.0"}`)
	short := config(e, `{"Network":"10.42.0.0/16","SubnetLen":26,"SubnetMin":"10.42.8.0","SubnetMax":"10.42.31.0"}`)
	var hs []*holding
	for i := range 16 {
		cfg := []subnet.Config{long, short}[i%2]
		hs = append(hs, e.hold(e.store(), cfg, want(cfg, i+1)))
	}
	var held []netip.Prefix
	for _, h := range hs {
		p := subnets(h.granted())[0]
		for _, q := range held {
			if p.Overlaps(q) {
				e.Errorf("%v and %v overlap", p, q)
			}
		}
		held = append(held, p)
	}
}
