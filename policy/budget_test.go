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

// strict compiles for node0 within a sixteenth of what is allowed, so that tests of
// what is too much are quick.
func strict(c *Cluster) *Table {
	m := NewCompiler("node0")
	m.limits = spending{MaxRows / 16, maxItems / 16, maxSteps / 16}
	return m.Compile(c)
}

// Policies that come to the square of their size are refused: nothing of their
// namespace passes, and all of the others'.
func TestTooLarge(t *testing.T) {
	const n = 750
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
			small := strict(c)
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
			got := strict(c)
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

// Whoever says the most is refused, and not who comes to the most by the blocks
// of others.
func TestBystandersAreNotRefused(t *testing.T) {
	const n = 3500
	any4 := netip.MustParsePrefix("0.0.0.0/0")
	single := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	https := []Port{{Proto: TCP, From: 443, To: 443}}
	for name, rules := range map[string]func() []Rule{
		"blocks at a port that nobody has": func() []Rule {
			r := Rule{Ports: []Port{{Proto: TCP, Name: "none"}}}
			for i := range n {
				r.Peers = append(r.Peers, Peer{Block: &Block{CIDR: single(i)}})
			}
			return []Rule{r}
		},
		"exceptions": func() (out []Rule) {
			for j := range 4 {
				b := &Block{CIDR: any4}
				for i := range n {
					b.Except = append(b.Except, single(4*i+j))
				}
				out = append(out, Rule{Peers: []Peer{{Block: b}}, Ports: https})
			}
			return out
		},
		"values": func() (out []Rule) {
			var list []string
			for i := range n {
				list = append(list, fmt.Sprint("v", i))
			}
			s, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: list}}})
			if err != nil {
				t.Fatal(err)
			}
			return []Rule{{Peers: []Peer{{Namespaces: labels.Everything(), Pods: s}}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := crowd(1500, 0)
			add := func(ns string, pods int, rules []Rule) {
				c.Namespaces[ns] = NewLabels(nil)
				p := &Policy{Namespace: ns, Name: "np", Subject: labels.Everything(), Isolates: [2]bool{Ingress: true, Egress: true}}
				p.Rules[Ingress], p.Rules[Egress] = rules, rules
				for i := range pods {
					l := NewLabels(map[string]string{"n": fmt.Sprint(i)})
					only := labels.SelectorFromSet(labels.Set{"n": fmt.Sprint(i)})
					c.Pods = append(c.Pods, &Pod{Namespace: ns, Name: fmt.Sprint(i), UID: ns + fmt.Sprint(i), Node: "node0", Labels: l, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, byte(len(ns)), byte(1 + i)})}})
					one := *p
					one.Name, one.Subject = fmt.Sprint("np", i), only
					c.Policies = append(c.Policies, &one)
				}
			}
			world := []Rule{{Peers: []Peer{{Block: &Block{CIDR: any4}}, {Block: &Block{CIDR: any4, Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}, {Namespaces: labels.Everything()}}, Ports: https}}
			add("victim", 6, world)
			add("evil", 1, rules())
			var first *Table
			for range 3 {
				got := strict(c)
				if !slices.Equal(got.TooLarge, []string{"evil"}) {
					t.Fatalf("too large: %v", got.TooLarge)
				}
				if first == nil {
					first = got
				}
				if !maps.Equal(first.Pairs, got.Pairs) || !maps.Equal(first.Rows, got.Rows) {
					t.Error("one cluster gives two tables")
				}
			}
			if !first.Allows(Packet{Src: netip.MustParseAddr("10.99.6.1"), Dst: netip.MustParseAddr("93.184.216.34"), Proto: TCP, Port: 443}) {
				t.Error("the victim's policy does not let pass what it says")
			}
		})
	}
}

