// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
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
		t.Fatalf("%v (go test ./backend/nft -update writes it)", err)
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
func (h *host) nft(script string) string {
	h.t.Helper()
	out, err := h.try(script, "nft", "-f", "-")
	if err != nil {
		h.t.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
	return out
}

// sysctl writes a setting of the namespace.
func (h *host) sysctl(value string, paths ...string) {
	h.t.Helper()
	for _, p := range paths {
		h.do(func() error { return os.WriteFile("/proc/sys/net/"+p, []byte(value), 0o644) })
	}
}

// link joins h and o with a veth pair.
func (h *host) link(dev string, o *host, peer string) {
	h.t.Helper()
	h.run("ip link add " + dev + " type veth peer name " + peer + " netns " + o.path)
	h.run("ip link set " + dev + " addrgenmode none\nip link set " + dev + " up")
	o.run("ip link set " + peer + " addrgenmode none\nip link set " + peer + " up")
}

func (h *host) dial() *Conn {
	h.t.Helper()
	var c *Conn
	h.do(func() (err error) { c, err = Dial(); return err })
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

// install makes the kernel hold want and checks that it does.
func install(t testing.TB, c *Conn, want Desired) {
	t.Helper()
	if err := c.Apply(t.Context(), Diff(want, mustDump(t, c, want.Table))); err != nil {
		t.Fatal(err)
	}
	if again := Diff(want, mustDump(t, c, want.Table)); !again.Empty() {
		t.Fatalf("applied, and still to do:\n%s", again)
	}
}

func mustDump(t testing.TB, c *Conn, table Table) Content {
	t.Helper()
	have, err := c.Dump(t.Context(), table)
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

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func TestInstallDumpsEqualAndLists(t *testing.T) {
	for name, change := range map[string]func(*node){
		"bind":    func(*node) {},
		"peers":   func(p *node) { p.Guard = GuardPeers },
		"off":     func(p *node) { p.Guard = GuardOff; p.Masquerade = false },
		"open":    func(p *node) { p.opens() },
		"minimal": func(p *node) { *p = node{Params: Params{Guard: GuardBind, Port: 4789, VNI: 0xffffff}} },
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			change(&p)
			h := newHost(t)
			h.nft("table inet canary { set s { type ipv4_addr; elements = { 192.0.2.1 }\n}\nchain c {\nip saddr @s counter\n}\n}")
			before := h.run("nft list table inet canary")
			c := h.dial()
			install(t, c, Weft(p, peers()))
			for _, cmd := range []string{"nft list ruleset", "nft -j list ruleset", "nft list tables", "nft -a list table inet weft"} {
				out := h.run(cmd)
				if strings.Contains(out, "rror") || !strings.Contains(out, "weft") {
					t.Errorf("%s:\n%s", cmd, out)
				}
			}
			if after := h.run("nft list table inet canary"); after != before {
				t.Errorf("a foreign table changed:\n%s\nwas\n%s", after, before)
			}
			if err := c.Apply(t.Context(), Removal(Ruleset(p.Params), mustDump(t, c, Ruleset(p.Params)))); err != nil {
				t.Fatal(err)
			}
			if out := h.run("nft list tables"); bytes.Contains([]byte(out), []byte("weft")) {
				t.Errorf("after removal: %s", out)
			}
		})
	}
}
