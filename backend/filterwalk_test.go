// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
)

// TestRefused counts what the guard drops, by reason.
func TestRefused(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	if n, err := k.Refused(t.Context()); err != nil || len(n) != 0 {
		t.Errorf("without a table: %v, %v", n, err)
	}
	pass(t, k, filterState(filter(), 1))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	vxlan := append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, make([]byte, 12)...) // VNI 1
	vxlan = append(vxlan, 8, 0)                                          // IPv4
	vxlan = append(vxlan, make([]byte, 40)...)
	for range 3 {
		if err := unix.Sendto(fd, vxlan, 0, &unix.SockaddrInet4{Port: 8472, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
	}
	n, err := k.Refused(t.Context())
	want := "map[ethertype:0 fragment:0 inner:0 outer:3 pod_vxlan:0 router_advertisement:0]"
	if fmt.Sprint(n) != want || err != nil {
		t.Errorf("got %v, %v, want %s", n, err, want)
	}
}

// TestFilterChurnElsewhere: others' transactions, some hundred a second and
// only to their own tables, keep no dump from being whole and true.
func TestFilterChurnElsewhere(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	want := filterState(filter(), 2000)
	pass(t, k, want)
	other, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	before := generation(t, k)
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			case <-tick.C:
			}
			if err := other.Apply(t.Context(), nft.Plan{Table: nft.Table{Family: nft.Inet, Name: fmt.Sprint("t", i%2)}, Replace: true}); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 20 {
		if have := mustDump(t, k); !have.Equal(want) {
			t.Errorf("dumped %v, want %v", have.Counts(), want.Counts())
		}
	}
	n := generation(t, k) - before
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if n < 20 {
		t.Errorf("only %d transactions meanwhile: this proves nothing", n)
	}
}

// guards are the ways to have a table, and none.
func guards() []named {
	return []named{
		{"no table", []edit{guard("", false)}},
		{"bind", []edit{guard(overlay.GuardBind, true)}},
		{"bind, no masquerading", []edit{guard(overlay.GuardBind, false)}},
		{"peers", []edit{guard(overlay.GuardPeers, true)}},
		{"masquerading", []edit{guard("", true)}},
		{"off", []edit{guard(overlay.GuardOff, false)}},
	}
}

func guard(g overlay.Guard, masquerade bool) edit {
	return func(s *scenario) { s.self.Guard, s.self.Masquerade = g, masquerade }
}

// TestWalkGuarded walks through all states with each way to have a table.
// After each step the kernel holds what is desired of both, and a further pass
// is no transaction.
func TestWalkGuarded(t *testing.T) {
	t.Parallel()
	enterNetns(t)
	walkNetns(t)
	k := newKernel(t, walkDevices()...)
	m := newMonitor(t)
	r, states, modes := seed(t), walkStates(), guards()
	var at named
	tables := map[overlay.Filter]bool{}
	for range 150 {
		s, g := states[r.IntN(len(states))], modes[r.IntN(len(modes))]
		next := named{s.name + ", " + g.name, append(slices.Clone(s.edits), g.edits...)}
		step(t, k, m, at, next)
		if t.Failed() {
			return
		}
		at = next
		have, before := mustDump(t, k), generation(t, k)
		pass(t, k, have)
		if n := generation(t, k) - before; n != 0 {
			t.Fatalf("%s: %d transactions with nothing to do", next.name, n)
		}
		for f := range have.Filters {
			tables[f] = true
		}
	}
	if len(tables) < 10 {
		t.Errorf("only %d different tables: this proves nothing", len(tables))
	}
}

// TestGuardBeforeLinks: in a first pass the guard and its entries stand before
// the device does, and an uninstall takes the device before them.
func TestGuardBeforeLinks(t *testing.T) {
	enterNetns(t)
	walkNetns(t)
	k := newKernel(t, walkDevices()...)
	s := named{"bind", []edit{guard(overlay.GuardBind, true)}}.scenario()
	want := s.desired(t, overlay.NewState())
	up := overlay.Diff(want, overlay.NewState())
	down := overlay.Diff(overlay.NewState(), want)
	for _, c := range []struct {
		name   string
		from   overlay.State
		script overlay.Changes
	}{{"up", overlay.NewState(), up}, {"down", want, down}} {
		for n := range c.script {
			if c.script[n].Kind() != "link" {
				continue
			}
			// Stop right after the link's change, as a crash would.
			pass(t, k, c.from)
			mustApply(t, k, c.script[:n+1]...)
			have := mustDump(t, k)
			if len(have.Links) > 0 && (!maps.Equal(have.Filters, want.Filters) || !maps.Equal(have.Sources, want.Sources) || !maps.Equal(have.Nodes, want.Nodes) || !maps.Equal(have.Pods, want.Pods)) {
				t.Errorf("%s: after %q there are %d links, and of the guard %v", c.name, c.script[n], len(have.Links), have.Counts())
			}
			pass(t, k, overlay.NewState())
		}
	}
}

// TestStepsWithoutFilter goes through the states of the walk with a kernel
// that leaves nftables alone. The other way is how the walk itself runs.
func TestStepsWithoutFilter(t *testing.T) {
	t.Parallel()
	enterNetns(t)
	walkNetns(t)
	k := newKernelWithoutFilter(t, walkDevices()...)
	m := newMonitor(t)
	var at named
	for _, s := range walkStates() {
		step(t, k, m, at, s)
		at = s
	}
}

func newKernelWithoutFilter(t testing.TB, devices ...string) *Kernel {
	t.Helper()
	k, err := New(Options{Devices: devices})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}
