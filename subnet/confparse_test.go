// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The defaults of flannel v0.28 (pkg/subnet/config.go), and its bounds.
func TestConfigDefaults(t *testing.T) {
	for _, v := range []struct {
		prefix    string
		length    int
		low, high string
	}{
		{"10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"},
		{"10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"},
		{"10.3.0.0/22", 24, "10.3.1.0", "10.3.3.0"},
		{"10.3.0.0/23", 25, "10.3.0.128", "10.3.1.128"},
		{"10.3.0.0/24", 26, "10.3.0.64", "10.3.0.192"},
		{"10.3.0.0/28", 30, "10.3.0.4", "10.3.0.12"},
		{"fd00:10::/48", 64, "fd00:10:0:1::", "fd00:10:0:ffff::"},
		{"fd00:10::/62", 64, "fd00:10:0:1::", "fd00:10:0:3::"},
		{"fd00:10::/63", 65, "fd00:10:0:0:8000::", "fd00:10:0:1:8000::"},
		{"fd00:10::/120", 122, "fd00:10::40", "fd00:10::c0"},
		{"fd00:10::/124", 126, "fd00:10::4", "fd00:10::c"},
		{"fd00:10:0:5::7/48", 64, "fd00:10:0:1::", "fd00:10:0:ffff::"}, // host bits go, as in flannel
	} {
		key := "Network"
		p := netip.MustParsePrefix(v.prefix).Masked()
		if p.Addr().Is6() {
			key = "IPv6Network"
		}
		c, err := ParseConfig([]byte(fmt.Sprintf(`{%q: %q}`, key, v.prefix)), "test", Defaults{})
		want := Config{
			Networks: []Network{{Prefix: p, SubnetLen: v.length, SubnetMin: netip.MustParseAddr(v.low), SubnetMax: netip.MustParseAddr(v.high)}},
			Backend:  BackendConfig{Type: BackendVXLAN, VNI: 1, Port: 8472},
		}
		if err != nil || !reflect.DeepEqual(c, want) {
			t.Errorf("%s gives\n%+v, %v; want\n%+v", v.prefix, c, err, want)
		}
	}
}

func TestConfigBackend(t *testing.T) {
	for text, want := range map[string]BackendConfig{
		`null`:                           {Type: BackendVXLAN, VNI: 1, Port: 8472},
		`{}`:                             {Type: BackendVXLAN, VNI: 1, Port: 8472},
		`{"Type": null, "VNI": null}`:    {Type: BackendVXLAN, VNI: 1, Port: 8472},
		`{"Type": "VXLAN"}`:              {Type: BackendVXLAN, VNI: 1, Port: 8472},
		`{"Type": "Host-GW"}`:            {Type: BackendHostGW, VNI: 1, Port: 8472},
		`{"Port": 0, "MTU": 0}`:          {Type: BackendVXLAN, VNI: 1, Port: 8472},
		`{"vni": 4096, "port": 4789}`:    {Type: BackendVXLAN, VNI: 4096, Port: 4789},
		`{"VNI": 16777215, "MTU": 576}`:  {Type: BackendVXLAN, VNI: maxVNI, Port: 8472, MTU: 576},
		`{"Port": 65535, "MTU": 65535}`:  {Type: BackendVXLAN, VNI: 1, Port: 65535, MTU: 65535},
		`{"Port": 1, "MacPrefix": "0E"}`: {Type: BackendVXLAN, VNI: 1, Port: 1},
		`{"Learning": true}`:             {Type: BackendVXLAN, VNI: 1, Port: 8472, Learning: true},
		`{"GBP": true}`:                  {Type: BackendVXLAN, VNI: 1, Port: 8472, GBP: true},
		`{"DirectRouting": true}`:        {Type: BackendVXLAN, VNI: 1, Port: 8472, DirectRouting: true},
	} {
		c, err := ParseConfig([]byte(`{"Network": "10.0.0.0/8", "Backend": `+text+`}`), "test", Defaults{})
		if err != nil || c.Backend != want {
			t.Errorf("%s gives %+v, %v; want %+v", text, c.Backend, err, want)
		}
	}
}

