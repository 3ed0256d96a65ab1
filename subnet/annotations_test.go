// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const flannelPrefix = "flannel.alpha.coreos.com"

func nodeLease(name string) Lease {
	for _, v := range leaseVectors() {
		if v.name == name {
			l := v.lease.Clone()
			l.Node, l.Instance = "node-1", ""
			return l
		}
	}
	return Lease{}
}

func subnetsOf(l Lease) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range l.Paths {
		ps = append(ps, p.Subnet)
	}
	return ps
}

// The annotations flannel v0.28 writes, key by key.
func TestAnnotationVectors(t *testing.T) {
	const f = flannelPrefix + "/"
	for _, v := range []struct {
		lease  string
		prefix string
		want   map[string]string
	}{
		{"IPv4 vxlan, flannel", flannelPrefix, map[string]string{
			f + "kube-subnet-manager": "true",
			f + "backend-type":        "vxlan",
			f + "backend-data":        `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`,
			f + "public-ip":           "192.168.10.2",
		}},
		{"dual vxlan, flannel", flannelPrefix + "/", map[string]string{
			f + "kube-subnet-manager": "true",
			f + "backend-type":        "vxlan",
			f + "backend-data":        `{"VNI":4096,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`,
			f + "public-ip":           "192.168.10.2",
			f + "backend-v6-data":     `{"VNI":4096,"VtepMAC":"0a:58:00:01:02:03"}`,
			f + "public-ipv6":         "2001:db8:a::2",
		}},
		{"IPv4 host-gw, flannel", flannelPrefix, map[string]string{
			f + "kube-subnet-manager": "true",
			f + "backend-type":        "host-gw",
			f + "backend-data":        "null",
			f + "public-ip":           "192.168.10.2",
		}},
		{"dual host-gw, flannel", flannelPrefix, map[string]string{
			f + "kube-subnet-manager": "true",
			f + "backend-type":        "host-gw",
			f + "backend-data":        "null",
			f + "public-ip":           "192.168.10.2",
			f + "backend-v6-data":     "null",
			f + "public-ipv6":         "2001:db8:a::2",
		}},
		{"dual wireguard, flannel", flannelPrefix, map[string]string{
			f + "kube-subnet-manager": "true",
			f + "backend-type":        "wireguard",
			f + "backend-data":        `{"PublicKey":"` + wgKey4 + `","Port":51820}`,
			f + "public-ip":           "192.168.10.2",
			f + "backend-v6-data":     `{"PublicKey":"` + wgKey6 + `","Port":51821}`,
			f + "public-ipv6":         "2001:db8:a::2",
		}},
		{"IPv6 alone", AnnotationPrefix, map[string]string{
			"weft.dev/kube-subnet-manager": "true",
			"weft.dev/backend-type":        "vxlan",
			"weft.dev/backend-v6-data":     `{"VNI":1,"VtepMAC":"0a:58:00:01:02:03"}`,
			"weft.dev/public-ipv6":         "2001:db8:a::2",
		}},
		{"both subnets over an IPv4 underlay", "net.example/blue", map[string]string{
			"net.example/blue-kube-subnet-manager": "true",
			"net.example/blue-backend-type":        "vxlan",
			"net.example/blue-backend-data":        `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`,
			"net.example/blue-public-ip":           "192.168.10.2",
		}},
	} {
		t.Run(v.lease, func(t *testing.T) {
			l := nodeLease(v.lease)
			got, err := EncodeAnnotations(v.prefix, l)
			if err != nil || !maps.Equal(got, v.want) {
				t.Errorf("encoded as\n%v, %v; want\n%v", got, err, v.want)
			}
			back, err := DecodeAnnotations(v.prefix, "node-1", subnetsOf(l), v.want)
			if err != nil || !back.Equal(l) {
				t.Errorf("decoded as\n%+v, %v; want\n%+v", back, err, l)
			}
		})
	}
}

