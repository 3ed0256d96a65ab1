// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

func TestMain(m *testing.M) {
	if code, ran := Stage(os.Args); ran {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// setEnv carries the configuration to the control process; crashEnv is the
// file that it makes when it waits to be killed, idEnv the cluster's ID then.
const (
	setEnv   = "WEFT_E2E_TEST_CONFIG"
	crashEnv = "WEFT_E2E_TEST_CRASH"
	idEnv    = "WEFT_E2E_TEST_ID"
)

// needRoot fails at once instead of with the first namespace.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("namespaces and control groups need root")
	}
}

// fromCache builds what is missing of the parts, which may take longer than
// tests should: `make test` leaves TestCluster to `make e2e`.
func fromCache(t *testing.T) Config {
	t.Helper()
	needRoot(t)
	root, err := parts.Root()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := parts.Open("", root, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	set, err := cache.Build(t.Context(), parts.E2ETest)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Nodes: 2, Family: "dual", Proxy: "nftables", Parts: set, LogDir: t.TempDir()}
}

// launchTest starts this test again inside a cluster's lab.
func launchTest(ctx context.Context, t *testing.T, id string, cfg Config, env ...string) (int, error) {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return Launcher{
		ID: id, Args: []string{"-test.run=^" + t.Name() + "$", "-test.v"}, Env: append(env, setEnv+"="+string(b)),
		Stdout: os.Stdout, Stderr: os.Stderr,
	}.Run(ctx)
}

// inside enters the lab with the configuration that the launcher was given.
func inside(t *testing.T) *Cluster {
	t.Helper()
	var cfg Config
	if err := json.Unmarshal([]byte(os.Getenv(setEnv)), &cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Progress = os.Stderr
	c, err := enter(cfg)
	if err == nil {
		err = c.assemble()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// traces lists what a cluster has on the machine: control groups, processes.
func traces(t *testing.T, id string) (all []string) {
	t.Helper()
	names, err := cgroupNames(id)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, names...)
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		env, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(env), "\x00"+netlab.IDEnv+"="+id+"\x00") {
			all = append(all, p)
		}
	}
	return all
}

// A cluster comes up NotReady, becomes Ready by a network, and its pods reach
// each other and the API through services. Nothing is left of it.
func TestCluster(t *testing.T) {
	if !netlab.Inside() {
		id := NewID()
		code, err := launchTest(t.Context(), t, id, fromCache(t))
		if err != nil || code != 0 {
			t.Errorf("status %d, %v", code, err)
		}
		if left := traces(t, id); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := inside(t)
	t.Cleanup(func() {
		if t.Failed() {
			c.Report(context.Background(), os.Stdout)
		}
	})
	if err := c.boot(ctx); err != nil {
		t.Fatal(err)
	}
	states, err := c.NodeStates(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if s.Ready || !strings.Contains(s.Reason, "network") {
			t.Errorf("%s without a network: ready %t, %s", s.Name, s.Ready, s.Reason)
		}
	}
	root, err := parts.Root()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StaticNetwork(ctx, filepath.Join(root, "bin/cni")); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	c.Progress("ready")
	if err := c.InstallDNS(ctx); err != nil {
		t.Fatal(err)
	}
	c.Progress("DNS")
	run := []string{"run", "probe", "--image=" + parts.AgnhostImage, "--image-pull-policy=Never", "--restart=Never", "--command", "--", "sleep", "1000"}
	if _, err := c.Kubectl(ctx, run...); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/probe", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	out, err := c.Kubectl(ctx, "exec", "probe", "--", "sh", "-c",
		"dig +short kubernetes.default.svc.cluster.local && curl -sk https://kubernetes.default.svc.cluster.local/version")
	if err != nil || !strings.Contains(out, serviceAddr(c.cfg.Families()[0], 1).String()) || !strings.Contains(out, "gitVersion") {
		t.Errorf("a pod sees %q, %v", out, err)
	}
	if err := c.Collect(ctx); err != nil {
		t.Errorf("collect: %v", err)
	}
}

// bare is the configuration of a cluster that is never started.
func bare(t *testing.T) Config {
	t.Helper()
	needRoot(t)
	return Config{Nodes: 2, Family: "dual", Proxy: "nftables", LogDir: t.TempDir()}
}