// Which families are on, with weft's defaults and with flannel's.
func TestConfigFamilies(t *testing.T) {
	const n4, n6 = `"Network": "10.0.0.0/8"`, `"IPv6Network": "fd00::/48"`
	for _, v := range []struct{ text, weft, flannel string }{
		{n4, "IPv4", "IPv4"},
		{n6, "IPv6", "Network is missing"},
		{n4 + `,` + n6, "IPv4 IPv6", "IPv4"},
		{n4 + `,` + n6 + `, "EnableIPv6": true`, "IPv4 IPv6", "IPv4 IPv6"},
		{n4 + `,` + n6 + `, "EnableIPv6": false`, "IPv4", "IPv4"},
		{n4 + `,` + n6 + `, "EnableIPv6": null`, "IPv4 IPv6", "IPv4"},
		{n4 + `,` + n6 + `, "enableipv4": false, "enableIPv6": true`, "IPv6", "IPv6"},
		{n4 + `, "EnableIPv6": true`, "IPv6Network is missing: want an IPv6 prefix, or EnableIPv6 false", "IPv6Network is missing"},
		{n6 + `, "EnableIPv4": false, "EnableIPv6": true`, "IPv6", "IPv6"},
		{n6 + `, "EnableIPv4": true`, "Network is missing: want an IPv4 prefix, or EnableIPv4 false", "Network is missing"},
		{n4 + `, "EnableIPv4": false`, "no pod network is enabled", "no pod network is enabled"},
		{`"Network": null, ` + n6, "IPv6", "Network is missing"},
		{``, "no pod network is enabled", "Network is missing"},
		// A family that is off may be out of range, as k3s writes it.
		{n4 + `, "IPv6Network": "::/0", "EnableIPv6": false`, "IPv4", "IPv4"},
		{n4 + `, "IPv6Network": "::/0"`, "IPv6Network ::/0 overlaps", "IPv4"},
	} {
		for _, d := range []Defaults{{}, {Flannel: true}} {
			want := v.weft
			if d.Flannel {
				want = v.flannel
			}
			c, err := ParseConfig([]byte("{"+v.text+"}"), "test", d)
			var got []string
			for _, n := range c.Networks {
				got = append(got, FamilyOf(n.Prefix.Addr()).String())
			}
			switch {
			case strings.HasPrefix(want, "IPv") && strings.Count(want, "is missing")+strings.Count(want, "overlaps") == 0:
				if err != nil || strings.Join(got, " ") != want {
					t.Errorf("%s with %+v: %v, %v; want %s", v.text, d, got, err, want)
				}
			default:
				wantError(t, err, "test: ", want)
			}
		}
	}
}

