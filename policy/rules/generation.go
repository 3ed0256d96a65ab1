// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// A Generation is the label of flows that may pass, below nft.Labels, or None.
// Labels that were given stay until they are cleared. They are used in turns of
// one half: while one half is in use, all labels of the other can be cleared.
type Generation int

// None is no label: all packets of all flows are judged.
const None Generation = -1

// half is how many generations lie between two clearings.
const half = nft.Labels / 2

// next returns the generation after g, and whether labels but g have to be
// cleared before it begins.
func (g Generation) next() (Generation, bool) {
	if g == None {
		return 0, true
	}
	n := (g + 1) % nft.Labels
	return n, n%half == 0
}

// Left returns how many generations can follow before labels of flows have to be
// cleared, which takes as long as reading all of conntrack.
func (g Generation) Left() int {
	if g == None {
		return 0
	}
	return half - 1 - int(g)%half
}

// generationOf reads the generation of a table. It is None as well where that
// cannot be told.
func generationOf(have nft.Content) Generation {
	for g := Generation(0); g < nft.Labels; g++ {
		if nft.Same(g.pass(), have.Chains[passChain]) {
			return g
		}
	}
	return None
}

// chains are those whose rules depend on the generation.
func (g Generation) chains() []nft.Chain { return []nft.Chain{g.pass(), g.forward()} }

// pass is the chain of what may pass.
func (g Generation) pass() nft.Chain {
	c := nft.Chain{Name: passChain}
	if g != None {
		c.Rules = append(c.Rules, rule("judged", nft.AddLabel{N: int(g)}))
	}
	c.Rules = append(c.Rules, rule("", nft.Verdict{Code: nft.Accept}))
	return c
}

// forward is the chain that packets come to first. Most belong to a flow that
// has been judged.
//
// Each rule looks sets up as they are when it does, so that a packet may meet
// what was before a transaction in one and what is after it in the next. Pods are
// asked for before their classes, or a packet could pass, and its flow for good,
// that found the one that comes not yet isolated and then known; and after them,
// for the one that goes.
func (g Generation) forward() nft.Chain {
	c := nft.Chain{Name: forwardChain, Hook: nft.Forward, Priority: priority}
	add := func(comment string, exprs ...nft.Expr) { c.Rules = append(c.Rules, rule(comment, exprs...)) }
	if g != None {
		add("may pass, as judged before", nft.LabelSet(int(g)), nft.Verdict{Code: nft.Accept})
	}
	add("neighbour discovery", discovery()...)
	add("of no flow", nft.StateIs(nft.StateInvalid|nft.StateUntracked), nft.Verdict{Code: nft.Goto, Chain: strayChain})
	strangers := func(f subnet.Family) {
		for _, load := range []nft.Load{nft.LoadTupleSource(f, nft.Original), nft.LoadTupleSource(f, nft.Reply)} {
			add("no known pod", drop(UnknownPod, unknown(load, f)...)...)
		}
	}
	for _, f := range subnet.Families() {
		from, to := nft.LoadTupleSource(f, nft.Original), nft.LoadTupleSource(f, nft.Reply)
		strangers(f)
		add("a pod reaches itself", nft.In{Fields: []nft.Load{from, to}, Set: hairpinSet(f)}, nft.Verdict{Code: nft.Goto, Chain: passChain})
		for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
			pod, _ := sides(d, f)
			add("isolated", nft.Has{Load: pod, Map: classSet(d, f)}, nft.Verdict{Code: nft.Jump, Chain: chainOf(d, f)})
		}
		strangers(f)
	}
	add("", nft.Verdict{Code: nft.Goto, Chain: passChain})
	return c
}
