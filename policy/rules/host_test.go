// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files in testdata instead of comparing")
	flag.Parse()
	os.Exit(m.Run())
}

// golden compares got with testdata/name, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if flag.Lookup("update").Value.String() == "true" {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./policy/rules -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// host is a network namespace of its own: a thread that lives in it.
type host struct {
	t    testing.TB
	jobs chan func()
	path string // of the namespace
}

// newHost makes a namespace that ends with the test.
func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range h.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { close(h.jobs) })
	h.run("ip link set lo up")
	return h
}

// do runs f in the namespace.
func (h *host) do(f func() error) {
	h.t.Helper()
	done := make(chan error)
	h.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		h.t.Fatal(err)
	}
}

// try runs a command in the namespace.
func (h *host) try(stdin string, args ...string) (string, error) {
	h.t.Helper()
	var out []byte
	var err error
	h.do(func() error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.CombinedOutput()
		return nil
	})
	return string(out), err
}

// run runs one command a line.
func (h *host) run(script string) string {
	h.t.Helper()
	var all strings.Builder
	for line := range strings.Lines(script) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		out, err := h.try("", args...)
		if err != nil {
			h.t.Fatalf("%s: %v\n%s", line, err, out)
		}
		all.WriteString(out)
	}
	return all.String()
}

// nft feeds a script to the nft program.
func (h *host) nft(script string) {
	h.t.Helper()
	if out, err := h.try(script, "nft", "-f", "-"); err != nil {
		h.t.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
}

// sysctl writes a setting of the namespace.
func (h *host) sysctl(value string, paths ...string) {
	h.t.Helper()
	for _, p := range paths {
		h.do(func() error { return os.WriteFile("/proc/sys/net/"+p, []byte(value), 0o644) })
	}
}

func (h *host) dial() *nft.Conn {
	h.t.Helper()
	var c *nft.Conn
	h.do(func() (err error) { c, err = nft.Dial(); return err })
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustDump(t testing.TB, c *nft.Conn) nft.Content {
	t.Helper()
	have, err := c.Dump(t.Context(), Table())
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// eventually polls until f is true. It bounds how long a failure takes, not
// how long success may.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !f() {
		if ctx.Err() != nil {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
