// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

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
	for _, bad := range []string{"--only=x", "--pairs=0", "--data-peers=1", "--sizes=99", "--sizes=70000", "--sizes=1000,x", "--starts=0", "--changes=-1", "--idle=-1s"} {
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
