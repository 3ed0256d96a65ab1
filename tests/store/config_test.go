// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// told is one call of a WatchConfig's set.
type told struct {
	cfg subnet.Config
	err error
}

// configWatch is a running WatchConfig.
type configWatch struct {
	e   *env
	mu  sync.Mutex
	all []told
}

func (e *env) watchConfig(s *etcd.Store, running subnet.Config) *configWatch {
	w := &configWatch{e: e}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.WatchConfig(ctx, running, func(cfg subnet.Config, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.all = append(w.all, told{cfg, err})
		})
	}()
	e.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			e.Errorf("WatchConfig returned %v, want context.Canceled", err)
		}
	})
	return w
}

func (w *configWatch) calls() []told {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

// last waits until the latest call is ok.
func (w *configWatch) last(what string, ok func(told) bool) {
	w.e.Helper()
	w.e.eventually(what, func() bool {
		all := w.calls()
		return len(all) > 0 && ok(all[len(all)-1])
	})
}

// says waits for the error in place of a configuration; good is still given.
func (w *configWatch) says(good string, words ...string) {
	w.e.Helper()
	want := config(w.e, good)
	w.last(fmt.Sprintf("an error with %q", words), func(t told) bool {
		return t.err != nil && t.cfg.Equal(want) &&
			!slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(t.err.Error(), s) })
	})
}

// gives waits for a valid configuration.
func (w *configWatch) gives(text string) {
	w.e.Helper()
	want := config(w.e, text)
	w.last("configuration "+text, func(t told) bool { return t.err == nil && t.cfg.Equal(want) })
}

const (
	confPlain  = `{"Network":"10.42.0.0/16"}`
	confSame   = ` { "network" : "10.42.0.0/16", "Backend":{"Type":"VXLAN"}, "Unknown":[] } `
	confDirect = `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`
	confHostGW = `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`
)

// configWatched is F34, bad configuration pushed to the store (flannel reads
// it once, at its start): the last good one is kept and the fault told, once.
func configWatched(e *env) {
	key := e.prefix + "/config"
	e.put(key, confPlain)
	w := e.watchConfig(e.store(), config(e, confPlain))
	e.put(key, confSame)
	e.put(e.prefix+"/config2", "{")
	e.put(key, confDirect)
	w.gives(confDirect)
	if n := len(w.calls()); n != 1 {
		e.Errorf("told %d times, want once: what it runs with is not news", n)
	}
	for _, bad := range []struct{ value, word string }{
		{`{`, "line 1"},
		{"", "empty"},
		{`{"Network":"10.42.0.0/33"}`, "10.42.0.0/33"},
		{`{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`, "udp"},
		{`{"Network":"10.42.0.0/16","Backend":{"VNI":16777216}}`, "16777216"},
		{"\xff\xfe\x00", "line 1"},
		{`"` + strings.Repeat("A", 1<<20) + `"`, "at most 65536"},
	} {
		e.put(key, bad.value)
		w.says(confDirect, key, bad.word)
	}
	before := len(w.calls())
	e.put(key, `"`+strings.Repeat("A", 1<<20)+`"`) // the same fault is not told again
	e.del(key)
	w.says(confDirect, key, "is missing", "etcdctl put")
	e.put(key, confDirect) // valid again, and the same as before: told
	w.gives(confDirect)
	if n := len(w.calls()) - before; n != 2 {
		e.Errorf("told %d times of a repetition, a deletion and the old value, want 2", n)
	}
}

// configBurst: of many changes at once the last one counts.
func configBurst(e *env) {
	key := e.prefix + "/config"
	e.put(key, confPlain)
	w := e.watchConfig(e.store(), config(e, confPlain))
	for range 50 {
		e.put(key, `{`)
		e.put(key, confHostGW)
		e.put(key, confPlain)
		e.put(key, confDirect)
	}
	w.gives(confDirect)
	time.Sleep(time.Second) // is the subject: nothing older follows
	w.gives(confDirect)
	if n := len(w.calls()); n > 200 {
		e.Errorf("told %d times of 200 changes", n)
	}
}

// configGap changes the configuration while the connection is cut and throws
// the history away, then while it is half open, then on a new connection.
func configGap(e *env) {
	key := e.prefix + "/config"
	e.put(key, confPlain)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	s := e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} })
	w := e.watchConfig(s, config(e, confPlain))

	e.put(key, confHostGW)
	w.gives(confHostGW)
	proxy.Cut()
	e.reason(s, "waiting for etcd", "connection refused")
	e.put(key, confDirect)
	e.compact()
	if n := len(w.calls()); n != 1 {
		e.Fatalf("told %d times without a connection, want once", n)
	}
	heal(e, proxy)
	w.gives(confDirect)
	e.eventually("no reason to wait", func() bool { return s.Reason() == "" })

	proxy.Stall() // what is open stays dead, a new connection is not
	heal(e, proxy)
	start := time.Now()
	e.put(key, confHostGW)
	w.gives(confHostGW)
	if d := time.Since(start); d > halfOpenLimit {
		e.Errorf("half-open TCP was found after %s, want at most %s", d, halfOpenLimit)
	}
	if err := s.Reconnect(e.Context()); err != nil {
		e.Fatal(err)
	}
	e.put(key, confPlain)
	w.gives(confPlain)
}

// configBeforeEtcd starts to watch while etcd is down.
func configBeforeEtcd(e *env) {
	key := e.prefix + "/config"
	e.put(key, confDirect)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	proxy.Cut()
	s := e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} })
	w := e.watchConfig(s, config(e, confPlain))
	e.reason(s, "waiting for etcd", "connection refused")
	heal(e, proxy)
	w.gives(confDirect)
	e.eventually("no reason to wait", func() bool { return s.Reason() == "" })
}
