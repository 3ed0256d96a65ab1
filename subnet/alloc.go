// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
)

// ErrExhausted says that a network has no free subnet.
var ErrExhausted = errors.New("no free subnet")

// ErrConflict says that someone else holds the subnet or the name.
var ErrConflict = errors.New("held by another node")

// ErrTwin says that another process has this node's own lease, with its name
// and instance: two agents share a state directory, or its copy. An error that
// is ErrTwin is ErrConflict, too.
var ErrTwin = errors.New("this node's own lease, by another process")

// A Request asks for one free subnet of Network.
type Request struct {
	Network Network
	// Previous is the subnet the node held before, or the zero Prefix. It is
	// granted again when the network still has it and nobody else took it.
	Previous netip.Prefix
	// Taken are the leases and reservations of others, of any family, length
	// and number, overlapping or not. A subnet that overlaps one is taken.
	Taken []netip.Prefix
	// Pick returns a number in [0,n), at random in production, so that nodes
	// that start together rarely choose the same subnet. nil picks 0, the
	// lowest free subnet.
	Pick func(n int) int
}

// Allocate returns Previous when it is compatible (Network.Holds) and free,
// and otherwise a subnet chosen by Pick among all free ones, each with the
// same chance. flannel v0.28 chooses among the first 100 free ones only,
// which makes simultaneous starts collide more often; a network may mix both.
// The error is ErrExhausted, wrapped with the range, when none is free.
//
// The cost is O(t log t) in len(Taken) and does not depend on the size of
// the network. Of networks with more than 2^63-1 subnets only the first that
// many are handed out.
func Allocate(r Request) (netip.Prefix, error) {
	n := r.Network
	if err := n.check(); err != nil {
		return netip.Prefix{}, err
	}
	if n.Holds(r.Previous) == nil && !overlapsAny(r.Previous, r.Taken) {
		return r.Previous, nil
	}
	total := n.count()
	runs := n.takenRuns(r.Taken, total)
	free := total
	for _, t := range runs {
		free -= t.end - t.start
	}
	if free == 0 {
		return netip.Prefix{}, fmt.Errorf("%v, subnets %v/%d to %v/%d: %w",
			n.Prefix, n.SubnetMin, n.SubnetLen, n.SubnetMax, n.SubnetLen, ErrExhausted)
	}
	k := 0
	if r.Pick != nil {
		k = r.Pick(int(free))
	}
	if k < 0 || uint64(k) >= free {
		return netip.Prefix{}, fmt.Errorf("pick among %d free subnets of %v gave %d", free, n.Prefix, k)
	}
	index := uint64(k)
	for _, t := range runs {
		if index < t.start {
			break
		}
		index += t.end - t.start
	}
	return netip.PrefixFrom(n.at(n.SubnetMin, index), n.SubnetLen), nil
}

// Holds reports why p is not one of the subnets that n hands out, or nil: it
// must be masked, of n's family and SubnetLen, and between SubnetMin and
// SubnetMax.
func (n Network) Holds(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("no subnet given")
	case p.Addr().BitLen() != n.Prefix.Addr().BitLen():
		return fmt.Errorf("subnet %v: want one of %v", p, n.Prefix)
	case p.Bits() != n.SubnetLen:
		return fmt.Errorf("subnet %v: want a prefix length of %d", p, n.SubnetLen)
	case p != p.Masked():
		return fmt.Errorf("subnet %v has host bits set: want %v", p, p.Masked())
	case !n.Prefix.Contains(p.Addr()) || p.Addr().Less(n.SubnetMin) || n.SubnetMax.Less(p.Addr()):
		return fmt.Errorf("subnet %v: want %v/%d to %v/%d", p, n.SubnetMin, n.SubnetLen, n.SubnetMax, n.SubnetLen)
	}
	return nil
}

// check guards the arithmetic below against a Network that does not come
// from ParseConfig; bounds out of order fail Holds, too.
func (n Network) check() error {
	for _, a := range []netip.Addr{n.SubnetMin, n.SubnetMax} {
		if err := n.Holds(netip.PrefixFrom(a, n.SubnetLen)); err != nil {
			return fmt.Errorf("network %v is not usable: %w", n.Prefix, err)
		}
	}
	return nil
}

