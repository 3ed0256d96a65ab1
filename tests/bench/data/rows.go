// SPDX-License-Identifier: Apache-2.0

package data

import (
	"fmt"
	"math/rand/v2"

	"weft.dev/weft/tests/bench/measure"
)

// A figure is what is compared of a kind of traffic.
type figure struct {
	kind    string
	name    string
	value   func(seen) float64
	more    bool    // more is better
	unit    string  // of the absolute value
	scale   float64 // of the absolute value
	least   float64 // of weft / by hand; 0: no worse than 1
	peer    string  // the nearest peer's ratio to the host, on a GSO wire
	peerSeg string  // on a segmented wire
}

func figures() []figure {
	return []figure{
		{kind: stream, name: "TCP, one stream", value: func(s seen) float64 { return s.Rate }, more: true, unit: "Gbit/s", scale: 8e-9, peer: "0.71", peerSeg: "0.60"},
		{kind: stream, name: "CPU time for each GB", value: func(s seen) float64 { return s.CPU }, unit: "s", scale: 1e9, peer: "1.46", peerSeg: "1.54"},
		{kind: pingers, name: "round trip of 64 bytes, least", value: func(s seen) float64 { return s.Min }, unit: "µs", scale: 1e6, peer: "1.88"},
		{kind: pingers, name: "round trip of 64 bytes, p25", value: func(s seen) float64 { return s.P25 }, unit: "µs", scale: 1e6},
		{kind: connect, name: "new connections", value: func(s seen) float64 { return s.Rate }, more: true, unit: "/s", scale: 1, least: 1.15, peer: "0.46"},
		{kind: packets, name: "one packet of 64 bytes, p25", value: func(s seen) float64 { return s.P25 }, unit: "µs", scale: 1e6},
	}
}

// rows makes the report.
func (q Request) rows(all []samples) []measure.Row {
	var out []measure.Row
	r := rand.New(rand.NewPCG(1, 2)) // the same samples give the same interval
	for _, s := range all {
		for _, f := range figures() {
			if f.kind == s.kind {
				out = append(out, s.rows(f, q, r)...)
			}
		}
	}
	return out
}

// column is the values of one variant.
func (s samples) column(f figure, v int) []float64 {
	var out []float64
	for _, one := range s.got[v] {
		out = append(out, f.value(one))
	}
	return out
}

// rows are those of one figure of one trial.
func (s samples) rows(f figure, q Request, r *rand.Rand) []measure.Row {
	where, peer := "", f.peer
	if s.kind == stream {
		where = ", " + string(s.wire)
	}
	switch {
	case s.wire == merging:
		peer = f.peerSeg
	case s.wire == separate:
		peer = "" // the nearest peer was not measured there
	case s.bare:
		where, peer = ", no kube-proxy", "" // nor there
	}
	group := fmt.Sprintf("Data path, %s%s: %s", s.family, where, f.name)
	ratio := func(name string, a, b int) measure.Row {
		row := measure.Row{Group: group, Name: name, Unit: "x", N: len(s.got[a])}
		row.Value, row.Low, row.High = measure.RatioOfPairs(s.column(f, a), s.column(f, b), r)
		return row
	}
	abs := func(name string, v int) measure.Row {
		return measure.Row{Group: group, Name: name, Unit: f.unit, Value: f.scale * measure.Median(s.column(f, v)), N: len(s.got[v])}
	}
	judged := ratio("weft / by hand as flannel does", weftFew, byhand)
	switch {
	case f.least > 0:
		judged = measure.AtLeast(judged, f.least)
	case f.kind == packets || f.unit == "s":
	default:
		judged = measure.NoWorse(judged, f.more)
	}
	out := []measure.Row{judged}
	if len(s.got[host]) > 0 {
		toHost := ratio("weft / host", weftFew, host)
		if peer != "" {
			toHost.Note = "the nearest peer: " + peer
		}
		out = append(out, toHost, ratio("by hand / host", byhand, host))
	}
	if len(s.got[weftMany]) > 0 {
		row := ratio(fmt.Sprintf("weft with %d peers / with 2", q.Peers), weftMany, weftFew)
		if f.kind != stream {
			row = measure.AtMost(row, 1.03)
		}
		out = append(out, row)
	}
	if len(s.got[weftFree]) > 0 {
		out = append(out, ratio("weft, bridge-nf-call-iptables=0 / by hand", weftFree, byhand), ratio("weft, bridge-nf-call-iptables=0 / =1", weftFree, weftFew))
	}
	if len(s.got[weftPlain]) > 0 {
		out = append(out, ratio("weft, --device-gro=false / true", weftPlain, weftFew))
	}
	if len(s.got[weftOpen]) > 0 {
		out = append(out, ratio("weft, --ingress-guard=off / bind", weftOpen, weftFew))
	}
	if len(s.got[weftTwin]) > 0 {
		out = append(out, ratio("weft on other nodes / weft: noise", weftTwin, weftFew))
	}
	if len(s.got[weftTen]) > 0 {
		out = append(out, s.policed(f, ratio)...)
	}
	if len(s.got[host]) > 0 {
		out = append(out, abs("host", host))
	}
	return append(out, abs("weft", weftFew), abs("by hand", byhand))
}

// policed are the rows about what policies cost: at most 8% of a packet of a
// flow that is there, and 15% of a new one; as good as nothing for their number.
func (s samples) policed(f figure, ratio func(string, int, int) measure.Row) []measure.Row {
	cost := ratio(fmt.Sprintf("weft with %d network policies / without", fewPolicies), weftTen, weftFew)
	number := ratio(fmt.Sprintf("weft with %d network policies / with %d", manyPolicies, fewPolicies), weftMuch, weftTen)
	if f.more {
		cost, number = measure.AtLeast(cost, 1/1.15), measure.AtLeast(number, 1/1.03)
	} else {
		cost, number = measure.AtMost(cost, 1.08), measure.AtMost(number, 1.03)
	}
	return []measure.Row{cost, number, ratio("weft with policies and guarded pods / with policies", weftGuarded, weftTen)}
}
