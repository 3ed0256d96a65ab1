// SPDX-License-Identifier: Apache-2.0

package store

import (
	"path/filepath"
	"testing"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// restart stops the server, does what is to be done to its data, and starts
// it again.
func (e *env) restart(between ...func() error) {
	e.Helper()
	for _, f := range append(append([]func() error{e.srv.Stop}, between...), e.srv.Start) {
		if err := f(); err != nil {
			e.Fatal(err)
		}
	}
}

// TestBackupRestored puts yesterday's etcd in place of today's (F13). In it
// one node holds what it holds today, one has another life's etcd lease, one
// is missing, one has another name, and one holds the subnet that today is
// another's, and not its own of today. All take back what they had, no Hold
// ends, and a watcher is told nothing but that the store was restored.
func TestBackupRestored(t *testing.T) {
	each(t, func(*testing.T) etcdtest.Options { return etcdtest.Options{} }, func(e *env, _ etcdtest.Options) {
		long := func(o *etcd.Options) { o.LeaseTTL = time.Hour }
		cfg := v4(e)
		hold := func(l subnet.Lease) *holding {
			h := e.hold(e.store(long), cfg, l)
			h.granted()
			return h
		}
		old := want(cfg, 3)
		old.Node = "oldname"
		same := hold(at(want(cfg, 1), "10.42.1.0/24"))
		again := hold(at(want(cfg, 2), "10.42.2.0/24"))
		named := hold(at(old, "10.42.3.0/24"))
		moved := hold(at(want(cfg, 4), "10.42.4.0/24"))

		file := filepath.Join(e.TempDir(), "yesterday")
		e.restart(func() error { return e.srv.Backup(file) })

		again.stop()
		again = hold(want(cfg, 2))
		named.stop()
		named = hold(at(want(cfg, 3), "10.42.3.0/24"))
		moved.stop()
		e.del(e.key("10.42.4.0-24"))
		moved = hold(at(want(cfg, 4), "10.42.14.0/24"))
		heir := hold(at(want(cfg, 5), "10.42.4.0/24"))
		late := hold(at(want(cfg, 6), "10.42.6.0/24"))
		today := e.leases()
		if len(today) != 6 {
			e.Fatalf("%d leases today, want 6: %v", len(today), today)
		}
		for range 30 { // yesterday is to be well behind
			e.put(e.prefix+"/other", "x")
		}
		w := e.watch(e.store(long))

		e.restart(func() error { return e.srv.Restore(file) })
		e.eventually("today's leases in yesterday's etcd", func() bool { return leasesOf(subnet.Snapshot{Leases: subnet.LeasesOf(e.list()...)}, today) })
		for _, h := range []*holding{same, again, named, moved, heir, late} {
			select {
			case err := <-h.err:
				e.Errorf("a Hold ended: %v", err)
			default:
			}
		}
		e.eventually("the problem", func() bool { return hasProblem(w.last(), "StoreRewound") })
		for _, snap := range w.all() {
			if !leasesOf(snap, today) {
				e.Errorf("a watcher was told %+v", snap)
			}
		}
	})
}

// leases are the leases in the store by key.
func (e *env) leases() map[string]subnet.Lease {
	e.Helper()
	all := make(map[string]subnet.Lease)
	for _, x := range e.entries() {
		all[x.key] = x.Lease
	}
	return all
}

// list are the leases in the store.
func (e *env) list() []subnet.Lease {
	e.Helper()
	var all []subnet.Lease
	for _, x := range e.entries() {
		all = append(all, x.Lease)
	}
	return all
}

func hasProblem(snap subnet.Snapshot, kind string) bool {
	for _, p := range snap.Problems {
		if p.Kind == kind {
			return true
		}
	}
	return false
}
