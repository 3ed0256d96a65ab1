// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

func underlays(addrs ...string) []overlay.Underlay {
	var out []overlay.Underlay
	for _, a := range addrs {
		out = append(out, overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr(a), MTU: 1500})
	}
	return out
}

// A lease announces where peers send to, and as sources what else packets of
// this node may come from.
func TestWhatALeaseAnnounces(t *testing.T) {
	const dual = `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":%q}}`
	for name, c := range map[string]struct {
		args      []string
		backend   string
		underlays []overlay.Underlay
		announced []string
		sources   string
		problem   string
	}{
		"as it is": {backend: "vxlan", underlays: underlays("10.0.0.1", "fd00::1"), announced: []string{"10.0.0.1", "fd00::1"}, sources: "[]"},
		"behind NAT": {args: []string{"--public-ip=192.0.2.1"}, backend: "vxlan", underlays: underlays("10.0.0.1", "fd00::1"),
			announced: []string{"192.0.2.1", "fd00::1"}, sources: "[10.0.0.1]"},
		"behind NAT, both on IPv4": {args: []string{"--public-ip=192.0.2.1"}, backend: "vxlan", underlays: underlays("10.0.0.1"),
			announced: []string{"192.0.2.1", "192.0.2.1"}, sources: "[10.0.0.1]"},
		"an address it has": {args: []string{"--public-ip=10.0.0.1"}, backend: "vxlan", underlays: underlays("10.0.0.1", "fd00::1"),
			announced: []string{"10.0.0.1", "fd00::1"}, sources: "[]"},
		"further ones": {args: []string{"--source-address=10.9.0.1,10.0.0.1,fd09::1"}, backend: "vxlan", underlays: underlays("10.0.0.1", "fd00::1"),
			announced: []string{"10.0.0.1", "fd00::1"}, sources: "[10.9.0.1 fd09::1]"},
		"host-gw": {backend: "host-gw", underlays: underlays("10.0.0.1", "fd00::1"), announced: []string{"10.0.0.1", "fd00::1"}, sources: "[]"},
		"host-gw behind NAT": {args: []string{"--public-ip=192.0.2.1"}, backend: "host-gw", underlays: underlays("10.0.0.1", "fd00::1"),
			announced: []string{"10.0.0.1", "fd00::1"}, sources: "[]", problem: "PublicAddressUnused"},
	} {
		a, _ := bare(t, c.args...)
		cfg := config(t, fmt.Sprintf(dual, c.backend))
		a.network.Store(&cfg)
		l, notes, err := a.request("id", c.underlays)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var announced []string
		for i, p := range l.Paths {
			announced = append(announced, p.Underlay.String())
			if p.MAC == (subnet.MAC{}) || p.VNI != 1 {
				t.Errorf("%s: path %+v", name, p)
			}
			// What is published must be what a reader gets.
			l.Paths[i].Subnet = netip.MustParsePrefix([]string{"10.42.1.0/24", "fd42:0:0:1::/64"}[i])
		}
		if !slices.Equal(announced, c.announced) || fmt.Sprint(l.Sources) != c.sources || string(l.Backend) != c.backend {
			t.Errorf("%s: %v, sources %v, backend %s; want %v, %s", name, announced, l.Sources, l.Backend, c.announced, c.sources)
		}
		if (len(notes) == 1 && notes[0].Kind == c.problem) != (c.problem != "") {
			t.Errorf("%s: problems %v, want %q", name, notes, c.problem)
		}
		if _, _, err := subnet.EncodeLease(l); err != nil {
			t.Errorf("%s: cannot be published: %v", name, err)
		}
	}
}
