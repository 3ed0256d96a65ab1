// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const savedConf = `{"cniVersion":"1.0.0","name":"weft","type":"bridge"}`

func TestStateRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := stateOf(dir, "c1", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load before save: %v, want fs.ErrNotExist", err)
	}
	if err := s.remove(); err != nil {
		t.Errorf("remove before save: %v", err)
	}
	for range 2 { // a second ADD replaces the first
		if err := s.save([]byte(savedConf)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.load(); err != nil || string(got) != savedConf {
		t.Errorf("load: %s, %v", got, err)
	}
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, s.path: 0o600} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode(), want)
		}
	}
	if err := s.remove(); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("remove leaves %v", got)
	}
}

// TestStatesAreApart: attachments of one container, and ids that run together
// when joined, have files of their own.
func TestStatesAreApart(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for _, id := range [][2]string{{"c1", "eth0"}, {"c1", "net1"}, {"c1-net", "1"}, {"c1", "net-1"}, {"c1.tmp", "x"}, {"c1", "x.tmp"}, {"c1", "x"}} {
		s, err := stateOf(dir, id[0], id[1])
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(want, s.path) {
			t.Errorf("%v shares %s", id, s.path)
		}
		want = append(want, s.path)
	}
}

// TestStateRefusesForeignNames: an id is never a way out of the directory.
func TestStateRefusesForeignNames(t *testing.T) {
	for _, id := range [][2]string{
		{"../c1", "eth0"}, {"..", "eth0"}, {".", "eth0"}, {"", "eth0"}, {"a/b", "eth0"}, {"a:b", "eth0"}, {"a\x00b", "eth0"},
		{strings.Repeat("x", maxContainerID+1), "eth0"},
		{"c1", ""}, {"c1", ".."}, {"c1", "../x"}, {"c1", "a/b"}, {"c1", "a:b"}, {"c1", "a b"}, {"c1", "sixteen-bytes-xx"},
	} {
		if s, err := stateOf("/var/lib/cni/weft", id[0], id[1]); err == nil {
			t.Errorf("%q gives %s", id, s.path)
		}
	}
	s, err := stateOf(t.TempDir(), strings.Repeat("x", maxContainerID), "fifteen-bytes-x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save([]byte(savedConf)); err != nil {
		t.Errorf("the longest ids: %v", err)
	}
}

// TestStateTorn: what a power failure left counts as nothing.
func TestStateTorn(t *testing.T) {
	for _, content := range []string{"", "{", savedConf[:20], "null", "[]", `{"type": ""}`, `{"type": 5}`, `{"name": "weft"}`} {
		s, err := stateOf(t.TempDir(), "c1", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.save([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.load(); err == nil {
			t.Errorf("%q loads as %s", content, got)
		}
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	}
}

// TestStateKilledSave: a save that ended before the rename leaves a file that
// the next remove takes with it, and that load does not see.
func TestStateKilledSave(t *testing.T) {
	dir := t.TempDir()
	s, err := stateOf(dir, "c1", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.temp(), []byte(savedConf[:10]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load: %v, want fs.ErrNotExist", err)
	}
	if err := s.remove(); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

// names lists a directory; one that does not exist is empty.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
