// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
)

// A table of policy.MaxRows can be loaded, changed, read and taken away.
func TestFullTable(t *testing.T) {
	h := nshost.New(t)
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as weftd
	p := NewProgrammer(dial(t, h), params())
	table := &policy.Table{Pairs: map[policy.Pair]policy.PortSet{}, Rows: map[policy.Row]bool{}}
	for i := range policy.MaxRows / 2 {
		set := policy.PortSet(i/16 + 1)
		table.Pairs[policy.Pair{Direction: policy.Ingress, Class: 1, Identity: policy.Identity(i + 1)}] = set
		table.Rows[policy.Row{Set: set, Proto: policy.TCP, Port: uint16(i%16 + 1)}] = true
	}
	was := slab(t)
	step := func(what string, f func() (Report, error)) {
		start := time.Now()
		r, err := f()
		if err != nil || r.Unlabelled != nil {
			t.Fatalf("%s: %+v, %v", what, r, err)
		}
		t.Logf("%s: +%d -%d in %v, the kernel's slabs are %d MiB larger, %d MiB from the system", what, r.Added, r.Deleted, time.Since(start).Round(time.Millisecond), (slab(t)-was)>>20, system())
		if n := system(); n > mostMemory {
			t.Errorf("%s: %d MiB from the system, want at most %d", what, n, mostMemory)
		}
	}
	step("load", func() (Report, error) { return p.Update(t.Context(), table, lease()) })
	step("read", func() (Report, error) { return p.Sync(t.Context(), table, lease()) })
	less := clone(table)
	delete(less.Pairs, policy.Pair{Direction: policy.Ingress, Class: 1, Identity: 1})
	step("one pair less", func() (Report, error) { return p.Update(t.Context(), less, lease()) })
	step("empty", func() (Report, error) { return p.Update(t.Context(), &policy.Table{}, lease()) })
	if n := len(p.have.stale); n != len(less.Rows) {
		t.Errorf("%d rows stay, want %d", n, len(less.Rows))
	}
	step("read again", func() (Report, error) { return p.Sync(t.Context(), &policy.Table{}, lease()) })
}

// mostMemory is what the limit in the manifest leaves, in MiB.
const mostMemory = 150

// system is what the runtime has from the system and has not given back, in MiB.
func system() int {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.Sys-m.HeapReleased) >> 20
}

// slab is the size of the machine's slabs, in bytes.
func slab(t *testing.T) int {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^Slab: +(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no Slab in\n%s", b)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
