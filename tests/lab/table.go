// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
)

// shownFailures is how many failures a person is shown: one cause often has
// dozens of them.
const shownFailures = 12

// table writes the report for a person.
func (r *Report) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	r.nodeTable(t)
	r.matrix(t)
	r.sums(t)
	r.speeds(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return r.conclusion(w)
}

func (r *Report) nodeTable(w io.Writer) {
	fmt.Fprintln(w, "NODE\tUNDERLAY\tPOD SUBNETS\tPOD MTU\tPEERS\tIN SYNC\tWEFTD'S CAPABILITIES")
	for _, n := range r.Nodes {
		sync := "no"
		if n.InSync {
			sync = "yes"
		}
		caps := "WRONG"
		if n.Capabilities != "" {
			caps = "CAP_NET_ADMIN only (" + strings.TrimLeft(n.Capabilities, "0") + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", n.Name, join(n.Underlay), join(n.Subnets), n.PodMTU, n.Peers, sync, caps)
	}
	fmt.Fprintln(w)
	r.problems(w)
	fmt.Fprintln(w, "POD\tADDRESSES\tMTU")
	for _, p := range r.Pods {
		fmt.Fprintf(w, "%s\t%s\t%d\n", p.Name, join(p.Addresses), p.MTU)
	}
	fmt.Fprintln(w)
}

// problems prints what the agents find fault with, once for all nodes that say
// the same.
func (r *Report) problems(w io.Writer) {
	var order []string
	nodes := map[string][]string{}
	for _, n := range r.Nodes {
		for _, p := range n.Problems {
			if nodes[p] == nil {
				order = append(order, p)
			}
			nodes[p] = append(nodes[p], n.Name)
		}
	}
	for _, p := range order {
		fmt.Fprintf(w, "weftd on %s notes: %s\n", strings.Join(nodes[p], ", "), p)
	}
	if len(order) > 0 {
		fmt.Fprintln(w)
	}
}

// matrix prints who reaches whom: the families that work, e.g. "4 6".
func (r *Report) matrix(w io.Writer) {
	if len(r.Pings) == 0 {
		return
	}
	cells := map[[2]string]string{}
	for _, p := range r.Pings {
		mark := fmt.Sprint(p.Family)
		if !p.OK {
			mark = "-"
		}
		key := [2]string{p.From, p.To}
		cells[key] = strings.TrimSpace(cells[key] + " " + mark)
	}
	fmt.Fprint(w, "PING FROM \\ TO")
	for _, to := range r.Pods {
		fmt.Fprintf(w, "\t%s", to.Name)
	}
	fmt.Fprintln(w)
	for _, from := range r.Pods {
		fmt.Fprint(w, from.Name)
		for _, to := range r.Pods {
			cell := cells[[2]string{from.Name, to.Name}]
			if from.Name == to.Name {
				cell = "."
			}
			fmt.Fprintf(w, "\t%s", cell)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
}

// sums prints one line for each kind of check.
func (r *Report) sums(w io.Writer) {
	fmt.Fprintln(w, "CHECK\tPASSED\tOF")
	line := func(what string, good, all int) {
		if all > 0 {
			fmt.Fprintf(w, "%s\t%d\t%d\n", what, good, all)
		}
	}
	for _, f := range []int{4, 6} {
		good, all := 0, 0
		for _, p := range r.Pings {
			if p.Family == f {
				all++
				good += count(p.OK)
			}
		}
		line(fmt.Sprintf("pod to pod, ping, IPv%d", f), good, all)
	}
	for _, f := range []int{4, 6} {
		good, all, mtu := 0, 0, 0
		for _, s := range r.Sizes {
			if s.Family == f {
				all++
				good += count(s.OK)
				mtu = s.MTU
			}
		}
		line(fmt.Sprintf("unfragmented %d bytes pass, %d do not, IPv%d", mtu, mtu+1, f), good, all)
	}
	for _, kind := range []string{"pod to pod", "node to pod", "pod to node", masqueraded} {
		good, all := 0, 0
		for _, a := range r.Addresses {
			if a.Kind == kind {
				all++
				good += count(a.OK)
			}
		}
		sees := "the client's own address"
		if kind == masqueraded {
			sees = "its node's"
		}
		line(kind+", TCP, server sees "+sees, good, all)
	}
	fmt.Fprintln(w)
}

func count(ok bool) int {
	if ok {
		return 1
	}
	return 0
}

func (r *Report) speeds(w io.Writer) {
	if len(r.Throughput) == 0 {
		return
	}
	fmt.Fprintln(w, "IPERF3, ONE TCP STREAM\tHOST TO HOST\tPOD TO POD\tPOD/HOST\tFROM..TO")
	for _, t := range r.Throughput {
		host, ratio, span := "-", "-", "-"
		if len(t.Host) > 0 {
			host, ratio = gbits(t.Host), fmt.Sprintf("%.2f", t.Ratio)
			span = fmt.Sprintf("%.2f..%.2f", slices.Min(t.Ratios), slices.Max(t.Ratios))
		}
		fmt.Fprintf(w, "%s -> %s, IPv%d\t%s\t%s\t%s\t%s\n", t.From, t.To, t.Family, host, gbits(t.Pod), ratio, span)
	}
	t := r.Throughput[0]
	fmt.Fprintf(w, "medians of %d interleaved rounds of %d s on %d CPUs, Linux %s; an impression, not a benchmark\n", len(t.Pod), t.Seconds, r.CPUs, r.Kernel)
	fmt.Fprintln(w)
}

func gbits(mbits []float64) string { return fmt.Sprintf("%.2f Gbit/s", median(mbits)/1000) }

// conclusion is the last word.
func (r *Report) conclusion(w io.Writer) error {
	if r.OK {
		_, err := fmt.Fprintf(w, "Everything works: %d pods on %d nodes, built and checked in %.0f s.\n", len(r.Pods), len(r.Nodes), r.Seconds)
		return err
	}
	fmt.Fprintf(w, "%d failures:\n", len(r.Failures))
	for _, f := range r.Failures[:min(len(r.Failures), shownFailures)] {
		fmt.Fprintf(w, "  %s\n", f)
	}
	if more := len(r.Failures) - shownFailures; more > 0 {
		fmt.Fprintf(w, "  and %d more; -o json has them all\n", more)
	}
	return nil
}

func join[T netip.Addr | netip.Prefix](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, fmt.Sprint(v))
	}
	return strings.Join(s, " ")
}
