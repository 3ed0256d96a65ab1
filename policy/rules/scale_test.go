// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
)

// city is a cluster of n policies, each for an app of its own: 20 pods on this
// node, n remote ones. Its policies let one app reach the next, and a block of
// the world.
func city(n int) *policy.Cluster {
	app := func(i int) *policy.Labels { return policy.NewLabels(map[string]string{"app": fmt.Sprint(i % n)}) }
	selector := func(i int) labels.Selector {
		return labels.SelectorFromSet(labels.Set{"app": fmt.Sprint(i % n)})
	}
	c := &policy.Cluster{Namespaces: map[string]*policy.Labels{"n": policy.NewLabels(nil)}}
	for i := range 20 + n {
		p := &policy.Pod{Namespace: "n", Name: fmt.Sprint("p", i), UID: fmt.Sprint(i), Node: "there", Labels: app(i)}
		p.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 43, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 0x43, 14: byte(i >> 8), 15: byte(i)})}
		if i < 20 {
			p.Node = "here"
			p.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 1, byte(i + 10)}), netip.AddrFrom16([16]byte{0xfd, 0x42, 7: 1, 15: byte(i + 10)})}
		}
		c.Pods = append(c.Pods, p)
	}
	for i := range n {
		p := &policy.Policy{Namespace: "n", Name: fmt.Sprint("p", i), Subject: labels.Everything(), Isolates: [2]bool{true, true}}
		for _, d := range policy.Directions() {
			p.Rules[d] = []policy.Rule{{
				Peers: []policy.Peer{{Pods: selector(i + 1)}, {Block: &policy.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24)}}},
				Ports: []policy.Port{{Proto: policy.TCP, From: uint16(1000 + i), To: uint16(1000 + i)}, {Proto: policy.UDP, From: 2000, To: 9000}},
			}}
		}
		c.Policies = append(c.Policies, p)
	}
	return c
}

// parts counts what the kernel has of a table.
func parts(have nft.Content) string {
	n := 0
	for _, c := range have.Chains {
		n += len(c.Rules)
	}
	return fmt.Sprintf("%d chains, %d rules, %d sets, %d counters", len(have.Chains), n, len(have.Sets), len(have.Counters))
}

// Policies are elements: the table has as many chains, rules and sets for 5,000
// of them as for 10.
func TestRulesDoNotGrowWithPolicies(t *testing.T) {
	var first string
	for _, n := range []int{10, 5000} {
		h := nshost.New(t)
		c := dial(t, h)
		p := NewProgrammer(c, params())
		table := policy.Compile(city(n), "here")
		start := time.Now()
		if _, err := p.Sync(t.Context(), table, lease()); err != nil {
			t.Fatal(err)
		}
		loaded := time.Since(start)
		have := mustDump(t, c)
		if plan := nft.Diff(Desired(params(), p.Generation(), table, lease()), have); !plan.Empty() {
			t.Errorf("%d policies: still to do:\n%.2000s", n, plan)
		}
		got := parts(have)
		t.Logf("%d policies, %d pairs, %d rows: %s, %d elements, loaded in %v", n, len(table.Pairs), len(table.Rows), got, len(have.Elements), loaded.Round(time.Millisecond))
		if first == "" {
			first = got
		}
		if got != first {
			t.Errorf("%d policies: %s, want %s", n, got, first)
		}
		for _, cmd := range []string{"nft list ruleset", "nft list tables"} {
			if out := h.Run(cmd); strings.Contains(out, "rror") || !strings.Contains(out, TableName) {
				t.Errorf("%d policies: %s:\n%.2000s", n, cmd, out)
			}
		}
	}
}

// One change costs the same kernel work however many elements there are.
func TestCostOfChanges(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	p := NewProgrammer(c, params())
	table := policy.Compile(city(5000), "here")
	step := func(what string, f func(*policy.Table) (Report, error)) {
		table = clone(table)
		start := time.Now()
		r, err := f(table)
		took := time.Since(start)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%s: +%d -%d, generation %d: %v", what, r.Added, r.Deleted, r.Generation, took.Round(10*time.Microsecond))
	}
	update := func(table *policy.Table) (Report, error) { return p.Update(t.Context(), table, lease()) }
	pair, row := policy.Pair{Direction: policy.Ingress, Class: 1, Identity: 2}, policy.Row{Set: 7, Proto: policy.TCP, Port: 80}
	step("load", update)
	step("nothing", update)
	step("pair added", func(t *policy.Table) (Report, error) { t.Pairs[pair], t.Rows[row] = row.Set, true; return update(t) })
	step("pair deleted", func(t *policy.Table) (Report, error) { delete(t.Pairs, pair); return update(t) })
	step("sync", func(table *policy.Table) (Report, error) { return p.Sync(t.Context(), table, lease()) })
	step("all deleted", func(t *policy.Table) (Report, error) { *t = policy.Table{}; return update(t) })
}

// The nft program watches all that happens to the table and does not give up.
func TestMonitorOfNft(t *testing.T) {
	h := nshost.New(t)
	p := NewProgrammer(dial(t, h), params())
	said, err := os.Create(filepath.Join(t.TempDir(), "nft"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd := exec.CommandContext(t.Context(), "nft", "monitor")
	cmd.Stdout, cmd.Stderr = said, said
	h.Do(cmd.Start)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	read := func() string {
		text, err := os.ReadFile(said.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const rule = "add rule inet weft_policy pod_forward"
	deadline := time.Now().Add(30 * time.Second) // when it begins to listen is its own affair
	for heard := 0; heard < 3; {
		for _, table := range []*policy.Table{sample(), {}} {
			if _, err := p.Update(t.Context(), table, subnets()); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-done:
			t.Fatalf("nft monitor ended: %v\n%s", err, read())
		case <-time.After(100 * time.Millisecond):
		}
		if strings.Contains(read(), rule) {
			heard++
		} else if time.Now().After(deadline) {
			t.Fatalf("nft monitor has told of no table; it says\n%.3000s", read())
		}
	}
	_ = cmd.Process.Kill()
	<-done
	if strings.Contains(read(), "rror") {
		t.Errorf("nft monitor says\n%.3000s", read())
	}
}
