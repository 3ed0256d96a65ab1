// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"weft.dev/weft/tests/bench/measure"
)

// kubeGroup begins the names of the groups of rows about the Node API.
const kubeGroup = "Node API: "

// Bars of an agent that watches 1,000 Nodes.
const (
	beatBytes = 4096 // a heartbeat, as far as the agent's socket
	beatCPU   = 1    // % of a core, at the usual rate
	kubeRSS   = 60   // MiB
)

// kubeRates are how often kubelets together send a heartbeat when nothing
// changes, each once in 5 minutes (--node-status-report-frequency), and ten
// times as often, a second.
func kubeRates(nodes int) []float64 {
	usual := float64(nodes) / 300
	return []float64{usual, 10 * usual}
}

// kubeRows makes the report of what was seen beside an API server.
func kubeRows(f kubeFigures) []measure.Row {
	group := fmt.Sprintf("%s%d dual-stack Nodes, each as a kubelet has registered it", kubeGroup, f.Request.Nodes)
	row := func(name, unit string, value float64, n int) measure.Row {
		return measure.Row{Group: group, Name: name, Unit: unit, Value: value, N: n}
	}
	out := []measure.Row{
		row("process start to every entry in the kernel", "s", f.Start, 1),
		row("received until then", "KiB a Node", f.List/1024/float64(f.Request.Nodes+1), 1),
		row("a lease's change, from the server's answer to the entry in the kernel, p50", "ms", 1e3*measure.Median(f.Changes), len(f.Changes)),
		row("CPU without heartbeats, audits included", "% of a core", share(f.Quiet), 1),
		row("received without heartbeats", "B/s", float64(f.Quiet.Received)/f.Quiet.Seconds, 1),
	}
	for i, s := range f.Beating {
		rate := fmt.Sprintf("%.1f heartbeats a second: ", f.Request.Rates[i])
		cpu := row(rate+"CPU, audits included", "% of a core", share(s), 1)
		if i == 0 {
			cpu = measure.AtMost(cpu, beatCPU)
		}
		out = append(out,
			measure.AtMost(row(rate+"received", "B each", float64(s.Received)/float64(s.Beats), s.Beats), beatBytes),
			row(rate+"sent", "B each", float64(s.Sent)/float64(s.Beats), s.Beats),
			measure.AtMost(row(rate+"writes to the kernel", "", float64(s.Writes), s.Beats), 0),
			cpu)
	}
	return append(out,
		row("heartbeats of the agent's own Node: received", "B each", f.Own, 1),
		row("writes that the same monitors heard of when leases changed", "each", float64(f.Heard)/float64(len(f.Changes)), len(f.Changes)),
		measure.AtMost(row("resident memory after all of it", "MiB", f.Resident, 1), kubeRSS),
		row("of that anonymous", "MiB", f.Anon, 1),
		row("peak of resident memory", "MiB", f.Peak, 1))
}

// share is the CPU time of a span, % of a core.
func share(s span) float64 { return 100 * s.CPU / s.Seconds }

// missed is an error when a bar of the Node API is not met, apart from those of
// CPU time, which a busy machine stretches.
func missed(rows []measure.Row) error {
	var errs []error
	for _, r := range rows {
		if strings.HasPrefix(r.Group, kubeGroup) && r.Met == measure.No && !strings.Contains(r.Name, "CPU") {
			errs = append(errs, fmt.Errorf("%s: %g %s, want %s", r.Name, r.Value, r.Unit, r.Bar))
		}
	}
	return errors.Join(errs...)
}
