// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/subnet"
)

// netns is a network namespace without a name: it lives as long as the thread
// that made it.
type netns struct {
	path string // under /proc, valid for every process
	work chan func()
	gone chan struct{}
	once sync.Once
}

// newNetns makes a network namespace that goes away when the test ends.
func newNetns(t testing.TB) *netns {
	t.Helper()
	n, err := startThread(func() error { return syscall.Unshare(syscall.CLONE_NEWNET) })
	if err != nil {
		t.Fatalf("make a network namespace: %v (the tests need root)", err)
	}
	t.Cleanup(n.end)
	return n
}

// startThread starts a thread that goes into a namespace and works there.
func startThread(into func() error) (*netns, error) {
	n := &netns{work: make(chan func()), gone: make(chan struct{})}
	in := make(chan error)
	go func() {
		// Never unlocked: the thread must not return to the pool.
		runtime.LockOSThread()
		err := into()
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), syscall.Gettid())
		in <- err
		for err == nil {
			select {
			case f := <-n.work:
				f()
			case <-n.gone:
				return
			}
		}
	}()
	return n, <-in
}

// end makes the namespace go away, as when the last process of a pod ends.
// The kernel takes its devices down a little later.
func (n *netns) end() {
	n.once.Do(func() { close(n.gone) })
}

// do runs f inside; processes that f starts live there too. It reports false
// when the namespace has gone.
func (n *netns) do(f func()) bool {
	done := make(chan struct{})
	select {
	case n.work <- func() { defer close(done); f() }:
		<-done
		return true
	case <-n.gone:
		return false
	}
}

// run runs a command inside.
func (n *netns) run(t testing.TB, name string, args ...string) {
	t.Helper()
	n.do(func() {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
	})
}

// bind gives a namespace a name, as runtimes do.
func bind(t testing.TB, ns, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(ns, path, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s to %s: %v", path, ns, err)
	}
}

func unbind(t testing.TB, path string) {
	t.Helper()
	if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
		t.Errorf("unbind %s: %v", path, err)
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}

