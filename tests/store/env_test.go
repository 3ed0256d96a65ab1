// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// The contract between the store and the agent.
var _ overlay.Store = (*etcd.Store)(nil)

// halfOpenLimit bounds how long a connection may be dead unseen (F8).
const halfOpenLimit = 30 * time.Second

// patience bounds every wait for something that should happen.
const patience = 60 * time.Second

// env is one test's view of one server: a prefix of its own.
type env struct {
	*testing.T
	srv    *etcdtest.Server
	c      *clientv3.Client // to look and to meddle
	prefix string
}

func newEnv(t *testing.T, srv *etcdtest.Server) *env {
	t.Helper()
	c, err := srv.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ &", r) {
			return '-'
		}
		return r
	}, t.Name())
	return &env{t, srv, c, "/weft/" + name}
}

// options are for stores of this test; leases live briefly.
func (e *env) options() etcd.Options {
	return etcd.Options{Endpoints: []string{e.srv.Endpoint}, Prefix: e.prefix, LeaseTTL: 3 * time.Second, Log: e.log("")}
}

// log sends log lines to the test's output.
func (e *env) log(node string) logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(&lines{t: e.T})
	l.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	if node == "" {
		return l
	}
	return l.WithField("node", node)
}

// lines writes to a test until it has ended.
type lines struct {
	mu   sync.Mutex
	t    *testing.T
	over bool
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.over = l.t.Context().Err() != nil
	}
	if !l.over {
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// store opens a store for the length of the test.
func (e *env) store(change ...func(*etcd.Options)) *etcd.Store {
	e.Helper()
	o := e.options()
	for _, f := range change {
		f(&o)
	}
	s, err := etcd.New(o)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		if err := s.Close(); err != nil {
			e.Error(err)
		}
	})
	return s
}

func (e *env) key(name string) string { return e.prefix + "/subnets/" + name }

func (e *env) put(key, value string, opts ...clientv3.OpOption) {
	e.Helper()
	if _, err := e.c.Put(e.Context(), key, value, opts...); err != nil {
		e.Fatal(err)
	}
}

// putLease puts l under a new etcd lease of ttl seconds, or none for 0.
func (e *env) putLease(l subnet.Lease, ttl int64) string {
	e.Helper()
	name, value, err := subnet.EncodeLease(l)
	if err != nil {
		e.Fatal(err)
	}
	var opts []clientv3.OpOption
	if ttl > 0 {
		g, err := e.c.Grant(e.Context(), ttl)
		if err != nil {
			e.Fatal(err)
		}
		opts = append(opts, clientv3.WithLease(g.ID))
	}
	e.put(e.key(name), string(value), opts...)
	return e.key(name)
}

func (e *env) del(key string) {
	e.Helper()
	if _, err := e.c.Delete(e.Context(), key); err != nil {
		e.Fatal(err)
	}
}

// compact throws the history away.
func (e *env) compact() {
	e.Helper()
	resp, err := e.c.Get(e.Context(), "x")
	if err != nil {
		e.Fatal(err)
	}
	if _, err := e.c.Compact(e.Context(), resp.Header.Revision); err != nil && !strings.Contains(err.Error(), "compacted") {
		e.Fatal(err)
	}
}

func heal(e *env, p *etcdtest.Proxy) {
	e.Helper()
	if err := p.Heal(); err != nil {
		e.Fatal(err)
	}
}

// entry is a key under subnets/ as it stands.
type entry struct {
	key   string
	value string
	lease clientv3.LeaseID
	subnet.Lease
}

// entries lists what is under subnets/; values that do not parse have a zero
// Lease.
func (e *env) entries() []entry {
	e.Helper()
	resp, err := e.c.Get(e.Context(), e.key(""), clientv3.WithPrefix())
	if err != nil {
		e.Fatal(err)
	}
	var list []entry
	for _, kv := range resp.Kvs {
		l, _ := subnet.DecodeLease(string(kv.Key), kv.Value)
		list = append(list, entry{string(kv.Key), string(kv.Value), clientv3.LeaseID(kv.Lease), l})
	}
	return list
}

// only returns the single entry under subnets/.
func (e *env) only() entry {
	e.Helper()
	list := e.entries()
	if len(list) != 1 {
		e.Fatalf("%d keys under subnets/, want 1: %v", len(list), list)
	}
	return list[0]
}