// Every error names the source, the key, the value and what is allowed.
func TestConfigErrors(t *testing.T) {
	const source = "etcd key /weft/network/config"
	for _, v := range []struct{ text, want string }{
		{``, `empty: want a JSON object`},
		{`{`, `line 1 column 1: unexpected end of JSON input`},
		{"{\n  \"Network\": 10.0.0.0/8\n}", `line 2 column 18: invalid character`},
		{`[]`, `JSON array: want a JSON object`},
		{`{"Network": 5}`, `Network 5: want a string`},
		{`{"Network": ""}`, `Network "": want an IPv4 prefix like 10.42.0.0/16`},
		{`{"Network": "10.0.0.0"}`, `Network "10.0.0.0": want an IPv4 prefix`},
		{`{"Network": "fd00::/48"}`, `Network "fd00::/48": want an IPv4 prefix`},
		{`{"IPv6Network": "10.0.0.0/8"}`, `IPv6Network "10.0.0.0/8": want an IPv6 prefix like fd00:42::/48`},
		{`{"IPv6Network": "::ffff:10.0.0.0/104"}`, `want an IPv6 prefix`},
		{`{"Network": "10.0.0.0/29"}`, `Network 10.0.0.0/29: want a prefix length of at most 28, room for four subnets`},
		{`{"Network": "10.0.0.0/29", "SubnetLen": 30}`, `Network 10.0.0.0/29: want a prefix length of at most 28`},
		{`{"IPv6Network": "fd00::/125"}`, `IPv6Network fd00::/125: want a prefix length of at most 124`},
		{`{"Network": "0.0.0.0/0"}`, `Network 0.0.0.0/0 overlaps 0.0.0.0/8 (this network`},
		{`{"Network": "127.0.0.0/8"}`, `Network 127.0.0.0/8 overlaps 127.0.0.0/8 (loopback)`},
		{`{"Network": "169.254.0.0/16"}`, `(link-local)`},
		{`{"Network": "128.0.0.0/1"}`, `overlaps 169.254.0.0/16`},
		{`{"Network": "230.0.0.0/16"}`, `(multicast)`},
		{`{"IPv6Network": "ff00::/16"}`, `(multicast)`},
		{`{"IPv6Network": "fe80::/16"}`, `(link-local)`},
		{`{"IPv6Network": "::/64"}`, `(unspecified and loopback`},
		{`{"Network": "10.0.0.0/16", "SubnetLen": "24"}`, `SubnetLen "24": want an integer from 0 to 30`},
		{`{"Network": "10.0.0.0/16", "SubnetLen": 24.0}`, `SubnetLen 24.0: want an integer`},
		{`{"Network": "10.0.0.0/16", "SubnetLen": -1}`, `SubnetLen -1: want an integer from 0 to 30`},
		{`{"Network": "10.0.0.0/16", "SubnetLen": 31}`, `SubnetLen 31: want an integer from 0 to 30`},
		{`{"Network": "10.0.0.0/16", "SubnetLen": 17}`, `SubnetLen 17: want 18 to 30, so that 10.0.0.0/16 holds at least four subnets`},
		{`{"IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}`, `IPv6SubnetLen 127: want an integer from 0 to 126`},
		{`{"IPv6Network": "fd00::/48", "IPv6SubnetLen": 49}`, `IPv6SubnetLen 49: want 50 to 126`},
		{`{"Network": "10.0.0.0/16", "SubnetMin": "x"}`, `SubnetMin "x": want an IPv4 address`},
		{`{"Network": "10.0.0.0/16", "SubnetMin": 1}`, `SubnetMin 1: want a string`},
		{`{"Network": "10.0.0.0/16", "SubnetMin": "10.1.0.0"}`, `SubnetMin 10.1.0.0: want an address inside Network 10.0.0.0/16`},
		{`{"Network": "10.0.0.0/16", "SubnetMin": "10.0.1.1"}`, `SubnetMin 10.0.1.1: want the base of a /24 subnet, like 10.0.1.0`},
		{`{"Network": "10.0.0.0/16", "SubnetMax": "10.0.1.128"}`, `SubnetMax 10.0.1.128: want the base of a /24 subnet`},
		{`{"Network": "10.0.0.0/16", "SubnetMax": "9.255.255.0"}`, `SubnetMax 9.255.255.0: want an address inside`},
		{`{"Network": "10.0.0.0/16", "SubnetMin": "10.0.5.0", "SubnetMax": "10.0.4.0"}`, `SubnetMax 10.0.4.0: want at least SubnetMin 10.0.5.0`},
		{`{"IPv6Network": "fd00::/48", "IPv6SubnetMin": "10.0.0.0"}`, `IPv6SubnetMin "10.0.0.0": want an IPv6 address`},
		{`{"IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::%1"}`, `IPv6SubnetMax "fd00::%1": want an IPv6 address`},
		{`{"IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd00::1"}`, `IPv6SubnetMin fd00::1: want the base of a /64 subnet, like fd00::`},
		{`{"Network": "10.0.0.0/16", "EnableIPv4": "yes"}`, `EnableIPv4 "yes": want true or false`},
		{`{"Network": "10.0.0.0/16", "Backend": "vxlan"}`, `Backend: JSON string: want a JSON object`},
		{`{"Network": "10.0.0.0/16", "Backend": {"Type": "udp"}}`, `Backend.Type "udp": want vxlan or host-gw`},
		{`{"Network": "10.0.0.0/16", "Backend": {"Type": ""}}`, `Backend.Type "": want vxlan or host-gw`},
		{`{"Network": "10.0.0.0/16", "Backend": {"Type": 1}}`, `Backend.Type 1: want a string`},
		{`{"Network": "10.0.0.0/16", "Backend": {"VNI": 0}}`, `Backend.VNI 0: want an integer from 1 to 16777215`},
		{`{"Network": "10.0.0.0/16", "Backend": {"VNI": 16777216}}`, `Backend.VNI 16777216: want an integer from 1 to 16777215`},
		{`{"Network": "10.0.0.0/16", "Backend": {"Port": -1}}`, `Backend.Port -1: want an integer from 0 to 65535`},
		{`{"Network": "10.0.0.0/16", "Backend": {"Port": 65536}}`, `Backend.Port 65536: want`},
		{`{"Network": "10.0.0.0/16", "Backend": {"MTU": 575}}`, `Backend.MTU 575: want 0 (follow the device) or 576 to 65535`},
		{`{"Network": "10.0.0.0/16", "Backend": {"MTU": 65536}}`, `Backend.MTU 65536: want`},
		{`{"Network": "10.0.0.0/16", "Backend": {"MTU": -1}}`, `Backend.MTU -1: want`},
		{`{"Network": "10.0.0.0/16", "Backend": {"GBP": 1}}`, `Backend.GBP 1: want true or false`},
		{`{"Network": "10.0.0.0/16", "Backend": {"Learning": "a"}}`, `Backend.Learning "a": want true or false`},
		{`{"Network": "10.0.0.0/16", "Backend": {"DirectRouting": []}}`, `Backend.DirectRouting []: want true or false`},
		{`{"x": "` + strings.Repeat("x", maxDocument) + `"}`, `at most 65536`},
		{`{"Network": "` + strings.Repeat("x", 1000) + `"}`, `xxx...`},
	} {
		c, err := ParseConfig([]byte(v.text), source, Defaults{})
		if err == nil {
			t.Errorf("%s gives %+v; want an error with %q", v.text, c, v.want)
			continue
		}
		wantError(t, err, source+": ", v.want)
		if !reflect.DeepEqual(c, Config{}) {
			t.Errorf("%s: an error comes with %+v", v.text, c)
		}
	}
}

