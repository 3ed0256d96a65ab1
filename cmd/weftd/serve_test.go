// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"weft.dev/weft/cmd/internal/api"
)

func TestSocketOfAKilledAgentIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after kill -9
	l.Close()
	again, err := listenUnix(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// Only a socket is a leftover of ours; whatever else has the name stays.
func TestListenUnixKeepsWhatIsNoSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenUnix(context.Background(), path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("%v, %v", l, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

// Of two agents that start at once on the socket of a killed one, one gets it
// and the other is told; neither takes it from the other.
func TestTakeoverOfASocketByTwo(t *testing.T) {
	for round := range 20 {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // as after kill -9
		l.Close()
		var won, lost atomic.Int32
		var agents sync.WaitGroup
		for range 4 {
			agents.Go(func() {
				l, err := listenUnix(context.Background(), path)
				if err != nil {
					lost.Add(1)
					return
				}
				won.Add(1)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, api.Status{Node: "first"}) })}
				go srv.Serve(l)
				t.Cleanup(func() { srv.Close() })
			})
		}
		agents.Wait()
		if who := whoServes(context.Background(), path); won.Load() != 1 || lost.Load() != 3 || !strings.Contains(who, "first") {
			t.Fatalf("round %d: %d have it, %d do not, %q answers", round, won.Load(), lost.Load(), who)
		}
	}
}

func TestSecondAgentNamesTheFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, api.Status{Node: "first"})
	})}
	go srv.Serve(l)
	defer srv.Close()
	if _, err := listenUnix(context.Background(), path); err == nil || !strings.Contains(err.Error(), "node first") {
		t.Errorf("second listener: %v", err)
	}
}

// While the agent waits, its health endpoints say for what.
func TestHealthBeforeTheStoreAnswers(t *testing.T) {
	a := newAgent(parse(t, nil, "--etcd-endpoints=http://127.0.0.1:1"), newLogger(parse(t, nil), testWriter{t}))
	var err error
	if a.store, err = storeOf(a); err != nil {
		t.Fatal(err)
	}
	defer a.store.Close()
	a.waitFor("waiting for the network configuration in etcd")
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/livez":          {200, "ok"},
		"/readyz":         {503, "waiting for the network configuration"},
		"/readyz?verbose": {503, "[-]lease failed"},
		"/metrics":        {200, "weft_ready 0"},
	} {
		code, body := request(t, a.healthRoutes(), path)
		if code != want.code || !strings.Contains(body, want.text) {
			t.Errorf("%s: %d %q, want %d with %q", path, code, body, want.code, want.text)
		}
	}
	if code, body := request(t, a.socketRoutes(), api.PlanPath); code != 503 || !strings.Contains(body, "waiting for") {
		t.Errorf("plan: %d %q", code, body)
	}
	if code, body := request(t, a.socketRoutes(), api.StatusPath); code != 200 || !strings.Contains(body, `"ready":false`) {
		t.Errorf("status: %d %q", code, body)
	}
}

// An agent whose socket was removed, or is another's, says that it must be
// started anew: nobody else would.
func TestRemovedSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weftd.sock")
	a, _ := bare(t, "--socket="+path, "--listen=")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.serve(ctx) }()
	eventually(t, "no socket", func() bool { return a.bound.Load() != nil })
	says := func(code int, text string) {
		t.Helper()
		if got, body := request(t, a.healthRoutes(), "/livez"); got != code || !strings.Contains(body, text) {
			t.Errorf("%d %q, want %d with %q", got, body, code, text)
		}
	}
	says(200, "ok")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	says(503, path+" was removed")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	says(503, path+" was removed")
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	says(200, "ok")
	stop()
	<-done
}

