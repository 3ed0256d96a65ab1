// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/tests/bench/crowd"
	"weft.dev/weft/tests/bench/data"
	"weft.dev/weft/tests/bench/measure"
	"weft.dev/weft/tests/netlab"
)

func TestMain(m *testing.M) {
	if code, ran := netlab.Stage(os.Args); ran {
		os.Exit(code)
	}
	if data.Stage(os.Args) {
		os.Exit(0)
	}
	if netlab.Inside() {
		os.Exit(inside(context.Background()))
	}
	os.Exit(m.Run())
}

// TestSample measures at a small size, in both kinds of network: everything
// has to be counted right, and a restart writes nothing. Times are not judged.
func TestSample(t *testing.T) {
	bin, err := netlab.FindBin("")
	if err != nil {
		t.Fatal(err)
	}
	for _, dual := range []bool{true, false} {
		q := request{Peers: 500, Dual: dual, Starts: 2, Changes: 5, Storm: 100, Idle: time.Second, BinDir: bin}
		var log bytes.Buffer
		f, err := q.launch(t.Context(), &log)
		if err != nil {
			t.Fatalf("%v\n%s", err, log.String())
		}
		t.Logf("%+v", f)
		if f.Writes != 0 {
			t.Errorf("%s: a restart wrote %d entries, want none", q, f.Writes)
		}
		if len(f.Starts) != 2 || len(f.Changes) != 5 || f.Peak < 5 || f.Drift <= 0 || f.Again <= 0 {
			t.Errorf("%s: %+v", q, f)
		}
		out := rows([]figures{f})
		for _, r := range out {
			if r.Name == "" || r.Group == "" || r.N == 0 {
				t.Errorf("row %+v has no name, no group or no samples", r)
			}
		}
		var b strings.Builder
		if err := document(&b, measure.Report{Rows: out, Machine: measure.ThisMachine()}); err != nil || strings.Contains(b.String(), "%!") {
			t.Errorf("%v: %s", err, b.String())
		}
	}
}

func TestOptions(t *testing.T) {
	for _, bad := range []string{"--only=x", "--pairs=0", "--data-peers=1", "--sizes=99", "--sizes=70000", "--sizes=1000,x", "--starts=0", "--changes=-1", "--idle=-1s",
		"--kube-nodes=0", "--kube-span=0s", "--kube-changes=0"} {
		if o, err := parse([]string{bad}, io.Discard); err == nil {
			t.Errorf("%s: %+v", bad, o)
		}
	}
	o, err := parse([]string{"--sizes", "1000, 2000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if q := o.requests(); len(q) != 4 || q[0].Storm != 0 || q[1].Storm != stormSize || q[3].Changes != 0 || !q[1].Dual || q[2].Dual {
		t.Errorf("%+v", q)
	}
}

// The rates are those of kubelets, and what is asserted is what was asked for:
// a slow machine alone makes no failure.
func TestNodeAPIBars(t *testing.T) {
	o, err := parse([]string{"--only=kube"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if r := o.kube.Rates; len(r) != 2 || r[0] < 3.3 || r[0] > 3.4 || r[1] < 33 || r[1] > 34 {
		t.Errorf("%v heartbeats a second of %d Nodes", r, o.kube.Nodes)
	}
	f := kubeFigures{Request: o.kube, Changes: []float64{0.001}, Heard: 9, Resident: 40, Quiet: span{Seconds: 1}}
	for range o.kube.Rates {
		f.Beating = append(f.Beating, span{Seconds: 100, Beats: 300, Received: 300 * 4096, CPU: 50})
	}
	good := kubeRows(f)
	if err := missed(good); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(*kubeFigures){
		"received": func(f *kubeFigures) { f.Beating[1].Received++ },
		"writes":   func(f *kubeFigures) { f.Beating[0].Writes = 1 },
		"memory":   func(f *kubeFigures) { f.Resident = 61 },
	} {
		bad := f
		bad.Beating = slices.Clone(f.Beating)
		spoil(&bad)
		if err := missed(kubeRows(bad)); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var b strings.Builder
	if err := document(&b, measure.Report{Rows: good, Machine: measure.ThisMachine()}); err != nil || strings.Contains(b.String(), "%!") {
		t.Errorf("%v: %s", err, b.String())
	}
}

// The Nodes of the crowd are all that a kubelet's Node is, and their heartbeat
// what a kubelet sends.
func TestNodesAreReal(t *testing.T) {
	n, err := crowd.Model()
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Status.Images) != 50 || len(n.Status.Conditions) != 6 || len(n.Status.Images[40].Names) != 2 || n.Status.NodeInfo.KubeletVersion == "" {
		t.Errorf("%d images, %d conditions of %s", len(n.Status.Images), len(n.Status.Conditions), n.Status.NodeInfo.KubeletVersion)
	}
	fields := crowd.Fields(n)
	for i, who := range []string{"kube-controller-manager ", "kubelet ", "kubelet status", "weftd status"} {
		if len(fields) != 4 || !strings.HasPrefix(fields[i], who) {
			t.Errorf("fields of %s: %q", who, fields)
		}
	}
	patch, err := crowd.Heartbeat(n, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"status":{"$setElementOrder/conditions":[{"type":"NetworkUnavailable"},{"type":"OverlayDegraded"},{"type":"MemoryPressure"},{"type":"DiskPressure"},{"type":"PIDPressure"},{"type":"Ready"}],` +
		`"conditions":[{"lastHeartbeatTime":"2030-01-02T03:04:05Z","type":"MemoryPressure"},{"lastHeartbeatTime":"2030-01-02T03:04:05Z","type":"DiskPressure"},` +
		`{"lastHeartbeatTime":"2030-01-02T03:04:05Z","type":"PIDPressure"},{"lastHeartbeatTime":"2030-01-02T03:04:05Z","type":"Ready"}]}}`
	if string(patch) != want {
		t.Errorf("heartbeat\n%s\nwant\n%s", patch, want)
	}
}
