// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/subnet"
)

func testDialects(t *testing.T, o Options) dialects {
	t.Helper()
	m, _ := testMirror(t, o)
	return m.ds
}

func config(t *testing.T, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text), "test", subnet.Defaults{})
	must(t, err)
	return cfg
}

func ownNodeWith(ann map[string]string, cidrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-n1", Annotations: ann}}
	n.Spec.PodCIDRs = cidrs
	return n
}

const dualConf = `{"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48"}`

// dualWant is what an agent with both underlays asks for.
func dualWant() subnet.Lease {
	return subnet.Lease{Node: "n1", Instance: "id", Backend: subnet.BackendVXLAN, Paths: []subnet.Path{
		{Subnet: netip.MustParsePrefix("10.9.9.0/24"), Underlay: netip.MustParseAddr("192.0.2.1"), MAC: subnet.MAC{2, 0, 0, 0, 0, 4}, VNI: 1},
		{Underlay: netip.MustParseAddr("2001:db8::1"), MAC: subnet.MAC{2, 0, 0, 0, 0, 6}, VNI: 1},
	}}
}

func dualAnnotations() map[string]string {
	return map[string]string{
		"weft.dev/kube-subnet-manager": "true", "weft.dev/backend-type": "vxlan",
		"weft.dev/backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:04"}`, "weft.dev/public-ip": "192.0.2.1",
		"weft.dev/backend-v6-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:06"}`, "weft.dev/public-ipv6": "2001:db8::1",
		"weft.dev/subnets": "10.244.1.0/24,fd00:244:0:1::/64", "weft.dev/instance": "id",
	}
}

func TestOwnLease(t *testing.T) {
	ds := testDialects(t, Options{})
	for _, c := range []struct {
		name     string
		conf     string
		node     *corev1.Node
		subnets  string   // granted, in order
		lacks    []string // in what is said to be waited for
		kind     string   // of what is waited for
		problems string   // their kinds
	}{
		{name: "both families", conf: dualConf, node: ownNodeWith(nil, "10.244.1.0/24", "fd00:244:0:1::/64"), subnets: "10.244.1.0/24 fd00:244:0:1::/64"},
		{name: "IPv6 listed first", conf: dualConf, node: ownNodeWith(nil, "fd00:244:0:1::/64", "10.244.1.0/24"), subnets: "10.244.1.0/24 fd00:244:0:1::/64"},
		{name: "no Node", conf: dualConf, kind: "NodeMissing", lacks: []string{`no Node "n1"`, "NODE_NAME"}},
		{name: "no podCIDR yet", conf: dualConf, node: ownNodeWith(nil), kind: "PodCIDRMissing", lacks: []string{"Node n1", "--allocate-node-cidrs"}},
		{name: "IPv4 alone so far", conf: dualConf, node: ownNodeWith(nil, "10.244.1.0/24"), subnets: "10.244.1.0/24",
			kind: "PodCIDRMissing", lacks: []string{"IPv6", "10.244.1.0/24"}},
		{name: "IPv6 alone so far", conf: dualConf, node: ownNodeWith(nil, "fd00:244:0:1::/64"), subnets: "fd00:244:0:1::/64",
			kind: "PodCIDRMissing", lacks: []string{"IPv4"}},
		{name: "outside the network", conf: dualConf, node: ownNodeWith(nil, "10.9.1.0/24", "fd00:244:0:1::/64"), subnets: "fd00:244:0:1::/64",
			problems: "PodCIDROutsideNetwork"},
		{name: "all outside", conf: `{"Network":"10.244.0.0/16"}`, node: ownNodeWith(nil, "10.9.1.0/24"), kind: "PodCIDROutsideNetwork",
			lacks: []string{"10.9.1.0/24", "10.244.0.0/16"}, problems: "PodCIDROutsideNetwork"},
		{name: "larger than the network", conf: `{"Network":"10.244.0.0/16"}`, node: ownNodeWith(nil, "10.0.0.0/8"), kind: "PodCIDROutsideNetwork",
			problems: "PodCIDROutsideNetwork"},
		{name: "a family without a network", conf: `{"Network":"10.244.0.0/16"}`, node: ownNodeWith(nil, "10.244.1.0/24", "fd00::/64"),
			subnets: "10.244.1.0/24", problems: "PodCIDRUnused"},
		{name: "another length than SubnetLen", conf: dualConf, node: ownNodeWith(nil, "10.244.1.128/25", "fd00:244:0:1::/64"), subnets: "10.244.1.128/25 fd00:244:0:1::/64"},
		{name: "junk", conf: dualConf, node: ownNodeWith(nil, "10.244.1.0"), kind: "PodCIDRMissing", lacks: []string{`"10.244.1.0"`}},
		{name: "bad overwrite", conf: dualConf, node: ownNodeWith(map[string]string{"weft.dev/public-ip-overwrite": "host"}, "10.244.1.0/24", "fd00:244:0:1::/64"),
			subnets: "10.244.1.0/24 fd00:244:0:1::/64", problems: "OverwriteInvalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, wanted := config(t, c.conf), dualWant()
			wanted.Paths = wanted.Paths[:len(cfg.Networks)]
			p := ds.planOwn(cfg, wanted, "n1", c.node)
			var subnets, kinds []string
			for _, path := range p.lease.Paths {
				subnets = append(subnets, path.Subnet.String())
			}
			for _, pr := range p.problems {
				kinds = append(kinds, pr.Kind)
			}
			if strings.Join(subnets, " ") != c.subnets || strings.Join(kinds, " ") != c.problems || p.kind != c.kind {
				t.Errorf("granted %v, problems %v, waits for %s (%s)", subnets, p.problems, p.kind, p.lacks)
			}
			for _, text := range c.lacks {
				if !strings.Contains(p.lacks, text) {
					t.Errorf("waits for %q, which does not say %q", p.lacks, text)
				}
			}
		})
	}
}

