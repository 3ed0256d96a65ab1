// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
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
		{[]string{"10.42.0.2/32"}, 0, "overlaps 10.42.0.0/16"},
		{[]string{"10.42.7.7/32"}, 0, "overlaps 10.42.0.0/16"},
		{[]string{"10.0.0.0/8"}, 0, "overlaps 10.42.0.0/16"},
		{[]string{"::/0"}, 254, "at most 256"}, // :: and ::1 are none
		{[]string{"192.168.0.5/32", "192.0.2.1/32"}, 1, "192.168.0.5"},
		{[]string{"192.168.0.6/31"}, 1, "192.168.0.7 is a pod's or a node's"},
		{[]string{"172.16.0.9/32"}, 0, "is a pod's or a node's"},
		{[]string{"224.0.0.0/4"}, 0, "at most 256"},
		{[]string{"224.0.0.0/30"}, 0, "no address of a single host"},
		{[]string{"127.0.0.1/32"}, 0, "no address of a single host"},
		{[]string{"fe80::1/128"}, 0, "no address of a single host"},
		{[]string{"255.255.255.255/32"}, 0, "no address of a single host"},
		{[]string{"192.0.2.0/24"}, 256, ""},
		{[]string{"192.0.2.0/23"}, 256, "at most 256"},
		{[]string{"2001:db8::/32"}, 256, "at most 256"},
	} {
		pod := ask(c.ask...)
		before := Cluster{Pods: append([]*Pod{pod}, others...)}
		after, extras := before.WithAllowed(Allowance{"here", anything(), reserved})
		got, refused := []netip.Addr(nil), ""
		if len(extras) > 0 {
			got, refused = extras[0].Pod.Extra, extras[0].Refused
		}
		if len(got) != c.get || (c.refused == "") != (refused == "") || !strings.Contains(refused, c.refused) {
			t.Errorf("%v: gets %d, refused %q; want %d and %q", c.ask, len(got), refused, c.get, c.refused)
		}
		for _, a := range got {
			if holder := after.subjectAt(a); holder == nil || holder.Name != "p" || after.podAt(a) != nil {
				t.Errorf("%v: %v is %v's", c.ask, a, holder)
			}
		}
		if len(pod.Extra) != 0 || len(before.Pods) != len(after.Pods) {
			t.Errorf("%v: what was given was changed: %v", c.ask, pod)
		}
		if _, there := before.WithAllowed(Allowance{"there", anything(), reserved}); len(there) > 0 {
			t.Errorf("%v: another node says %v", c.ask, there)
		}
	}
}

// anything is what an operator may let pods have.
func anything() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

// What an operator has not said pods may have, none gets.
func TestNothingIsAllowedUnasked(t *testing.T) {
	p := &Pod{Namespace: "a", Name: "p", Node: "here", Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("2001:db8::1/128")}}
	for list, want := range map[string]int{"": 0, "192.0.2.0/29": 0, "192.0.2.0/28": 16, "192.0.2.0/24 2001:db8::/64": 17} {
		may := Allowance{Node: "here"}
		for _, s := range strings.Fields(list) {
			may.Of = append(may.Of, netip.MustParsePrefix(s))
		}
		_, extras := (Cluster{Pods: []*Pod{p}}).WithAllowed(may)
		if len(extras) != 1 || len(extras[0].Pod.Extra) != want || (want == 17) != (extras[0].Refused == "") {
			t.Errorf("%q: %+v", list, extras)
		}
	}
}

// Its policies are for a pod's further addresses too: else it would leave them
// by sending from there. To others' policies they are a stranger's.
func TestAllowedAddressesAreJudged(t *testing.T) {
	extra, own, world := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("203.0.113.1")
	pod := &Pod{Namespace: "a", Name: "p", Node: "here", Labels: NewLabels(map[string]string{"app": "p"}), Addrs: []netip.Addr{own}, Allowed: []netip.Prefix{netip.PrefixFrom(extra, 32)}}
	other := &Pod{Namespace: "a", Name: "q", Node: "here", Labels: NewLabels(map[string]string{"app": "q"}), Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.3")}}
	toP, fromQ := labels.SelectorFromSet(labels.Set{"app": "p"}), labels.SelectorFromSet(labels.Set{"app": "q"})
	c := Cluster{Pods: []*Pod{pod, other}, Namespaces: map[string]*Labels{"a": NewLabels(nil)}, Policies: []*Policy{
		{Namespace: "a", Name: "deny", Subject: labels.Everything(), Isolates: [2]bool{true, true},
			Rules: [2][]Rule{{{Peers: []Peer{{Pods: fromQ}}}}, {{Peers: []Peer{{Pods: toP}}}}}}}}
	c, _ = c.WithAllowed(Allowance{"here", anything(), nil})
	table := Compile(&c, "here")
	for _, k := range []struct {
		src, dst netip.Addr
		want     bool
	}{
		{extra, world, false}, {world, extra, false}, {own, extra, false},
		{own, other.Addrs[0], false}, // which is no p
		{extra, other.Addrs[0], false}, {other.Addrs[0], own, true}, {other.Addrs[0], extra, false}, {own, own, true},
	} {
		p := Packet{Src: k.src, Dst: k.dst, Proto: TCP, Port: 80}
		if oracle, _ := c.Allows(p); oracle != k.want || table.Allows(p) != k.want {
			t.Errorf("%v to %v: oracle %t, table %t, want %t", k.src, k.dst, oracle, table.Allows(p), k.want)
		}
	}
}

// An address is shared by pods that are the same to policies, and else the
// first one's.
func TestSharedAllowedAddress(t *testing.T) {
	vip := netip.MustParsePrefix("192.0.2.1/32")
	for name, c := range map[string]struct {
		namespace, app string
		shared         bool
	}{"the same": {"a", "x", true}, "other labels": {"a", "y", false}, "another namespace": {"b", "x", false}} {
		first := &Pod{Namespace: "a", Name: "first", UID: "1", Node: "here", Created: 1, Labels: NewLabels(map[string]string{"app": "x"}), Allowed: []netip.Prefix{vip}}
		second := &Pod{Namespace: c.namespace, Name: "second", UID: "2", Node: "here", Created: 2, Labels: NewLabels(map[string]string{"app": c.app}), Allowed: []netip.Prefix{vip}}
		_, extras := (Cluster{Pods: []*Pod{second, first}}).WithAllowed(Allowance{"here", anything(), nil})
		if len(extras) != 2 || len(extras[0].Pod.Extra) != 1 || extras[0].Pod.Name != "first" || (len(extras[1].Pod.Extra) == 1) != c.shared || c.shared != (extras[1].Refused == "") {
			t.Errorf("%s: %+v", name, extras)
		}
	}
}
