// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
)

// fullVar asks for as many triples as a release is measured by.
const fullVar = "WEFT_POLICY_TRIPLES"

// The table of a node and the oracle agree, whatever the policies, the pods and
// the packet; the oracle's word counts where the pod is the node's.
func TestTableAgreesWithOracle(t *testing.T) {
	triples, perCluster := 100_000, 20
	if s := os.Getenv(fullVar); s != "" {
		if _, err := fmt.Sscan(s, &triples); err != nil {
			t.Fatalf("%s=%q: %v", fullVar, s, err)
		}
	}
	first := rand.Uint64()
	if s := os.Getenv("WEFT_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &first); err != nil {
			t.Fatalf("WEFT_SEED=%q: %v", s, err)
		}
		perCluster = 1000
		triples = perCluster
	}
	allowed, judged := 0, 0
	for i := range uint64(triples / perCluster) {
		seed := first + i
		g := newGen(seed)
		c := g.cluster()
		table := Compile(c, "here")
		for range perCluster {
			k := g.packet(c)
			_, reasons := c.Allows(k)
			want, isolated := true, false
			for _, r := range reasons {
				if r.Pod != nil && r.Pod.Node == "here" {
					want = want && r.Allowed
					isolated = isolated || len(r.Isolating) > 0
				}
			}
			if got := table.Allows(k); got != want {
				t.Fatalf("WEFT_SEED=%d: %+v: the table says %t, the oracle %t\n%+v", seed, k, got, want, reasons)
			}
			if isolated {
				judged++
				if want {
					allowed++
				}
			}
		}
	}
	t.Logf("%d triples from seed %d: %d met an isolated pod of the node, %d of those may pass", triples, first, judged, allowed)
	if judged*5 < triples || allowed*10 < judged || allowed*10 > judged*9 {
		t.Errorf("of %d triples %d were judged and %d allowed: they prove little", triples, judged, allowed)
	}
}

// A compiler that has seen other clusters makes the table that a new one makes.
func TestCompilerHasNoMemory(t *testing.T) {
	seed := rand.Uint64()
	g := newGen(seed)
	m := NewCompiler("here")
	c := g.cluster()
	for range 500 {
		next := g.cluster()
		for _, p := range c.Policies { // some stay
			if g.one(2) {
				next.Policies = append(next.Policies, p)
			}
		}
		c = next
		if got, want := m.Compile(c), Compile(c, "here"); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: got\n%+v\nwant\n%+v", seed, got, want)
		}
	}
}
