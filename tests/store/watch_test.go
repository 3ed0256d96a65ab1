// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

func configWaits(e *env) {
	s := e.store()
	type answer struct {
		cfg subnet.Config
		err error
	}
	got := make(chan answer, 1)
	go func() {
		cfg, err := s.Config(e.Context())
		got <- answer{cfg, err}
	}()
	key := e.prefix + "/config"
	e.reason(s, key, "is missing", "etcdctl put")
	e.put(key, `{"Network":"10.42.0.0/33"}`)
	e.reason(s, key, "10.42.0.0/33")
	select {
	case a := <-got:
		e.Fatalf("Config returned %+v", a)
	default:
	}
	e.put(key, `{"Network":"10.42.0.0/16"}`)
	a := <-got
	if a.err != nil || len(a.cfg.Networks) != 1 || a.cfg.Networks[0].Prefix != netip.MustParsePrefix("10.42.0.0/16") {
		e.Errorf("Config returned %+v", a)
	}
	if r := s.Reason(); r != "" {
		e.Errorf("reason %q", r)
	}
}

// peers puts n leases of other nodes and returns them by key.
func (e *env) peers(n int) map[string]subnet.Lease {
	e.Helper()
	cfg := dual(e)
	all := make(map[string]subnet.Lease)
	for i := 1; i <= n; i++ {
		l := at(want(cfg, i), fmt.Sprintf("10.42.%d.0/24", i), fmt.Sprintf("fd42:0:0:%x::/64", i))
		all[e.putLease(l, 0)] = l
	}
	return all
}

// leasesOf reports whether snap holds exactly the given leases.
func leasesOf(snap subnet.Snapshot, all map[string]subnet.Lease) bool {
	if snap.Leases.Len() != len(all) {
		return false
	}
	for _, l := range all {
		if !slices.ContainsFunc(snap.Leases.Slice(), l.Equal) {
			return false
		}
	}
	return true
}

func watchMAC(e *env) {
	all := e.peers(3)
	w := e.watch(e.store())
	if !leasesOf(w.last(), all) {
		e.Fatalf("snapshot %+v, want %+v", w.last(), all)
	}
	key := e.key("10.42.2.0-24&fd42:0:0:2::-64")
	l := all[key].Clone()
	l.Paths[0].MAC = subnet.MAC{2, 2, 2, 2, 2, 2}
	e.putLease(l, 0)
	all[key] = l
	e.eventually("the new MAC", func() bool { return leasesOf(w.last(), all) })
	e.del(key)
	delete(all, key)
	e.eventually("the peer gone", func() bool { return leasesOf(w.last(), all) })
}

// watchSilent changes what no reader cares about and then one lease: exactly
// that one snapshot may come. A transaction is one snapshot, too.
func watchSilent(e *env) {
	all := e.peers(3)
	w := e.watch(e.store())
	for _, l := range all {
		e.putLease(l, 60) // the same value under an etcd lease
	}
	e.put(e.prefix+"/config", "{}")
	both := make(map[string]string)
	for i := 11; i <= 12; i++ {
		l := at(want(v4(e), i), fmt.Sprintf("10.42.%d.0/24", i))
		key := e.key(fmt.Sprintf("10.42.%d.0-24", i))
		all[key], both[key] = l, e.value(l)
	}
	e.txnPut(both)
	e.eventually("both new peers", func() bool { return leasesOf(w.last(), all) })
	if n := w.count(); n != 2 {
		e.Errorf("%d snapshots, want 2", n)
	}
}

func (e *env) value(l subnet.Lease) string {
	e.Helper()
	_, value, err := subnet.EncodeLease(l)
	if err != nil {
		e.Fatal(err)
	}
	return string(value)
}

func (e *env) txnPut(kvs map[string]string) {
	e.Helper()
	var ops []clientv3.Op
	for k, v := range kvs {
		ops = append(ops, clientv3.OpPut(k, v))
	}
	if _, err := e.c.Txn(e.Context()).Then(ops...).Commit(); err != nil {
		e.Fatal(err)
	}
}

