// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const savedConf = `{"cniVersion":"1.0.0","ipam":{"type":"host-local"},"name":"weft","type":"bridge"}`

func TestStateRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := stateAt(t, dir, Key{"c1", "eth0"})
	if _, err := s.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load before save: %v, want fs.ErrNotExist", err)
	}
	if err := s.Remove(); err != nil {
		t.Errorf("remove before save: %v", err)
	}
	for range 2 { // a second ADD replaces the first
		if err := s.Save([]byte(savedConf)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Load(); err != nil || string(got) != savedConf {
		t.Errorf("load: %s, %v", got, err)
	}
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, s.Path(): 0o600} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode(), want)
		}
	}
	if err := os.WriteFile(s.temp(), []byte(savedConf[:10]), 0o600); err != nil { // a save that was killed
		t.Fatal(err)
	}
	if err := s.Remove(); err != nil {
		t.Error(err)
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("remove leaves %v", got)
	}
}

// TestKeysAreApart: attachments of one container, and ids that run together
// when joined, have files of their own.
func TestKeysAreApart(t *testing.T) {
	seen := map[string]Key{}
	for _, k := range []Key{{"c1", "eth0"}, {"c1", "net1"}, {"c1-net", "1"}, {"c1", "net-1"}, {"c1.lock", "x"}, {"c1", "x.lock"}, {"c1", "x.new"}, {"c1", "x"}} {
		s := stateAt(t, "/d", k)
		for _, path := range []string{s.Path(), s.temp(), filepath.Join("/d", flightDir, k.String()+lockSuffix)} {
			if other, ok := seen[path]; ok {
				t.Errorf("%v and %v share %s", k, other, path)
			}
			seen[path] = k
		}
		if back, ok := ParseKey(filepath.Base(s.Path())); !ok || back != k {
			t.Errorf("%s parses as %v, %v", s.Path(), back, ok)
		}
	}
}

// TestForeignNames: an id is never a way out of the directory.
func TestForeignNames(t *testing.T) {
	for _, k := range []Key{
		{"../c1", "eth0"}, {"..", "eth0"}, {".", "eth0"}, {".flight", "eth0"}, {"", "eth0"}, {"a/b", "eth0"}, {"a:b", "eth0"}, {"a\x00b", "eth0"},
		{strings.Repeat("x", MaxContainerID+1), "eth0"}, {"c1\n", "eth0"},
		{"c1", ""}, {"c1", "."}, {"c1", ".."}, {"c1", "../x"}, {"c1", "a/b"}, {"c1", "a:b"}, {"c1", "a b"}, {"c1", "sixteen-bytes-xx"},
	} {
		if s, err := StateOf("/var/lib/cni/weft", k); err == nil {
			t.Errorf("%q gives %s", k, s.Path())
		}
		if got, ok := ParseKey(k.String()); ok {
			t.Errorf("%q parses as %q", k, got)
		}
	}
	s := stateAt(t, t.TempDir(), Key{strings.Repeat("x", MaxContainerID), "fifteen-bytes-x"})
	if err := s.Save([]byte(savedConf)); err != nil {
		t.Errorf("the longest ids: %v", err)
	}
}

func TestStamp(t *testing.T) {
	id := 3
	for _, want := range []Stamp{
		{Phase: Adding, Boot: "b1"},
		{Phase: Deleting, Boot: "b1", NetnsID: new(int)},
		{Phase: Added, Boot: "b1", Netns: "/run/netns/x", NetnsInode: 1 << 40, NetnsID: &id,
			Ports: []string{"veth01234567"}, Addrs: []netip.Addr{netip.MustParseAddr("10.42.1.2"), netip.MustParseAddr("fd00::2")}},
	} {
		data, err := Encode([]byte(savedConf), want)
		if err != nil {
			t.Fatal(err)
		}
		conf, got, stamped, err := Decode(data)
		if err != nil || !stamped || !reflect.DeepEqual(got, want) || string(conf) != savedConf {
			t.Errorf("got %s %+v %v %v, want %+v", conf, got, stamped, err, want)
		}
		// Versions without stamps hand the state as it is to the delegate.
		if d := delegationOf(data); !d.judged(DefaultBridge) || d.Network != "weft" {
			t.Errorf("a delegate reads %+v", d)
		}
	}
	for _, state := range []string{
		savedConf,
		`{"type":"bridge","` + StampKey + `":5}`,
		`{"type":"bridge","` + StampKey + `":{"phase":"added"}}`,
		`{"type":"bridge","` + StampKey + `":{"phase":1,"boot":"b"}}`,
	} {
		conf, _, stamped, err := Decode([]byte(state))
		if err != nil || stamped || strings.Contains(string(conf), StampKey) {
			t.Errorf("%s: %s, stamped %v, %v", state, conf, stamped, err)
		}
	}
	for _, torn := range []string{"", "{", savedConf[:20], "null", "[]", "\x00\x00"} {
		if conf, _, _, err := Decode([]byte(torn)); err == nil {
			t.Errorf("%q gives %s", torn, conf)
		}
		if _, err := Encode([]byte(torn), Stamp{}); err == nil {
			t.Errorf("%q takes a stamp", torn)
		}
	}
}