// eventually waits until ok, then goes on; what it waits for is named.
func (e *env) eventually(what string, ok func() bool) {
	e.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			e.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// holding is a running Hold.
type holding struct {
	e      *env
	store  *etcd.Store
	cancel context.CancelFunc
	leases chan subnet.Lease
	err    chan error
}

func (e *env) hold(s *etcd.Store, cfg subnet.Config, want subnet.Lease) *holding {
	ctx, cancel := context.WithCancel(context.Background())
	h := &holding{e: e, store: s, cancel: cancel, leases: make(chan subnet.Lease, 16), err: make(chan error, 1)}
	go func() { h.err <- s.Hold(ctx, cfg, want, func(l subnet.Lease) { h.leases <- l }) }()
	e.Cleanup(cancel)
	return h
}

// granted waits for the next grant.
func (h *holding) granted() subnet.Lease {
	h.e.Helper()
	select {
	case l := <-h.leases:
		return l
	case err := <-h.err:
		h.e.Fatalf("Hold returned: %v", err)
	case <-time.After(patience):
		h.e.Fatalf("no lease within %s; waiting because: %q", patience, h.store.Reason())
	}
	return subnet.Lease{}
}

// lost waits until Hold returns, which must be because of a conflict.
func (h *holding) lost() error {
	h.e.Helper()
	select {
	case err := <-h.err:
		if !errors.Is(err, subnet.ErrConflict) {
			h.e.Fatalf("Hold returned %v, want a conflict", err)
		}
		return err
	case <-time.After(patience):
		h.e.Fatalf("Hold still holds after %s", patience)
	}
	return nil
}

// stop ends Hold as a shutdown does.
func (h *holding) stop() {
	h.e.Helper()
	h.cancel()
	if err := <-h.err; !errors.Is(err, context.Canceled) {
		h.e.Fatalf("Hold returned %v, want context.Canceled", err)
	}
}

// reason waits until the store's Reason holds all words.
func (e *env) reason(s *etcd.Store, words ...string) string {
	e.Helper()
	var last string
	e.eventually(fmt.Sprintf("reason with %q", words), func() bool {
		last = s.Reason()
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(last, w) })
	})
	return last
}

// watching is a running Watch.
type watching struct {
	e     *env
	mu    sync.Mutex
	snaps []subnet.Snapshot
}

// watch starts a Watch and returns after its first snapshot.
func (e *env) watch(s *etcd.Store) *watching {
	e.Helper()
	w := e.startWatch(s)
	e.eventually("first snapshot", func() bool { return w.count() > 0 })
	return w
}

func (e *env) startWatch(s *etcd.Store) *watching {
	w := &watching{e: e}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := s.Watch(ctx, subnet.Config{}, func(snap subnet.Snapshot) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.snaps = append(w.snaps, snap)
		})
		if !errors.Is(err, context.Canceled) {
			e.Errorf("Watch returned %v, want context.Canceled", err)
		}
	}()
	e.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

func (w *watching) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.snaps)
}

// all returns the snapshots so far.
func (w *watching) all() []subnet.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.snaps)
}

// take returns the snapshots so far and forgets all but the last.
func (w *watching) take() []subnet.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := w.snaps
	w.snaps = slices.Clone(taken[len(taken)-1:])
	return taken
}

func (w *watching) last() subnet.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snaps[len(w.snaps)-1]
}

// config parses a net-conf.json.
func config(t testing.TB, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text), "test", subnet.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func v4(t testing.TB) subnet.Config { return config(t, `{"Network":"10.42.0.0/16"}`) }

func dual(t testing.TB) subnet.Config {
	return config(t, `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`)
}

// want is the request of node i: every address and MAC derives from i.
func want(cfg subnet.Config, i int) subnet.Lease {
	l := subnet.Lease{Node: fmt.Sprintf("n%d", i), Instance: fmt.Sprintf("i%d", i), Backend: subnet.BackendVXLAN}
	for _, n := range cfg.Networks {
		f := subnet.FamilyOf(n.Prefix.Addr())
		a := netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})
		if f == subnet.IPv6 {
			a = netip.AddrFrom16([16]byte{0xfd, 1, 14: byte(i >> 8), 15: byte(i)})
		}
		l.Paths = append(l.Paths, subnet.Path{Underlay: a, VNI: 1, MAC: subnet.DeriveMAC("test", 1, f, l.Node)})
	}
	return l
}

// at returns l with subnets, one for each path.
func at(l subnet.Lease, subnets ...string) subnet.Lease {
	l = l.Clone()
	for i, s := range subnets {
		l.Paths[i].Subnet = netip.MustParsePrefix(s)
	}
	return l
}

// flannel returns l as flannel would write it.
func flannel(l subnet.Lease) subnet.Lease {
	l = l.Clone()
	l.Node, l.Instance = "", ""
	return l
}

func subnets(l subnet.Lease) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range l.Paths {
		ps = append(ps, p.Subnet)
	}
	return ps
}

func prefixes(text ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range text {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}
