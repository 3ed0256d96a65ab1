// SPDX-License-Identifier: Apache-2.0

package store

import (
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// each runs test on each kind of server, one with options of its own.
func each(t *testing.T, o func(t *testing.T) etcdtest.Options, test func(*env, etcdtest.Options)) {
	t.Parallel()
	for _, kind := range etcdtest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			opts := o(t)
			test(newEnv(t, etcdtest.New(t, kind, opts)), opts)
		})
	}
}

// works acquires a lease and sees it in a watch.
func (e *env) works(s *etcd.Store) {
	e.Helper()
	l := e.hold(s, v4(e), want(v4(e), 1)).granted()
	w := e.watch(s)
	if snap := w.last(); snap.Leases.Len() != 1 || !snap.Leases.Slice()[0].Equal(l) || len(snap.Problems) != 0 {
		e.Errorf("snapshot %+v, want the lease %+v and no problem", snap, l)
	}
}

// flannel ignores a CA that comes without a client certificate.
func TestTLSWithCAAlone(t *testing.T) {
	each(t, func(t *testing.T) etcdtest.Options { return etcdtest.Options{Certs: etcdtest.NewCerts(t)} },
		func(e *env, o etcdtest.Options) {
			e.works(e.store(func(eo *etcd.Options) { eo.CAFile = o.Certs.CA }))

			stranger := etcdtest.NewCerts(e)
			s := e.store(func(eo *etcd.Options) { eo.CAFile = stranger.CA })
			go s.Config(e.Context()) //nolint:errcheck // ends with the test
			e.reason(s, "waiting for etcd", "certificate signed by unknown authority")
		})
}

// TestTLSRotation replaces the CA file of a running store: the next connection uses
// the new one.
func TestTLSRotation(t *testing.T) {
	each(t, func(t *testing.T) etcdtest.Options { return etcdtest.Options{Certs: etcdtest.NewCerts(t)} },
		func(e *env, o etcdtest.Options) {
			right, err := os.ReadFile(o.Certs.CA)
			if err != nil {
				e.Fatal(err)
			}
			file := etcdtest.NewCerts(e).CA // a stranger's at first
			s := e.store(func(eo *etcd.Options) { eo.CAFile = file })
			h := e.hold(s, v4(e), want(v4(e), 1))
			e.reason(s, "certificate signed by unknown authority")
			if err := os.WriteFile(file, right, 0o600); err != nil {
				e.Fatal(err)
			}
			h.granted()
		})
}

func TestTLSWithClientCertificate(t *testing.T) {
	each(t, func(t *testing.T) etcdtest.Options {
		return etcdtest.Options{Certs: etcdtest.NewCerts(t), ClientCerts: true}
	}, func(e *env, o etcdtest.Options) {
		e.works(e.store(func(eo *etcd.Options) {
			eo.CAFile, eo.CertFile, eo.KeyFile = o.Certs.CA, o.Certs.ClientCert, o.Certs.ClientKey
		}))
		s := e.store(func(eo *etcd.Options) { eo.CAFile = o.Certs.CA })
		go s.Config(e.Context()) //nolint:errcheck // ends with the test
		e.reason(s, "waiting for etcd")
	})
}

// relay accepts at an address of another kind and forwards to the server.
func (e *env) relay(network, addr string) net.Addr {
	e.Helper()
	u, err := url.Parse(e.srv.Endpoint)
	if err != nil {
		e.Fatal(err)
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := net.Dial("tcp", u.Host)
			if err != nil {
				in.Close()
				continue
			}
			go func() { io.Copy(in, out); in.Close() }()
			go func() { io.Copy(out, in); out.Close() }()
		}
	}()
	return l.Addr()
}

// TestTLSNameMismatch reaches the right server at an address that its
// certificate does not name.
func TestTLSNameMismatch(t *testing.T) {
	each(t, func(t *testing.T) etcdtest.Options { return etcdtest.Options{Certs: etcdtest.NewCerts(t)} },
		func(e *env, o etcdtest.Options) {
			a := e.relay("tcp", "127.0.0.2:0")
			s := e.store(func(eo *etcd.Options) {
				eo.Endpoints, eo.CAFile = []string{a.String()}, o.Certs.CA
			})
			go s.Config(e.Context()) //nolint:errcheck // ends with the test
			e.reason(s, "waiting for etcd", "127.0.0.2", "valid for 127.0.0.1, not 127.0.0.2")
		})
}

func TestUnixSocket(t *testing.T) {
	each(t, func(*testing.T) etcdtest.Options { return etcdtest.Options{} }, func(e *env, _ etcdtest.Options) {
		a := e.relay("unix", filepath.Join(e.TempDir(), "etcd.sock"))
		e.works(e.store(func(o *etcd.Options) { o.Endpoints = []string{"unix://" + a.String()} }))
	})
}