// Sources are ours alone: there is no annotation without them, and those of
// any order read as one.
func TestAnnotationSources(t *testing.T) {
	l := nodeLease("dual vxlan, flannel")
	l.Sources = addrs("10.0.0.9", "192.0.2.1", "2001:db8::9")
	ann, err := EncodeAnnotations("weft.dev", l)
	if got := ann["weft.dev/sources"]; err != nil || got != "10.0.0.9,192.0.2.1,2001:db8::9" {
		t.Errorf("published %q, %v", got, err)
	}
	ann["weft.dev/sources"] = "2001:db8::9,10.0.0.9,192.0.2.1,10.0.0.9"
	got, err := DecodeAnnotations("weft.dev", "node-1", subnetsOf(l), ann)
	if err != nil || !got.Equal(l) {
		t.Errorf("decoded as\n%+v, %v; want\n%+v", got, err, l)
	}
	l.Sources = addrs("127.0.0.1")
	_, err = EncodeAnnotations("weft.dev", l)
	wantError(t, err, "node-1", "source", "loopback")
}

// flannel on an IPv6-only node with another backend than vxlan writes an
// empty IPv4 half.
func TestAnnotationsOfIPv6HostGW(t *testing.T) {
	l := Lease{Node: "node-1", Backend: BackendHostGW, Paths: []Path{{
		Subnet: netip.MustParsePrefix("fd00:10:5::/64"), Underlay: netip.MustParseAddr("2001:db8:a::2")}}}
	want := map[string]string{
		"weft.dev/kube-subnet-manager": "true",
		"weft.dev/backend-type":        "host-gw",
		"weft.dev/backend-data":        "null",
		"weft.dev/public-ip":           "0.0.0.0",
		"weft.dev/backend-v6-data":     "null",
		"weft.dev/public-ipv6":         "2001:db8:a::2",
	}
	got, err := EncodeAnnotations(AnnotationPrefix, l)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	back, err := DecodeAnnotations(AnnotationPrefix, "node-1", subnetsOf(l), want)
	if err != nil || !back.Equal(l) {
		t.Errorf("decoded as %+v, %v", back, err)
	}
}

func TestAnnotationPrefix(t *testing.T) {
	for prefix, want := range map[string]string{
		"weft.dev":         "weft.dev/",
		"weft.dev/":        "weft.dev/",
		"weft.dev/blue":    "weft.dev/blue-",
		"weft.dev/blue-":   "weft.dev/blue-",
		"a_b.c-d.e/f_0":    "a_b.c-d.e/f_0-",
		flannelPrefix:      flannelPrefix + "/",
		"":                 "",
		"weft":             "",
		"weft/x":           "",
		"weft.dev/a/b":     "",
		"weft.dev//":       "",
		"Weft.dev":         "",
		"weft.dev/Blue":    "",
		"weft.dev/a.b":     "",
		"/weft.dev":        "",
		"!!weft.dev":       "",
		".dev":             "",
		"weft..dev":        "",
		"weft.dev\n":       "",
		"x y.weft.dev/a":   "",
		"weft.dev/blue-/x": "",
	} {
		got, err := annotations(prefix)
		if (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("prefix %q gives %q, %v; want %q", prefix, got, err, want)
		}
		if err != nil {
			wantError(t, err, "annotation prefix", "at most one slash")
		}
	}
}

// The operator's overwrite wins while it is there and only then, for readers
// and for the node itself.
func TestAnnotationOverwrite(t *testing.T) {
	l := nodeLease("dual vxlan, flannel")
	ann, err := EncodeAnnotations(flannelPrefix, l)
	if err != nil {
		t.Fatal(err)
	}
	check := func(step string, u4, u6 string, sources ...string) {
		t.Helper()
		want := l.Clone()
		want.Sources = addrs(sources...)
		want.Paths[0].Underlay, want.Paths[1].Underlay = netip.MustParseAddr(u4), netip.MustParseAddr(u6)
		got, err := DecodeAnnotations(flannelPrefix, "node-1", subnetsOf(l), ann)
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: a peer reads\n%+v, %v; want\n%+v", step, got, err, want)
		}
		own, err := ApplyOverwrite(flannelPrefix, l, ann)
		if err != nil || !own.Equal(want) {
			t.Errorf("%s: the node publishes\n%+v, %v; want\n%+v", step, own, err, want)
		}
	}
	const o4, o6 = flannelPrefix + "/public-ip-overwrite", flannelPrefix + "/public-ipv6-overwrite"
	check("absent", "192.168.10.2", "2001:db8:a::2")
	ann[o4] = "203.0.113.7"
	check("IPv4 present", "203.0.113.7", "2001:db8:a::2", "192.168.10.2")
	ann[o6] = "2001:db8:ff::7"
	check("both present", "203.0.113.7", "2001:db8:ff::7", "192.168.10.2", "2001:db8:a::2")
	delete(ann, o4)
	ann[o6] = ""
	check("removed", "192.168.10.2", "2001:db8:a::2")
	ann[o4] = "192.168.10.2"
	check("no other address", "192.168.10.2", "2001:db8:a::2")
	if l.Paths[0].Underlay.String() != "192.168.10.2" || l.Sources != nil {
		t.Error("ApplyOverwrite changed its argument")
	}
	for bad, want := range map[string]string{"x": "want an IPv4 address", "2001:db8::1": "want an IPv4 address", "127.0.0.1": "loopback"} {
		ann[o4] = bad
		_, err := DecodeAnnotations(flannelPrefix, "node-1", subnetsOf(l), ann)
		wantError(t, err, "node-1", o4, bad, want)
		_, err = ApplyOverwrite(flannelPrefix, l, ann)
		wantError(t, err, o4, bad, want)
	}
	_, err = ApplyOverwrite("weft", l, ann)
	wantError(t, err, "annotation prefix")
}

