// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/tests/netlab"
)

func TestMain(m *testing.M) {
	if code, ran := netlab.Stage(os.Args); ran {
		os.Exit(code)
	}
	if netlab.Inside() {
		os.Exit(control(context.Background()))
	}
	os.Exit(m.Run())
}

// TestFaults injects every quick fault once, at sample length, each a subtest
// that carries the number of the flannel failure it answers to. `make faults`
// does the whole.
func TestFaults(t *testing.T) {
	if err := netlab.Preflight(tools()...); err != nil {
		t.Fatal(err)
	}
	bin, err := netlab.FindBin("")
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{}, 3) // labs at the same time, on two CPUs
	for _, c := range campaigns() {
		q := request{Campaign: c.Name, Seeds: 1, First: uint64(time.Now().UnixNano()), BinDir: bin}
		if !c.asks(q) {
			continue // all of its faults are slow
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			gate <- struct{}{}
			defer func() { <-gate }()
			t.Logf("seed %d", q.First)
			var log bytes.Buffer
			all, err := q.launch(t.Context(), &log)
			if err != nil {
				t.Fatalf("%v\n%s", err, log.String())
			}
			bad := false
			for _, r := range all {
				t.Run(r.title(c), func(t *testing.T) {
					t.Log(r.line())
					if !r.ok() {
						bad = true
						t.Error(r.Failure)
					}
				})
			}
			if bad {
				t.Logf("the campaign says:\n%s", log.String())
			}
		})
	}
}

var issue = regexp.MustCompile(`#\d+|\bB\d+`)

// title is a subtest's name: the ID, the fault, and flannel's issues.
func (r result) title(c campaign) string {
	name := r.ID + " " + r.Name
	for _, f := range c.Faults {
		if found := issue.FindAllString(f.Flannel, -1); f.ID == r.ID && f.Name == r.Name && len(found) > 0 {
			name += " (flannel " + strings.Join(found, " ") + ")"
		}
	}
	return name
}

// Every fault that was measured on flannel has a row, names are unique within
// a campaign, and each row says what flannel makes of it.
func TestTableIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range campaigns() {
		names := map[string]bool{}
		for _, f := range c.Faults {
			if f.Name == "" || f.Flannel == "" || f.Run == nil {
				t.Errorf("%s %s %q: want a name, flannel's result and a script", c.Name, f.ID, f.Name)
			}
			if names[f.ID+f.Name] {
				t.Errorf("%s has two rows %s %q", c.Name, f.ID, f.Name)
			}
			names[f.ID+f.Name] = true
			seen[f.ID] = true
		}
	}
	for i := 1; i <= 19; i++ {
		if id := fmt.Sprintf("T%d", i); !seen[id] {
			t.Errorf("no row for %s", id)
		}
	}
	for i := 1; i <= 6; i++ {
		if id := fmt.Sprintf("A%d", i); !seen[id] {
			t.Errorf("no row for %s", id)
		}
	}
}

// The 99th percentile of few is the slowest, failures are not in it, and
// neither a failure nor a broken limit stays unsaid.
func TestReport(t *testing.T) {
	c := campaign{Name: "c", What: "things", Faults: []fault{{ID: "T1", Name: "one", Flannel: "dies (#1)"}, {ID: "T2", Name: "two", Flannel: "x", Loses: true}}}
	done := []result{
		{Campaign: "c", ID: "T1", Name: "one", Took: 100 * time.Millisecond, Sent: 10},
		{Campaign: "c", ID: "T1", Name: "one", Took: 300 * time.Millisecond, Sent: 10},
		{Campaign: "c", ID: "T1", Name: "one", Took: 200 * time.Millisecond, Sent: 10},
		{Campaign: "c", ID: "T2", Name: "two", Took: 1500 * time.Millisecond, Sent: 7, Lost: 3},
		{Campaign: "c", ID: "T2", Name: "two", Took: 4 * time.Second, Audit: true},
		{Campaign: "c", ID: "T2", Name: "two", Audit: true, Failure: "it never came back"},
	}
	rep := newReport([]campaign{c}, done, options{}, time.Minute)
	if len(rep.rows) != 3 {
		t.Fatalf("%d rows, want 3", len(rep.rows))
	}
	if r := rep.rows[0]; r.p50 != 200*time.Millisecond || r.p99 != 300*time.Millisecond || r.sent != 30 || r.slow() {
		t.Errorf("first row: %+v", r)
	}
	if r := rep.rows[2]; r.unrecovered != 1 || r.p99 != 4*time.Second || r.slow() {
		t.Errorf("third row: %+v", r)
	}
	err := rep.err()
	if err == nil || !strings.Contains(err.Error(), "never came back") || !strings.Contains(err.Error(), "two: p99 1.500 s, promised 1s") {
		t.Errorf("error %v", err)
	}
	text := rep.markdown()
	for _, want := range []string{"dies (#1)", "| T2 two | x | 1 | 3 of 7 | 1.500 s |", "6 injections, 1 unrecovered", "1 of 2 and 0 of 0 passed"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
}
