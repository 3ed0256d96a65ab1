// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestInstanceIDIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := instanceID(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := instanceID(dir)
	if err != nil || second != first || len(first) != 32 {
		t.Errorf("%q, then %q: %v", first, second, err)
	}
	other, err := instanceID(t.TempDir())
	if err != nil || other == first {
		t.Errorf("another directory has %q: %v", other, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instance-id"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := instanceID(dir); err == nil || !strings.Contains(err.Error(), `"torn"`) {
		t.Errorf("a torn file: %v", err)
	}
}

func TestLockNamesTheHolder(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir, 1, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir, 1, "n2"); err == nil || !strings.Contains(err.Error(), "node n1") || !strings.Contains(err.Error(), "VNI 1") {
		t.Errorf("second lock: %v", err)
	}
	other, err := lock(dir, 2, "n1")
	if err != nil {
		t.Errorf("another VNI: %v", err)
	} else {
		other()
	}
	unlock()
	again, err := lock(dir, 1, "n2")
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	again()
}

func TestConflist(t *testing.T) {
	for _, compat := range []bool{false, true} {
		o := parse(t, nil, "--flannel-compat="+map[bool]string{true: "true", false: "false"}[compat])
		var c struct {
			Name        string
			CNIVersion  string
			CNIVersions []string
			Plugins     []map[string]any
		}
		if err := json.Unmarshal(conflist(o), &c); err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{false: "weft", true: "cbr0"}[compat]
		if c.Name != want || c.CNIVersion != "1.0.0" || len(c.CNIVersions) != 4 || c.Plugins[0]["type"] != "weft" {
			t.Errorf("compat %t: %+v", compat, c)
		}
		if d := c.Plugins[0]["delegate"].(map[string]any); d["ipMasq"] != false || d["bridge"] != "cni0" {
			t.Errorf("delegate %v", d)
		}
	}
}

// Agents with sockets in different directories still meet at one lock.
func TestLockDirDoesNotDependOnTheSocket(t *testing.T) {
	usual, own := filepath.Join(t.TempDir(), "weft"), t.TempDir()
	if got := lockDir(usual, own); got != usual {
		t.Errorf("lock in %s, want %s", got, usual)
	}
	if got := lockDir("/proc/weft", own); got != own {
		t.Errorf("where the usual place cannot be: lock in %s, want %s", got, own)
	}
}

// A full disk takes the holder's name from the lock, not the lock.
func TestLockOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	var ns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &ns); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(dir, fmt.Sprintf("weftd-%d-1.lock", ns.Ino))); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(dir, 1, "n1")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// An operator's own CNI configuration is never overwritten; ours is renewed.
func TestConflistKeepsEdits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net.d", "05-weft.conflist")
	o := parse(t, nil, "--cni-conf="+path)
	write := func() string {
		t.Helper()
		if err := writeConflist(o); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	fresh := write()
	stale := strings.Replace(fresh, "cni0", "cni9", 1)
	for content, want := range map[string]string{stale: fresh, `{"name":"mine"}`: `{"name":"mine"}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := write(); got != want {
			t.Errorf("%q became %q", content, got)
		}
	}
}
