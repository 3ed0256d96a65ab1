// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// A Report is the outcome of a run: the document that `-o json` prints.
type Report struct {
	Lab        string       `json:"lab"`
	OK         bool         `json:"ok"` // everything below worked
	Failures   []string     `json:"failures"`
	Kernel     string       `json:"kernel"`
	CPUs       int          `json:"cpus"`
	Underlay   string       `json:"underlay"` // dual, ipv4 or ipv6
	Etcd       []string     `json:"etcd"`     // empty: one inside the lab
	Seconds    float64      `json:"seconds"`  // from the start of the lab to the end of the checks
	Nodes      []NodeReport `json:"nodes"`
	Pods       []PodReport  `json:"pods"`
	Pings      []Ping       `json:"pings"`
	Sizes      []Size       `json:"sizes"`
	Addresses  []Address    `json:"addresses"`
	Throughput []Throughput `json:"throughput"`
}

// NodeReport is one node and its agent.
type NodeReport struct {
	Name         string         `json:"name"`
	Underlay     []netip.Addr   `json:"underlay"`
	Subnets      []netip.Prefix `json:"subnets"`
	PodMTU       int            `json:"podMTU"`       // from subnet.env
	Capabilities string         `json:"capabilities"` // CapEff and so on of weftd, as checked
	InSync       bool           `json:"inSync"`       // from `weft status`
	Peers        int            `json:"peers"`        // from `weft status`
	Problems     []string       `json:"problems"`     // from `weft status`
}

// PodReport is one pod.
type PodReport struct {
	Name      string       `json:"name"`
	Node      string       `json:"node"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"` // of the pod's device
}

// Ping is whether one pod reaches another.
type Ping struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Family int    `json:"family"` // 4 or 6
	OK     bool   `json:"ok"`
	Error  string `json:"error,omitempty"`
}

// Size is whether a packet of exactly the pod MTU passes unfragmented from
// one node's pod to another's, and one byte more does not.
type Size struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Family int    `json:"family"`
	MTU    int    `json:"mtu"`
	OK     bool   `json:"ok"`
	Error  string `json:"error,omitempty"`
}

// Address is a TCP connection and the client's address as both ends see it.
// They differ if something translated it on the way: nothing may but the
// masquerading of what pods send out of the pod network, which a node's
// underlay address is not part of; then Want is the address of the pod's node.
type Address struct {
	Kind   string     `json:"kind"` // "pod to pod", "node to pod", "pod to node" or "pod to underlay"
	From   string     `json:"from"`
	To     string     `json:"to"`
	Server netip.Addr `json:"server"`
	Own    netip.Addr `json:"own"`           // the client's address as it sees it
	Want   netip.Addr `json:"want,omitzero"` // what the server should see, if not Own
	Seen   netip.Addr `json:"seen"`          // as the server sees it
	OK     bool       `json:"ok"`
	Error  string     `json:"error,omitempty"`
}

// Throughput compares one TCP stream between two pods with one between their
// nodes, in Mbit/s as the receiver counts. The rounds are interleaved; Ratios
// are each round's pod/host and Ratio is their median, 0 when there is no host
// of that family. A handful of rounds shows that nothing is badly wrong; it is
// no benchmark.
type Throughput struct {
	From    string    `json:"from"`
	To      string    `json:"to"`
	Family  int       `json:"family"`
	Seconds int       `json:"seconds"` // of one measurement
	Pod     []float64 `json:"podMbits"`
	Host    []float64 `json:"hostMbits"`
	Ratios  []float64 `json:"ratios"`
	Ratio   float64   `json:"ratio"`
}

// failures lists what did not work, one line each.
func (r *Report) failures() []string {
	out := []string{}
	for _, p := range r.Pings {
		if !p.OK {
			out = append(out, "ping "+p.From+" -> "+p.To+": "+p.Error)
		}
	}
	for _, s := range r.Sizes {
		if !s.OK {
			out = append(out, "size "+s.From+" -> "+s.To+": "+s.Error)
		}
	}
	for _, a := range r.Addresses {
		if !a.OK {
			out = append(out, a.Kind+" "+a.From+" -> "+a.To+": "+a.Error)
		}
	}
	return out
}

// median returns the middle value, or the mean of the two; 0 for none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// familyNumber is what reports say for a family: 4 or 6.
func familyNumber(f subnet.Family) int { return int(f) }
