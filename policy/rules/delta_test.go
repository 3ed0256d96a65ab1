// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"maps"
	"testing"

	"weft.dev/weft/policy"
)

// Rows of a set that no pair has any more stay for one change, for packets that
// have found the pair before; those of a set that is in use do not, be it that it
// comes back as another one.
func TestRowsOfSetsThatGoStay(t *testing.T) {
	pair := policy.Pair{Direction: policy.Ingress, Class: 1, Identity: 2}
	table := func(set policy.PortSet, ports ...uint16) content {
		t := &policy.Table{Pairs: map[policy.Pair]policy.PortSet{pair: set}, Rows: map[policy.Row]bool{}}
		for _, p := range ports {
			t.Rows[policy.Row{Set: set, Proto: policy.TCP, Port: p}] = true
		}
		return content{table: t}
	}
	have := content{table: &policy.Table{}}
	for _, step := range []struct {
		name        string
		to          content
		added, gone int // elements, of both kinds
		stale       int
	}{
		{name: "first", to: table(5, 80, 81), added: 3},
		{name: "another set", to: table(6, 80), added: 2, gone: 1, stale: 2},
		{name: "the first, with fewer ports", to: table(5, 80), added: 1, gone: 2, stale: 1},
		{name: "with more", to: table(5, 80, 82), added: 1, gone: 1},
		{name: "no set at all", to: content{table: &policy.Table{}}, gone: 1, stale: 2},
		{name: "nothing", to: content{table: &policy.Table{}}, gone: 2},
	} {
		plan, now := delta(have, step.to)
		if len(plan.Add) != step.added || len(plan.Delete) != step.gone || len(now.stale) != step.stale {
			t.Errorf("%s: %v", step.name, plan)
		}
		all := maps.Clone(now.stale)
		maps.Copy(all, now.table.Rows)
		if len(all) != len(now.stale)+len(now.table.Rows) {
			t.Errorf("%s: %v are stale and are not", step.name, now.stale)
		}
		have = now
	}
}

// What was left for packets on their way is taken away without another judgement
// of flows.
func TestStaleRowsGoQuietly(t *testing.T) {
	w := newTown(t)
	w.update(func(*policy.Table) {})
	pair := policy.Pair{Direction: policy.Ingress, Class: classC, Identity: isB}
	r := w.update(func(t *policy.Table) {
		t.Pairs[pair] = 0x99
		t.Rows[policy.Row{Set: 0x99, Proto: policy.TCP, Port: 80}] = true
		delete(t.Rows, rowOf(policy.Ingress, classC, isB, 80))
	})
	if r.Added != 2 || r.Deleted != 1 {
		t.Errorf("another set for a pair: %+v", r)
	}
	s, err := w.p.Sync(t.Context(), w.table, lease())
	if err != nil || s.Deleted != 1 || s.Added != 0 || s.Generation != r.Generation {
		t.Errorf("%+v, %v after generation %d", s, err, r.Generation)
	}
	if plan := nftDiff(t, w); !plan.Empty() {
		t.Errorf("still to do:\n%s", plan)
	}
}
