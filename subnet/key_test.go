// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The keys flannel v0.28 writes, and ours for a lease flannel cannot express.
func TestKeyVectors(t *testing.T) {
	for _, v := range []struct {
		key     string
		subnets []string
	}{
		{"10.5.52.0-24", []string{"10.5.52.0/24"}},
		{"10.5.52.0-24&fd00:10:5::-64", []string{"10.5.52.0/24", "fd00:10:5::/64"}},
		{"10.244.255.252-30&2001:db8:0:ff::-64", []string{"10.244.255.252/30", "2001:db8:0:ff::/64"}},
		{"10.0.0.0-31", []string{"10.0.0.0/31"}},
		{"fd00:10:5::-64", []string{"fd00:10:5::/64"}},
		{"fd00:10:5::8-127", []string{"fd00:10:5::8/127"}},
	} {
		subnets := prefixes(t, v.subnets...)
		if got, err := FormatKey(subnets); err != nil || got != v.key {
			t.Errorf("FormatKey(%v) = %q, %v; want %q", subnets, got, err, v.key)
		}
		for _, path := range []string{"", "/coreos.com/network/subnets/", "subnets/", "/"} {
			got, err := ParseKey(path + v.key)
			if err != nil || !slices.Equal(got, subnets) {
				t.Errorf("ParseKey(%q) = %v, %v; want %v", path+v.key, got, err, subnets)
			}
		}
		slices.Reverse(subnets)
		if got, err := FormatKey(subnets); err != nil || got != v.key {
			t.Errorf("FormatKey(%v) = %q, %v; want %q whatever the order", subnets, got, err, v.key)
		}
	}
}

// flannel and operators may spell an IPv6 subnet in a longer way.
func TestKeyAcceptsLongSpelling(t *testing.T) {
	got, err := ParseKey("10.5.52.0-24&fd00:0010:5:0::-64")
	if want := prefixes(t, "10.5.52.0/24", "fd00:10:5::/64"); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestKeyRejects(t *testing.T) {
	for key, want := range map[string]string{
		"foo":                                 "want a name like",
		"":                                    "want a name like",
		"10.5.52.0":                           "want a name like",
		"10.5.52.0/24":                        "want a name like", // the path ends at the slash
		"10.5.52.0-24/":                       "want a name like",
		"10.5.52.0-32":                        "at most 31",
		"10.5.52.0-33":                        "want a name like",
		"10.5.52.0-024":                       "want a name like",
		"10.5.52.0-+24":                       "want a name like",
		"010.5.52.0-24":                       "want a name like",
		"10.5.52.7-24":                        "host bits set: want 10.5.52.0/24",
		"0.0.0.0-0":                           "this network",
		"128.0.0.0-1":                         "link-local",
		"127.1.0.0-16":                        "loopback",
		"224.1.0.0-16":                        "multicast",
		"169.254.1.0-24":                      "link-local",
		"fd00::-128":                          "at most 127",
		"fd00::1-64":                          "host bits",
		"fe80::-64":                           "link-local",
		"ff02::-64":                           "multicast",
		"::-64":                               "unspecified",
		"::ffff:10.5.52.0-120":                "IPv4-mapped",
		"fd00::%eth0-64":                      "want a name like",
		"fd00::-64&10.5.52.0-24":              "in this order",
		"10.5.52.0-24&10.5.53.0-24":           "in this order",
		"10.5.52.0-24&":                       "want a name like",
		"10.5.52.0-24&fd00::-64&x":            "want a name like",
		"1.0.0.0-8&fd00::-8&fd00::-8":         "in this order",
		"10.5.52.0-24&fd00::-64 ":             "want a name like",
		strings.Repeat("10.5.52.0-24&", 9000): "...",
	} {
		got, err := ParseKey(key)
		if err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error with %q", key, got, want)
			continue
		}
		wantError(t, err, want, clip(key))
		if len(err.Error()) > 300 {
			t.Errorf("error of %d bytes: %s", len(err.Error()), err)
		}
	}
}

func TestFormatKeyRejects(t *testing.T) {
	for _, v := range []struct {
		subnets []netip.Prefix
		want    string
	}{
		{nil, "no subnet"},
		{[]netip.Prefix{{}}, "no prefix given"},
		{prefixes(t, "10.5.52.7/24"), "want 10.5.52.0/24"},
		{prefixes(t, "10.5.52.0/24", "10.5.53.0/24"), "at most one IPv4"},
		{prefixes(t, "fd00::/64", "fd01::/64"), "at most one IPv6"},
		{prefixes(t, "10.5.52.4/32"), "at most 31"},
		{prefixes(t, "::ffff:10.0.0.0/120"), "IPv4-mapped"},
	} {
		_, err := FormatKey(v.subnets)
		wantError(t, err, v.want)
	}
}

func genSubnets() *rapid.Generator[[]netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) []netip.Prefix {
		var ps []netip.Prefix
		for _, f := range genFamilies().Draw(t, "families") {
			ps = append(ps, genSubnet(f).Draw(t, "subnet"))
		}
		return ps
	})
}

// keyRoundTrip is the law decode(encode(x)) = x.
func keyRoundTrip(t *rapid.T) {
	want := genSubnets().Draw(t, "subnets")
	key, err := FormatKey(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseKey(key)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("key %q gives %v, %v; want %v", key, got, err, want)
	}
}

func TestKeyRoundTrip(t *testing.T) { rapid.Check(t, keyRoundTrip) }
func FuzzEncodeKey(f *testing.F)    { f.Fuzz(rapid.MakeFuzz(keyRoundTrip)) }

// FuzzParseKey: what parses is valid and formats to a key of the same meaning.
func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"10.5.52.0-24", "/a/b/10.5.52.0-24&fd00:10:5::-64", "fd00:10:5::-64", "foo", "10.5.52.0-24&", "::ffff:1.2.3.4-127"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseKey(s)
		if err != nil {
			return
		}
		key, err := FormatKey(got)
		if err != nil {
			t.Fatalf("%q parses to %v, which does not format: %v", s, got, err)
		}
		again, err := ParseKey(key)
		if err != nil || !slices.Equal(got, again) {
			t.Fatalf("%q parses to %v, but %q to %v, %v", s, got, key, again, err)
		}
	})
}
