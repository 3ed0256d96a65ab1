// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
)

// What the policies of all pods of one node may come to. Who may write policies
// can write some that come to the square of their own size, of peers times
// ports or of blocks times exceptions; these bounds are what a node can spend on
// them, and several times what whole clusters come to (BenchmarkCompile).
const (
	// MaxRows bounds Table.Pairs and Table.Rows together: about 25 MiB of the
	// kernel's memory.
	MaxRows = 1 << 18
	// maxSteps bounds peers by what they select, and by ports, before equal
	// ones are one: about a tenth of a second.
	maxSteps = 1 << 21
)

// spending is what the policies of each namespace come to.
type spending struct {
	by    map[string]int // namespace
	total int
}

func (s *spending) add(namespace string, n int) {
	if s.by == nil {
		s.by = map[string]int{}
	}
	s.by[namespace] += n
	s.total += n
}

// largest are the namespaces that come to the most, and to half of that or more,
// sorted.
func (s *spending) largest() []string {
	most := 0
	for _, n := range s.by {
		most = max(most, n)
	}
	var out []string
	for _, ns := range slices.Sorted(maps.Keys(s.by)) {
		if s.by[ns] > 0 && 2*s.by[ns] >= most {
			out = append(out, ns)
		}
	}
	return out
}
