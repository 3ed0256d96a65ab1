// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// The ledger sees the kernel's pods through us: the address of one that lives
// stays, on the bridge or taken off it, and that of one that is gone is freed.
func TestSweepSeesThePods(t *testing.T) {
	inNetns(t, func() {
		n := &installed{l: locks{dir: t.TempDir()}}
		n.attach(t)
		alloc := filepath.Join(n.l.dir, "networks")
		long := time.Now().Add(-time.Hour)
		write := func(addr, owner string) string {
			path := filepath.Join(alloc, "weft", addr)
			if err := errors.Join(os.WriteFile(path, []byte(owner+"\r\neth0"), 0o600), os.Chtimes(path, long, long)); err != nil {
				t.Fatal(err)
			}
			return path
		}
		lives, gone := write("10.42.1.5", "aaaa"), write("10.42.1.9", "bbbb")
		l, err := ledger.Open(ledger.Options{Network: "weft", StateDir: filepath.Join(n.l.dir, "none"), AllocDir: alloc, Bridge: bridge})
		if err != nil {
			t.Fatal(err)
		}
		lease := []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24")}
		report, err := l.Sweep(context.Background(), veths{}, lease, time.Now())
		if err != nil || len(report.Freed) != 1 || report.Alive != 1 {
			t.Errorf("%+v, %v", report, err)
		}
		if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the address of a pod that is gone: %v", err)
		}
		sh(t, "ip link set veth0a1b2c3d nomaster")
		if report, err = l.Sweep(context.Background(), veths{}, lease, time.Now()); err != nil || report.Alive != 1 {
			t.Errorf("off the bridge: %+v, %v", report, err)
		}
		if _, err := os.Stat(lives); err != nil {
			t.Errorf("the address of a pod that lives: %v", err)
		}
	})
}

// Gateways of subnets that this node had are those that the bridge plugin made,
// as long as its own; others' addresses on the bridge are left alone.
func TestFormerGateways(t *testing.T) {
	lease := []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd42:0:0:7::/64")}
	open := []subnet.Network{subnet.OpenNetwork(subnet.IPv4, 24), subnet.OpenNetwork(subnet.IPv6, 64)}
	peers := []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("fd42:0:0:9::/64")}
	for _, c := range []struct {
		networks []subnet.Network
		former   string
	}{
		{config(t, `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`).Networks, "10.42.1.1/24 fd42:0:0:1::1/64"},
		{config(t, `{"Network":"10.43.0.0/16"}`).Networks, ""},
		{config(t, `{"Network":"10.42.4.0/22"}`).Networks, ""},
		{open, "10.42.1.1/24"},
	} {
		var got []string
		for _, a := range []string{
			"10.42.1.1/24", "fd42:0:0:1::1/64", // these
			"10.42.7.1/24", "fd42:0:0:7::1/64", // its own
			"10.42.1.2/24", "10.42.1.1/32", "10.42.0.1/16", "fd42:0:0:1::2/64", "fd42::1/48", // somebody's
			"192.168.1.1/24", "fd00:0:0:1::1/64", // of no pod network
		} {
			if isFormerGateway(netip.MustParsePrefix(a), lease, c.networks, peers) {
				got = append(got, a)
			}
		}
		if strings.Join(got, " ") != c.former {
			t.Errorf("%v: %v, want %s", c.networks, got, c.former)
		}
	}
}

// A gateway goes when no pod has an address of its subnet any more.
func TestDropGateways(t *testing.T) {
	inNetns(t, func() {
		n := &installed{l: locks{dir: t.TempDir()}}
		n.attach(t) // a pod with 10.42.1.5
		a, _ := bare(t)
		cfg := config(t, `{"Network":"10.42.0.0/16"}`)
		a.network.Store(&cfg)
		a.published.Store(true)
		self := overlay.Self{Lease: leaseOf("n1", "id", "10.0.0.1", "10.42.7.0/24")}
		var report ledger.Report
		sh(t, "ip addr add 10.42.2.1/24 dev cni0\nip addr add 10.42.7.1/24 dev cni0") // beside 10.42.1.1/24
		left := func(want ...string) {
			t.Helper()
			a.dropGateways(t.Context(), self, report)
			shown := sh(t, "ip -o addr show dev cni0")
			for _, addr := range []string{"10.42.1.1/24", "10.42.2.1/24", "10.42.7.1/24"} {
				if strings.Contains(shown, addr) != slices.Contains(want, addr) {
					t.Errorf("want %v, have\n%s", want, shown)
				}
			}
		}
		report.Busy = 1 // a pod is being attached
		left("10.42.1.1/24", "10.42.2.1/24", "10.42.7.1/24")
		report.Busy = 0
		a.published.Store(false) // new pods may get what was
		left("10.42.1.1/24", "10.42.2.1/24", "10.42.7.1/24")
		a.published.Store(true)
		left("10.42.1.1/24", "10.42.7.1/24")
		sh(t, "ip link del veth0a1b2c3d")
		report.Outside = []ledger.Entry{{Addrs: []netip.Addr{netip.MustParseAddr("10.42.1.9")}}} // a virtual machine's, say
		left("10.42.1.1/24", "10.42.7.1/24")
		report.Outside = nil
		left("10.42.7.1/24")
	})
}