// A release is a thing to do, not to read, and for root alone.
func TestReleaseIsPostedToTheSocket(t *testing.T) {
	a, _ := bare(t)
	for _, c := range []struct {
		h      http.Handler
		method string
		code   int
	}{
		{a.socketRoutes(), http.MethodGet, http.StatusMethodNotAllowed},
		{a.socketRoutes(), http.MethodPost, http.StatusServiceUnavailable}, // starting
		{a.healthRoutes(), http.MethodPost, http.StatusNotFound},
	} {
		rec := httptest.NewRecorder()
		c.h.ServeHTTP(rec, httptest.NewRequest(c.method, api.ReleasePath, nil))
		if rec.Code != c.code {
			t.Errorf("%s: %d %q, want %d", c.method, rec.Code, rec.Body.String(), c.code)
		}
	}
	a, _, _ = running(t, nil)
	var released api.Released
	rec := httptest.NewRecorder()
	a.socketRoutes().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, api.ReleasePath, nil))
	if err := json.Unmarshal(rec.Body.Bytes(), &released); err != nil || rec.Code != http.StatusOK || released.Routes != 0 {
		t.Errorf("nothing held: %d %q, %v", rec.Code, rec.Body.String(), err)
	}
}

// One scrape makes one status, so that its figures agree.
func TestScrapeMakesOneStatus(t *testing.T) {
	a, s := bare(t)
	a.status()
	one := s.reasons.Swap(0)
	read := counters(func(context.Context) (map[string]uint64, error) {
		return map[string]uint64{"source": 3, "ethertype": 0}, nil
	})
	a.counters.Store(&read)
	code, body := request(t, a.healthRoutes(), "/metrics")
	if got := s.reasons.Load(); got != one {
		t.Errorf("the store was asked %d times, once for a status is %d", got, one)
	}
	for _, want := range []string{"weft_ready 0", "weft_mass_removal_held 0", `weft_guard_refused_total{reason="source"} 3`, `weft_guard_refused_total{reason="ethertype"} 0`} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("%d, lacks %q", code, want)
		}
	}
}

// An agent that enforces policies says how far it is, and one that does not
// says nothing of them.
func TestScrapeOfPolicies(t *testing.T) {
	enforces, _ := bare(t)
	enforces.o.Store = storeKube
	without, _ := bare(t)
	for a, want := range map[*agent]bool{enforces: true, without: false} {
		_, body := request(t, a.healthRoutes(), "/metrics")
		for _, metric := range []string{"weft_policy_in_force 0", "weft_policy_policies 0", "weft_policy_rows 0"} {
			if strings.Contains(body, metric) != want {
				t.Errorf("%q is there: %t, want %t", metric, !want, want)
			}
		}
		code, body := ask(t, a.socketRoutes(), http.MethodPost, api.AdmitPath+"c1/eth0")
		if refused := http.StatusNotFound; !want && code != refused || want && (code != http.StatusServiceUnavailable || !strings.Contains(body, "starting")) {
			t.Errorf("a pod's start is answered %d %s", code, body)
		}
	}
}

func TestStatusShowsGuardAndRefusals(t *testing.T) {
	a, _ := bare(t, "--ingress-guard=peers")
	read := counters(func(context.Context) (map[string]uint64, error) { return map[string]uint64{"source": 3}, nil })
	a.counters.Store(&read)
	var s api.Status
	_, body := request(t, a.socketRoutes(), api.StatusPath)
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Guard.Mode != "peers" || !s.Guard.Masquerade || s.Guard.Refused["source"] != 3 {
		t.Errorf("%v: %s", err, body)
	}
	broken := counters(func(context.Context) (map[string]uint64, error) { return nil, errors.New("busy") })
	a.counters.Store(&broken)
	if code, body := request(t, a.socketRoutes(), api.StatusPath); code != 200 || strings.Contains(body, "refused") {
		t.Errorf("counters that cannot be read: %d %s", code, body)
	}
}

// Profiles are for whoever may use the socket, and for nobody on the network.
func TestProfiles(t *testing.T) {
	a, _ := bare(t)
	for _, name := range []string{"heap", "goroutine", "cpu?seconds=1"} {
		if code, body := request(t, a.socketRoutes(), api.ProfilePath+name); code != 200 || !strings.HasPrefix(body, "\x1f\x8b") { // gzip, RFC 1952
			t.Errorf("%s: %d, %.20q", name, code, body)
		}
		if code, _ := request(t, a.healthRoutes(), api.ProfilePath+name); code != 404 {
			t.Errorf("%s on the health address: %d", name, code)
		}
	}
	for name, want := range map[string]string{"nosuch": "there are cpu, allocs,", "cpu?seconds=99": "want 1 to 50"} {
		if code, body := request(t, a.socketRoutes(), api.ProfilePath+name); code < 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, %q", name, code, body)
		}
	}
}
