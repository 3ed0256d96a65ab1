// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What ran is in the results with its verdict; what was left out is not; and a
// group of which nothing ran has failed.
func TestReadJUnit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit_01.xml")
	err := os.WriteFile(path, []byte(`<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="4"><testsuite name="Kubernetes e2e suite">
<testcase name="[It] [sig-network] Services should serve a basic endpoint from pods [Conformance]" status="passed" time="12.5"></testcase>
<testcase name="[It] [sig-network] Services should serve multiport endpoints from pods [Conformance]" status="failed" time="3"><failure message="no endpoint" type="failed">at x.go</failure></testcase>
<testcase name="[It] [sig-network] DNS should provide DNS for services [Conformance]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-storage] Something else" status="passed" time="1"></testcase>
</testsuite></testsuites>`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readJUnit(path, []group{{name: "endpoints", focus: "Services should serve"}, {name: "DNS", focus: "DNS should"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatalf("%d results, want 3: %+v", len(got), got)
	}
	if !got[0].OK || got[0].Seconds != 12.5 || strings.HasPrefix(got[0].Name, "[It]") {
		t.Errorf("passed: %+v", got[0])
	}
	if got[1].OK || !strings.HasPrefix(got[1].Error, "no endpoint\n") {
		t.Errorf("failed: %+v", got[1])
	}
	if got[2].OK || got[2].Group != "DNS" || !strings.Contains(got[2].Error, "no spec") {
		t.Errorf("none ran: %+v", got[2])
	}
}

// Only dual-stack clusters are tested for what needs two families, and every
// other group is for all.
func TestGroups(t *testing.T) {
	var o options
	o.Cluster.Family = "dual"
	dual := len(o.groupsFor())
	o.Cluster.Family = "ipv6"
	if single := len(o.groupsFor()); single != dual-1 {
		t.Errorf("%d groups for one family, %d for two", single, dual)
	}
	o.Focus = []string{"HostPort"}
	if got := o.groupsFor(); len(got) != 1 || got[0].focus != "HostPort" {
		t.Errorf("what is asked for is %+v", got)
	}
}

// What was listed and did not run is a failure, and so is what ran and was not
// listed. Our list of NetworkPolicy's specs names each once.
func TestListOfSpecs(t *testing.T) {
	ran := []Result{{Name: "a", OK: true}, {Name: "b"}, {Name: "d", OK: true}}
	if got := amiss(ran, []string{"a", "b", "c"}); len(got) != 2 || got[0].Name != "d" || got[1].Name != "c" || got[0].OK || got[1].OK {
		t.Errorf("%+v", got)
	}
	if got := amiss(ran, nil); len(got) != 0 {
		t.Errorf("without a list: %+v", got)
	}
	list, err := readSpecs("specs/netpol-v1.37.2.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, name := range list {
		names[name] = strings.HasPrefix(name, "[sig-network] Netpol ")
	}
	if len(list) != 48 || len(names) != 48 || slices.Contains(slices.Collect(maps.Values(names)), false) {
		t.Errorf("%d specs, %d different ones: %v", len(list), len(names), names)
	}
	if _, err := readSpecs(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "--specs") {
		t.Errorf("a file that is not there: %v", err)
	}
}
