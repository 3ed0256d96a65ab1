// SPDX-License-Identifier: Apache-2.0

// Package nshost is what tests in the kernel need: hosts, which are network
// namespaces that end with the test, and golden files. Only tests import it.
package nshost

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs a package's tests, with the flag that Golden looks at.
func Main(m *testing.M) int {
	flag.Bool("update", false, "write the golden files in testdata instead of comparing")
	flag.Parse()
	return m.Run()
}

// Golden compares got with testdata/name, or writes it with -update.
func Golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if flag.Lookup("update").Value.String() == "true" {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (the flag -update of this package's tests writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// Host is a network namespace of its own: a thread that lives in it.
type Host struct {
	T    testing.TB
	jobs chan func()
	Path string // of the namespace
}

// New makes a namespace that ends with the test.
func New(t testing.TB) *Host {
	t.Helper()
	h := &Host{T: t, jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h.Path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range h.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { close(h.jobs) })
	h.Run("ip link set lo up")
	return h
}

// Do runs f in the namespace.
func (h *Host) Do(f func() error) {
	h.T.Helper()
	done := make(chan error)
	h.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		h.T.Fatal(err)
	}
}

// Try runs a command in the namespace.
func (h *Host) Try(stdin string, args ...string) (string, error) {
	h.T.Helper()
	var out []byte
	var err error
	h.Do(func() error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.CombinedOutput()
		return nil
	})
	return string(out), err
}

// Run runs one command a line.
func (h *Host) Run(script string) string {
	h.T.Helper()
	var all strings.Builder
	for line := range strings.Lines(script) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		out, err := h.Try("", args...)
		if err != nil {
			h.T.Fatalf("%s: %v\n%s", line, err, out)
		}
		all.WriteString(out)
	}
	return all.String()
}

// NFT feeds a script to the nft program.
func (h *Host) NFT(script string) string {
	h.T.Helper()
	out, err := h.Try(script, "nft", "-f", "-")
	if err != nil {
		h.T.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
	return out
}

// Sysctl writes a setting of the namespace.
func (h *Host) Sysctl(value string, paths ...string) {
	h.T.Helper()
	for _, p := range paths {
		h.Do(func() error { return os.WriteFile("/proc/sys/net/"+p, []byte(value), 0o644) })
	}
}

// Link joins h and o with a veth pair.
func (h *Host) Link(dev string, o *Host, peer string) {
	h.T.Helper()
	h.Run("ip link add " + dev + " type veth peer name " + peer + " netns " + o.Path)
	h.Run("ip link set " + dev + " addrgenmode none\nip link set " + dev + " up")
	o.Run("ip link set " + peer + " addrgenmode none\nip link set " + peer + " up")
}

// Eventually polls until f is true. It bounds how long a failure takes, not
// how long success may.
func Eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !f() {
		if ctx.Err() != nil {
			t.Fatalf("%s: not within a minute", what)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}
