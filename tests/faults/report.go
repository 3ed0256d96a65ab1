// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// A row is all injections of a fault in one mode.
type row struct {
	campaign    campaign
	fault       fault
	audit       bool
	results     []result
	sent, lost  int
	p50, p99    time.Duration
	unrecovered int
}

// report is what was found.
type report struct {
	rows  []row
	opts  options
	took  time.Duration
	total int
}

func newReport(chosen []campaign, done []result, o options, took time.Duration) report {
	rep := report{opts: o, took: took, total: len(done)}
	for _, c := range chosen {
		for _, audit := range []bool{false, true} {
			for _, f := range c.Faults {
				r := row{campaign: c, fault: f, audit: audit}
				for _, d := range done {
					if d.Campaign == c.Name && d.ID == f.ID && d.Name == f.Name && d.Audit == audit {
						r.add(d)
					}
				}
				if len(r.results) > 0 {
					r.p50, r.p99 = quantiles(r.results)
					rep.rows = append(rep.rows, r)
				}
			}
		}
	}
	return rep
}

func (r *row) add(d result) {
	r.results = append(r.results, d)
	r.sent += d.Sent
	r.lost += d.Lost
	if !d.ok() {
		r.unrecovered++
	}
}

// quantiles returns the median and the 99th percentile of what recovered, by
// the nearest-rank method: of fewer than 100 the latter is the maximum.
func quantiles(all []result) (p50, p99 time.Duration) {
	var took []time.Duration
	for _, d := range all {
		if d.ok() {
			took = append(took, d.Took)
		}
	}
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	rank := func(q float64) time.Duration { return took[int(math.Ceil(q*float64(len(took))))-1] }
	return rank(0.5), rank(0.99)
}

// slow reports whether the fault's limit is broken.
func (r row) slow() bool { return r.p99 > r.fault.limit(r.audit) }

// err says what is not as promised, or nil.
func (rep report) err() error {
	var all []error
	for _, r := range rep.rows {
		for _, d := range r.results {
			if !d.ok() {
				all = append(all, fmt.Errorf("%s %s, seed %d: %s", d.ID, d.Name, d.Seed, d.Failure))
			}
		}
		if r.slow() {
			all = append(all, fmt.Errorf("%s %s: p99 %s, promised %s", r.fault.ID, r.fault.Name, round(r.p99), r.fault.limit(r.audit)))
		}
	}
	return errors.Join(all...)
}

func round(d time.Duration) string {
	if d >= 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return fmt.Sprintf("%.3f s", d.Seconds())
}

// text writes the table for a terminal.
func (rep report) text(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tFAULT\tBY\tN\tLOST\tP50\tP99\tLIMIT\tUNRECOVERED")
	for _, r := range rep.rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\n", r.fault.ID, r.fault.Name, r.by(), len(r.results),
			r.losses(), round(r.p50), round(r.p99), r.fault.limit(r.audit), r.unrecovered)
	}
	t.Flush()
	for _, a := range rep.together() {
		fmt.Fprintln(w, a)
	}
}

func (r row) by() string {
	if r.audit {
		return "audit"
	}
	return "event"
}

func (r row) losses() string {
	if r.sent == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", r.lost, r.sent)
}

// together sums up.
func (rep report) together() []string {
	var out []string
	for _, audit := range []bool{false, true} {
		var drift []result
		for _, r := range rep.rows {
			if r.audit == audit && r.fault.Limit == 0 && !r.campaign.Counted {
				drift = append(drift, r.results...)
			}
		}
		if len(drift) == 0 {
			continue
		}
		p50, p99 := quantiles(drift)
		by := "by event"
		if audit {
			by = "by audit, with no event to hear"
		}
		out = append(out, fmt.Sprintf("Recovery %s: %d injections, p50 %s, p99 %s.", by, len(drift), round(p50), round(p99)))
	}
	bad, ts, tsBad := 0, map[string]bool{}, map[string]bool{}
	for _, r := range rep.rows {
		bad += r.unrecovered
		if strings.HasPrefix(r.fault.ID, "T") {
			ts[r.fault.ID] = true
			if r.unrecovered > 0 || r.slow() {
				tsBad[r.fault.ID] = true
			}
		}
	}
	out = append(out, fmt.Sprintf("%d injections, %d unrecovered; %s", rep.total, bad, rep.lossless()))
	out = append(out, fmt.Sprintf("Of T1 to T14 and T15 to T19, which were measured on flannel, %s.", passed(ts, tsBad)))
	return out
}