func overlapsAny(p netip.Prefix, taken []netip.Prefix) bool {
	return slices.ContainsFunc(taken, p.Overlaps)
}

// A run is a range of consecutive subnet numbers, end excluded. Number 0 is
// the subnet at SubnetMin.
type run struct{ start, end uint64 }

// count returns the number of subnets that n hands out, at most 2^63-1.
func (n Network) count() uint64 {
	return n.index(n.SubnetMax, math.MaxInt64-1) + 1
}

// takenRuns returns the subnet numbers below total that overlap a prefix of
// taken, as disjoint runs in ascending order.
func (n Network) takenRuns(taken []netip.Prefix, total uint64) []run {
	var all []run
	for _, p := range taken {
		if !n.Prefix.Overlaps(p) {
			continue // also: other family, invalid
		}
		last := lastAddr(p)
		if last.Less(n.SubnetMin) {
			continue
		}
		start := n.index(p.Masked().Addr(), total)
		end := min(n.index(last, total)+1, total)
		if start < end {
			all = append(all, run{start, end})
		}
	}
	slices.SortFunc(all, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	merged := all[:0]
	for _, t := range all {
		if last := len(merged) - 1; last >= 0 && t.start <= merged[last].end {
			merged[last].end = max(merged[last].end, t.end)
			continue
		}
		merged = append(merged, t)
	}
	return merged
}

// index returns the number of the subnet that holds a, at most most; 0 for
// an address below SubnetMin.
func (n Network) index(a netip.Addr, most uint64) uint64 {
	if a.Less(n.SubnetMin) {
		return 0
	}
	i := wideOf(a).sub(wideOf(n.SubnetMin)).shr(n.shift())
	if i.hi != 0 || i.lo > most {
		return most
	}
	return i.lo
}

// at returns the base of the subnet i subnets after the one at base.
func (n Network) at(base netip.Addr, i uint64) netip.Addr {
	return wideOf(base).add(wide{lo: i}.shl(n.shift())).addr(base.Is4())
}

// shift is the number of host bits in a subnet.
func (n Network) shift() uint { return uint(n.Prefix.Addr().BitLen() - n.SubnetLen) }

// lastAddr returns the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	host := uint(p.Addr().BitLen() - p.Bits())
	ones := wide{lo: 1}.shl(host).sub(wide{lo: 1})
	return wideOf(p.Masked().Addr()).add(ones).addr(p.Addr().Is4())
}

// wide is an unsigned 128-bit number, which an address is. IPv4 addresses
// use the low 32 bits, below the prefix of IPv4-mapped addresses.
type wide struct{ hi, lo uint64 }

func wideOf(a netip.Addr) wide {
	b := a.As16()
	var w wide
	for i := range 8 {
		w.hi = w.hi<<8 | uint64(b[i])
		w.lo = w.lo<<8 | uint64(b[i+8])
	}
	return w
}

func (w wide) addr(v4 bool) netip.Addr {
	var b [16]byte
	for i := range 8 {
		b[i] = byte(w.hi >> (56 - 8*i))
		b[i+8] = byte(w.lo >> (56 - 8*i))
	}
	a := netip.AddrFrom16(b)
	if v4 {
		return a.Unmap()
	}
	return a
}

func (w wide) add(v wide) wide {
	lo, carry := bits.Add64(w.lo, v.lo, 0)
	hi, _ := bits.Add64(w.hi, v.hi, carry)
	return wide{hi, lo}
}

func (w wide) sub(v wide) wide {
	lo, borrow := bits.Sub64(w.lo, v.lo, 0)
	hi, _ := bits.Sub64(w.hi, v.hi, borrow)
	return wide{hi, lo}
}

// shl and shr rely on Go's shifts by 64 and more giving zero.
func (w wide) shl(n uint) wide {
	if n >= 64 {
		return wide{hi: w.lo << (n - 64)}
	}
	return wide{hi: w.hi<<n | w.lo>>(64-n), lo: w.lo << n}
}

func (w wide) shr(n uint) wide {
	if n >= 64 {
		return wide{lo: w.hi >> (n - 64)}
	}
	return wide{hi: w.hi >> n, lo: w.lo>>n | w.hi<<(64-n)}
}
