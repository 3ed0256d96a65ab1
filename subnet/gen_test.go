// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func prefixes(t testing.TB, texts ...string) []netip.Prefix {
	t.Helper()
	var ps []netip.Prefix
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	return ps
}

func addrs(texts ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range texts {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// wantError fails t unless err mentions every one of parts.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, s := range parts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q lacks %q", err, s)
		}
	}
}

// genAddr draws an address of family f that may be an underlay.
func genAddr(f Family) *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.Byte(), f.bits()/8, f.bits()/8).Draw(t, "addr")
		a, _ := netip.AddrFromSlice(b)
		return a
	}).Filter(func(a netip.Addr) bool { return checkUnderlay(a) == nil })
}

// genSubnet draws a prefix of family f that may be a node's subnet.
func genSubnet(f Family) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := genAddr(f).Draw(t, "base")
		return netip.PrefixFrom(a, rapid.IntRange(8, f.bits()-1).Draw(t, "bits")).Masked()
	}).Filter(func(p netip.Prefix) bool { return checkSubnet(p) == nil })
}

// genFamilies draws one or both families, in order.
func genFamilies() *rapid.Generator[[]Family] {
	return rapid.SampledFrom([][]Family{{IPv4}, {IPv6}, {IPv4, IPv6}})
}

func genName() *rapid.Generator[string] {
	return rapid.StringMatching(`[a-z0-9]([a-zA-Z0-9._-]{0,40}[a-z0-9])?`)
}

// genEndpoint draws a path without a subnet, with what backend b publishes.
func genEndpoint(b BackendType, f Family) *rapid.Generator[Path] {
	return rapid.Custom(func(t *rapid.T) Path {
		p := Path{Underlay: genAddr(f).Draw(t, "underlay")}
		switch b {
		case BackendVXLAN:
			copy(p.MAC[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
			p.MAC[0] = p.MAC[0]&^1 | 2
			p.VNI = rapid.Uint32Range(0, maxDataVNI).Draw(t, "vni")
		case BackendWireGuard:
			key := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")
			p.Key = base64.StdEncoding.EncodeToString(key)
			p.Port = rapid.Uint16().Draw(t, "port")
		}
		return p
	})
}

// genLease draws every lease that the codecs can express: subnets and
// underlays of any mix of families.
func genLease() *rapid.Generator[Lease] {
	return rapid.Custom(func(t *rapid.T) Lease {
		l := Lease{Backend: rapid.SampledFrom([]BackendType{
			BackendVXLAN, BackendVXLAN, BackendHostGW, BackendWireGuard, "ipip", ""}).Draw(t, "backend")}
		if rapid.Bool().Draw(t, "ours") {
			l.Node = genName().Draw(t, "node")
			l.Instance = rapid.OneOf(genName(), rapid.Just("")).Draw(t, "instance")
			source := rapid.OneOf(genAddr(IPv4), genAddr(IPv6))
			l.Sources = normalSources(rapid.SliceOfN(source, 0, maxSources).Draw(t, "sources"))
		}
		ends := map[Family]Path{}
		underlays := genFamilies().Draw(t, "underlays")
		for _, f := range underlays {
			ends[f] = genEndpoint(l.Backend, f).Draw(t, "endpoint")
		}
		for _, f := range genFamilies().Draw(t, "subnets") {
			p, ok := ends[f]
			if !ok {
				p = ends[underlays[0]]
			}
			p.Subnet = genSubnet(f).Draw(t, "subnet")
			l.Paths = append(l.Paths, p)
		}
		return l
	})
}