// SubnetMin may be the first subnet when someone asks for it, and an
// unspecified bound is an absent one, both as in flannel.
func TestConfigBounds(t *testing.T) {
	c, err := ParseConfig([]byte(`{"Network": "10.0.0.0/16", "SubnetMin": "10.0.0.0", "SubnetMax": "10.0.0.0",
		"IPv6Network": "fd00::/48", "IPv6SubnetMin": "::", "IPv6SubnetMax": "fd00:0:0:7::"}`), "test", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	n4, ok4 := c.Network(IPv4)
	n6, ok6 := c.Network(IPv6)
	if !ok4 || n4.SubnetMin.String() != "10.0.0.0" || n4.SubnetMax.String() != "10.0.0.0" {
		t.Errorf("IPv4: %+v", n4)
	}
	if !ok6 || n6.SubnetMin.String() != "fd00:0:0:1::" || n6.SubnetMax.String() != "fd00:0:0:7::" {
		t.Errorf("IPv6: %+v", n6)
	}
	if _, ok := (Config{}).Network(IPv4); ok {
		t.Error("an empty Config has a network")
	}
}

// encodeConfig writes c out in full.
func encodeConfig(c Config) []byte {
	m := map[string]any{"EnableIPv4": false, "EnableIPv6": false, "Backend": c.Backend}
	for _, n := range c.Networks {
		prefix := ""
		if n.Prefix.Addr().Is6() {
			prefix = "IPv6"
		}
		m["Enable"+FamilyOf(n.Prefix.Addr()).String()] = true
		m[prefix+"Network"], m[prefix+"SubnetLen"] = n.Prefix, n.SubnetLen
		m[prefix+"SubnetMin"], m[prefix+"SubnetMax"] = n.SubnetMin, n.SubnetMax
	}
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

func genConfig() *rapid.Generator[Config] {
	return rapid.Custom(func(t *rapid.T) Config {
		c := Config{Backend: BackendConfig{
			Type: rapid.SampledFrom([]BackendType{BackendVXLAN, BackendHostGW}).Draw(t, "type"),
			VNI:  rapid.Uint32Range(1, maxVNI).Draw(t, "vni"),
			Port: rapid.Uint16Range(1, 65535).Draw(t, "port"),
			MTU:  rapid.OneOf(rapid.Just(0), rapid.IntRange(minUnderlayMTU, maxMTU)).Draw(t, "mtu"),
			GBP:  rapid.Bool().Draw(t, "gbp"), Learning: rapid.Bool().Draw(t, "learning"),
			DirectRouting: rapid.Bool().Draw(t, "direct"),
		}}
		for _, f := range genFamilies().Draw(t, "families") {
			p := genSubnet(f).Filter(func(p netip.Prefix) bool { return p.Bits() <= f.bits()-4 }).Draw(t, "network")
			n := Network{Prefix: p, SubnetLen: rapid.IntRange(p.Bits()+2, f.bits()-2).Draw(t, "length")}
			last := uint64(1)<<min(n.SubnetLen-p.Bits(), 60) - 1
			low := rapid.Uint64Range(0, last).Draw(t, "min")
			n.SubnetMin, n.SubnetMax = n.at(p.Addr(), low), n.at(p.Addr(), rapid.Uint64Range(low, last).Draw(t, "max"))
			c.Networks = append(c.Networks, n)
		}
		return c
	})
}

// configRoundTrip is the law decode(encode(x)) = x, whatever the defaults.
func configRoundTrip(t *rapid.T) {
	want := genConfig().Draw(t, "config")
	d := Defaults{Flannel: rapid.Bool().Draw(t, "flannel")}
	got, err := ParseConfig(encodeConfig(want), "test", d)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%s gives\n%+v, %v; want\n%+v", encodeConfig(want), got, err, want)
	}
}

func TestConfigRoundTrip(t *testing.T) { rapid.Check(t, configRoundTrip) }
func FuzzEncodeConfig(f *testing.F)    { f.Fuzz(rapid.MakeFuzz(configRoundTrip)) }

// FuzzParseConfig: what parses keeps Config's promises, parses to the same
// when written out in full, and satisfies the schema.
func FuzzParseConfig(f *testing.F) {
	for _, e := range exampleConfigs(f) {
		f.Add(e.data, true)
		f.Add(e.data, false)
	}
	f.Add([]byte(`{"network":"10.0.0.0/28","subnetmin":"10.0.0.0","backend":{"port":0}}`), false)
	schema := compiledSchema(f)
	f.Fuzz(func(t *testing.T, data []byte, flannel bool) {
		d := Defaults{Flannel: flannel}
		c, err := ParseConfig(data, "fuzz", d)
		if err != nil {
			return
		}
		checkConfig(t, c)
		again, err := ParseConfig(encodeConfig(c), "again", d)
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("%q parses to\n%+v, but in full to\n%+v, %v", data, c, again, err)
		}
		if hasSchemaSpelling(data) {
			if err := validate(t, schema, data); err != nil {
				t.Fatalf("%q parses, but the schema says %v", data, err)
			}
		}
	})
}

