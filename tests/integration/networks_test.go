// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"weft.dev/weft/tests/netlab"
)

// labReport is what the tests look at in the document of `weft-lab -o json`.
type labReport struct {
	Lab      string
	OK       bool
	Etcd     []string
	Failures []string
	Nodes    []struct{ PodMTU int }
	Pings    []struct {
		Family int
		OK     bool
	}
}

// Every combination of pod networks and underlay works, mixed families
// included: pods of one family over an underlay of the other. The pod MTU is
// the underlay's less 50 bytes over IPv4 and 70 over IPv6, and 70 where both
// carry packets.
func TestEveryKindOfNetwork(t *testing.T) {
	const (
		both = `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`
		v4   = `{"Network":"10.42.0.0/16"}`
		v6   = `{"EnableIPv4":false,"IPv6Network":"fd42::/48"}`
	)
	for _, c := range []struct {
		name, network, underlay, mtu string
		families                     []int
		podMTU                       int
	}{
		{"dual over IPv4", both, "ipv4", "1500", []int{4, 6}, 1450},
		{"dual over IPv6", both, "ipv6", "1500", []int{4, 6}, 1430},
		{"IPv4 over IPv4", v4, "ipv4", "1500", []int{4}, 1450},
		{"IPv4 over IPv6", v4, "ipv6", "1500", []int{4}, 1430},
		{"IPv6 over IPv4", v6, "ipv4", "1500", []int{6}, 1450},
		{"IPv6 over IPv6", v6, "ipv6", "1500", []int{6}, 1430},
		{"jumbo frames", both, "dual", "9000", []int{4, 6}, 8930},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := lab(t, "run", "--nodes", "2", "--pods-per-node", "1", "--iperf-seconds", "0", "-o", "json",
				"--network", c.network, "--underlay", c.underlay, "--mtu", c.mtu)
			if err := p.Run(); err != nil {
				t.Fatalf("%v: %s", err, p.said())
			}
			var r labReport
			must(t, json.Unmarshal(p.stdout.Bytes(), &r))
			var families []int
			for _, ping := range r.Pings {
				families = append(families, ping.Family)
			}
			slices.Sort(families)
			if families = slices.Compact(families); !slices.Equal(families, c.families) {
				t.Errorf("pinged IPv%v, want IPv%v", families, c.families)
			}
			for i, n := range r.Nodes {
				if n.PodMTU != c.podMTU {
					t.Errorf("pod MTU of node %d is %d, want %d", i+1, n.PodMTU, c.podMTU)
				}
			}
		})
	}
}

// A run in which something does not work fails, says what, and shows what an
// engineer would look at: here an agent dies before the checks.
func TestFailedRunSaysSo(t *testing.T) {
	t.Parallel()
	id := netlab.NewID()
	p := lab(t, "run", "--name", id, "--nodes", "2", "--pods-per-node", "1", "--iperf-seconds", "5", "--iperf-rounds", "1", "-o", "json")
	p.started(t, "pods attached")
	for _, pid := range members(id) {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(cmd, []byte("\x00--node-name=n1\x00")) {
			must(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	if err := p.Wait(); err == nil || p.ProcessState.ExitCode() != 1 {
		t.Errorf("status %d, want 1: %s", p.ProcessState.ExitCode(), p.said())
	}
	var r labReport
	must(t, json.Unmarshal(p.stdout.Bytes(), &r)) // stdout is one document also then
	if r.OK || len(r.Failures) == 0 || !strings.Contains(r.Failures[0], "on n1: weftd does not run") {
		t.Errorf("ok %t, failures %q; want that weftd on n1 does not run", r.OK, r.Failures)
	}
	for _, ping := range r.Pings {
		if !ping.OK {
			t.Error("a ping failed: the data plane should stay when an agent ends")
		}
	}
	for _, want := range []string{"--- n1: weftd log", "--- n2: bridge fdb", "--- leases"} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("no %q on stderr", want)
		}
	}
	gone(t, id, nil)
}
