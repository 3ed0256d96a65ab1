// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
)

// What fails is seen in the matrix, in the sums and in the list.
func TestTableShowsFailures(t *testing.T) {
	a := netip.MustParseAddr
	r := &Report{
		Nodes: []NodeReport{
			{Name: "n1", Underlay: []netip.Addr{a("192.168.77.1")}, Capabilities: "0000000000001000", Problems: []string{"Trouble x: y"}},
			{Name: "n2", Underlay: []netip.Addr{a("192.168.77.2")}, Problems: []string{"Trouble x: y"}},
		},
		Pods: []PodReport{{Name: "n1-p1"}, {Name: "n2-p1"}},
		Pings: []Ping{
			{From: "n1-p1", To: "n2-p1", Family: 4, OK: true},
			{From: "n1-p1", To: "n2-p1", Family: 6, Error: "lost"},
			{From: "n2-p1", To: "n1-p1", Family: 4, OK: true},
			{From: "n2-p1", To: "n1-p1", Family: 6, OK: true},
		},
		Sizes:     []Size{{From: "n1-p1", To: "n2-p1", Family: 6, MTU: 1430, Error: "too small"}},
		Addresses: []Address{{Kind: "pod to pod", From: "n1-p1", To: "n2-p1", Error: "translated"}},
		Throughput: []Throughput{
			{From: "n1-p1", To: "n2-p1", Family: 4, Seconds: 1, Pod: []float64{5000, 9000, 8000}, Host: []float64{10000, 10000, 10000}, Ratios: []float64{0.5, 0.9, 0.8}, Ratio: 0.8},
			{From: "n1-p1", To: "n2-p1", Family: 6, Seconds: 1, Pod: []float64{5000}},
		},
	}
	r.Failures = r.failures()
	var b strings.Builder
	if err := r.table(&b); err != nil {
		t.Fatal(err)
	}
	// Columns are as wide as their contents: compare words.
	var lines []string
	for line := range strings.Lines(b.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	got := strings.Join(lines, "\n") + "\n"
	for _, want := range []string{
		"n1 192.168.77.1 0 0 no CAP_NET_ADMIN only (1000)\n",
		"n2 192.168.77.2 0 0 no WRONG\n",
		"weftd on n1, n2 notes: Trouble x: y\n",
		"n1-p1 . 4 -\n",
		"n2-p1 4 6 .\n",
		"pod to pod, ping, IPv4 2 2\n",
		"pod to pod, ping, IPv6 1 2\n",
		"unfragmented 1430 bytes pass, 1431 do not, IPv6 0 1\n",
		"pod to pod, TCP, server sees the client's own address 0 1\n",
		"n1-p1 -> n2-p1, IPv4 10.00 Gbit/s 8.00 Gbit/s 0.80 0.50..0.90\n",
		"n1-p1 -> n2-p1, IPv6 - 5.00 Gbit/s - -\n",
		"3 failures:\nping n1-p1 -> n2-p1: lost\nsize n1-p1 -> n2-p1: too small\npod to pod n1-p1 -> n2-p1: translated\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "Everything works") {
		t.Error("a failed run says that everything works")
	}
}

// The median is the middle of the sorted values.
func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 2}, 2}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
	}
}
