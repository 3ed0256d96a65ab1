// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
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
		t := Compile(c, "here")
		return len(t.Rows) + len(t.Pairs)
	}
	few, many := size(100), size(2000)
	if many > 2000*105 || many > 25*few {
		t.Errorf("%d rows of 100 rules, %d of 2,000", few, many)
	}
	t.Logf("%d rows of 100 rules, %d of 2,000", few, many)
}

// Sets that are equal have one number, and one that has all of another includes
// it.
func TestPortSetLaw(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		draw := func(name string) (*portSet, map[[2]int]bool) {
			s, has := &portSet{}, map[[2]int]bool{}
			for range rapid.IntRange(0, 4).Draw(r, name) {
				proto := rapid.IntRange(0, 2).Draw(r, "proto")
				from := rapid.IntRange(1, 40).Draw(r, "from")
				to := rapid.IntRange(from, 40).Draw(r, "to")
				s.spans[proto] = append(s.spans[proto], span{uint16(from), uint16(to)})
				for n := from; n <= to; n++ {
					has[[2]int{proto, n}] = true
				}
			}
			s.tidy()
			return s, has
		}
		a, hasA := draw("a")
		b, hasB := draw("b")
		within := true
		for k := range hasB {
			within = within && hasA[k]
		}
		if a.includes(b) != within {
			t.Fatalf("%v includes %v: %t", a.spans, b.spans, !within)
		}
		if (a.key() == b.key()) != maps.Equal(hasA, hasB) {
			t.Fatalf("%v and %v have keys %q and %q", a.spans, b.spans, a.key(), b.key())
		}
		if a.empty() != (len(hasA) == 0) {
			t.Fatalf("%v is empty: %t", a.spans, a.empty())
		}
	})
}