// flannel issue 818: a Node without any annotation crashed the agent.
func TestAnnotationsOfUnmanagedNode(t *testing.T) {
	for _, ann := range []map[string]string{
		nil, {}, {flannelPrefix + "/kube-subnet-manager": "false"},
		{"weft.dev/kube-subnet-manager": "true"},
		{flannelPrefix + "/backend-type": "vxlan"},
	} {
		_, err := DecodeAnnotations(flannelPrefix, "node-1", nil, ann)
		if !errors.Is(err, ErrUnmanaged) {
			t.Errorf("%v gives %v, want ErrUnmanaged", ann, err)
		}
	}
}

func TestDecodeAnnotationsRejects(t *testing.T) {
	good := nodeLease("dual vxlan, flannel")
	const f = flannelPrefix + "/"
	for _, v := range []struct {
		name     string
		node     string
		podCIDRs []netip.Prefix
		edit     map[string]string
		want     string
	}{
		{"no podCIDR", "node-1", nil, nil, "podCIDRs: no subnet"},
		{"three podCIDRs", "node-1", append(subnetsOf(good), prefixes(t, "10.9.0.0/24")...), nil, "at most one IPv4"},
		{"odd podCIDR", "node-1", prefixes(t, "10.9.0.1/24"), nil, "host bits"},
		{"odd node", "a b", subnetsOf(good), nil, `node "a b"`},
		{"no address", "node-1", subnetsOf(good), map[string]string{"public-ip": "", "public-ipv6": ""}, "no underlay"},
		{"junk address", "node-1", subnetsOf(good), map[string]string{"public-ip": "x"}, f + `public-ip "x": want an IPv4`},
		{"mapped address", "node-1", subnetsOf(good), map[string]string{"public-ipv6": "::ffff:1.2.3.4"}, f + "public-ipv6"},
		{"no data", "node-1", subnetsOf(good), map[string]string{"backend-data": ""}, f + "backend-data: missing"},
		{"null data", "node-1", subnetsOf(good), map[string]string{"backend-v6-data": "null"}, f + "backend-v6-data: missing"},
		{"torn data", "node-1", subnetsOf(good), map[string]string{"backend-data": `{"VNI":1`}, f + "backend-data: line 1"},
		{"odd backend type", "node-1", subnetsOf(good), map[string]string{"backend-type": "a\nb"}, f + "backend-type"},
		{"junk source", "node-1", subnetsOf(good), map[string]string{"weft.dev/sources": "10.0.0.1,"}, AnnotationPrefix + `sources: source "": want an IP address`},
		{"source with a zone", "node-1", subnetsOf(good), map[string]string{"weft.dev/sources": "fe80::1%eth0"}, "zone"},
		{"multicast source", "node-1", subnetsOf(good), map[string]string{"weft.dev/sources": "224.0.0.1"}, AnnotationPrefix + "sources: source: underlay address 224.0.0.1"},
		{"a flood of sources", "node-1", subnetsOf(good), map[string]string{"weft.dev/sources": strings.Repeat("10.0.0.1,", 1<<20)}, "want at most 16"},
		{"large data", "node-1", subnetsOf(good), map[string]string{"backend-data": strings.Repeat(" ", maxDocument+1)}, "at most 65536"},
	} {
		t.Run(v.name, func(t *testing.T) {
			ann, err := EncodeAnnotations(flannelPrefix, good)
			if err != nil {
				t.Fatal(err)
			}
			for k, s := range v.edit {
				if !strings.Contains(k, "/") {
					k = f + k
				}
				ann[k] = s
			}
			_, err = DecodeAnnotations(flannelPrefix, v.node, v.podCIDRs, ann)
			wantError(t, err, v.node, v.want)
		})
	}
	_, err := DecodeAnnotations("weft", "node-1", subnetsOf(good), nil)
	wantError(t, err, "annotation prefix")
}

