// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/guard"
	"weft.dev/weft/policy/kube"
	"weft.dev/weft/policy/rules"
)

const (
	benchPods     = 10000
	benchHere     = 100 // of them on this node
	benchPolicies = 5000
	benchSpaces   = 50
)

func app(i int) map[string]string { return map[string]string{"app": fmt.Sprint(i)} }

// region is a cluster of so many pods and policies, each of which lets one app
// of a namespace be reached by another, at one port.
func region() policy.Cluster {
	c := policy.Cluster{Namespaces: map[string]*policy.Labels{}}
	for i := range benchSpaces {
		c.Namespaces[fmt.Sprint("ns", i)] = policy.NewLabels(map[string]string{"team": fmt.Sprint(i)})
	}
	const apps = benchPolicies / benchSpaces
	kinds := make([]*policy.Labels, apps) // each once, as kube.Source has them
	for i := range kinds {
		kinds[i] = policy.NewLabels(app(i))
	}
	for i := range benchPods {
		p := &policy.Pod{Namespace: fmt.Sprint("ns", i%benchSpaces), Name: fmt.Sprint("p", i), UID: fmt.Sprint(i), Node: fmt.Sprint("n", i/benchHere), Labels: kinds[i/benchSpaces%apps]}
		p.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(i / benchHere), byte(i%benchHere + 2)})}
		if p.Node == "n0" {
			p.Node = "here"
		}
		c.Pods = append(c.Pods, p)
	}
	for i := range benchPolicies {
		c.Policies = append(c.Policies, opening(i, 80))
	}
	return c
}

func opening(i int, port uint16) *policy.Policy {
	const apps = benchPolicies / benchSpaces
	return &policy.Policy{Namespace: fmt.Sprint("ns", i%benchSpaces), Name: fmt.Sprint("np", i), Subject: labels.SelectorFromSet(app(i / benchSpaces)), Isolates: [2]bool{policy.Ingress: true},
		Rules: [2][]policy.Rule{policy.Ingress: {{Peers: []policy.Peer{{Pods: labels.SelectorFromSet(app((i/benchSpaces + 1) % apps))}}, Ports: []policy.Port{{Proto: policy.TCP, From: port, To: port}}}}}}
}

// watched is a source that says what it is told.
type watched struct {
	*bench
	set chan func(kube.Snapshot)
}

func (w watched) Watch(ctx context.Context, set func(kube.Snapshot)) error {
	w.set <- set
	<-ctx.Done()
	return ctx.Err()
}

// writeLedger has the states of pods on this node.
func writeLedger(b *testing.B, dir string, pods []*policy.Pod) {
	boot, err := ledger.BootID("")
	if err != nil {
		b.Fatal(err)
	}
	for i, p := range pods {
		s := ledger.Stamp{Phase: ledger.Added, Boot: boot, Ports: []string{fmt.Sprint("veth", i)}, MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), Addrs: p.Addrs, Time: time.Now(),
			Pod: &ledger.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
		data, err := ledger.Encode([]byte(`{"type":"bridge","name":"weft"}`), s)
		if err != nil {
			b.Fatal(err)
		}
		state, err := ledger.StateOf(dir, ledger.Key{ContainerID: fmt.Sprint("sandbox", i), IfName: "eth0"})
		if err == nil {
			err = state.Save(data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChange is the time from a change of the snapshot, of a policy and of
// a pod by turns, to the kernel's being as it says, with everything in between: the ledger,
// the compiler, both tables. Changes come alone, as an operator's do.
func BenchmarkChange(b *testing.B) {
	h := nshost.New(b)
	var conn *nft.Conn
	h.Do(func() (err error) { conn, err = nft.Dial(); return err })
	defer func() { _ = conn.Close() }()
	dir := b.TempDir()
	c := region()
	writeLedger(b, dir, c.Pods[:benchHere])
	l, err := ledger.Open(ledger.Options{Network: "weft", StateDir: dir, Bridge: "cni0"})
	if err != nil {
		b.Fatal(err)
	}
	source := watched{nil, make(chan func(kube.Snapshot), 1)}
	e := New(Options{Node: "here", Source: source, Kernel: rules.NewProgrammer(conn, rules.Params{}), Guard: guard.New(conn), Pods: FromLedger(l), Resync: time.Hour})
	e.SetSubnets([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}, nil)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	set := <-source.set
	inForce := func(c *policy.Cluster) {
		for {
			if st := e.Status(); st.InForce && st.Policies == len(c.Policies) {
				return
			}
			select {
			case <-b.Context().Done():
				b.Fatal("never in force")
			case <-time.After(100 * time.Microsecond):
			}
		}
	}
	set(kube.Snapshot{Cluster: c})
	inForce(&c)
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		c.Policies, c.Pods = slices.Clone(c.Policies), slices.Clone(c.Pods)
		if n%2 == 0 { // the number tells when it is in force
			c.Policies = append(c.Policies, opening(n%benchPolicies, 443))
		} else {
			c.Policies = c.Policies[:len(c.Policies)-1]
			p := *c.Pods[n%benchPods]
			p.Labels = policy.NewLabels(app(n % 7))
			c.Pods[n%benchPods] = &p
		}
		start := time.Now()
		set(kube.Snapshot{Cluster: c})
		inForce(&c)
		took = append(took, time.Since(start))
		b.StopTimer()
		select { // until the enforcer has rested
		case <-b.Context().Done():
		case <-time.After(restFactor * took[len(took)-1]):
		}
		b.StartTimer()
	}
	cancel()
	<-done
	slices.Sort(took)
	at := func(q int) float64 { return took[min(len(took)*q/100, len(took)-1)].Seconds() * 1000 }
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(99), "p99-ms")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) < benchHere {
		b.Fatalf("%d states: %v", len(entries), err)
	}
}
