// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// What the policies of all pods of one node may come to. Who may write policies
// can write some that come to the product of their peers and ports, or of their
// blocks and those of others; these bounds are what a node can spend on them, and
// several times what whole clusters come to (TestCommonClustersFit).
const (
	// MaxRows bounds Table.Pairs, Table.Rows and twice Table.Blocks together:
	// about 20 MiB of the kernel's memory, and 100 MiB of the agent's while it
	// compares them.
	MaxRows = 3 << 16
	// maxItems bounds what is kept meanwhile: who is selected by whom, and ports
	// of peers before equal ones are one. Some 30 MiB.
	maxItems = 1 << 21
	// maxSteps bounds comparisons of labels, and of addresses with blocks: about
	// a second.
	maxSteps = 1 << 24
)

// spending is what a compilation has come to.
type spending struct{ rows, items, steps int }

// over reports whether that is too much.
func (s *spending) over() bool {
	return s.rows > MaxRows || s.items > maxItems || s.steps > maxSteps
}

// heaviest returns the n namespaces of policies that say the most, and are not
// refused yet, in that order. What they say is theirs alone: what it comes to
// depends on others too, whose blocks cut theirs, and who could so get them
// refused.
func heaviest(weights map[string]int, refused map[string]bool, n int) []string {
	list := slices.DeleteFunc(slices.Sorted(maps.Keys(weights)), func(ns string) bool { return refused[ns] })
	slices.SortStableFunc(list, func(a, b string) int { return cmp.Compare(weights[b], weights[a]) })
	return list[:min(n, len(list))]
}

// weigh returns how much p says: its peers, what is excepted from them, the
// values that labels are compared with, and ports.
func weigh(p *Policy) int {
	n := 1 + values(p.Subject)
	for _, rules := range p.Rules {
		for _, r := range rules {
			n += 1 + len(r.Ports)
			for _, peer := range r.Peers {
				n += 1 + values(peer.Pods) + values(peer.Namespaces)
				if peer.Block != nil {
					n += len(peer.Block.Except)
				}
			}
		}
	}
	return n
}

// values is how many values a selector compares labels with.
func values(s labels.Selector) int {
	if s == nil {
		return 0
	}
	n := 0
	requirements, _ := s.Requirements() // of one that selects nothing, none
	for _, r := range requirements {
		n += 1 + r.Values().Len()
	}
	return n
}
