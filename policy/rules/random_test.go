// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
)

// unknownProtocol has no ports that conntrack could know (RFC 3692).
const unknownProtocol = 253

// onlyStale reports whether a plan is nothing but rows of sets that no pair has.
func onlyStale(plan nft.Plan, table *policy.Table) bool {
	used := slices.Collect(maps.Values(table.Pairs))
	plan.Delete = slices.DeleteFunc(plan.Delete, func(e nft.Element) bool {
		row, ok := rowOfElement(e)
		return ok && !slices.Contains(used, row.Set)
	})
	return plan.Empty()
}

// The kernel and policy.Table agree about packets between random ends in random
// clusters, one after another in the same table, with flows that are known from
// the cluster before.
func TestKernelAgreesWithTable(t *testing.T) {
	const clusters, perCluster = 150, 30
	seed := rand.Uint64()
	if s := os.Getenv("WEFT_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatalf("WEFT_SEED=%q: %v", s, err)
		}
	}
	g := newGen(seed)
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	lease := prefixes("10.42.1.0/24", "fd42:0:0:1::/64")
	judged, allowed, bumps := 0, 0, 0
	portless := map[policy.Packet]bool{} // of a protocol without ports what comes back is the answer
	for i := range clusters {
		c := g.cluster()
		table := policy.Compile(c, "here")
		if i%2 == 1 { // what no policies come to, so that no row stands in for another
			some := uint32(g.IntN(3))
			maps.DeleteFunc(table.Rows, func(r policy.Row, _ bool) bool {
				return (uint32(r.Set)^uint32(r.Proto)*0x9e3779b1+uint32(r.Port))>>3%3 == some
			})
			maps.DeleteFunc(table.Pairs, func(p policy.Pair, _ policy.PortSet) bool {
				return (uint32(p.Class)^uint32(p.Identity))>>3%7 == some
			})
		}
		was := p.Generation()
		r, err := p.Update(t.Context(), table, lease)
		if err != nil || r.Unlabelled != nil {
			t.Fatalf("WEFT_SEED=%d: %+v, %v", seed, r, err)
		}
		if r.Generation != was {
			bumps++
		}
		if i%10 == 0 {
			if plan := nft.Diff(Desired(params(), r.Generation, table, lease), mustDump(t, w.conn)); !onlyStale(plan, table) {
				t.Fatalf("WEFT_SEED=%d: cluster %d: still to do:\n%s", seed, i, plan)
			}
		}
		var list []policy.Packet
		for range perCluster {
			k := g.packet(c)
			if k.Proto == unix.IPPROTO_ICMP && k.Src.Is6() {
				k.Proto = unix.IPPROTO_ICMPV6
			}
			if back := (policy.Packet{Src: k.Dst, Dst: k.Src, Proto: k.Proto}); k.Proto == unknownProtocol {
				if portless[back] && k.Src != k.Dst {
					continue
				}
				portless[k] = true
			}
			list = append(list, k)
		}
		for range 2 { // the second meets what the first left in conntrack
			for j, got := range w.verdicts(list, func(k policy.Packet) []byte { return transport(k, 40000+g.IntN(3)) }) {
				want := allows(table, lease, list[j])
				if got != want {
					t.Errorf("WEFT_SEED=%d: cluster %d: %+v came through: %t, want %t", seed, i, list[j], got, want)
				}
				judged++
				if got {
					allowed++
				}
			}
		}
		if t.Failed() {
			counters, err := p.Counters(t.Context())
			t.Logf("%+v, %v", counters, err)
			t.Logf("%+v", table)
			t.FailNow()
		}
	}
	t.Logf("%d packets in %d clusters from seed %d: %d came through, %d generations", judged, clusters, seed, allowed, bumps)
	if allowed*10 < judged || allowed*10 > judged*9 {
		t.Errorf("of %d packets %d came through: they prove little", judged, allowed)
	}
}
