// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// meddled opens a store behind a Meddler.
func (e *env) meddled(change ...func(*etcd.Options)) (*etcd.Store, *etcdtest.Meddler) {
	e.Helper()
	m := etcdtest.NewMeddler(e, e.srv.Endpoint)
	return e.store(append(change, func(o *etcd.Options) { o.Endpoints = []string{m.Endpoint} })...), m
}

// touched changes one lease of all, as its node would.
func (e *env) touched(all map[string]subnet.Lease) {
	e.Helper()
	key := slices.Sorted(maps.Keys(all))[0]
	l := all[key].Clone()
	l.Paths[0].MAC[5]++
	e.putLease(l, 0)
	all[key] = l
}

// watchClosed is F10: a server that closes watches, in each way in which it
// can. What changes afterwards is seen, and nothing is told twice.
func watchClosed(e *env) {
	all := e.peers(3)
	e.put(e.prefix+"/config", confPlain)
	s, m := e.meddled(oneHour)
	cfg := v4(e)
	w, c := e.watch(s), e.watchConfig(s, cfg)
	l := e.hold(s, cfg, want(cfg, 9)).granted()
	all[e.key(fmt.Sprintf("%v-%d", l.Paths[0].Subnet.Addr(), l.Paths[0].Subnet.Bits()))] = l
	e.eventually("all leases", func() bool { return leasesOf(w.last(), all) })
	confs := []string{confDirect, confHostGW}
	for i, close := range []func() int{
		func() int { return m.CancelWatches("etcdserver: no leader") },
		func() int { return m.CancelWatches("") },
		func() int { return m.EndWatches(nil) },
		func() int { return m.EndWatches(status.Error(codes.Unavailable, "etcdserver: no leader")) },
		func() int { return m.EndWatches(status.Error(codes.PermissionDenied, "etcdserver: permission denied")) },
		func() int { return m.EndWatches(status.Error(codes.ResourceExhausted, "too many streams")) },
		func() int { return m.EndWatches(status.Error(codes.Unknown, "x")) },
	} {
		if close() == 0 {
			e.Fatalf("%d: no watch to close", i)
		}
		before := w.count()
		delete(all, e.expire(all))
		e.touched(all)
		e.put(e.prefix+"/config", confs[i%2])
		c.gives(confs[i%2])
		e.eventually("what changed after the watch was closed", func() bool { return leasesOf(w.last(), all) })
		if n := w.count() - before; n > 2 {
			e.Errorf("%d: %d snapshots of 2 changes", i, n)
		}
		key := e.key(fmt.Sprintf("10.42.%d.0-24", 100+i))
		all[key] = at(want(cfg, 100+i), fmt.Sprintf("10.42.%d.0/24", 100+i))
		e.put(key, e.value(all[key]))
		e.eventually("a new lease", func() bool { return leasesOf(w.last(), all) })
	}
	if _, n := m.Reads(); n != 0 {
		e.Errorf("%d reads asked for any one member's view", n)
	}
}

// expire deletes one lease with a number from 100 on, if there is any, and
// returns its key.
func (e *env) expire(all map[string]subnet.Lease) string {
	e.Helper()
	for key, l := range all {
		if l.Node >= "n100" && l.Node < "n200" && len(l.Node) == 4 {
			e.del(key)
			return key
		}
	}
	return ""
}

// watchDeaf is F11: events are lost without a word (etcd 15271, 17529,
// 20221). The next listing finds what they said.
func watchDeaf(e *env) {
	all := e.peers(3)
	s, m := e.meddled(func(o *etcd.Options) { o.AuditEvery = 2 * time.Second })
	w := e.watch(s)
	m.Deafen(true)
	e.touched(all)
	gone := slices.Sorted(maps.Keys(all))[1]
	e.del(gone)
	delete(all, gone)
	e.eventually("what the lost events said", func() bool { return leasesOf(w.last(), all) })
	n := w.count()
	time.Sleep(3 * time.Second) // is the subject: an audit that finds nothing is silent
	if w.count() != n {
		e.Errorf("%d snapshots, then %d, and nothing changed", n, w.count())
	}
}