// checkConfig says in other words what a Config promises.
func checkConfig(t *testing.T, c Config) {
	t.Helper()
	if n := len(c.Networks); n < 1 || n > 2 || n == 2 && !(c.Networks[0].Prefix.Addr().Is4() && c.Networks[1].Prefix.Addr().Is6()) {
		t.Fatalf("networks %+v", c.Networks)
	}
	for _, n := range c.Networks {
		first, last := netip.PrefixFrom(n.SubnetMin, n.SubnetLen), netip.PrefixFrom(n.SubnetMax, n.SubnetLen)
		switch {
		case n.Prefix != n.Prefix.Masked() || first != first.Masked() || last != last.Masked():
			t.Fatalf("unmasked: %+v", n)
		case !n.Prefix.Contains(n.SubnetMin) || !n.Prefix.Contains(n.SubnetMax) || n.SubnetMin.Compare(n.SubnetMax) > 0:
			t.Fatalf("bounds: %+v", n)
		case n.SubnetLen < n.Prefix.Bits()+2 || n.SubnetLen > n.Prefix.Addr().BitLen()-2:
			t.Fatalf("length: %+v", n)
		}
	}
	b := c.Backend
	if b.VNI < 1 || b.VNI > 1<<24-1 || b.Port == 0 || b.MTU != 0 && (b.MTU < 576 || b.MTU > 65535) ||
		b.Type != "vxlan" && b.Type != "host-gw" {
		t.Fatalf("backend: %+v", b)
	}
}

