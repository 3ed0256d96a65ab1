// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Policies that come to the square of their size are refused: nothing of their
// namespace passes, and all of the others'.
func TestTooLarge(t *testing.T) {
	const n = 3000
	block := func(i int) *Block {
		return &Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 32)}
	}
	port := func(i int) Port { return Port{Proto: TCP, From: uint16(1 + 2*i), To: uint16(1 + 2*i)} }
	without := func(i int) labels.Selector {
		s, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpNotIn, Values: []string{fmt.Sprint(i)}}}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, rules := range map[string]func() []Rule{
		"peers times ports": func() []Rule {
			var r Rule
			for i := range n {
				r.Peers, r.Ports = append(r.Peers, Peer{Block: block(i)}), append(r.Ports, port(i))
			}
			return []Rule{r}
		},
		"blocks times exceptions": func() (out []Rule) {
			for i := range n {
				b := &Block{CIDR: netip.MustParsePrefix("11.0.0.0/8"), Except: []netip.Prefix{block(i).CIDR}}
				out = append(out, Rule{Peers: []Peer{{Block: b}}, Ports: []Port{port(i)}})
			}
			return out
		},
		"selectors times pods": func() (out []Rule) {
			for i := range n {
				out = append(out, Rule{Peers: []Peer{{Pods: without(i)}}, Ports: []Port{port(i)}})
			}
			return out
		},
		"rules of the same peers": func() (out []Rule) {
			r := Rule{}
			for i := range n / 6 {
				r.Peers = append(r.Peers, Peer{Block: block(i)})
			}
			for i := range n {
				out = append(out, Rule{Peers: r.Peers, Ports: []Port{port(i % 10)}})
			}
			return out
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := crowd(300, 300)
			small := Compile(c, "node0")
			if len(small.TooLarge) > 0 || len(small.Rows) == 0 {
				t.Fatalf("of a common cluster %v are too large, %d rows", small.TooLarge, len(small.Rows))
			}
			pod := &Pod{Namespace: "big", Name: "p", UID: "big", Node: "node0", Labels: NewLabels(map[string]string{"a": "x"}), Addrs: []netip.Addr{netip.MustParseAddr("10.99.0.1")}}
			c.Namespaces["big"] = NewLabels(nil)
			c.Pods = append(c.Pods, pod)
			for i := range n {
				c.Pods = append(c.Pods, &Pod{Namespace: "big", Name: fmt.Sprint("q", i), UID: fmt.Sprint("q", i), Node: "else", Labels: NewLabels(map[string]string{"a": fmt.Sprint(i)}), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 98, byte(i >> 8), byte(i)})}})
			}
			c.Policies = append(c.Policies, &Policy{Namespace: "big", Name: "np", Subject: labels.Everything(), Isolates: [2]bool{Ingress: true}, Rules: [2][]Rule{Ingress: rules()}})
			got := Compile(c, "node0")
			if !slices.Equal(got.TooLarge, []string{"big"}) {
				t.Fatalf("too large: %v, %d rows", got.TooLarge, len(got.Rows))
			}
			if !maps.Equal(got.Pairs, small.Pairs) || !maps.Equal(got.Rows, small.Rows) {
				t.Errorf("the others have %d pairs and %d rows, want %d and %d", len(got.Pairs), len(got.Rows), len(small.Pairs), len(small.Rows))
			}
			if _, isolated := got.Classes[Ingress][pod.Addrs[0]]; !isolated {
				t.Error("the pod is not isolated")
			}
			if got.Allows(Packet{Src: netip.MustParseAddr("11.0.0.1"), Dst: pod.Addrs[0], Proto: TCP, Port: 1}) {
				t.Error("a rule of a refused policy lets something pass")
			}
		})
	}
}

func TestLargest(t *testing.T) {
	var s spending
	s.add("a", 10)
	s.add("b", 5)
	s.add("c", 4)
	s.add("d", 0)
	if got := s.largest(); !slices.Equal(got, []string{"a", "b"}) || s.total != 19 {
		t.Errorf("%v of %d", got, s.total)
	}
}
