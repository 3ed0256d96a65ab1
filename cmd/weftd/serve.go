// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/cmd/internal/api"
)

// stuckAfter is how long the reconciler may be silent before /livez fails: it
// makes a pass every few seconds, and a pass is bounded by netlink timeouts.
const stuckAfter = 2 * time.Minute

// serve answers on the unix socket and on the health address until ctx ends.
func (a *agent) serve(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(a.o.Socket), 0o755); err != nil {
		return fmt.Errorf("make the directory of the socket: %w", err)
	}
	unix, err := listenUnix(ctx, a.o.Socket)
	if err != nil {
		return err
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

// listenUnix takes over a socket file that no process serves any more: the
// leftover of an agent that was killed.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		if holder := whoServes(ctx, path); holder != "" {
			return nil, fmt.Errorf("socket %s is served by %s: stop it first; an agent for another network needs a --socket of its own", path, holder)
		}
		if info, statErr := os.Lstat(path); statErr == nil && info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("listen on %s: %w: it is no socket, and stays; --socket names another place", path, err)
		}
		if rmErr := os.Remove(path); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
		if l, err = lc.Listen(ctx, "unix", path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close() // the chmod error is the one to report
		return nil, fmt.Errorf("open %s to its group: %w", path, err)
	}
	return l, nil
}

// whoServes names the process behind a socket, or nothing if there is none.
func whoServes(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return ""
	}
	c.Close()
	var s api.Status
	if err := api.Get(ctx, path, api.StatusPath, &s); err != nil {
		return "another program"
	}
	return fmt.Sprintf("weftd %s of node %s", s.Version, s.Node)
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
	mux.HandleFunc("GET "+api.StatusPath, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.status()) })
	mux.HandleFunc("GET "+api.PlanPath, func(w http.ResponseWriter, r *http.Request) {
		p, err := a.plan(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, p)
	})
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
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		s := a.status()
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

// metrics are levels, read when they are scraped.
func (a *agent) metrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	gauge := func(name, help string, read func(api.Status) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return read(a.status()) }))
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("weft_ready", "1 when a pod started on this node would have its network.", func(s api.Status) float64 { return flag(s.Ready) })
	gauge("weft_in_sync", "1 when the kernel holds what it should.", func(s api.Status) float64 { return flag(s.InSync) })
	gauge("weft_peers", "Nodes whose leases the store holds, without this one.", func(s api.Status) float64 { return float64(len(s.Peers)) })
	gauge("weft_pending_changes", "Changes that the last pass could not make.", func(s api.Status) float64 { return float64(len(s.Pending)) })
	gauge("weft_problems", "Problems known now; `weft status` names them.", func(s api.Status) float64 { return float64(len(s.Problems)) })
	reg.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return reg
}
