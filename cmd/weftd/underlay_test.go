// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

func TestSettle(t *testing.T) {
	v4 := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("10.0.0.1"), MTU: 1500}
	moved := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("10.0.0.11"), MTU: 1500}
	jumbo := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("10.0.0.1"), MTU: 9000}
	v6 := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("fd00::1"), MTU: 1500}
	list := func(u ...overlay.Underlay) []overlay.Underlay { return u }
	for name, c := range map[string]struct {
		had, found, want []overlay.Underlay
		after            time.Duration // since the first look
	}{
		"nothing changed":             {list(v4, v6), list(v6, v4), list(v4, v6), 0},
		"another address":             {list(v4, v6), list(moved, v6), list(moved, v6), 0},
		"another MTU":                 {list(v4), list(jumbo), list(jumbo), 0},
		"a family appears":            {list(v4), list(v4, v6), list(v4, v6), 0},
		"a family flaps":              {list(v4, v6), list(v4), list(v4, v6), underlayPatience - 1},
		"a family is gone":            {list(v4, v6), list(v4), list(v4), underlayPatience},
		"the last is never given up":  {list(v4), nil, list(v4), 100 * underlayPatience},
		"neither are both, at once":   {list(v4, v6), nil, list(v4, v6), 100 * underlayPatience},
		"the other family takes over": {list(v4), list(v6), list(v6), underlayPatience},
	} {
		start := time.Unix(0, 0)
		gone := map[subnet.Family]time.Time{}
		settle(c.had, c.found, gone, start)
		if got := settle(c.had, c.found, gone, start.Add(c.after)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// After an outage of the whole link IPv6 comes back later than IPv4: the
// patience begins when the first is there.
func TestSettleAfterAnOutageWaitsForTheSecondFamily(t *testing.T) {
	v4 := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("10.0.0.1")}
	v6 := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("fd00::1")}
	both, gone, now := []overlay.Underlay{v4, v6}, map[subnet.Family]time.Time{}, time.Unix(0, 0)
	settle(both, both[:1], gone, now)
	settle(both, nil, gone, now)
	now = now.Add(10 * underlayPatience)
	if got := settle(both, both[:1], gone, now); len(got) != 2 {
		t.Errorf("IPv4 is back: %v", got)
	}
	if got := settle(both, both[:1], gone, now.Add(underlayPatience)); len(got) != 1 {
		t.Errorf("IPv6 does not come back: %v", got)
	}
}

// A family that came back has its whole patience again.
func TestSettleForgets(t *testing.T) {
	v4 := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("10.0.0.1")}
	v6 := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("fd00::1")}
	both, gone, now := []overlay.Underlay{v4, v6}, map[subnet.Family]time.Time{}, time.Unix(0, 0)
	settle(both, both[:1], gone, now)
	now = now.Add(underlayPatience / 2)
	settle(both, both, gone, now)
	now = now.Add(underlayPatience / 2)
	settle(both, both[:1], gone, now)
	if got := settle(both, both[:1], gone, now.Add(underlayPatience/2)); len(got) != 2 {
		t.Errorf("after coming back: %v", got)
	}
}
