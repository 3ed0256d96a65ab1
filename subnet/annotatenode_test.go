// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"maps"
	"slices"
	"testing"
)

// What weft's agents publish, key by key: flannel's annotations under weft's
// prefix, and beside them what spares peers a look at the Node itself.
func TestNodeVectors(t *testing.T) {
	l := nodeLease("dual vxlan, flannel")
	l.Instance = "0a1b2c3d"
	l.Sources = addrs("10.0.0.9")
	want := map[string]string{
		"weft.dev/kube-subnet-manager": "true",
		"weft.dev/backend-type":        "vxlan",
		"weft.dev/backend-data":        `{"VNI":4096,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`,
		"weft.dev/public-ip":           "192.168.10.2",
		"weft.dev/backend-v6-data":     `{"VNI":4096,"VtepMAC":"0a:58:00:01:02:03"}`,
		"weft.dev/public-ipv6":         "2001:db8:a::2",
		"weft.dev/subnets":             "10.5.52.0/24,fd00:10:5::/64",
		"weft.dev/instance":            "0a1b2c3d",
		"weft.dev/sources":             "10.0.0.9",
	}
	got, err := EncodeNode(Domain, l)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("encoded as\n%v, %v; want\n%v", got, err, want)
	}
	back, err := DecodeNode(Domain, "node-1", want)
	if err != nil || !back.Equal(l) {
		t.Errorf("decoded as\n%+v, %v; want\n%+v", back, err, l)
	}
	names, err := AnnotationNames(Domain)
	if err != nil || !slices.Equal(names.Published, slices.Sorted(maps.Keys(want))) {
		t.Errorf("names %v, %v; want those of %v", names, err, want)
	}
}

func TestNodeJunk(t *testing.T) {
	good, err := EncodeNode(Domain, nodeLease("IPv4 vxlan, flannel"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, key, value string
		want             []string
	}{
		{"no subnets", "weft.dev/subnets", "", []string{"node-1", "weft.dev/subnets", "want one or two prefixes"}},
		{"no prefix", "weft.dev/subnets", "10.5.52.0", []string{"weft.dev/subnets", "10.5.52.0"}},
		{"host bits", "weft.dev/subnets", "10.5.52.1/24", []string{"podCIDRs", "host bits"}},
		{"three", "weft.dev/subnets", "10.1.0.0/24,10.2.0.0/24,10.3.0.0/24", []string{"node-1"}},
		{"two of a family", "weft.dev/subnets", "10.1.0.0/24,10.2.0.0/24", []string{"at most one IPv4"}},
		{"instance", "weft.dev/instance", "a b", []string{"weft.dev/instance", "want letters"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ann := maps.Clone(good)
			ann[c.key] = c.value
			_, err := DecodeNode(Domain, "node-1", ann)
			wantError(t, err, c.want...)
		})
	}
	if _, err := DecodeNode(Domain, "node-1", nil); err != ErrUnmanaged {
		t.Errorf("a Node without annotations: %v", err)
	}
}

// Under flannel's prefix there is never a name that is not flannel's.
func TestSourcesBesideFlannels(t *testing.T) {
	l := nodeLease("IPv4 vxlan, flannel")
	l.Sources = addrs("10.0.0.9")
	ann, err := EncodeAnnotations(FlannelAnnotationPrefix, l)
	if err != nil || ann["weft.dev/sources"] != "10.0.0.9" || len(ann) != 5 {
		t.Errorf("published %v, %v", ann, err)
	}
	back, err := DecodeAnnotations(FlannelAnnotationPrefix, "node-1", subnetsOf(l), ann)
	if err != nil || !back.Equal(l) {
		t.Errorf("decoded as %+v, %v", back, err)
	}
}

// FuzzDecodeNode: what decodes keeps its promises, and encodes to annotations
// that decode to the same.
func FuzzDecodeNode(f *testing.F) {
	f.Add("n1", "10.5.52.0/24,fd00::/64", "vxlan", "192.168.10.2", `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`, "0a1b", "10.0.0.1")
	f.Add("n1", "fd00::/64", "host-gw", "192.168.10.2", "null", "", "")
	f.Add("n1", ",", "", "", "", "a b", "")
	f.Fuzz(func(t *testing.T, node, subnets, kind, addr, data, instance, sources string) {
		const p = AnnotationPrefix
		l, err := DecodeNode(p, node, map[string]string{p + annManaged: "true", p + annSubnets: subnets, p + annBackendType: kind,
			p + annIP4: addr, p + annData4: data, p + annInstance: instance, p + annSources: sources})
		if err != nil {
			return
		}
		checkDecoded(t, l)
		ann, err := EncodeNode(p, l)
		if err != nil {
			t.Fatalf("decoded %+v, which does not encode: %v", l, err)
		}
		again, err := DecodeNode(p, node, ann)
		if want := withoutLargeVNI(l); err != nil || !again.Equal(want) {
			t.Fatalf("decoded\n%+v, but %v to\n%+v, %v", want, ann, again, err)
		}
	})
}