// staleReads is F11: a server answers from the past, as a member that lags
// would if it were asked for its own view. The past is not believed, neither
// for peers nor for the lease.
func staleReads(e *env) {
	all := e.peers(3)
	resp, err := e.c.Get(e.Context(), "x")
	if err != nil {
		e.Fatal(err)
	}
	e.touched(all)
	cfg := dual(e)
	s, m := e.meddled(oneHour)
	h := e.hold(s, cfg, at(want(cfg, 9), "10.42.9.0/24", "fd42:0:0:9::/64"))
	l := h.granted()
	all[e.key("10.42.9.0-24&fd42:0:0:9::-64")] = l
	w := e.watch(s)
	e.eventually("all leases", func() bool { return leasesOf(w.last(), all) })
	held := e.key("10.42.9.0-24&fd42:0:0:9::-64")
	before := e.leases()

	m.Past(resp.Header.Revision)
	m.EndWatches(status.Error(codes.Unknown, "x"))
	e.eventually("the problem", func() bool { return hasProblem(w.last(), "StoreRewound") })
	m.EndWatches(status.Error(codes.Unknown, "x")) // again: still not believed
	time.Sleep(2 * time.Second)                    // is the subject
	m.Past(0)
	e.eventually("no problem any more", func() bool { return len(w.last().Problems) == 0 })
	for _, snap := range w.all() {
		if snap.Leases.Len() == len(all) && !leasesOf(snap, all) || snap.Leases.Len() < len(all)-1 {
			e.Errorf("the past was told: %+v", snap)
		}
	}
	select {
	case err := <-h.err:
		e.Errorf("Hold ended: %v", err)
	default:
	}
	if after := e.leases(); !after[held].Equal(before[held]) || len(after) != len(before) {
		e.Errorf("stored %+v, was %+v", after, before)
	}
	e.touched(all)
	e.eventually("the present goes on", func() bool { return leasesOf(w.last(), all) })
	if reads, n := m.Reads(); n != 0 || reads == 0 {
		e.Errorf("%d of %d reads asked for any one member's view", n, reads)
	}
}

// startsBeforeEtcd is T13: all of an agent's calls begin while etcd is down.
func startsBeforeEtcd(e *env) {
	e.put(e.prefix+"/config", confPlain)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	proxy.Cut()
	s := e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} })
	got := make(chan error, 1)
	go func() {
		_, err := s.Config(e.Context())
		got <- err
	}()
	cfg := v4(e)
	h, w := e.hold(s, cfg, want(cfg, 1)), e.startWatch(s)
	e.reason(s, "waiting for etcd", "connection refused")
	time.Sleep(3 * time.Second) // is the subject: an outage, not a blink
	if w.count() != 0 || len(h.leases) != 0 {
		e.Fatal("something was told without etcd")
	}
	heal(e, proxy)
	if err := <-got; err != nil {
		e.Fatal(err)
	}
	l := h.granted()
	e.eventually("our lease", func() bool {
		return w.count() > 0 && leasesOf(w.last(), map[string]subnet.Lease{"": l})
	})
}

// oneJunkKey is T5 (B1, flannel v0.28): one key that does not parse removed
// every peer from every node, for good. Then the same in each other place
// where flannel's watch looks.
func oneJunkKey(e *env) {
	all := e.peers(3)
	w := e.watch(e.store())
	for _, key := range []string{e.key("garbage"), e.prefix + "/subnets-backup/x", e.prefix + "/subnets", e.key(""), e.key("a/b")} {
		e.put(key, "x")
	}
	e.eventually("the problems", func() bool { return len(w.last().Problems) == 3 })
	e.touched(all)
	e.eventually("a peer's change", func() bool { return leasesOf(w.last(), all) })
	for _, snap := range w.all() {
		if snap.Leases.Len() != 3 {
			e.Errorf("a snapshot with %d peers", snap.Leases.Len())
		}
	}
	e.del(e.key("garbage"))
	e.eventually("one problem less", func() bool { return len(w.last().Problems) == 2 })
}
