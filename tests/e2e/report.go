// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"weft.dev/weft/tests/e2e/cases"
	"weft.dev/weft/tests/e2e/cluster"
)

// A Result is what one test says.
type Result struct {
	Group   string  `json:"group"`
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// A Report is the outcome of a run.
type Report struct {
	OK      bool              `json:"ok"`
	Nodes   int               `json:"nodes"`
	Family  string            `json:"family"`
	Proxy   string            `json:"proxy"`
	Network string            `json:"network"`
	Parts   map[string]string `json:"parts"`
	Seconds float64           `json:"seconds"` // without the build
	Results []Result          `json:"results"`
}

// test runs our cases and Kubernetes' suite: first whether the network works,
// then what breaks it, at last its removal. What fails is in the report.
func (o options) test(ctx context.Context, c *cluster.Cluster, before cases.Trace, ready time.Duration) (Report, error) {
	start := time.Now()
	r := Report{
		Nodes: o.Cluster.Nodes, Family: o.Cluster.Family, Proxy: o.Cluster.Proxy, Network: o.Network, Parts: o.Cluster.Parts.Versions,
	}
	if o.Network != "none" {
		r.Results = append(r.Results, promised(ready))
	}
	promises := len(r.Results)
	r.Results = append(r.Results, o.runCases(ctx, c, slices.Concat(cases.Network(), cases.Documents(), cases.Policies()))...)
	if o.Suite {
		suite, err := o.runSuite(ctx, c)
		if err != nil {
			return r, err
		}
		c.Progress("%d specs of Kubernetes' suite", len(suite))
		r.Results = append(r.Results, suite...)
	}
	last := slices.Concat(cases.Faults(o.Outage), cases.Churn(), cases.Removal(before, o.Helm))
	r.Results = append(r.Results, o.runCases(ctx, c, last)...)
	if len(r.Results) == promises {
		return r, fmt.Errorf("nothing was tested: no specs, and none of our tests for --cases %q, --long=%t, --network %s", o.Cases, o.Long, o.Network)
	}
	r.OK = true
	for _, t := range r.Results {
		r.OK = r.OK && t.OK
	}
	r.Seconds = time.Since(start).Seconds()
	return r, nil
}

// runCases runs those of the cases that the options ask for.
func (o options) runCases(ctx context.Context, c *cluster.Cluster, all []cases.Case) []Result {
	var out []Result
	for _, t := range all {
		if t.Weft && o.Network != "weft" || t.Long && !o.Long || t.Documented && !o.Documented || o.Cases != "" && !regexp.MustCompile(o.Cases).MatchString(t.Name) {
			continue
		}
		begin := time.Now()
		err := t.Run(ctx, c)
		result := Result{Group: "weft", Name: t.Name, OK: err == nil, Seconds: time.Since(begin).Seconds()}
		word := "passed"
		if err != nil {
			result.Error, word = err.Error(), "FAILED: "+err.Error()
		}
		c.Progress("%s: %s", t.Name, word)
		out = append(out, result)
	}
	return out
}

// status is the exit status that goes with the report.
func (r Report) status() int {
	if r.OK {
		return 0
	}
	return exitFailed
}

// write writes the report for a person, and as report.json beside the logs.
func (r Report) write(w io.Writer, dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "report.json"), append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tTEST\tRESULT\tSECONDS")
	passed, failed := 0, 0
	for _, x := range r.Results {
		word := "passed"
		if passed++; !x.OK {
			word = "FAILED"
			passed--
			failed++
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.0f\n", x.Group, x.Name, word, x.Seconds)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, x := range r.Results {
		if !x.OK {
			first, _, _ := strings.Cut(x.Error, "\n")
			fmt.Fprintf(w, "\n%s:\n    %s\n", x.Name, first)
		}
	}
	_, err = fmt.Fprintf(w, "\n%d nodes, %s, kube-proxy %s, network %s, tested in %.0f s\n%d passed, %d failed\n",
		r.Nodes, r.Family, r.Proxy, r.Network, r.Seconds, passed, failed)
	return err
}
