// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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