// Where subnets come with the node, a family whose network is not given is
// there all the same, and open, unless it is switched off.
func TestParseConfigOpen(t *testing.T) {
	open4, open6 := OpenNetwork(IPv4, 0), OpenNetwork(IPv6, 0)
	given := func(text string) Network {
		n, err := NetworkOf(netip.MustParsePrefix(text), 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for text, want := range map[string][]Network{
		`{}`:                        {open4, open6},
		`{"IPv6SubnetLen":56}`:      {open4, OpenNetwork(IPv6, 56)},
		`{"EnableIPv6":false}`:      {open4},
		`{"EnableIPv4":false}`:      {open6},
		`{"Network":"10.5.0.0/16"}`: {given("10.5.0.0/16"), open6},
		`{"Network":"10.5.0.0/16","EnableIPv6":false}`:   {given("10.5.0.0/16")},
		`{"IPv6Network":"fd05::/48","EnableIPv4":false}`: {given("fd05::/48")},
		`{"EnableIPv4":false,"EnableIPv6":false}`:        nil,
	} {
		c, err := ParseConfig([]byte(text), "test", Defaults{Open: true})
		if !slices.Equal(c.Networks, want) || errors.Is(err, ErrNoNetwork) != (want == nil) {
			t.Errorf("%s: %+v, %v; want %+v", text, c.Networks, err, want)
		}
	}
	c, err := ParseConfig([]byte(`{}`), "test", Defaults{Open: true, Flannel: true})
	if err != nil || !slices.Equal(c.Networks, []Network{open4}) {
		t.Errorf("with flannel's defaults: %+v, %v; want IPv4 alone", c.Networks, err)
	}
	for _, text := range []string{`{"Network":"0.0.0.0/0"}`, `{"IPv6Network":"::/0"}`} {
		if c, err := ParseConfig([]byte(text), "test", Defaults{Open: true}); err == nil {
			t.Errorf("%s: %+v; want an error, for that would be an open network", text, c)
		}
	}
}

// A network that was found is cut as it would be if it stood in the file, and
// into subnets like those that there are, where that can be.
func TestNetworkOf(t *testing.T) {
	for _, v := range []struct {
		text         string
		length, want int
	}{
		{"10.5.0.0/16", 26, 26}, {"10.5.0.0/16", 0, 24}, {"10.5.0.0/16", 17, 24}, {"fd05::/48", 56, 56}, {"10.5.0.0/24", 24, 26},
	} {
		n, err := NetworkOf(netip.MustParsePrefix(v.text), v.length)
		if err != nil || n.SubnetLen != v.want || n.Prefix.String() != v.text || n.Open() {
			t.Errorf("%s with subnets of /%d: %+v, %v; want /%d", v.text, v.length, n, err, v.want)
		}
	}
	for _, bad := range []string{"127.0.0.0/8", "224.0.0.0/4", "0.0.0.0/0", "10.0.0.0/30"} {
		if n, err := NetworkOf(netip.MustParsePrefix(bad), 0); err == nil {
			t.Errorf("%s: %+v; want an error", bad, n)
		}
	}
}
