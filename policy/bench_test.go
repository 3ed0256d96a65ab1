// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// crowd is a cluster of pods in namespaces of 30, 100 on each node, with
// policies for them in turn: each selects one application of ten, and lets
// three others in at a port of its own.
func crowd(pods, policies int) *Cluster {
	c := &Cluster{Namespaces: map[string]*Labels{}}
	spaces := max(1, pods/30)
	of := make([]*Labels, 10)
	for i := range of {
		of[i] = NewLabels(map[string]string{"app": fmt.Sprint("a", i), "tier": fmt.Sprint("t", i%3)})
	}
	for i := range spaces {
		name := fmt.Sprint("ns", i)
		c.Namespaces[name] = NewLabels(map[string]string{"kubernetes.io/metadata.name": name, "team": fmt.Sprint(i % 50)})
	}
	for i := range pods {
		c.Pods = append(c.Pods, &Pod{
			Namespace: fmt.Sprint("ns", i%spaces), Name: fmt.Sprint("p", i), UID: fmt.Sprint(i), Node: fmt.Sprint("node", i/100), Labels: of[(i/spaces)%10],
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + i/62500), byte(i / 250), byte(1 + i%250)})},
		})
	}
	app := func(i int) labels.Selector {
		s, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", i%10)}})
		if err != nil {
			panic(err)
		}
		return s
	}
	for i := range policies {
		p := &Policy{Namespace: fmt.Sprint("ns", i%spaces), Name: fmt.Sprint("np", i), Subject: app(i / spaces), Isolates: [2]bool{Ingress: true}}
		for j := range 3 {
			p.Rules[Ingress] = append(p.Rules[Ingress], Rule{
				Peers: []Peer{{Pods: app(i + j)}, {Namespaces: labels.SelectorFromSet(labels.Set{"team": fmt.Sprint(i % 50)})}},
				Ports: []Port{{Proto: TCP, From: uint16(1000 + i%5000), To: uint16(1000 + i%5000)}},
			})
		}
		c.Policies = append(c.Policies, p)
	}
	return c
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range [][2]int{{300, 10}, {300, 5000}, {10000, 5000}, {30000, 30000}} {
		b.Run(fmt.Sprintf("pods=%d/policies=%d", n[0], n[1]), func(b *testing.B) {
			c := crowd(n[0], n[1])
			m := NewCompiler("node0")
			b.ReportAllocs()
			for b.Loop() {
				t := m.Compile(c)
				b.ReportMetric(float64(len(t.Pairs)+len(t.Rows)), "rows")
				b.ReportMetric(float64(len(t.Identities)), "ids")
			}
		})
	}
}
