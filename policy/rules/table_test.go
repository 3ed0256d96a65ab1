// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"net/netip"
	"strings"
	"testing"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
)

// sample is a table with an element of every kind, at both ends of the address
// space and of the ports.
func sample() *policy.Table {
	return &policy.Table{
		Known: map[netip.Addr]bool{addr("10.42.1.2"): true, addr("10.42.1.3"): true, addr("fd42:0:0:1::2"): true},
		Classes: [2]map[netip.Addr]policy.Class{
			policy.Ingress: {addr("10.42.1.2"): 0x11, addr("fd42:0:0:1::2"): 0x11},
			policy.Egress:  {addr("10.42.1.3"): 0xffffffff},
		},
		Identities: map[netip.Addr]policy.Identity{addr("10.42.2.2"): 0x21, addr("fd42:0:0:2::2"): 0x22},
		Blocks: []policy.AddrRange{
			{From: addr("0.0.0.0"), To: addr("9.255.255.255"), Identity: 0x31},
			{From: addr("10.0.0.0"), To: addr("10.0.0.0"), Identity: 0x32},
			{From: addr("10.0.0.1"), To: addr("10.0.0.255"), Identity: 0x33},
			{From: addr("192.168.0.0"), To: addr("255.255.255.255"), Identity: 0x34},
			{From: addr("::"), To: addr("ff::"), Identity: 0x35},
			{From: addr("ffff::"), To: addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Identity: 0x36},
		},
		Pairs: map[policy.Pair]policy.PortSet{
			{Direction: policy.Ingress, Class: 0x11, Identity: 0x21}:               0x41,
			{Direction: policy.Ingress, Class: 0x11, Identity: policy.Anyone}:      0x42,
			{Direction: policy.Egress, Class: 0xffffffff, Identity: 0x34}:          0x43,
			{Direction: policy.Egress, Class: 0xffffffff, Identity: policy.Anyone}: 0x41,
		},
		Rows: map[policy.Row]bool{
			{Set: 0x41, Proto: policy.TCP, Port: 80}:              true,
			{Set: 0x41, Proto: policy.TCP, Port: 61440, Bits: 12}: true,
			{Set: 0x42, Proto: policy.SCTP}:                       true,
			{Set: 0x42, Proto: policy.UDP, Port: 1024, Bits: 8}:   true,
			{Set: 0x43}: true,
		},
	}
}

func subnets() []netip.Prefix {
	return prefixes("10.42.1.0/24", "10.42.1.128/25", "fd42:0:0:1::/64", "255.255.255.0/24")
}

func params() Params { return Params{LogGroup: DefaultLogGroup} }

func TestGolden(t *testing.T) {
	nshost.Golden(t, "table.golden", nft.Diff(Desired(params(), 0, sample(), subnets()), nft.Content{}).String())
	nshost.Golden(t, "none.golden", nft.Diff(Desired(Params{}, None, &policy.Table{}, nil), nft.Content{}).String())
}

func TestInstallDumpsEqualAndLists(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	p := NewProgrammer(c, params())
	r, err := p.Sync(t.Context(), sample(), subnets())
	if err != nil || r.Unlabelled != nil || r.Generation != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if plan := nft.Diff(Desired(params(), 0, sample(), subnets()), mustDump(t, c)); !plan.Empty() {
		t.Errorf("still to do:\n%s", plan)
	}
	for _, cmd := range []string{"nft list ruleset", "nft -j list ruleset", "nft list tables", "nft -a list table inet weft_policy"} {
		out := h.Run(cmd)
		t.Log(out)
		if strings.Contains(out, "rror") || !strings.Contains(out, "weft_policy") {
			t.Errorf("%s:\n%s", cmd, out)
		}
	}
}