// A Node of before dual-stack has the older field alone.
func TestSinglePodCIDR(t *testing.T) {
	n := ownNodeWith(nil)
	n.Spec.PodCIDR = "10.244.1.0/24"
	if got := podCIDRs(n); !slices.Equal(got, []string{"10.244.1.0/24"}) {
		t.Errorf("podCIDRs %v", got)
	}
}

// What is patched is what differs, in each dialect: nothing when the Node is
// as it should be, all when it is new, and nulls for what an earlier lease left.
func TestPatches(t *testing.T) {
	str := func(s string) *string { return &s }
	all := func(ann map[string]string) map[string]*string {
		out := map[string]*string{}
		for k, v := range ann {
			out[k] = &v
		}
		return out
	}
	with := func(ann map[string]string, kv ...string) map[string]string {
		ann = maps.Clone(ann)
		for i := 0; i < len(kv); i += 2 {
			ann[kv[i]] = kv[i+1]
		}
		return ann
	}
	f := subnet.FlannelAnnotationPrefix + "/"
	flannels := map[string]string{}
	for k, v := range dualAnnotations() {
		if name := strings.TrimPrefix(k, "weft.dev/"); name != "subnets" && name != "instance" {
			flannels[f+name] = v
		}
	}
	for _, c := range []struct {
		name string
		o    Options
		have map[string]string
		want map[string]*string
	}{
		{"a new Node", Options{}, nil, all(dualAnnotations())},
		{"as it should be", Options{}, with(dualAnnotations(), "other", "x"), nil},
		{"one altered", Options{}, with(dualAnnotations(), "weft.dev/public-ip", "192.0.2.9"), map[string]*string{"weft.dev/public-ip": str("192.0.2.1")}},
		{"left over", Options{}, with(dualAnnotations(), "weft.dev/sources", "192.0.2.9"), map[string]*string{"weft.dev/sources": nil}},
		{"flannel's are not ours", Options{}, with(dualAnnotations(), f+"public-ip", "192.0.2.9"), nil},
		{"flannel, a new Node", Options{Flannel: true}, dualAnnotations(), all(flannels)},
		{"flannel, as it should be", Options{Flannel: true}, flannels, nil},
		{"another prefix", Options{Prefix: "net.example/blue", Flannel: true}, nil, func() map[string]*string {
			out := map[string]*string{}
			for k, v := range flannels {
				out["net.example/blue-"+strings.TrimPrefix(k, f)] = &v
			}
			return out
		}()},
		{"overwritten", Options{}, with(dualAnnotations(), "weft.dev/public-ip-overwrite", "203.0.113.1"), map[string]*string{
			"weft.dev/public-ip": str("203.0.113.1"), "weft.dev/sources": str("192.0.2.1")}},
		{"overwritten for flannel", Options{}, with(dualAnnotations(), f+"public-ip-overwrite", "203.0.113.1"), map[string]*string{
			"weft.dev/public-ip": str("203.0.113.1"), "weft.dev/sources": str("192.0.2.1")}},
		{"overwritten twice", Options{}, with(dualAnnotations(), f+"public-ip-overwrite", "203.0.113.9", "weft.dev/public-ip-overwrite", "203.0.113.1"), map[string]*string{
			"weft.dev/public-ip": str("203.0.113.1"), "weft.dev/sources": str("192.0.2.1")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ds := testDialects(t, c.o)
			n := ownNodeWith(c.have, "10.244.1.0/24", "fd00:244:0:1::/64")
			p := ds.planOwn(config(t, dualConf), dualWant(), "n1", n)
			got := ds.difference(p, n)
			same := func(a, b *string) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
			if !maps.EqualFunc(got, c.want, same) {
				t.Errorf("patches %v, want %v", show(got), show(c.want))
			}
			if p.lacks != "" || len(p.problems) > 0 {
				t.Errorf("lacks %q, problems %v", p.lacks, p.problems)
			}
			if c.o.Flannel && p.lease.Instance != "" {
				t.Errorf("instance %q, which flannel's annotations cannot hold", p.lease.Instance)
			}
		})
	}
}

func show(m map[string]*string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = "null"
		if v != nil {
			out[k] = *v
		}
	}
	return out
}
