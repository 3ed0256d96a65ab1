// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/internal/nshost"
)

// listen starts a monitor and returns how often it poked.
func listen(h *nshost.Host, c *Conn, table Table) (m *Monitor, pokes *atomic.Int64) {
	h.T.Helper()
	h.Do(func() (err error) { m, err = Listen(c, table); return err })
	pokes = new(atomic.Int64)
	return m, pokes
}

func TestMonitor(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	want := Weft(params(), peers())
	m, pokes := listen(h, c, want.Table)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Watch(ctx, func() { pokes.Add(1) }) }()

	// Our own changes and other tables are no news; the change that follows
	// them on the same socket is.
	install(t, c, want)
	h.NFT("add table ip weft\nadd table inet weft2\nadd chain inet weft2 c")
	if n := pokes.Load(); n != 0 {
		t.Errorf("%d pokes for what is no news", n)
	}
	for _, script := range []string{
		"delete element inet weft peers4 { 10.0.0.2 }",
		"insert rule inet weft vxlan_outer4 accept",
		"add chain inet weft theirs",
		"add set inet weft theirs { type ipv4_addr; }",
		"add counter inet weft theirs",
		"flush ruleset",
	} {
		before := pokes.Load()
		h.NFT(script)
		nshost.Eventually(t, "a poke for "+script, func() bool { return pokes.Load() > before })
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

func TestMonitorSurvivesOverflow(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	table := Table{Family: Inet, Name: TableName}
	install(t, c, Weft(params(), nil))
	// The monitor looks at a table that is not there, so that only lost
	// events poke.
	m, pokes := listen(h, nil, Table{Family: Inet, Name: "nosuch"})
	raw, err := m.sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 { // nobody reads yet
		var some []Element
		for j := range 200 {
			some = append(some, Element{Set: "peers4", Key: string([]byte{10, 9, byte(i), byte(j)})})
		}
		if err := c.Apply(t.Context(), Plan{Table: table, Add: some}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Watch(ctx, func() { pokes.Add(1) }) }()
	nshost.Eventually(t, "a poke for lost events", func() bool { return pokes.Load() > 0 })
	lost := pokes.Load()
	h.NFT("add table inet nosuch")
	nshost.Eventually(t, "a poke after the overflow", func() bool { return pokes.Load() > lost })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

// A vandal and a repairer at once: whatever is hit, the last repair wins, and
// no dump fails because of what the vandal does meanwhile.
func TestRepairAgainstAVandal(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	want := Weft(params(), peers())
	install(t, c, want)
	vandal := dial(t, h)
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			other := Weft(params(), manyPeers(i%7))
			other.Table.Chains = other.Table.Chains[:len(other.Table.Chains)-i%3]
			plan := Diff(other, Content{})
			if i%4 == 0 {
				plan = Removal(other.Table, Content{Present: true})
			}
			if err := vandal.Apply(context.Background(), plan); err != nil {
				done <- fmt.Errorf("vandal: %w", err)
				return
			}
		}
	}()
	repaired := 0
	for range 100 {
		have, err := c.Dump(t.Context(), want.Table)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR) {
				t.Errorf("dump: %v", err)
			}
			continue
		}
		err = c.Apply(t.Context(), Diff(want, have))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) {
			t.Errorf("repair: %v", err)
		}
		repaired++
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	install(t, c, want)
	if repaired == 0 {
		t.Error("no dump in between came through")
	}
	if out := h.Run("nft list table inet weft"); !strings.Contains(out, "10.0.0.7") {
		t.Errorf("after the repair:\n%s", out)
	}
}