// watchPages has more keys than a page, of which some change between the pages:
// every lease is there once, and what was deleted is not.
func watchPages(e *env) {
	all, batch := map[string]subnet.Lease{}, map[string]string{}
	for i := range 2300 {
		l := at(want(v4(e), i%200), fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
		name, value, err := subnet.EncodeLease(l)
		if err != nil {
			e.Fatal(err)
		}
		all[e.key(name)], batch[e.key(name)] = l, string(value)
		if len(batch) == 100 {
			e.txnPut(batch)
			clear(batch)
		}
	}
	w := e.startWatch(e.store())
	keys := slices.Sorted(maps.Keys(all))
	for i := 0; i < len(keys); i += 50 { // at the first and at the last key of a page, too
		e.del(keys[i])
		delete(all, keys[i])
		e.touched(all)
	}
	e.eventually("all that is left", func() bool { return leasesOf(w.last(), all) })
	if again := e.watch(e.store()); !leasesOf(again.last(), all) {
		e.Errorf("listed anew: %d leases, want %d", again.last().Leases.Len(), len(all))
	}
}

// flannel watches without the slash, so that such a key removes all peers.
func watchNeighbour(e *env) {
	all := e.peers(2)
	e.put(e.prefix+"/subnets-backup/10.42.9.0-24", e.value(at(want(v4(e), 9), "10.42.9.0/24")))
	w := e.watch(e.store())
	e.put(e.prefix+"/subnets-backup/x", "x")
	e.put(e.prefix+"/subnets", "x")
	key := e.putLease(at(want(v4(e), 8), "10.42.8.0/24"), 0)
	all[key] = at(want(v4(e), 8), "10.42.8.0/24")
	e.eventually("the peer added last", func() bool { return leasesOf(w.last(), all) })
	if ps := w.last().Problems; len(ps) != 0 {
		e.Errorf("problems %v", ps)
	}
}

// watchJunk writes 300 broken keys and values between and over live ones:
// nobody else's lease changes in any snapshot, and each is reported.
func watchJunk(e *env) {
	all := e.peers(8)
	w := e.watch(e.store())
	victim := slices.Sorted(maps.Keys(all))[0]
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 300 {
		key, value := mutate(rng, i, all[victim])
		e.put(e.key(key), value)
	}
	e.put(victim, `{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}`)
	e.eventually("problem of the spoilt peer", func() bool {
		return slices.ContainsFunc(w.last().Problems, func(p subnet.Problem) bool {
			return p.Object == victim && p.Kind == "JunkLease" && strings.Contains(p.Detail, "last good value is kept")
		})
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, snap := range w.snaps {
		for key, l := range all {
			if !slices.ContainsFunc(snap.Leases.Slice(), l.Equal) {
				e.Fatalf("snapshot %d lacks the lease of %s", i, key)
			}
		}
	}
	snap := w.snaps[len(w.snaps)-1]
	if n := snap.Leases.Len() - len(all) + len(snap.Problems) - 1; n != 300 {
		e.Errorf("%d of 300 mutated entries are in the snapshot as leases or problems", n)
	}
	for _, p := range snap.Problems {
		if len(p.Object) > 400 || len(p.Detail) > 400 {
			e.Errorf("problem of %d and %d bytes quotes the store at length", len(p.Object), len(p.Detail))
		}
	}
}

// mutate returns the i-th broken entry: a junk key with a good value, a good
// key with a junk value, or bytes of both changed at random. Subnets start at
// 10.42.100.0 and never meet a live one.
func mutate(rng *rand.Rand, i int, l subnet.Lease) (key, value string) {
	good, _ := json.Marshal(map[string]any{"PublicIP": l.Paths[0].Underlay, "BackendType": "vxlan",
		"BackendData": map[string]any{"VNI": 1, "VtepMAC": l.Paths[0].MAC.String()}})
	name := fmt.Sprintf("10.%d.%d.0-24", 43+i/200, i%200)
	switch rng.IntN(4) {
	case 0:
		junk := []string{"garbage", "../config", "10.42.1.0", "0.0.0.0-0", "10.42.1.0-32", "a/b", "", "fe80::-64", "10.42.1.1-24", "999.1.1.0-24", strings.Repeat("k", 5000)}
		return fmt.Sprintf("%s#%d", junk[rng.IntN(len(junk))], i), string(good)
	case 1:
		junk := []string{"", "x", "{", "null", "[]", "0", `{"PublicIP":7}`, `{"PublicIP":"224.0.0.1"}`, `{"PublicIP":"0.0.0.0"}`,
			`{"PublicIP":"127.0.0.1"}`, strings.Repeat("[", 10000), strings.Repeat("A", 1<<20), "\xff\xfe\x00"}
		return name, junk[rng.IntN(len(junk))]
	case 2:
		b := slices.Clone(good)
		for range 1 + rng.IntN(4) {
			b[rng.IntN(len(b))] = byte(rng.IntN(256))
		}
		return name, string(b)
	}
	return name, string(good[:rng.IntN(len(good))])
}

func watchCompaction(e *env) {
	all := e.peers(4)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	w := e.watch(e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} }))
	proxy.Cut()

	// In the gap one peer changes, one goes, one comes, and the history of it
	// is thrown away.
	keys := slices.Sorted(maps.Keys(all))
	l := all[keys[0]].Clone()
	l.Paths[0].MAC = subnet.MAC{2, 2, 2, 2, 2, 2}
	e.putLease(l, 0)
	all[keys[0]] = l
	e.del(keys[1])
	delete(all, keys[1])
	l = at(want(v4(e), 9), "10.42.9.0/24")
	all[e.putLease(l, 0)] = l
	e.compact()
	if n := w.count(); n != 1 {
		e.Fatalf("%d snapshots before the connection is back, want 1", n)
	}
	if err := proxy.Heal(); err != nil {
		e.Fatal(err)
	}
	e.eventually("what changed in the gap", func() bool { return leasesOf(w.last(), all) })
	if n := w.count(); n != 2 {
		e.Errorf("%d snapshots, want 2: nothing in between was ever the content", n)
	}
}

