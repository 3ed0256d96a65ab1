// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// A pod gets what it asks for beside its own address, but nothing by which it
// could speak in another's name.
func TestWithAllowed(t *testing.T) {
	ask := func(list ...string) *Pod {
		p := &Pod{Namespace: "a", Name: "p", Node: "here", Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.2")}}
		for _, s := range list {
			p.Allowed = append(p.Allowed, netip.MustParsePrefix(s))
		}
		return p
	}
	others := []*Pod{
		{Namespace: "a", Name: "q", Node: "there", Addrs: []netip.Addr{netip.MustParseAddr("172.16.0.9")}},
		{Namespace: "a", Name: "agent", Node: "there", HostNetwork: true, Addrs: []netip.Addr{netip.MustParseAddr("192.168.0.7")}},
	}
	reserved := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("192.168.0.5/32")}
	for _, c := range []struct {
		ask     []string
		get     int
		refused string
	}{
		{nil, 0, ""},
		{[]string{"192.0.2.1/32"}, 1, ""},
		{[]string{"192.0.2.1/32", "192.0.2.0/31", "2001:db8::/126"}, 6, ""},
		{[]string{"10.42.0.2/32"}, 0, "is in 10.42.0.0/16"},
		{[]string{"10.42.7.7/32"}, 0, "is in 10.42.0.0/16"},
		{[]string{"10.0.0.0/8"}, 0, "is in 10.42.0.0/16"},
		{[]string{"0.0.0.0/0", "::/0"}, 0, "addresses of no single host"},
		{[]string{"192.168.0.5/32", "192.0.2.1/32"}, 1, "192.168.0.5"},
		{[]string{"192.168.0.6/31"}, 1, "192.168.0.7 is a pod's or a node's"},
		{[]string{"172.16.0.9/32"}, 0, "is a pod's or a node's"},
		{[]string{"224.0.0.0/4"}, 0, "addresses of no single host"},
		{[]string{"127.0.0.1/32"}, 0, "addresses of no single host"},
		{[]string{"fe80::1/128"}, 0, "addresses of no single host"},
		{[]string{"255.255.255.255/32"}, 0, "addresses of no single host"},
		{[]string{"192.0.2.0/24"}, 256, ""},
		{[]string{"192.0.2.0/23"}, 256, "at most 256"},
		{[]string{"2001:db8::/32"}, 256, "at most 256"},
	} {
		pod := ask(c.ask...)
		before := Cluster{Pods: append([]*Pod{pod}, others...)}
		after, extras := before.WithAllowed("here", reserved)
		got, refused := []netip.Addr(nil), ""
		if len(extras) > 0 {
			got, refused = extras[0].Addrs, extras[0].Refused
		}
		if len(got) != c.get || (c.refused == "") != (refused == "") || !strings.Contains(refused, c.refused) {
			t.Errorf("%v: gets %d, refused %q; want %d and %q", c.ask, len(got), refused, c.get, c.refused)
		}
		for _, a := range got {
			if holder := after.podAt(a); holder == nil || holder.Name != "p" {
				t.Errorf("%v: %v is %v's", c.ask, a, holder)
			}
		}
		if len(pod.Addrs) != 1 || len(before.Pods) != len(after.Pods) {
			t.Errorf("%v: what was given was changed: %v", c.ask, pod)
		}
		if _, there := before.WithAllowed("there", reserved); len(there) > 0 {
			t.Errorf("%v: another node says %v", c.ask, there)
		}
	}
}

// Its policies are for a pod's further addresses too: else it would leave them
// by sending from there.
func TestAllowedAddressesAreJudged(t *testing.T) {
	extra := netip.MustParseAddr("192.0.2.1")
	pod := &Pod{Namespace: "a", Name: "p", Node: "here", Labels: NewLabels(nil), Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.2")},
		Allowed: []netip.Prefix{netip.PrefixFrom(extra, 32)}}
	c := Cluster{Pods: []*Pod{pod}, Policies: []*Policy{{Namespace: "a", Name: "deny", Subject: labels.Everything(), Isolates: [2]bool{true, true}}}}
	c, _ = c.WithAllowed("here", nil)
	k := Packet{Src: extra, Dst: netip.MustParseAddr("203.0.113.1"), Proto: TCP, Port: 80}
	table := Compile(&c, "here")
	if by, _ := c.Allows(k); by || table.Allows(k) {
		t.Errorf("oracle %t, table %t", by, table.Allows(k))
	}
	k.Src, k.Dst = k.Dst, k.Src
	if by, _ := c.Allows(k); by || table.Allows(k) {
		t.Errorf("to it: oracle %t, table %t", by, table.Allows(k))
	}
}

// Of pods that share an address one has it, the same for all who ask.
func TestSharedAllowedAddress(t *testing.T) {
	vip := netip.MustParsePrefix("192.0.2.1/32")
	pod := func(name string, n byte, created int64) *Pod {
		return &Pod{Namespace: "a", Name: name, Node: "here", Created: created, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 0, n})}, Allowed: []netip.Prefix{vip}}
	}
	c := Cluster{Pods: []*Pod{pod("old", 2, 1), pod("new", 3, 2)}}
	c, extras := c.WithAllowed("here", nil)
	if len(extras) != 2 || !slices.Equal(extras[0].Addrs, extras[1].Addrs) {
		t.Errorf("%+v", extras)
	}
	if holder := c.podAt(vip.Addr()); holder.Name != "new" {
		t.Errorf("%v has it", holder)
	}
}
