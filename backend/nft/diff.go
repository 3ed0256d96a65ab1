// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Plan is one transaction that turns what a kernel has into what is desired.
type Plan struct {
	Table   Table
	Replace bool     // delete Table if there is one, and add it anew
	Remove  bool     // delete Table if there is one
	Why     []string // what makes Replace necessary, in a fixed order
	Counts  map[string]Counts
	Delete  []Element // sorted; nil with Replace
	Add     []Element // sorted; all elements with Replace
	// Rewrite is chains of the table that get other rules in the same
	// transaction, and nothing else new. It does not count with Replace.
	Rewrite []Chain
	// Since is a number that Generation returned: the kernel refuses the plan
	// with ERESTART if there was a transaction since. Zero does not ask.
	Since uint32
}

// Diff compares. When only elements differ the plan changes them alone, else
// it replaces the table and carries the counters' values over.
func Diff(want Desired, have Content) Plan {
	w := want.Content()
	p := Plan{Table: want.Table, Why: compare(w, have)}
	if len(p.Why) > 0 {
		p.Replace = true
		p.Counts = have.Counters
		p.Add = sorted(w.Elements)
		return p
	}
	p.Add = sorted(without(w.Elements, have.Elements))
	p.Delete = sorted(without(have.Elements, w.Elements))
	return p
}

// Removal is the plan that deletes the table, if have has one.
func Removal(t Table, have Content) Plan {
	return Plan{Table: Table{Family: t.Family, Name: t.Name}, Remove: have.Present}
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool {
	return !p.Replace && !p.Remove && len(p.Add) == 0 && len(p.Delete) == 0 && len(p.Rewrite) == 0
}

// String renders p as commands of the nft program, with the reasons as shell
// comments; the empty plan is the empty string.
func (p Plan) String() string {
	var out []string
	name := p.Table.Family.String() + " " + p.Table.Name
	for _, w := range p.Why {
		out = append(out, "# "+w)
	}
	if p.Remove {
		out = append(out, "nft delete table "+name)
	}
	if p.Replace {
		out = append(out, "nft -f - <<.", "table "+name, "delete table "+name, strings.TrimSuffix(p.Table.String(), "\n"), ".")
	}
	out = append(out, elementsText("delete", p.Table, p.Delete)...)
	out = append(out, elementsText("add", p.Table, p.Add)...)
	out = append(out, rewriteText(p)...)
	if len(out) == 0 {
		return ""
	}
	return strings.Join(out, "\n") + "\n"
}

// Structure says in which ways have is another table than want, elements left
// out, in a fixed order; nothing if it is not.
func Structure(want Table, have Content) []string {
	return compare(Desired{Table: want}.Content(), have)
}

// compare says in which ways have differs from want beside elements.
func compare(want, have Content) []string {
	if !have.Present {
		return []string{"table missing"}
	}
	var why []string
	if have.Flags&unix.NFT_TABLE_F_DORMANT != 0 {
		why = append(why, "table dormant")
	}
	if other := have.Flags &^ unix.NFT_TABLE_F_DORMANT; other != 0 {
		why = append(why, fmt.Sprintf("table has flags %#x", other))
	}
	if want.Userdata != have.Userdata {
		why = append(why, "table's user data altered")
	}
	if n := have.Other + have.flowtables; n > 0 {
		why = append(why, fmt.Sprintf("%d objects of other kinds", n))
	}
	why = append(why, keys("counter", want.Counters, have.Counters, func(string, Counts, Counts) []string { return nil })...)
	why = append(why, keys("set", want.Sets, have.Sets, func(name string, w, h SetContent) []string {
		if w == h {
			return nil
		}
		return []string{"set " + name + " altered"}
	})...)
	return append(why, keys("chain", want.Chains, have.Chains, chain)...)
}

// keys compares two maps: what is missing, what differs, what is extra.
func keys[V any](kind string, want, have map[string]V, both func(name string, w, h V) []string) []string {
	var why []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		h, ok := have[name]
		if !ok {
			why = append(why, kind+" "+name+" missing")
			continue
		}
		why = append(why, both(name, want[name], h)...)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; !ok {
			why = append(why, kind+" "+name+" not ours")
		}
	}
	return why
}

func chain(name string, w, h ChainContent) []string {
	var why []string
	if w.Kind != h.Kind || w.Hook != h.Hook || w.Priority != h.Priority {
		why = append(why, fmt.Sprintf("chain %s is type %q hook %s priority %d", name, h.Kind, h.Hook, h.Priority))
	} else if w.Policy != h.Policy {
		why = append(why, fmt.Sprintf("chain %s has policy %s", name, Verdict{Code: h.Policy}))
	}
	if slices.Equal(w.Rules, h.Rules) {
		return why
	}
	var missing, extra int
	count := map[RuleContent]int{}
	for _, r := range w.Rules {
		count[r]++
	}
	for _, r := range h.Rules {
		count[r]--
	}
	for _, n := range count {
		missing += max(n, 0)
		extra += max(-n, 0)
	}
	if missing == 0 && extra == 0 {
		return append(why, "chain "+name+": rules in another order")
	}
	return append(why, fmt.Sprintf("chain %s: %d of our rules missing or altered, %d not ours", name, missing, extra))
}

func without(a, b map[Element]struct{}) map[Element]struct{} {
	out := map[Element]struct{}{}
	for e := range a {
		if _, ok := b[e]; !ok {
			out[e] = struct{}{}
		}
	}
	return out
}

func sorted(m map[Element]struct{}) []Element {
	if len(m) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Keys(m), compareElements)
}

func compareElements(a, b Element) int {
	return cmp.Or(strings.Compare(a.Set, b.Set), strings.Compare(a.Key, b.Key), strings.Compare(a.End, b.End), strings.Compare(a.Data, b.Data))
}

// Same reports whether have is exactly c.
func Same(c Chain, have ChainContent) bool { return len(chain(c.Name, c.content(), have)) == 0 }
