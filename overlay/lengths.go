// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"weft.dev/weft/subnet"
)

// Lengths is a set of prefix lengths of both families. Comparable; the zero
// value is empty.
type Lengths struct{ bits [2][3]uint64 } // by place in subnet.Families, 0 to 128

// With returns l and the length of p.
func (l Lengths) With(p netip.Prefix) Lengths {
	return l.WithLength(subnet.FamilyOf(p.Addr()), p.Bits())
}

// WithLength returns l and length n of family f. A length that f has not, or
// no family, changes nothing.
func (l Lengths) WithLength(f subnet.Family, n int) Lengths {
	for i, fam := range subnet.Families() {
		if fam == f && n >= 0 && n <= fam.Bits() {
			l.bits[i][n/64] |= 1 << (n % 64)
		}
	}
	return l
}

// compare orders sets of lengths; 0 means equal.
func (l Lengths) compare(o Lengths) int {
	return cmp.Or(slices.Compare(l.bits[0][:], o.bits[0][:]), slices.Compare(l.bits[1][:], o.bits[1][:]))
}

// All yields the lengths, IPv4 first, ascending.
func (l Lengths) All() iter.Seq2[subnet.Family, int] {
	return func(yield func(subnet.Family, int) bool) {
		for i, f := range subnet.Families() {
			for n := 0; n <= f.Bits(); n++ {
				if l.bits[i][n/64]&(1<<(n%64)) != 0 && !yield(f, n) {
					return
				}
			}
		}
	}
}

// String renders l as "IPv4/24,IPv6/64".
func (l Lengths) String() string {
	var out []string
	for f, n := range l.All() {
		out = append(out, fmt.Sprintf("%v/%d", f, n))
	}
	return strings.Join(out, ",")
}
