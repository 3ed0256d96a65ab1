// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Files are read again when they have changed, in whatever way, and not before.
func TestFilesThatChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	before := map[string]file{}
	read := func() file {
		t.Helper()
		r := &reading{before: &before, now: map[string]file{}}
		f, err := r.file(path)
		if err != nil {
			t.Fatal(err)
		}
		before = r.now
		return f
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if f := read(); f.data != nil {
		t.Errorf("no file: %q", f.data)
	}
	must(os.WriteFile(path, []byte("one"), 0o600))
	first, until := read(), time.Now().Add(10*fresh)
	for { // what was just written is read again and again
		f := read()
		if string(f.data) != "one" {
			t.Fatalf("%q", f.data)
		}
		if &f.data[0] == &first.data[0] {
			break
		}
		if first = f; time.Now().After(until) {
			t.Fatal("a file that does not change is read each time")
		}
		time.Sleep(fresh / 50)
	}
	st, err := os.Stat(path)
	must(err)
	must(os.WriteFile(path+".new", []byte("two"), 0o600))
	must(os.Rename(path+".new", path))
	must(os.Chtimes(path, st.ModTime(), st.ModTime()))
	if f := read(); string(f.data) != "two" {
		t.Errorf("replaced by one as long, of the same time: %q", f.data)
	}
	must(os.WriteFile(path, []byte("abc"), 0o600))
	must(os.Chtimes(path, st.ModTime(), st.ModTime()))
	if f := read(); string(f.data) != "abc" {
		t.Errorf("written anew: %q", f.data)
	}
	must(os.WriteFile(path, []byte("def"), 0o600))
	if f := read(); string(f.data) != "def" {
		t.Errorf("written at once again: %q", f.data)
	}
	must(os.Remove(path))
	if f := read(); f.data != nil {
		t.Errorf("removed: %q", f.data)
	}
}
