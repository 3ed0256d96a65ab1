// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"slices"
	"sort"

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
	// maxSteps bounds comparisons of labels with peers, and of blocks with each
	// other: about a second. Which policies select the node's own pods is not
	// counted, for without that nothing could be refused either.
	maxSteps = 1 << 24
)

// spending is what a compilation has come to, or may.
type spending struct{ rows, items, steps int }

// limits are what it may.
func limits() spending { return spending{MaxRows, maxItems, maxSteps} }

// A meter compares what a compilation has come to with what it may.
type meter struct {
	spending
	most spending
}

// full reports whether that is too much.
func (m *meter) full() bool {
	return m.rows > m.most.rows || m.items > m.most.items || m.steps > m.most.steps
}

// refuse returns the trial that refuses as few namespaces as it takes, in the
// order of ranking.
func (k *compiler) refuse() *trial {
	list := k.ranking()
	tried := map[int]*trial{}
	first := func(n int) bool {
		refused := map[string]bool{}
		for _, ns := range list[:n] {
			refused[ns] = true
		}
		tried[n] = k.try(refused)
		return !tried[n].over()
	}
	n := sort.Search(len(list), first) // without any rules there is nothing that could be too much
	if tried[n] == nil {
		first(n)
	}
	return tried[n]
}

// ranking returns the namespaces of the node's policies: first those that alone
// come to the most, and of those that are too much alone those that say the most.
// Neither depends on others: what a namespace comes to beside them does, for
// their blocks cut its own, and who could so get it refused.
func (k *compiler) ranking() []string {
	weights := map[string]int{}
	for p, s := range k.said {
		weights[p.Namespace] += s.weight
	}
	list := slices.Sorted(maps.Keys(weights))
	shares := map[string]int{}
	for _, ns := range list {
		others := map[string]bool{}
		for _, o := range list {
			others[o] = o != ns
		}
		shares[ns] = k.try(others).share()
	}
	slices.SortStableFunc(list, func(a, b string) int {
		return cmp.Or(cmp.Compare(shares[b], shares[a]), cmp.Compare(weights[b], weights[a]))
	})
	return list
}

// share is how much of what is allowed t came to, in thousandths.
func (t *trial) share() int {
	if t.over() {
		return 1000
	}
	return max(1000*t.rows/t.most.rows, 1000*t.items/t.most.items, 1000*t.steps/t.most.steps)
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
