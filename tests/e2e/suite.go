// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
)

// specsPerCPU is how many specs run at a time. Some of their time is waiting; but
// one that wants ports of the hosts waits for another that has them, and fails
// after five minutes, so they must not be slow.
const specsPerCPU = 2

// defaultSkip leaves out what takes over all of a cluster or half an hour.
const defaultSkip = `\[Serial\]|\[Disruptive\]|\[Slow\]|\[Feature:SCTPConnectivity\]`

// A group is specs of Kubernetes' e2e suite, as a regular expression over
// their full names.
type group struct {
	name  string
	focus string
	dual  bool // only dual-stack clusters have what it tests
}

// groups are the specs that show that a network works.
func groups() []group {
	return []group{
		{name: "pods reach pods", focus: `Granular Checks: Pods`},
		{name: "pods and nodes reach services", focus: `Granular Checks: Services should`},
		{name: "service endpoints", focus: `Services should serve (a basic endpoint from pods|multiport endpoints from pods)`},
		{name: "session affinity", focus: `should have session affinity work for service with type clusterIP`},
		{name: "NodePort", focus: `should be able to create a functioning NodePort service`},
		{name: "DNS", focus: `DNS should provide DNS for (services|pods for Hostname|pods for Subdomain)`},
		{name: "HostPort", focus: `HostPort validates that there is no conflict`},
		{name: "dual stack", focus: `\[Feature:IPv6DualStack\]`, dual: true},
	}
}

// groupsFor returns what to run: the usual groups, or what the user asks for.
func (o options) groupsFor() []group {
	var out []group
	for _, f := range o.Focus {
		out = append(out, group{name: f, focus: f})
	}
	if len(out) > 0 {
		return out
	}
	for _, g := range groups() {
		if !g.dual || o.Cluster.Family == "dual" {
			out = append(out, g)
		}
	}
	return out
}

// junit is what we read of the suite's report.
type junit struct {
	Suites []struct {
		Cases []struct {
			Name    string  `xml:"name,attr"`
			Status  string  `xml:"status,attr"`
			Seconds float64 `xml:"time,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
				Text    string `xml:",chardata"`
			} `xml:"failure"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// runSuite runs Kubernetes' specs. What fails is in the results; an error
// means that the suite could not be run.
func (o options) runSuite(ctx context.Context, c *cluster.Cluster) ([]Result, error) {
	dir := filepath.Join(o.Cluster.LogDir, "suite")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("report of the suite: %w", err)
	}
	log, err := os.Create(filepath.Join(o.Cluster.LogDir, "suite.log"))
	if err != nil {
		return nil, fmt.Errorf("log of the suite: %w", err)
	}
	defer log.Close()
	args := []string{fmt.Sprintf("--procs=%d", specsPerCPU*runtime.NumCPU()), "--no-color", "--timeout=" + remaining(ctx).String(), "--skip=" + o.Skip}
	for _, g := range o.groupsFor() {
		args = append(args, "--focus="+g.focus)
	}
	args = append(args, o.Cluster.Parts.Programs[parts.E2ETest], "--",
		"--provider=skeleton", "--kubeconfig="+cluster.AdminConfig, "--kubectl-path="+o.Cluster.Parts.Programs["kubectl"],
		"--report-dir="+dir, "--disable-log-dump=true", fmt.Sprintf("--num-nodes=%d", o.Cluster.Nodes))
	cmd := c.Command(ctx, "ginkgo", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = 5 * time.Second
	if err := c.Fabric().Start(cmd); err != nil {
		return nil, err
	}
	ended := cmd.Wait() // a failed spec is in the report too
	results, err := readJUnit(filepath.Join(dir, "junit_01.xml"), o.groupsFor())
	if err != nil {
		return nil, errors.Join(ended, err, fmt.Errorf("the suite's log is %s", log.Name()))
	}
	return append(results, amiss(results, o.Listed)...), ctx.Err()
}

// readSpecs returns the names in a file of specs, one a line; # is for comments.
// No path is no list.
func readSpecs(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("specs that are to run (--specs): %w", err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("specs that are to run (--specs): %s names none", path)
	}
	return out, nil
}

// amiss returns failures for what was listed and did not run, which is also what
// skipped itself, and for what ran and is not in the list. An empty list is about
// nothing.
func amiss(ran []Result, listed []string) []Result {
	const group = "list of specs"
	if len(listed) == 0 {
		return nil
	}
	open := map[string]bool{}
	for _, name := range listed {
		open[name] = true
	}
	var out []Result
	for _, r := range ran {
		if !slices.Contains(listed, r.Name) {
			out = append(out, Result{Group: group, Name: r.Name, Error: "ran, and is not in the list"})
		}
		delete(open, r.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(open)) {
		out = append(out, Result{Group: group, Name: name, Error: "is in the list and did not run"})
	}
	return out
}

// remaining is the time until ctx ends, less what is needed to say so.
func remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return time.Hour
	}
	return max(time.Until(deadline)-15*time.Second, time.Second).Round(time.Second)
}

// readJUnit returns the results of all specs that ran. A group of which none
// ran has failed: a spec that is renamed must not go unnoticed.
func readJUnit(path string, groups []group) ([]Result, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the suite has left no report %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("report of the suite: %w", err)
	}
	var doc junit
	if err := xml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("report of the suite, %s: %w", path, err)
	}
	var out []Result
	for _, g := range groups {
		focus, err := regexp.Compile(g.focus)
		if err != nil {
			return nil, fmt.Errorf("specs %q: %w", g.focus, err)
		}
		found := false
		for _, s := range doc.Suites {
			for _, t := range s.Cases {
				if t.Status == "skipped" || t.Status == "pending" || !focus.MatchString(t.Name) {
					continue
				}
				found = true
				r := Result{Group: g.name, Name: strings.TrimPrefix(t.Name, "[It] "), OK: t.Status == "passed", Seconds: t.Seconds}
				if t.Failure != nil {
					r.Error = strings.TrimSpace(t.Failure.Message + "\n" + t.Failure.Text)
				}
				out = append(out, r)
			}
		}
		if !found {
			out = append(out, Result{Group: g.name, Name: g.focus, Error: "no spec of that name ran"})
		}
	}
	return out, nil
}