func TestBootID(t *testing.T) {
	real, err := BootID("")
	if err != nil || len(real) != 36 {
		t.Errorf("this boot is %q, %v", real, err)
	}
	empty := filepath.Join(t.TempDir(), "boot_id")
	for _, path := range []string{empty, empty + "2"} {
		if path == empty {
			put(t, path, "\n")
		}
		if id, err := BootID(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %q, %v", path, id, err)
		}
	}
	if _, err := Open(Options{Network: "a/b"}); err == nil {
		t.Error("a network leads out of host-local's directory")
	}
}

// TestLock: one holder at a time, and waiters go on when it ends.
func TestLock(t *testing.T) {
	dir, k := t.TempDir(), Key{"c1", "eth0"}
	first, err := LockAttachment(t.Context(), dir, k)
	if err != nil {
		t.Fatal(err)
	}
	if busy, err := held(first.path); !busy || err != nil {
		t.Errorf("held: %v, %v", busy, err)
	}
	if _, err := tryLock(dir, k); !errors.Is(err, ErrBusy) {
		t.Errorf("a second lock: %v", err)
	}
	if other, err := tryLock(dir, Key{"c1", "net1"}); err != nil {
		t.Errorf("another attachment's lock: %v", err)
	} else {
		other.Unlock()
	}
	const waiters = 20
	done, inside := make(chan error), make(chan struct{}, 1)
	for range waiters {
		go func() {
			l, err := LockAttachment(t.Context(), dir, k)
			if err == nil {
				select {
				case inside <- struct{}{}:
					time.Sleep(time.Millisecond) // for another one to come in
					<-inside
				default:
					err = errors.New("two hold the lock")
				}
				l.Unlock()
			}
			done <- err
		}()
	}
	first.Unlock()
	for range waiters {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

// TestLockIsOfTheFile: a waiter whose file was removed by the holder does not
// take that for the lock, which the next one would not see.
func TestLockIsOfTheFile(t *testing.T) {
	dir, k := t.TempDir(), Key{"c1", "eth0"}
	for range 20 {
		first, err := LockAttachment(t.Context(), dir, k)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *Lock)
		go func() {
			l, err := lockFile(t.Context(), first.path, 0)
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		time.Sleep(2 * time.Millisecond) // for it to wait
		first.Unlock()
		if l := <-got; l != nil { // it came late
			if _, err := os.Stat(l.path); err != nil {
				t.Fatalf("a lock that nobody else sees: %v", err)
			}
			l.Unlock()
		}
	}
}

// TestLockOutlivesPlugin: a delegate that outlives the plugin keeps the lock,
// whether or not it knows; with the last process it is gone.
func TestLockOutlivesPlugin(t *testing.T) {
	dir, k := t.TempDir(), Key{"c1", "eth0"}
	lock, err := LockAttachment(t.Context(), dir, k)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read x") // as a delegate starts host-local
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(lock.fd); err != nil { // as kill -9 does
		t.Fatal(err)
	}
	if _, err := tryLock(dir, k); !errors.Is(err, ErrBusy) {
		t.Errorf("while the delegate works: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	_ = cmd.Wait() // killed
	again, err := tryLock(dir, k)
	if err != nil {
		t.Fatalf("after the delegate: %v", err)
	}
	again.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if l, err := LockAttachment(ctx, dir, k); err != nil {
		t.Error(err)
	} else {
		l.Unlock()
	}
}

// TestSweepsLockIsItsOwn: a process that a sweeping program starts meanwhile,
// for whatever purpose, does not keep the lock. (Found by the campaign: a DEL
// that waited for a lock which it had inherited.)
func TestSweepsLockIsItsOwn(t *testing.T) {
	dir, k := t.TempDir(), Key{"c1", "eth0"}
	lock, err := tryLock(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(lock.fd); err != nil { // the program is killed
		t.Fatal(err)
	}
	again, err := tryLock(dir, k)
	if err != nil {
		t.Errorf("while an unrelated process runs: %v", err)
	} else {
		again.Unlock()
	}
	in.Close()
	_ = cmd.Wait()
}

func stateAt(t testing.TB, dir string, k Key) State {
	t.Helper()
	s, err := StateOf(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// files lists the files below a directory.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}
