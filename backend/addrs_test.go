// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestDropAddrs: what is asked for goes, of both families and with its route,
// and nothing else.
func TestDropAddrs(t *testing.T) {
	enterNetns(t)
	none := func(netip.Prefix) bool { t.Error("asked of a device that is not there"); return true }
	if got, err := DropAddrs(t.Context(), "cni0", none); err != nil || got != nil {
		t.Errorf("without a device: %v, %v", got, err)
	}
	run(t, "ip link add cni0 type bridge")
	run(t, "ip link set cni0 up")
	run(t, "ip link add br9 type bridge")
	run(t, "ip link set br9 up")
	for _, a := range []string{"10.42.1.2/24 dev cni0", "10.42.1.1/24 dev cni0", "10.42.7.1/24 dev cni0", "fd42:0:0:1::1/64 dev cni0 nodad", "fd42:0:0:7::1/64 dev cni0 nodad", "fe80::1/64 dev cni0 nodad", "10.42.1.1/24 dev br9"} {
		run(t, "ip addr add "+a)
	}
	former := []netip.Prefix{prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")}
	got, err := DropAddrs(t.Context(), "cni0", func(p netip.Prefix) bool {
		if p.Addr().IsLinkLocalUnicast() {
			t.Errorf("asked of %v", p)
		}
		return slices.Contains(former, p.Masked()) && p.Addr() == p.Masked().Addr().Next()
	})
	want := []netip.Prefix{netip.MustParsePrefix("10.42.1.1/24"), netip.MustParsePrefix("fd42:0:0:1::1/64")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("dropped %v, %v, want %v", got, err, want)
	}
	left := run(t, "ip -o addr show dev cni0") + run(t, "ip route show dev cni0") + run(t, "ip -6 route show dev cni0")
	for _, s := range []string{"10.42.1.1/24", "fd42:0:0:1::"} {
		if strings.Contains(left, s) {
			t.Errorf("%s is left:\n%s", s, left)
		}
	}
	for _, s := range []string{"10.42.1.2/24", "10.42.7.1/24", "fd42:0:0:7::1/64", "fe80::1/64"} {
		if !strings.Contains(left, s) {
			t.Errorf("%s is missing:\n%s", s, left)
		}
	}
	if other := run(t, "ip -o addr show dev br9"); !strings.Contains(other, "10.42.1.1/24") {
		t.Errorf("another bridge has %s", other)
	}
}