func TestEncodeAnnotationsRejects(t *testing.T) {
	_, err := EncodeAnnotations("weft", nodeLease("IPv4 vxlan, flannel"))
	wantError(t, err, "annotation prefix")
	_, err = EncodeAnnotations(flannelPrefix, Lease{Node: "node-1"})
	wantError(t, err, "node-1", "no path")
	l := nodeLease("IPv4 vxlan, flannel")
	l.Paths[0].MAC = MAC{1}
	_, err = EncodeAnnotations(flannelPrefix, l)
	wantError(t, err, "node-1", "want a unicast")
}

// annotationRoundTrip is the law decode(encode(x)) = x. The instance is not
// part of the annotations, and the node name is the Node's.
func annotationRoundTrip(t *rapid.T) {
	want := genLease().Draw(t, "lease")
	want.Node, want.Instance = genName().Draw(t, "node"), ""
	prefix := rapid.SampledFrom([]string{flannelPrefix, AnnotationPrefix, "weft.dev/blue"}).Draw(t, "prefix")
	ann, err := EncodeAnnotations(prefix, want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeAnnotations(prefix, want.Node, subnetsOf(want), ann)
	if err != nil || !got.Equal(want) {
		t.Fatalf("%v gives\n%+v, %v; want\n%+v", ann, got, err, want)
	}
}

func TestAnnotationRoundTrip(t *testing.T) { rapid.Check(t, annotationRoundTrip) }
func FuzzEncodeAnnotations(f *testing.F)   { f.Fuzz(rapid.MakeFuzz(annotationRoundTrip)) }

// FuzzDecodeAnnotations: what decodes keeps its promises, and encodes to
// annotations that decode to the same.
func FuzzDecodeAnnotations(f *testing.F) {
	f.Add("node-1", "10.5.52.0/24", "fd00::/64", "vxlan", "192.168.10.2", "2001:db8::1",
		`{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`, `{"VtepMAC":"0a:58:00:01:02:03"}`, "203.0.113.7", "", "10.0.0.1,2001:db8::7")
	f.Add("node-1", "10.5.52.0/24", "", "host-gw", "192.168.10.2", "", "null", "", "", "", "")
	f.Add("node-1", "fd00::/64", "", "wireguard", "0.0.0.0", "2001:db8::1", "null", `{"PublicKey":"`+wgKey4+`"}`, "", "2001:db8::2", "192.0.2.1")
	f.Fuzz(func(t *testing.T, node, cidr1, cidr2, kind, ip4, ip6, data4, data6, over4, over6, sources string) {
		var podCIDRs []netip.Prefix
		for _, s := range []string{cidr1, cidr2} {
			if p, err := netip.ParsePrefix(s); err == nil {
				podCIDRs = append(podCIDRs, p)
			}
		}
		const p = "weft.dev/"
		l, err := DecodeAnnotations(p, node, podCIDRs, map[string]string{
			p + annManaged: "true", p + annBackendType: kind, p + annIP4: ip4, p + annIP6: ip6,
			p + annData4: data4, p + annData6: data6, p + annOverwrite4: over4, p + annOverwrite6: over6, p + annSources: sources})
		if err != nil {
			return
		}
		checkDecoded(t, l)
		ann, err := EncodeAnnotations(p, l)
		if err != nil {
			t.Fatalf("decoded %+v, which does not encode: %v", l, err)
		}
		again, err := DecodeAnnotations(p, node, subnetsOf(l), ann)
		if want := withoutLargeVNI(l); err != nil || !again.Equal(want) {
			t.Fatalf("decoded\n%+v, but %v to\n%+v, %v", want, ann, again, err)
		}
	})
}