// street is n pods with a label of their own in one namespace, and as many
// policies that all select all of them: each lets one of them in and out, and a
// block, at a port of its own and at a range.
func street(n int) *Cluster {
	c := &Cluster{Namespaces: map[string]*Labels{"n": NewLabels(nil)}}
	for i := range n {
		app := map[string]string{"app": fmt.Sprint(i)}
		c.Pods = append(c.Pods, &Pod{Namespace: "n", Name: fmt.Sprint(i), UID: fmt.Sprint(i), Node: fmt.Sprint("node", i/100), Labels: NewLabels(app), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)})}})
		rule := Rule{
			Peers: []Peer{{Pods: labels.SelectorFromSet(app)}, {Block: &Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24)}}},
			Ports: []Port{{Proto: TCP, From: uint16(10000 + i), To: uint16(10000 + i)}, {Proto: UDP, From: 2000, To: 9000}},
		}
		c.Policies = append(c.Policies, &Policy{Namespace: "n", Name: fmt.Sprint(i), Subject: labels.Everything(), Isolates: [2]bool{true, true}, Rules: [2][]Rule{{rule}, {rule}}})
	}
	return c
}

// Whole clusters come to a fraction of what is allowed.
func TestCommonClustersFit(t *testing.T) {
	for _, n := range [][2]int{{300, 5000}, {10000, 5000}, {30000, 30000}, {5000, 0}} {
		c := crowd(n[0], n[1])
		if n[1] == 0 {
			c = street(n[0])
		}
		k := &compiler{cluster: c, limits: limits(), said: map[*Policy]*saying{}}
		k.pods("node0")
		k.classify()
		got := k.try(nil)
		if got.over() {
			t.Errorf("%d pods, %d policies: %+v is too much", n[0], n[1], got.spending)
		}
		if s := got.spending; n[1] > 0 && 5*s.rows > MaxRows || 5*s.items > maxItems || 5*s.steps > maxSteps {
			t.Errorf("%d pods, %d policies: %+v is near the bounds", n[0], n[1], s)
		}
		t.Logf("%d pods, %d policies: %+v", n[0], n[1], got.spending)
	}
}

// Whoever makes a little text come to much is refused, and no heavier one that
// comes to little; and no more of them than it takes.
func TestAsFewAsItTakesAreRefused(t *testing.T) {
	single := func(net, i int) Peer {
		return Peer{Block: &Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(net), byte(i >> 16), byte(i >> 8), byte(i)}), 32)}}
	}
	blocks := func(net, n int, p Port) []Rule {
		r := Rule{Ports: []Port{p}}
		for i := range n {
			r.Peers = append(r.Peers, single(net, i))
		}
		return []Rule{r}
	}
	https := Port{Proto: TCP, From: 443, To: 443}
	for name, tt := range map[string]struct {
		rules map[string][]Rule
		want  []string
	}{
		"many numbers of one name": {map[string][]Rule{"light": blocks(11, 130, Port{Proto: TCP, Name: "p"}), "heavy": blocks(12, 200, https)}, []string{"light"}},
		"two among others":         {map[string][]Rule{"e1": blocks(11, 2500, https), "e2": blocks(12, 2500, https), "f": blocks(13, 2, https), "g": blocks(14, 20, https)}, []string{"e1"}},
		"three, each too much":     {map[string][]Rule{"e1": blocks(11, 6250, https), "e2": blocks(12, 6250, https), "e3": blocks(13, 6251, https), "f": blocks(14, 2, https)}, []string{"e1", "e2", "e3"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := crowd(300, 0)
			for ns, rules := range tt.rules {
				c.Namespaces[ns] = NewLabels(nil)
				pods := 1
				if ns == "light" {
					pods = 100
				}
				for i := range pods {
					c.Pods = append(c.Pods, &Pod{Namespace: ns, Name: fmt.Sprint(i), UID: ns + fmt.Sprint(i), Node: "node0", Labels: NewLabels(nil), Ports: []NamedPort{{Name: "p", Proto: TCP, Number: uint16(1000 + i)}},
						Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, ns[len(ns)-1], byte(1 + i)})}})
				}
				c.Policies = append(c.Policies, &Policy{Namespace: ns, Name: "np", Subject: labels.Everything(), Isolates: [2]bool{Ingress: true}, Rules: [2][]Rule{Ingress: rules}})
			}
			if got := strict(c); !slices.Equal(got.TooLarge, tt.want) {
				t.Errorf("too large: %v, want %v; %d pairs, %d rows, %d blocks", got.TooLarge, tt.want, len(got.Pairs), len(got.Rows), len(got.Blocks))
			}
		})
	}
}
