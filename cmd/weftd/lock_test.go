// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLockNamesTheHolder(t *testing.T) {
	l := locks{dir: t.TempDir(), netns: 7, holder: "pid 1, node n1"}
	unlock, err := l.vni(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.vni(1); err == nil || !strings.Contains(err.Error(), "node n1") || !strings.Contains(err.Error(), "VNI 1") {
		t.Errorf("second lock: %v", err)
	}
	other, err := l.vni(2)
	if err != nil {
		t.Errorf("another VNI: %v", err)
	} else {
		other()
	}
	elsewhere := l
	elsewhere.netns = 8
	if other, err = elsewhere.vni(1); err != nil {
		t.Errorf("another network namespace: %v", err)
	} else {
		other()
	}
	unlock()
	again, err := l.vni(1)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	again()
	if all, err := l.all(); err != nil || !slices.Equal(all, []string{"1", "2"}) {
		t.Errorf("all: %q, %v", all, err)
	}
}

// There is one table inet weft in a network namespace. An agent for another
// VNI is told whose it is and how to do without.
func TestLockOfTheTableSaysHowToDoWithout(t *testing.T) {
	l := locks{dir: t.TempDir(), netns: 7, holder: "pid 1, node n1"}
	unlock, err := l.table()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	_, err = l.table()
	for _, want := range []string{"node n1", "--ingress-guard=off", "--ip-masq=false"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: lacks %q", err, want)
		}
	}
}

// A lock file that is removed while it is waited for is no lock any more.
func TestLockOfARemovedFileIsNone(t *testing.T) {
	l := locks{dir: t.TempDir(), netns: 7}
	first, err := l.vni(1)
	if err != nil {
		t.Fatal(err)
	}
	defer first()
	f, err := os.Open(l.path("1"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !stillAt(f, l.path("1")) {
		t.Error("a file that is there is taken for removed")
	}
	if err := os.Remove(l.path("1")); err != nil {
		t.Fatal(err)
	}
	if stillAt(f, l.path("1")) {
		t.Error("a removed file is taken for the lock")
	}
	second, err := l.vni(1)
	if err != nil {
		t.Fatal(err)
	}
	defer second()
	if stillAt(f, l.path("1")) {
		t.Error("another file is taken for the lock")
	}
	if _, _, err := l.take("1"); !errors.Is(err, errLocked) {
		t.Errorf("the new file does not lock: %v", err)
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
	l := locks{dir: t.TempDir(), netns: 7}
	if err := os.Symlink("/dev/full", l.path("1")); err != nil {
		t.Fatal(err)
	}
	unlock, err := l.vni(1)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
