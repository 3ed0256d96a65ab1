// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"fmt"
	"slices"
	"testing"
)

func numbered(from, n int) []Lease {
	var out []Lease
	for i := range n {
		out = append(out, Lease{Node: fmt.Sprint("n", from+i)})
	}
	return out
}

func TestLeases(t *testing.T) {
	for _, n := range []int{0, 1, PartSize - 1, PartSize, PartSize + 1, 3*PartSize + 7} {
		list := numbered(0, n)
		l := LeasesOf(list...)
		if l.Len() != n || !slices.EqualFunc(l.Slice(), list, Lease.Equal) {
			t.Errorf("%d leases: %d, %v", n, l.Len(), l.Slice())
		}
		i := 0
		for lease := range l.All() {
			if lease != &list[i] {
				t.Errorf("lease %d of %d is another", i, n)
			}
			i++
		}
		for _, size := range []int{1, 10, PartSize, 1000} {
			var all []Lease
			shares := 0
			for share := range l.Shares(size) {
				if len(share) > size || len(share) < size && len(all)+len(share) < n {
					t.Errorf("a share of %d of %d", len(share), size)
				}
				all = append(all, share...)
				shares++
			}
			if shares != max(1, (n+size-1)/size) || !slices.EqualFunc(all, list, Lease.Equal) {
				t.Errorf("%d leases in %d shares of %d", len(all), shares, size)
			}
		}
	}
}

// Lists with holes in their parts, of different lengths, with parts in common.
func TestLeasesChanged(t *testing.T) {
	a, b, c := numbered(0, 3), numbered(3, 2), numbered(5, 1)
	was := LeasesIn([][]Lease{a, b, {}, c})
	is := LeasesIn([][]Lease{a, slices.Clone(b), {}})
	var got []string
	for x, y := range was.Changed(is) {
		got = append(got, fmt.Sprint(len(x), len(y)))
	}
	if !slices.Equal(got, []string{"2 2", "1 0"}) {
		t.Errorf("changed: %v", got)
	}
	if was.Len() != 6 || is.Len() != 5 {
		t.Errorf("%d and %d leases", was.Len(), is.Len())
	}
}
