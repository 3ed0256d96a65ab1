// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
)

// Runs are the ports of a span, each once, and few.
func TestRunsLaw(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		port := rapid.OneOf(rapid.Uint16Min(1), rapid.SampledFrom([]uint16{1, 2, 15, 16, 17, 255, 256, 4095, 4096, 61439, 61440, lastPort - 1, lastPort}))
		s := span{port.Draw(r, "from"), port.Draw(r, "to")}
		if s.from > s.to {
			s.from, s.to = s.to, s.from
		}
		next, n := int(s.from), 0
		for run := range s.runs {
			size := 1 << run.bits
			if int(run.port) != next || next%size != 0 {
				t.Fatalf("%v: %v where port %d is next", s, run, next)
			}
			next += size
			n++
		}
		if next != int(s.to)+1 || n > 6*15+14 {
			t.Fatalf("%v: %d runs, up to %d", s, n, next)
		}
	})
}

func TestPortZeroIsNoRow(t *testing.T) {
	for r := range (span{0, 15}).runs {
		if r != (run{0, 4}) {
			t.Errorf("0 to 15: %v", r)
		}
	}
	for run := range (span{0, 3}).runs {
		if run.port == 0 {
			t.Error("0 to 3: port 0 by itself would be all ports")
		}
	}
}

// Ranges of ports that overlap, each for a peer of its own: a table whose ranges
// were cut where others begin had a quarter of the square of their number.
func TestOverlappingRangesStayFew(t *testing.T) {
	size := func(n int) int {
		c := &Cluster{Namespaces: map[string]*Labels{"a": NewLabels(nil)}}
		c.Pods = append(c.Pods, &Pod{Namespace: "a", Name: "p", UID: "p", Node: "here", Labels: NewLabels(nil), Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
		p := &Policy{Namespace: "a", Name: "np", Subject: labels.Everything(), Isolates: [2]bool{Ingress: true}}
		for i := range n {
			peer := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
			p.Rules[Ingress] = append(p.Rules[Ingress], Rule{
				Peers: []Peer{{Block: &Block{CIDR: netip.PrefixFrom(peer, 32)}}},
				Ports: []Port{{Proto: TCP, From: uint16(1 + i), To: uint16(40000 + i)}},
			})
		}
		c.Policies = append(c.Policies, p)
		return len(Compile(c, "here").Rows)
	}
	few, many := size(100), size(2000)
	if many > 2000*104 || many > 25*few {
		t.Errorf("%d rows of 100 rules, %d of 2,000", few, many)
	}
	t.Logf("%d rows of 100 rules, %d of 2,000", few, many)
}
