// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft.dev/weft/tests/netlab"
)

// labProgram returns bin/weft-lab.
func labProgram(t *testing.T) string {
	t.Helper()
	dir, err := netlab.FindBin("")
	must(t, err)
	path := filepath.Join(dir, "weft-lab")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build`", err)
	}
	return path
}

// A program under test whose output can be read while it runs.
type program struct {
	*exec.Cmd
	mu     sync.Mutex
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// locked writes to one of the program's buffers.
type locked struct {
	p   *program
	buf *bytes.Buffer
}

func (w locked) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.buf.Write(b)
}

func lab(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.CommandContext(t.Context(), labProgram(t), args...)}
	p.Stdout, p.Stderr = locked{p, &p.stdout}, locked{p, &p.stderr}
	return p
}

func (p *program) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String() + p.stderr.String()
}

// started starts the program and waits until it has said text.
func (p *program) started(t *testing.T, text string) {
	t.Helper()
	must(t, p.Start())
	p.says(t, text)
}

// says waits until the program has said text.
func (p *program) says(t *testing.T, text string) {
	t.Helper()
	eventually(t.Context(), t, "weft-lab says "+text, func() error {
		if s := p.said(); !strings.Contains(s, text) {
			return fmt.Errorf("it says\n%s", s)
		}
		return nil
	})
}

// However a lab ends, nothing of it is left.
func TestNothingIsLeft(t *testing.T) {
	ends := map[string]struct {
		end  func(t *testing.T, id string, p *program)
		code int
	}{
		"interrupted":      {func(t *testing.T, _ string, p *program) { must(t, p.Process.Signal(os.Interrupt)) }, 130},
		"terminated":       {func(t *testing.T, _ string, p *program) { must(t, p.Process.Signal(syscall.SIGTERM)) }, 130},
		"launcher killed":  {func(t *testing.T, _ string, p *program) { must(t, p.Process.Kill()) }, -1},
		"control killed":   {func(t *testing.T, id string, _ *program) { killMember(t, id, "weft-lab-control") }, 137},
		"init killed":      {func(t *testing.T, id string, _ *program) { killMember(t, id, "weft-lab-init") }, 137},
		"ended by itself":  {func(*testing.T, string, *program) {}, 0},
		"ended by failing": {func(t *testing.T, id string, _ *program) { killMember(t, id, "weft-lab-etcd") }, 1},
	}
	for name, c := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := netlab.NewID()
			p := lab(t, "run", "--name", id, "--nodes", "2", "--pods-per-node", "1", "--iperf-seconds", "5", "--iperf-rounds", "1") // it must not end before it is ended
			if name == "ended by failing" {
				p.Args = append(p.Args, "--agent-arg=--no-such-flag")
				must(t, p.Start())
			} else {
				p.started(t, "pods attached")
				ns := footprint(t, id)
				if len(ns) < 5 { // fabric, two nodes, two pods
					t.Errorf("a running lab has namespaces %v", ns)
				}
				defer gone(t, id, ns)
				c.end(t, id, p)
			}
			p.Wait() // the status is looked at below
			if got := p.ProcessState.ExitCode(); got != c.code {
				t.Errorf("status %d, want %d; it says\n%s", got, c.code, p.said())
			}
			gone(t, id, nil)
		})
	}
}

func killMember(t *testing.T, id, name string) {
	t.Helper()
	pid := member(id, name)
	if pid == 0 {
		t.Fatalf("no %s in lab %s", name, id)
	}
	must(t, syscall.Kill(pid, syscall.SIGKILL))
}

// Two labs at the same time, with the same node and pod names and addresses.
func TestTwoLabsAtOnce(t *testing.T) {
	t.Parallel()
	var labs []*program
	for range 2 {
		p := lab(t, "run", "--iperf-seconds", "0", "-o", "json")
		must(t, p.Start())
		labs = append(labs, p)
	}
	var ids []string
	for _, p := range labs {
		if err := p.Wait(); err != nil {
			t.Fatalf("%v: %s", err, p.said())
		}
		var r struct {
			Lab   string            `json:"lab"`
			OK    bool              `json:"ok"`
			Pings []json.RawMessage `json:"pings"`
		}
		must(t, json.Unmarshal(p.stdout.Bytes(), &r)) // one document and nothing else
		if !r.OK || len(r.Pings) != 6*5*2 {
			t.Errorf("lab %s: ok %t with %d pings, want true with 60", r.Lab, r.OK, len(r.Pings))
		}
		ids = append(ids, r.Lab)
		gone(t, r.Lab, nil)
	}
	if ids[0] == ids[1] {
		t.Errorf("both labs are %s", ids[0])
	}
}

// A lab that stands can be entered, does not end with its launcher, and is
// gone after down.
func TestUpExecDown(t *testing.T) {
	t.Parallel()
	id := netlab.NewID()
	p := lab(t, "up", "--name", id, "--nodes", "2", "--pods-per-node", "1")
	if err := p.Run(); err != nil {
		t.Fatalf("%v: %s", err, p.said())
	}
	r, err := netlab.LoadRecord(id)
	must(t, err)
	t.Cleanup(func() {
		if r.Alive() == nil {
			r.Down() // only after a failure above
		}
	})
	ns := footprint(t, id)
	in := func(want int, args ...string) string {
		t.Helper()
		e := lab(t, append([]string{"exec", "--lab", id}, args...)...)
		e.Run() // the status is looked at below
		if got := e.ProcessState.ExitCode(); got != want {
			t.Errorf("exec %q: status %d, want %d: %s", args, got, want, e.said())
		}
		return strings.TrimSpace(e.said())
	}
	if got := in(0, "n2", "--", "hostname"); got != "n2" {
		t.Errorf("the host name on n2 is %q", got)
	}
	in(0, "n1", "--", "weft", "status")
	in(7, "n1", "--", "sh", "-c", "exit 7")
	in(1, "n3", "--", "true")
	devices := strings.Fields(in(0, "n1-p1", "--", "sh", "-c", "ip -br link | cut -d@ -f1 | cut -d' ' -f1"))
	if !slices.Equal(devices, []string{"lo", "eth0"}) {
		t.Errorf("devices in pod n1-p1: %q", devices)
	}
	interruptible(t, id)
	second := lab(t, "up", "--name", id, "--nodes", "1", "--pods-per-node", "0")
	if second.Run() == nil {
		t.Errorf("a second lab %s stands", id)
	}
	if err := r.Alive(); err != nil {
		t.Error(err)
	}
	wrong := r
	wrong.Ticks++ // as if the process number had been used again
	if err := wrong.Alive(); err == nil {
		t.Error("a process that started at another time is taken for the lab")
	}
	d := lab(t, "down", id)
	if err := d.Run(); err != nil {
		t.Errorf("%v: %s", err, d.said())
	}
	gone(t, id, ns)
}

// interruptible checks that Ctrl-C, which goes to every process of the
// terminal's foreground group, is the command's and not the end of what
// entered the lab for it.
func interruptible(t *testing.T, id string) {
	t.Helper()
	c := lab(t, "exec", "--lab", id, "n1", "--", "sh", "-c", `trap "exit 9" INT; echo ready; while :; do sleep 0.1; done`)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.started(t, "ready")
	must(t, syscall.Kill(-c.Process.Pid, syscall.SIGINT))
	c.Wait() // the status is looked at below
	if got := c.ProcessState.ExitCode(); got != 9 {
		t.Errorf("exec after Ctrl-C: status %d, want the command's 9: %s", got, c.said())
	}
}

// Wrong usage names what is wrong and what is allowed, and builds nothing.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"run", "--nodes", "0"}, "--nodes 0: want 1 to 200", 2},
		{[]string{"run", "--underlay", "ipx"}, `underlay "ipx": want dual, ipv4 or ipv6`, 2},
		{[]string{"run", "-o", "xml"}, `--output "xml": want table or json`, 2},
		{[]string{"run", "--mtu", "900"}, "--mtu 900: want 1280 to 65535", 2},
		{[]string{"dance"}, "dance", 2},
		{[]string{"down", "no-such-lab"}, "no lab no-such-lab stands", 1},
		{[]string{"run", "--bin-dir", "/nowhere"}, "no weftd in /nowhere", 1},
		{[]string{"run", "--etcd", "10.0.0.1:2379"}, "want a URL like http://10.0.0.1:2379", 1},
	} {
		p := lab(t, c.args...)
		start := time.Now()
		p.Run() // the status is looked at below
		if got := p.ProcessState.ExitCode(); got != c.code || !strings.Contains(p.said(), c.want) {
			t.Errorf("%q: status %d, want %d, and a mention of %q; after %s it says\n%s", c.args, got, c.code, c.want, time.Since(start), p.said())
		}
	}
}

// Without root the program says so, and nothing else. It is run from a copy:
// the checkout may lie where nobody else may look.
func TestNeedsRoot(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "weft-lab-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	p := lab(t, "run")
	// Copied by a process of its own: what we wrote ourselves might still be
	// open in a child of another test, and a busy file cannot be run.
	must(t, exec.Command("install", "-m", "755", p.Path, dir).Run())
	p.Path = filepath.Join(dir, "weft-lab")
	p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}} // nobody
	if err := p.Run(); err == nil || !strings.Contains(p.said(), "needs root") {
		t.Errorf("%v; it says %q", err, p.said())
	}
}

// The tools that a lab needs are named when they are missing, with what
// installs them.
func TestMissingToolsAreNamed(t *testing.T) {
	t.Parallel()
	p := lab(t, "run")
	p.Env = []string{"PATH=/nonexistent"}
	if p.Run() == nil {
		t.Fatal("it runs without tools")
	}
	for _, want := range []string{"ip", "ping", "iperf3", "make deps"} {
		if !strings.Contains(p.said(), want) {
			t.Errorf("no mention of %q in %q", want, p.said())
		}
	}
}