// A node has its own addresses, name, files, control groups and devices, and
// shows settings that are the machine's as the kubelet wants them, so that it
// does not set them.
func TestNodes(t *testing.T) {
	if !netlab.Inside() {
		id := NewID()
		before := tunables(t)
		if code, err := launchTest(t.Context(), t, id, bare(t)); err != nil || code != 0 {
			t.Errorf("status %d, %v", code, err)
		}
		if left := traces(t, id); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if after := tunables(t); after != before {
			t.Errorf("the machine's settings were %q and are %q", before, after)
		}
		return
	}
	c := inside(t)
	for _, n := range c.nodes {
		for _, peer := range c.nodes {
			for _, a := range peer.Addrs() {
				if _, err := n.Run(t.Context(), "ping", "-c1", "-W2", a.String()); err != nil {
					t.Error(err)
				}
			}
		}
		out, err := n.Run(t.Context(), "sh", "-ec", `hostname; ls /sys/class/net; cat /proc/sys/kernel/panic /proc/sys/vm/overcommit_memory
			ls -A /opt/cni/bin /etc/cni; touch /etc/of-this-node /opt/cni/bin/of-this-node /var/lib/of-this-node
			test -n "$(find /sys/fs/cgroup -maxdepth 3 -path '*/`+c.cgroup+`/`+n.Name()+`')"; test -s /run/kubernetes/kubelet.conf; test ! -e /run/lab`)
		if err != nil {
			t.Error(err)
		}
		if got, want := strings.Fields(out), []string{n.Name(), "eth0", "lo", "10", "1", "/etc/cni:", "/opt/cni/bin:"}; !slices.Equal(got, want) {
			t.Errorf("node %s shows %q, want %q", n.Name(), got, want)
		}
	}
	if _, err := os.Stat("/etc/of-this-node"); err == nil {
		t.Error("a node can write the machine's /etc")
	}
}

// tunables are the machine's settings that a kubelet would change.
func tunables(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "cat /proc/sys/vm/overcommit_memory /proc/sys/vm/panic_on_oom /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops").CombinedOutput()
	if err != nil {
		t.Fatalf("read settings: %v: %s", err, out)
	}
	return string(out)
}

// Whatever is killed, nothing of a cluster stays: the launcher, its keeper, or
// both, so that the next keeper has to sweep.
func TestNothingStays(t *testing.T) {
	switch {
	case netlab.Inside():
		c := inside(t)
		for _, n := range c.nodes { // something that occupies the control groups
			cmd := exec.Command("sleep", "1000")
			if err := n.Start(cmd); err != nil {
				t.Fatal(err)
			}
			occupy(t, c.cgroup+"/"+n.Name(), cmd.Process.Pid)
		}
		if err := os.WriteFile(os.Getenv(crashEnv), []byte(c.cgroup), 0o644); err != nil {
			t.Fatal(err)
		}
		<-t.Context().Done()
		return
	case os.Getenv(crashEnv) != "":
		var cfg Config
		if err := json.Unmarshal([]byte(os.Getenv(setEnv)), &cfg); err != nil {
			t.Fatal(err)
		}
		launchTest(t.Context(), t, os.Getenv(idEnv), cfg) // until it is killed
		return
	}
	cfg := bare(t)
	for _, victim := range []string{"launcher", "keeper", "both"} {
		t.Run(victim, func(t *testing.T) { kill(t, cfg, victim) })
	}
}

// occupy moves a process into a control group, as a pod's are, in each
// hierarchy.
func occupy(t *testing.T, group string, pid int) {
	t.Helper()
	dirs, _, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		dir = filepath.Join(dir, group, "pod")
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			err = inheritSets(filepath.Dir(dir), dir)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// kill starts a launcher, kills it, its keeper or both when the cluster is up,
// and looks at what is left.
func kill(t *testing.T, cfg Config, victim string) {
	id := NewID()
	flag := filepath.Join(t.TempDir(), "up")
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNothingStays$")
	cmd.Env = append(os.Environ(), setEnv+"="+string(b), crashEnv+"="+flag, idEnv+"="+id)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	group, err := waitFile(t.Context(), flag, ended)
	if err != nil {
		t.Fatal(err)
	}
	keeper := group[strings.LastIndexByte(group, '.')+1:]
	if victim != "launcher" {
		if out, err := exec.Command("kill", "-KILL", keeper).CombinedOutput(); err != nil {
			t.Fatalf("kill the keeper: %v: %s", err, out)
		}
	}
	if victim != "keeper" {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	<-ended
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if victim == "both" { // nobody is left who could, but for the next one
		if err := waitKilled(ctx, t, id); err != nil {
			t.Fatal(err)
		}
		if err := sweepCgroups(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for left := traces(t, id); len(left) > 0; left = traces(t, id) {
		if netlab.Pause(ctx, 50*time.Millisecond) != nil {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// waitKilled waits until no process of a cluster is left.
func waitKilled(ctx context.Context, t *testing.T, id string) error {
	for {
		left := 0
		for _, x := range traces(t, id) {
			if strings.HasPrefix(x, "/proc") {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if err := netlab.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%d processes: %w", left, err)
		}
	}
}

// waitFile returns what is in a file once it is there.
func waitFile(ctx context.Context, path string, ended <-chan error) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			return string(b), nil
		}
		select {
		case err := <-ended:
			return "", errors.Join(errors.New("the launcher has ended"), err)
		default:
		}
		if err := netlab.Pause(ctx, 50*time.Millisecond); err != nil {
			return "", fmt.Errorf("wait for %s: %w", path, err)
		}
	}
}