// ip runs iproute2 inside, with JSON output into v.
func (n *netns) ip(t testing.TB, v any, args ...string) {
	t.Helper()
	var out []byte
	var err error
	n.do(func() { out, err = exec.Command("ip", append([]string{"-j"}, args...)...).Output() })
	if err != nil {
		t.Fatalf("ip %s: %v", strings.Join(args, " "), err)
	}
	if err := json.Unmarshal(out, v); err != nil {
		t.Fatalf("ip %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// plugins are directories with the plugin under test and the delegates.
type plugins []string

// buildPlugins compiles the plugin under test. The reference plugins are
// those of `make build`; missing ones are compiled from the module that pins
// them.
func buildPlugins(t testing.TB) plugins {
	t.Helper()
	dir := t.TempDir()
	goBuild(t, "build", "-o", filepath.Join(dir, "weft"), ".")
	made := filepath.Join("..", "bin", "cni")
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		if _, err := os.Stat(filepath.Join(made, name)); err != nil {
			goBuild(t, "-C", filepath.Join("..", "dist", "cni-plugins"), "build", "-ldflags", "-s -w", "-o", dir, "tool")
			return plugins{dir}
		}
	}
	made, err := filepath.Abs(made)
	if err != nil {
		t.Fatal(err)
	}
	return plugins{dir, made}
}

func goBuild(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// node is a machine as the plugin sees it: a network namespace, subnet.env,
// and directories for states and addresses.
type node struct {
	*netns
	plugins plugins
	dir     string
	conf    map[string]any
}

// newNode makes a node with a lease of testdata/env, or none when lease is "".
// Its agent is not running.
func newNode(t testing.TB, p plugins, lease string) *node {
	t.Helper()
	n := &node{netns: newNetns(t), plugins: p, dir: shortDir(t)}
	if lease != "" {
		if err := subnet.WriteSubnetEnv(n.subnetFile(), leaseOf(t, lease)); err != nil {
			t.Fatal(err)
		}
	}
	n.conf = map[string]any{
		"cniVersion": "1.0.0", "name": "weft", "type": "weft",
		"subnetFile": n.subnetFile(), "dataDir": n.dataDir(), "agentSocket": n.dir + "/weftd.sock",
		"delegate": map[string]any{"hairpinMode": true, "isDefaultGateway": true},
		"ipam":     map[string]any{"dataDir": n.dir + "/ipam"},
	}
	return n
}

func (n *node) subnetFile() string { return n.dir + "/subnet.env" }
func (n *node) dataDir() string    { return n.dir + "/state" }

// states lists what the plugin remembers.
func (n *node) states(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, name := range names(t, n.dataDir()) {
		if name != ".flight" {
			all = append(all, name)
		}
	}
	return append(all, names(t, n.dataDir()+"/.flight")...)
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

// addresses lists what host-local holds for the network.
func (n *node) addresses(t testing.TB) []string {
	t.Helper()
	var held []string
	for _, name := range names(t, n.dir+"/ipam/weft") {
		if name != "lock" && !strings.HasPrefix(name, "last_reserved_ip") {
			held = append(held, name)
		}
	}
	return held
}

// clean checks that nothing of any attachment is left.
func (n *node) clean(t testing.TB) {
	t.Helper()
	if held, states := n.addresses(t), n.states(t); held != nil || states != nil {
		t.Errorf("left behind: addresses %v, states %v", held, states)
	}
	var ports []struct{ Ifname string }
	n.ip(t, &ports, "link", "show", "type", "veth")
	if len(ports) != 0 {
		t.Errorf("left behind: %v", ports)
	}
}

// call is one call of a plugin.
type call struct {
	command, id, ifName, netns, args string
	plugin                           string         // default "weft"
	conf                             map[string]any // default: the node's
	raw                              []byte         // configuration as bytes, instead of conf
	path                             []string       // searched before the node's plugins
}

// outcome is how a call ended.
type outcome struct {
	stdout, stderr string
	err            *types.Error // nil for success
}

// run calls a plugin on the node as a runtime would.
func (n *node) run(t testing.TB, c call) outcome {
	t.Helper()
	cmd := n.command(t, c)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var err error
	n.do(func() { err = cmd.Run() })
	o := outcome{stdout: stdout.String(), stderr: stderr.String()}
	if err != nil {
		o.err = new(types.Error)
		if json.Unmarshal(stdout.Bytes(), o.err) != nil || o.err.Msg == "" {
			t.Fatalf("%s: %v without a CNI error\nstdout: %s\nstderr: %s", c.command, err, &stdout, &stderr)
		}
	}
	return o
}

// command prepares a call. The caller runs it inside the node.
func (n *node) command(t testing.TB, c call) *exec.Cmd {
	t.Helper()
	path := append(append([]string{}, c.path...), n.plugins...)
	if c.conf == nil {
		c.conf = n.conf
	}
	if c.raw == nil {
		c.raw = encode(t, c.conf)
	}
	if c.plugin == "" {
		c.plugin = "weft"
	}
	var cmd *exec.Cmd
	for _, dir := range path {
		if file := filepath.Join(dir, c.plugin); cmd == nil {
			if _, err := os.Stat(file); err == nil {
				cmd = exec.Command(file)
			}
		}
	}
	if cmd == nil {
		t.Fatalf("no plugin %s in %v", c.plugin, path)
	}
	cmd.Stdin = bytes.NewReader(c.raw)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + strings.Join(path, ":")}
	for name, value := range map[string]string{"COMMAND": c.command, "CONTAINERID": c.id, "IFNAME": c.ifName, "NETNS": c.netns, "ARGS": c.args} {
		if value != "" {
			cmd.Env = append(cmd.Env, "CNI_"+name+"="+value)
		}
	}
	return cmd
}

// ok runs a call that must succeed without a word on stderr.
func (n *node) ok(t testing.TB, c call) outcome {
	t.Helper()
	o := n.run(t, c)
	if o.err != nil {
		t.Fatalf("%s: code %d: %v", c.command, o.err.Code, o.err)
	}
	if o.stderr != "" {
		t.Errorf("%s writes to stderr: %s", c.command, o.stderr)
	}
	return o
}

// fails runs a call that must fail with a code and all of some texts.
func (n *node) fails(t testing.TB, c call, code uint, texts ...string) {
	t.Helper()
	o := n.run(t, c)
	if o.err == nil {
		t.Fatalf("%s succeeds: %s", c.command, o.stdout)
	}
	if o.err.Code != code {
		t.Errorf("%s: code %d (%v), want %d", c.command, o.err.Code, o.err, code)
	}
	for _, text := range texts {
		if !strings.Contains(o.err.Error(), text) {
			t.Errorf("%s: error %q does not say %q", c.command, o.err, text)
		}
	}
	if o.stderr != "" {
		t.Errorf("%s writes to stderr: %s", c.command, o.stderr)
	}
}

// with returns the node's configuration with changed fields; nil removes one.
func (n *node) with(fields map[string]any) map[string]any {
	conf := map[string]any{}
	for _, m := range []map[string]any{n.conf, fields} {
		for k, v := range m {
			if conf[k] = v; v == nil {
				delete(conf, k)
			}
		}
	}
	return conf
}

// runtime returns libcni as a runtime would set it up, and the network list.
func (n *node) runtime(t testing.TB, list map[string]any) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	t.Helper()
	l, err := libcni.NetworkConfFromBytes(encode(t, list))
	if err != nil {
		t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir(n.plugins, n.dir+"/cache", nil), l
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
