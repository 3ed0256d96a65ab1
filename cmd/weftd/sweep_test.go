// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"weft.dev/weft/cni-shim/ledger"
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