// watchBeforeEtcd is where flannel's watcher returns for good.
func watchBeforeEtcd(e *env) {
	all := e.peers(2)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	proxy.Cut()
	s := e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} })
	w := e.startWatch(s)
	e.reason(s, "waiting for etcd", proxy.Endpoint, "connection refused")
	if w.count() != 0 {
		e.Fatal("a snapshot without etcd")
	}
	if err := proxy.Heal(); err != nil {
		e.Fatal(err)
	}
	e.eventually("the peers", func() bool { return w.count() > 0 && leasesOf(w.last(), all) })
}

// watchHalfOpen lets the connection swallow everything, both ways: neither end
// learns that it is dead but by asking. New connections work, as behind a
// firewall that has lost its state.
func watchHalfOpen(e *env) {
	all := e.peers(2)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	w := e.watch(e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} }))
	proxy.Stall()
	heal(e, proxy)
	start := time.Now()
	e.touched(all)
	e.eventually("the change made while stalled", func() bool { return leasesOf(w.last(), all) })
	if d := time.Since(start); d > halfOpenLimit {
		e.Errorf("found after %s, want at most %s", d, halfOpenLimit)
	}
}

// watchBlackHole is the same with new connections swallowed, too.
func watchBlackHole(e *env) {
	all := e.peers(2)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	s := e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} })
	w := e.watch(s)
	proxy.Stall()
	start := time.Now()
	e.touched(all)
	e.reason(s, "waiting for etcd", proxy.Endpoint)
	if d := time.Since(start); d > halfOpenLimit {
		e.Errorf("told after %s, want at most %s", d, halfOpenLimit)
	}
	heal(e, proxy)
	e.eventually("the change made while cut off", func() bool { return leasesOf(w.last(), all) })
	e.eventually("no reason to wait", func() bool { return s.Reason() == "" })
}

