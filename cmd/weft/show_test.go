// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/subnet"
)

func sample() api.Status {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return api.Status{
		Ready: true, Node: "n1", Store: "etcd http://10.0.0.1:2379 /weft/network", InSync: true,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("fd42:0:0:1::/64")},
		Devices: []api.Device{{Name: "weft.1", VNI: 1, Port: 8472, MTU: 1450, MAC: subnet.MAC{2, 0, 0, 0, 0, 1}, Local: netip.MustParseAddr("10.0.0.11"), Underlay: "eth0"}},
		Peers: []api.Peer{
			{Node: "n2", Paths: []api.PeerPath{{Subnet: netip.MustParsePrefix("10.42.2.0/24"), Underlay: netip.MustParseAddr("10.0.0.12"), MAC: subnet.MAC{2, 0, 0, 0, 0, 2}}}},
			{Paths: []api.PeerPath{{Subnet: netip.MustParsePrefix("10.42.3.0/24"), Underlay: netip.MustParseAddr("10.0.0.13"), MAC: subnet.MAC{2, 0, 0, 0, 0, 3}}}},
		},
		Guard:   api.Guard{Mode: "bind", Masquerade: true, Refused: map[string]uint64{"source": 3, "ethertype": 0}},
		Reached: 2, LastPass: &at, Snapshot: &at,
	}
}

// serve answers like an agent would, on a socket of its own.
func serve(t *testing.T, docs map[string]any) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for path, doc := range docs {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := json.NewEncoder(w).Encode(doc); err != nil {
				t.Error(err)
			}
		})
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l) // it ends when the test closes it
	t.Cleanup(func() { s.Close() })
	return socket
}

func invoke(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(context.Background(), args, &o, &e)
	return code, o.String(), e.String()
}

func TestStatus(t *testing.T) {
	socket := serve(t, map[string]any{api.StatusPath: sample()})
	code, out, errs := invoke(t, "status", "--socket", socket)
	if code != 0 || errs != "" {
		t.Fatalf("exit %d, %q", code, errs)
	}
	for _, want := range []string{"ready", "10.42.1.0/24, fd42:0:0:1::/64", "in sync, 2 peers", "weft.1", "02:00:00:00:00:01", "n2", "(flannel)", "10.0.0.13", "bind, masquerading; refused: 3 source\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
}

func TestStatusOfANodeThatIsNotReady(t *testing.T) {
	s := sample()
	s.Ready, s.InSync, s.Reason = false, false, "add route 10.42.2.0/24: no such device"
	s.Pending = []api.Change{{Op: "add", Text: "ip route add 10.42.2.0/24 dev weft.1"}}
	s.Problems = []subnet.Problem{{Kind: "JunkLease", Object: "/weft/network/subnets/x\x1b[2J", Detail: "not a key"}}
	socket := serve(t, map[string]any{api.StatusPath: s})
	code, out, _ := invoke(t, "status", "--socket", socket)
	if code != 1 {
		t.Errorf("exit %d, want 1", code)
	}
	for _, want := range []string{"NOT READY: add route", "OUT OF SYNC, 1 changes", "Not applied:", "ip route add", "Problems:", "JunkLease"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	if strings.ContainsRune(out, 0x1b) {
		t.Error("an escape sequence from the store reaches the terminal")
	}
	code, out, _ = invoke(t, "status", "-o", "json", "--socket", socket)
	var back api.Status
	if err := json.Unmarshal([]byte(out), &back); err != nil || code != 1 || back.Reason != s.Reason || len(back.Peers) != 2 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
}

// A removal that waits is not missed, nor is how to end it.
func TestStatusShowsAHold(t *testing.T) {
	s := sample()
	s.Guard = api.Guard{Mode: "off"}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.Hold = &api.Hold{Since: at, Until: at.Add(5 * time.Minute), Routes: 40}
	var out bytes.Buffer
	if err := printStatus(&out, s, at.Add(2*time.Minute)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"off\n", "40 routes are kept for another 3m0s", "weft peers release"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, out.String())
		}
	}
}

func TestReleaseOfPeers(t *testing.T) {
	for routes, want := range map[int]string{40: "released: 40 routes", 0: "nothing to release"} {
		socket := serve(t, map[string]any{"POST " + api.ReleasePath: api.Released{Routes: routes}})
		if code, out, errs := invoke(t, "peers", "release", "--socket", socket); code != 0 || !strings.HasPrefix(out, want) {
			t.Errorf("exit %d: %q %q, want %q", code, out, errs, want)
		}
		code, out, _ := invoke(t, "peers", "release", "-o", "json", "--socket", socket)
		var back api.Released
		if err := json.Unmarshal([]byte(out), &back); err != nil || code != 0 || back.Routes != routes {
			t.Errorf("exit %d, %v: %s", code, err, out)
		}
	}
	// An agent of the version before has nothing at that path.
	socket := serve(t, map[string]any{"GET " + api.StatusPath: sample()})
	if code, _, errs := invoke(t, "peers", "release", "--socket", socket); code != 1 || !strings.Contains(errs, "404") {
		t.Errorf("exit %d: %q", code, errs)
	}
}

// A peer that could not be programmed is not counted as if it were.
func TestStatusCountsWhatIsReached(t *testing.T) {
	s := sample()
	s.Reached = 1
	socket := serve(t, map[string]any{api.StatusPath: s})
	if _, out, _ := invoke(t, "status", "--socket", socket); !strings.Contains(out, "1 of 2 peers; see the problems") {
		t.Errorf("got\n%s", out)
	}
}

func TestPlan(t *testing.T) {
	socket := serve(t, map[string]any{api.PlanPath: api.Plan{Changes: []api.Change{{Op: "delete", Text: "ip route del 10.42.9.0/24 dev weft.1"}}}})
	if code, out, _ := invoke(t, "plan", "--socket", socket); code != 0 || out != "ip route del 10.42.9.0/24 dev weft.1\n" {
		t.Errorf("exit %d: %q", code, out)
	}
	socket = serve(t, map[string]any{api.PlanPath: api.Plan{}})
	if code, out, _ := invoke(t, "plan", "--socket", socket); code != 0 || !strings.HasPrefix(out, "nothing to do") {
		t.Errorf("exit %d: %q", code, out)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	if code, _, errs := invoke(t, "status", "--socket", missing); code != 1 || !strings.Contains(errs, "is weftd running") {
		t.Errorf("no socket: exit %d, %q", code, errs)
	}
	if code, _, errs := invoke(t, "status", "-o", "yaml"); code != 2 || !strings.Contains(errs, "table or json") {
		t.Errorf("wrong output: exit %d, %q", code, errs)
	}
	if code, _, errs := invoke(t, "peers", "relaese"); code != 2 || !strings.Contains(errs, "relaese") {
		t.Errorf("wrong subcommand: exit %d, %q", code, errs)
	}
	if code, _, errs := invoke(t, "stats"); code != 2 || !strings.Contains(errs, "stats") {
		t.Errorf("wrong command: exit %d, %q", code, errs)
	}
}

// An agent that was stopped still has a socket, and the kernel accepts on it.
func TestASilentAgentIsNotWaitedForEndlessly(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	var s api.Status
	if err := api.Get(ctx, socket, api.StatusPath, &s); err == nil || !strings.Contains(err.Error(), "stopped, or stuck") {
		t.Errorf("%v", err)
	}
}
