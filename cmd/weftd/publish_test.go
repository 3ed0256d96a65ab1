// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// still is a kernel that holds what it should, or that cannot be read.
type still struct {
	have overlay.State
	err  error
}

func (k *still) Dump(context.Context, overlay.Digest) (overlay.State, error) { return k.have, k.err }
func (k *still) Apply(context.Context, overlay.Changes) error                { return nil }

// running returns an agent whose reconciler runs on a kernel that fails with
// err, and has what it needs; changed is poked after each pass.
func running(t *testing.T, err error, args ...string) (a *agent, cfg subnet.Config, changed chan struct{}) {
	t.Helper()
	a = newAgent(parse(t, nil, args...), newLogger(parse(t, nil), testWriter{t}))
	cfg, confErr := subnet.ParseConfig([]byte(`{"Network":"10.42.0.0/16"}`), "test", subnet.Defaults{})
	store, storeErr := storeOf(a)
	if confErr != nil || storeErr != nil {
		t.Fatal(confErr, storeErr)
	}
	a.store = store
	t.Cleanup(func() { store.Close() })
	addr := netip.MustParseAddr("192.0.2.1")
	self := overlay.Self{
		Lease: subnet.Lease{Node: "n1", Backend: subnet.BackendVXLAN, Paths: []subnet.Path{{
			Subnet: netip.MustParsePrefix("10.42.1.0/24"), Underlay: addr, VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, 1},
		}}},
		Underlays: []overlay.Underlay{{Dev: "eth0", Addr: addr, MTU: 1500}}, Names: presetFor(false).names,
	}
	have, _ := overlay.Desired(self, cfg, nil, overlay.NewState())
	changed = make(chan struct{}, 1)
	r := overlay.NewReconciler(&still{have, err}, overlay.Options{
		Config: cfg, Resync: 20 * time.Millisecond, MinGap: time.Millisecond, OnStatus: func(overlay.Status) { poke(changed) },
	})
	r.SetSelf(self)
	r.SetSnapshot(subnet.Snapshot{})
	a.reconciler.Store(r)
	a.network.Store(&cfg)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	return a, cfg, changed
}

// eventually waits until ok, and fails with what after a while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// Files are level-triggered like the kernel: one that is removed or altered
// comes back, and while it cannot be written the node is not ready and says why.
func TestFilesComeBack(t *testing.T) {
	dir := t.TempDir()
	env, conf := filepath.Join(dir, "run", "subnet.env"), filepath.Join(dir, "net.d", "05-weft.conflist")
	a, _, changed := running(t, nil, "--subnet-file="+env, "--cni-conf="+conf)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.publish(ctx, changed, a.reconciler.Load()) }()
	defer func() { stop(); <-done }()
	ready := func() bool { return a.status().Ready }
	eventually(t, "not ready at first", ready)
	want, err := os.ReadFile(env)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{env, conf} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		eventually(t, path+" does not come back", func() bool { _, err := os.Stat(path); return err == nil })
	}
	if err := os.WriteFile(env, []byte("FLANNEL_SUBNET=10.42.9.1/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an altered subnet file stays", func() bool { b, _ := os.ReadFile(env); return string(b) == string(want) })

	// A file where the directory was: nothing can be written below it. The
	// agent may be quicker and make the directory anew.
	eventually(t, "the directory stays", func() bool {
		return errors.Join(os.RemoveAll(filepath.Dir(env)), os.WriteFile(filepath.Dir(env), nil, 0o600)) == nil
	})
	eventually(t, "ready without a subnet file", func() bool { s := a.status(); return !s.Ready && strings.Contains(s.Reason, "not a directory") })
	if err := os.Remove(filepath.Dir(env)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "does not recover", ready)
}

func TestOnceFailsWhenAFileCannotBeWritten(t *testing.T) {
	a, _, changed := running(t, nil, "--once", "--subnet-file=/proc/weft/subnet.env")
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := a.publish(ctx, changed, a.reconciler.Load()); err == nil || !strings.Contains(err.Error(), "/proc/weft") {
		t.Errorf("%v", err)
	}
}

// With etcd out of reach and the kernel in disorder it is the kernel that
// makes the node unready.
func TestTheKernelIsBlamedNotTheStore(t *testing.T) {
	a, _, _ := running(t, errors.New("weft.1 is a bridge"), "--etcd-endpoints=http://127.0.0.1:1")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = a.store.Config(ctx) // waits, with a Reason
	}()
	defer func() { stop(); <-done }()
	eventually(t, "the store waits for nothing", func() bool { return a.store.Reason() != "" })
	eventually(t, "the kernel is not blamed", func() bool { return strings.Contains(a.status().Reason, "weft.1 is a bridge") })

	a.held.Store(&subnet.Problem{Kind: "LeaseLost", Object: "n1", Detail: "n2 has it"})
	_, body := request(t, a.healthRoutes(), "/readyz?verbose")
	for _, want := range []string{"[-]lease failed: n2 has it", "[-]kernel failed: read the kernel's state: weft.1 is a bridge"} {
		if !strings.Contains(body, want) {
			t.Errorf("lacks %q:\n%s", want, body)
		}
	}
}

func TestAnUnderlayThatIsGoneIsAProblem(t *testing.T) {
	a, _, _ := running(t, nil)
	gone := func() bool {
		return slices.ContainsFunc(a.status().Problems, func(p subnet.Problem) bool { return p.Kind == "NoUnderlay" })
	}
	a.tellUnderlay(context.Background(), errors.New("eth0 is down"))
	if !gone() {
		t.Error("not told")
	}
	a.tellUnderlay(context.Background(), nil)
	if gone() {
		t.Error("still told")
	}
}