// closeLeaksNothing looks for goroutines that belong to a closed store, by
// the frames of this repository's packages on their stacks.
func closeLeaksNothing(e *env) {
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	o := e.options()
	o.Endpoints = []string{proxy.Endpoint}
	o.LeaseTTL = time.Hour // the last goroutine may take longer than the usual one
	s, err := etcd.New(o)
	if err != nil {
		e.Fatal(err)
	}
	cfg := v4(e)
	held, watched, configured := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	granted := make(chan bool, 1)
	go func() {
		held <- s.Hold(e.Context(), cfg, want(cfg, 1), func(subnet.Lease) { granted <- true })
	}()
	go func() { watched <- s.Watch(e.Context(), cfg, func(subnet.Snapshot) {}) }()
	go func() {
		_, err := s.Config(e.Context())
		configured <- err
	}()
	<-granted
	if err := s.Close(); err != nil {
		e.Fatal(err)
	}
	for _, c := range []chan error{held, watched, configured} {
		select {
		case err := <-c:
			if err == nil || !strings.Contains(err.Error(), "closed") {
				e.Errorf("returned %v, want that the store is closed", err)
			}
		case <-time.After(patience):
			e.Fatal("a call outlives Close")
		}
	}
	if err := s.Close(); err != nil {
		e.Errorf("second Close: %v", err)
	}
	mine := fmt.Sprintf("(%p", s)
	closed, told := time.Now(), false
	e.eventually("no goroutine of the store", func() bool {
		buf := make([]byte, 64<<20)
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if !strings.Contains(stack, mine) {
				continue
			}
			if !told && time.Since(closed) > time.Second { // it has taken 20 s, once
				told = true
				e.Logf("still there a second after Close:\n%s", stack)
			}
			return false
		}
		return true
	})
	if n := len(e.entries()); n != 1 {
		e.Errorf("%d leases after Close, want ours left", n)
	}
}

// configChanges: a running agent learns that the configuration it started
// with is not the one in etcd any more, and why.
func configChanges(e *env) {
	s, err := etcd.New(e.options())
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { s.Close() })
	const first = `{"Network":"10.42.0.0/16"}`
	e.put(e.prefix+"/config", first)
	cfg, err := s.Config(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	for _, c := range []struct{ value, want string }{
		{first, ""},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, ""},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`, "VNI:7"},
		{`{"Network":"10.43.0.0/16"}`, "10.43.0.0/16"},
		{`{`, "goes on with what it started with"},
	} {
		e.put(e.prefix+"/config", c.value)
		got, err := s.ConfigChange(e.Context(), cfg)
		if err != nil || !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			e.Errorf("%s: %q, %v; want %q", c.value, got, err, c.want)
		}
	}
	if _, err := e.c.Delete(e.Context(), e.prefix+"/config"); err != nil {
		e.Fatal(err)
	}
	if got, err := s.ConfigChange(e.Context(), cfg); err != nil || !strings.Contains(got, "is missing") {
		e.Errorf("deleted: %q, %v", got, err)
	}
}

// reconnects: a node whose address has changed gets a new connection at once,
// and the watch goes on.
func reconnects(e *env) {
	all := e.peers(2)
	s := e.store()
	w := e.watch(s)
	for range 3 {
		if err := s.Reconnect(e.Context()); err != nil {
			e.Fatal(err)
		}
		for key := range all {
			l := all[key].Clone()
			l.Paths[0].MAC[5]++
			e.putLease(l, 0)
			all[key] = l
		}
		e.eventually("the peers as they are now", func() bool { return leasesOf(w.last(), all) })
	}
	if reason := s.Reason(); reason != "" {
		e.Errorf("waits for %q", reason)
	}
}