// enableAuth gives user "weft" the prefix and turns authentication on.
func (e *env) enableAuth() {
	e.Helper()
	ctx := e.Context()
	steps := []func() error{
		func() error { _, err := e.c.RoleAdd(ctx, "root"); return err },
		func() error { _, err := e.c.UserAdd(ctx, "root", "toor"); return err },
		func() error { _, err := e.c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := e.c.RoleAdd(ctx, "weft"); return err },
		func() error {
			_, err := e.c.RoleGrantPermission(ctx, "weft", e.prefix+"/", clientv3.GetPrefixRangeEnd(e.prefix+"/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := e.c.UserAdd(ctx, "weft", "secret"); return err },
		func() error { _, err := e.c.UserGrantRole(ctx, "weft", "weft"); return err },
		func() error { _, err := e.c.AuthEnable(ctx); return err },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			e.Fatalf("enable authentication, step %d: %v", i, err)
		}
	}
}

func TestUserAndPassword(t *testing.T) {
	each(t, func(*testing.T) etcdtest.Options { return etcdtest.Options{} }, func(e *env, _ etcdtest.Options) {
		e.enableAuth()
		user := func(password string) func(*etcd.Options) {
			return func(o *etcd.Options) { o.Username, o.Password = "weft", password }
		}
		s := e.store(user("secret"))
		h := e.hold(s, v4(e), want(v4(e), 1))
		l := h.granted()
		w := e.watch(s)
		e.eventually("our lease in the watch", func() bool {
			snap := w.last()
			return snap.Leases.Len() == 1 && snap.Leases.Slice()[0].Equal(l)
		})
		time.Sleep(2 * ttl) // is the subject: renewals work as that user, too
		if snap := w.last(); snap.Leases.Len() != 1 || s.Reason() != "" {
			e.Errorf("snapshot %+v, reason %q", snap, s.Reason())
		}
		wrong := e.store(user("guess"))
		go wrong.Config(e.Context()) //nolint:errcheck // ends with the test
		e.reason(wrong, "waiting for etcd", "invalid user ID or password")
		none := e.store()
		go none.Config(e.Context()) //nolint:errcheck // ends with the test
		e.reason(none, "waiting for etcd", "user name is empty")
	})
}

// TestStoreWiped gives the nodes an empty etcd under the same address. Their
// leases come back by themselves, and no watcher is told in between that its
// peers are gone.
func TestStoreWiped(t *testing.T) {
	each(t, func(*testing.T) etcdtest.Options { return etcdtest.Options{} }, func(e *env, _ etcdtest.Options) {
		long := func(o *etcd.Options) { o.LeaseTTL = time.Hour }
		cfg := v4(e)
		var leases []subnet.Lease
		for i := 1; i <= 3; i++ {
			leases = append(leases, e.hold(e.store(long), cfg, want(cfg, i)).granted())
		}
		for i := range 50 { // so that the new etcd is far behind
			e.put(e.prefix+"/other", strings.Repeat("x", i))
		}
		w := e.watch(e.store(long))
		e.eventually("three leases seen", func() bool { return w.last().Leases.Len() == 3 })
		for _, f := range []func() error{e.srv.Stop, e.srv.Wipe, e.srv.Start} {
			if err := f(); err != nil {
				e.Fatal(err)
			}
		}
		e.eventually("all leases in the new etcd", func() bool { return len(e.entries()) == 3 })
		e.eventually("the problem", func() bool {
			for _, p := range w.last().Problems {
				if p.Kind == "StoreRewound" {
					return true
				}
			}
			return false
		})
		if snap := w.last(); w.count() != 2 || snap.Leases.Len() != 3 {
			e.Errorf("%d snapshots, the last %+v, want 2 and all leases", w.count(), snap)
		}
		for _, l := range leases {
			found := false
			for _, x := range e.entries() {
				found = found || x.Equal(l)
			}
			if !found {
				e.Errorf("%+v is not back", l)
			}
		}
	})
}

// TestEtcdRestart keeps data and leases: nothing is written, nothing told.
func TestEtcdRestart(t *testing.T) {
	each(t, func(*testing.T) etcdtest.Options { return etcdtest.Options{} }, func(e *env, _ etcdtest.Options) {
		long := func(o *etcd.Options) { o.LeaseTTL = time.Hour }
		cfg := v4(e)
		s := e.store(long)
		h := e.hold(s, cfg, want(cfg, 1))
		h.granted()
		before := e.only()
		w := e.watch(e.store(long))
		if err := e.srv.Stop(); err != nil {
			e.Fatal(err)
		}
		e.reason(s, "waiting for etcd", "connection refused")
		if err := e.srv.Start(); err != nil {
			e.Fatal(err)
		}
		e.eventually("no reason to wait", func() bool { return s.Reason() == "" })
		if after := e.only(); !same(after, before) {
			e.Errorf("stored %+v, was %+v", after, before)
		}
		if w.count() != 1 || len(h.leases) != 0 {
			e.Errorf("%d snapshots and %d more grants, want 1 and none", w.count(), len(h.leases))
		}
		l := at(want(cfg, 2), "10.42.2.0/24")
		if l.Paths[0].Subnet == before.Paths[0].Subnet {
			l = at(l, "10.42.3.0/24")
		}
		e.putLease(l, 0)
		e.eventually("a change after the restart", func() bool { return w.last().Leases.Len() == 2 })
	})
}
