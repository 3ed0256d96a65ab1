// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/cmd/internal/api"
)

// stuckAfter is how long the reconciler may be silent before /livez fails: it
// makes a pass every minute at least, and a pass is bounded by netlink timeouts.
const stuckAfter = 2 * time.Minute

// serve answers on the unix socket and on the health address until ctx ends.
func (a *agent) serve(ctx context.Context) error {
	unix, err := listenUnix(ctx, a.o.Socket)
	if err != nil {
		return err
	}
	if bound, err := os.Stat(a.o.Socket); err == nil { // by which unreachable knows it again
		a.bound.Store(&bound)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveHTTP(ctx, unix, a.socketRoutes()) })
	if a.o.Listen != "" {
		var lc net.ListenConfig
		tcp, err := lc.Listen(ctx, "tcp", a.o.Listen)
		if err != nil {
			unix.Close() // the error below says why we stop
			return fmt.Errorf("listen (%s): %w; --listen names another address, empty turns it off", a.o.origin["listen"], err)
		}
		g.Go(func() error { return serveHTTP(ctx, tcp, a.healthRoutes()) })
	}
	return g.Wait()
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { s.Close() }) // its answers no longer matter
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return ctx.Err()
}

func (a *agent) socketRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.StatusPath, func(w http.ResponseWriter, r *http.Request) {
		s := a.status()
		s.Guard.Refused = a.refused(r.Context())
		if s.Policy != nil {
			s.Policy.Denied, s.Policy.Spoofed = a.denied(r.Context()), a.spoofed(r.Context())
		}
		writeJSON(w, s)
	})
	mux.HandleFunc("GET "+api.PlanPath, func(w http.ResponseWriter, r *http.Request) {
		p, err := a.plan(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, p)
	})
	mux.HandleFunc("POST "+api.ReleasePath, func(w http.ResponseWriter, _ *http.Request) {
		released, err := a.release()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, released)
	})
	a.policyRoutes(mux)
	mux.HandleFunc("GET "+api.ProfilePath+"{name}", profile)
	return mux
}

func writeJSON(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	// A reader that has gone away is its own business.
	_ = json.NewEncoder(w).Encode(doc)
}

func (a *agent) healthRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if r := a.reconciler.Load(); r != nil {
			if last := r.Status().LastPass; !last.IsZero() && time.Since(last) > stuckAfter {
				http.Error(w, fmt.Sprintf("no pass for %s", time.Since(last).Round(time.Second)), http.StatusServiceUnavailable)
				return
			}
		}
		if a.unreachable() {
			http.Error(w, fmt.Sprintf("socket %s was removed, so that the CNI plugin does not find this agent", a.o.Socket), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		s := a.brief()
		if !s.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		if _, verbose := r.URL.Query()["verbose"]; verbose {
			a.writeChecks(w, s)
		}
		if s.Ready {
			fmt.Fprintln(w, "ok")
		} else {
			fmt.Fprintln(w, s.Reason)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics(), promhttp.HandlerOpts{}))
	return mux
}

// unreachable reports whether the socket is not that which this agent listens on:
// it, or the directory that is mounted there, was removed. Only a new process, in
// a pod a new container with the host's directory, mends that.
func (a *agent) unreachable() bool {
	bound := a.bound.Load()
	if bound == nil {
		return false
	}
	now, err := os.Stat(a.o.Socket)
	return errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(*bound, now)
}

// writeChecks prints a line for each thing that readiness rests on, in the
// manner of Kubernetes' own servers.
func (a *agent) writeChecks(w io.Writer, s api.Status) {
	line := func(ok bool, name, why string) {
		if ok {
			fmt.Fprintf(w, "[+]%s ok\n", name)
		} else {
			fmt.Fprintf(w, "[-]%s failed: %s\n", name, why)
		}
	}
	// A store out of reach does not make a node unready: its data plane stands.
	if reason := a.store.Reason(); reason != "" {
		fmt.Fprintf(w, "[!]store %s\n", reason)
	} else {
		fmt.Fprintln(w, "[+]store ok")
	}
	line(a.network.Load() != nil, "config", s.Reason)
	line(len(s.Subnets) > 0 && a.held.Load() == nil, "lease", s.Reason)
	line(s.Snapshot != nil, "peers", s.Reason)
	kernel := s.Reason
	if r := a.reconciler.Load(); r != nil {
		kernel = cmp.Or(r.Status().Reason, kernel)
	}
	line(s.InSync, "kernel", kernel)
	line(a.published.Load(), "files", a.whyUnwritten())
}
