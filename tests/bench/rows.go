// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"weft.dev/weft/tests/bench/measure"
)

// Bars of the figures, by number of peers. What is not here has none.
var (
	startBars = map[int]float64{1000: 0.3, 10000: 1.2} // s
	peakBars  = map[int]float64{1000: 35, 10000: 50}   // MiB
	nearest   = map[int]string{                        // flannel v0.28.9, research on a machine of this class, IPv4
		1000: "the nearest peer: 0.89 s", 5000: "the nearest peer: 4.8 s", 10000: "the nearest peer: 9.6 s", 20000: "the nearest peer: 25.1 s",
	}
)

// rows makes the report of what was seen.
func rows(all []figures) []measure.Row {
	var out []measure.Row
	out = append(out, startRows(all)...)
	out = append(out, steadyRows(all)...)
	out = append(out, changeRows(all)...)
	return append(out, costRows(all)...)
}

func startRows(all []figures) []measure.Row {
	const group = "From a real etcd, process start included, to every entry in the kernel"
	var out []measure.Row
	for _, f := range all {
		r := measure.Row{Group: group, Name: f.Request.String(), Unit: "s", Value: measure.Median(f.Starts), N: len(f.Starts), Note: nearest[f.Request.Peers]}
		if bar, ok := startBars[f.Request.Peers]; ok {
			r = measure.AtMost(r, bar)
		}
		out = append(out, r, measure.Row{Group: group, Name: f.Request.String() + ", CPU", Unit: "s", Value: measure.Median(f.StartCPU), N: len(f.StartCPU)})
	}
	for _, twice := range all {
		for _, once := range all {
			if once.Request.Dual == twice.Request.Dual && twice.Request.Peers == 2*once.Request.Peers {
				r := measure.Row{
					Group: group, Name: fmt.Sprintf("t(%d) / t(%d), %s", twice.Request.Peers, once.Request.Peers, once.Request),
					Unit: "x", Value: measure.Median(twice.Starts) / measure.Median(once.Starts), N: len(once.Starts),
				}
				out = append(out, measure.AtMost(r, 2.3))
			}
		}
	}
	return out
}

func steadyRows(all []figures) []measure.Row {
	const group = "Restart with everything in place, and repair"
	var out []measure.Row
	for _, f := range all {
		name := f.Request.String() + ": "
		out = append(out,
			measure.AtMost(measure.Row{Group: group, Name: name + "entries that a restart writes", Value: float64(f.Writes), N: 1}, 0),
			measure.Row{Group: group, Name: name + "restart until ready", Unit: "s", Value: f.Again, N: 1})
		cpu := measure.Row{Group: group, Name: name + "CPU of a restart", Unit: "s", Value: f.AgainCPU, N: 1}
		drift := measure.Row{Group: group, Name: name + "repair of 1% drift", Unit: "s", Value: f.Drift, N: 1}
		if f.Request.Peers == 10000 {
			cpu, drift = measure.AtMost(cpu, 0.3), measure.AtMost(drift, 0.3)
		}
		out = append(out, cpu, drift)
	}
	return out
}

func changeRows(all []figures) []measure.Row {
	const group = "From etcd's answer to a lease's change to the entry in the kernel"
	var out []measure.Row
	for _, f := range all {
		if len(f.Changes) > 0 {
			p50 := measure.Row{Group: group, Name: f.Request.String() + ", p50", Unit: "ms", Value: 1e3 * measure.Quantile(f.Changes, 0.5), N: len(f.Changes)}
			p99 := measure.Row{Group: group, Name: f.Request.String() + ", p99", Unit: "ms", Value: 1e3 * measure.Quantile(f.Changes, 0.99), N: len(f.Changes)}
			out = append(out, measure.AtMost(p50, 1.5), measure.AtMost(p99, 6))
		}
		if f.Request.Storm > 0 {
			r := measure.Row{Group: group, Name: fmt.Sprintf("%s, %d join in a second: the last one", f.Request, f.Request.Storm), Unit: "s", Value: f.Storm, N: 1, Note: "the nearest peer: 2.1 s"}
			out = append(out, measure.AtMost(r, 0.3))
		}
	}
	return out
}

func costRows(all []figures) []measure.Row {
	const group = "What the agent costs"
	var out []measure.Row
	for _, f := range all {
		r := measure.Row{Group: group, Name: f.Request.String() + ": peak of resident memory", Unit: "MiB", Value: f.Peak, N: 1}
		if bar, ok := peakBars[f.Request.Peers]; ok {
			r = measure.AtMost(r, bar)
		}
		out = append(out, r,
			measure.Row{Group: group, Name: f.Request.String() + ": the same of an agent that was restarted, repaired drift and saw changes", Unit: "MiB", Value: f.PeakLate, N: 1},
			measure.Row{Group: group, Name: f.Request.String() + ": what the kernel's slabs grew by", Unit: "MiB", Value: f.Kernel, N: 1, Note: "of the whole machine"})
		if f.Request.Idle > 0 {
			out = append(out, measure.AtMost(measure.Row{
				Group: group, Name: f.Request.String() + ": idle, audits included", Unit: "% of a core", Value: 100 * f.Idle, N: 1,
			}, 0.6))
		}
	}
	return append(out, perPeer(group, all)...)
}

// perPeer says what each peer more costs, from the smallest size to the
// largest.
func perPeer(group string, all []figures) []measure.Row {
	var out []measure.Row
	for _, dual := range []bool{false, true} {
		var few, many *figures
		for i := range all {
			if f := &all[i]; f.Request.Dual == dual {
				if few == nil || f.Request.Peers < few.Request.Peers {
					few = f
				}
				if many == nil || f.Request.Peers > many.Request.Peers {
					many = f
				}
			}
		}
		if few == nil || few == many {
			continue
		}
		n := float64(many.Request.Peers-few.Request.Peers) / 1024
		family := map[bool]string{false: "each IPv4 peer", true: "each dual-stack peer"}[dual]
		out = append(out,
			measure.Row{Group: group, Name: family + ": peak of resident memory", Unit: "KiB", Value: (many.Peak - few.Peak) / n, N: 1},
			measure.Row{Group: group, Name: family + ": kernel memory", Unit: "KiB", Value: (many.Kernel - few.Kernel) / n, N: 1})
	}
	return out
}

// document writes the report as a page.
func document(w io.Writer, r measure.Report) error {
	if _, err := fmt.Fprintf(w, preamble, r.Command, r.Version, r.Machine.CPUs, r.Machine.Kernel, r.Machine.Arch); err != nil {
		return err
	}
	return r.Markdown(w)
}