// lossless adds up the faults that may lose no packet.
func (rep report) lossless() string {
	sent, lost := 0, 0
	for _, r := range rep.rows {
		if !r.fault.Loses {
			sent += r.sent
			lost += r.lost
		}
	}
	return fmt.Sprintf("%d of %d pings lost in faults that may lose none.", lost, sent)
}

// passed counts flannel's faults, apart the 14 of the first list.
func passed(injected, bad map[string]bool) string {
	var first, firstBad, rest, restBad int
	for id := range injected {
		n, err := strconv.Atoi(id[1:])
		if err == nil && n <= 14 {
			first++
			if bad[id] {
				firstBad++
			}
			continue
		}
		rest++
		if bad[id] {
			restBad++
		}
	}
	return fmt.Sprintf("%d of %d and %d of %d passed", first-firstBad, first, rest-restBad, rest)
}

// machine says what the figures were measured on.
func machine() string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
		if i := strings.IndexByte(kernel, '-'); i > 0 {
			kernel = kernel[:i] // what follows is the vendor's
		}
	}
	return fmt.Sprintf("%d CPUs, Linux %s, %s", runtime.NumCPU(), kernel, runtime.GOARCH)
}

// markdown writes docs/faults.md.
func (rep report) markdown() string {
	var b strings.Builder
	b.WriteString(preamble)
	fmt.Fprintf(&b, "Measured by `make faults` in %s on a machine with %s: seeds %d to %d.\n\n",
		rep.took.Round(time.Second), machine(), rep.opts.First, rep.opts.First+uint64(rep.opts.Seeds)-1)
	for _, a := range rep.together() {
		fmt.Fprintf(&b, "- %s\n", a)
	}
	for i, r := range rep.rows {
		if i == 0 || rep.rows[i-1].campaign.What != r.campaign.What || rep.rows[i-1].audit != r.audit {
			title := r.campaign.What
			if r.audit {
				title += ", and no event of it"
			}
			fmt.Fprintf(&b, "\n## %s%s\n\n", strings.ToUpper(title[:1]), title[1:])
			b.WriteString(r.head())
		}
		b.WriteString(r.markdown())
	}
	if notes := rep.notes(); notes != "" {
		b.WriteString("\n## What else was counted\n\n" + notes)
	}
	b.WriteString(afterword)
	return b.String()
}

// head is the head of the table that the row is in.
func (r row) head() string {
	if r.campaign.Counted {
		return "| packets | flannel | counted | pings between pods lost meanwhile | unrecovered |\n|---|---|---|---|---|\n"
	}
	return "| fault | flannel | injections | pings lost | p50 | p99 | limit | unrecovered |\n|---|---|---|---|---|---|---|---|\n"
}

func (r row) markdown() string {
	name := r.fault.ID + " " + r.fault.Name
	if r.campaign.Counted {
		return fmt.Sprintf("| %s | %s | %s | %s | %d |\n", name, r.fault.Flannel, r.results[0].Note, r.losses(), r.unrecovered)
	}
	return fmt.Sprintf("| %s | %s | %d | %s | %s | %s | %s | %d |\n", name, r.fault.Flannel, len(r.results),
		r.losses(), round(r.p50), round(r.p99), r.fault.limit(r.audit), r.unrecovered)
}

// notes lists what scripts found worth telling, of the first injection of
// each fault that counts something.
func (rep report) notes() string {
	var b strings.Builder
	for _, r := range rep.rows {
		if r.fault.Tells && !r.audit && !r.campaign.Counted {
			fmt.Fprintf(&b, "- **%s %s**: %s\n", r.fault.ID, r.fault.Name, r.results[0].Note)
		}
	}
	return b.String()
}
