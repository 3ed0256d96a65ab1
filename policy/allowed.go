// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// MaxAllowed bounds the addresses that a pod may have beside its own: a prefix
// of 24 bits, or of 120.
const MaxAllowed = 256

// An Extra is what one of a node's pods may have beside its own addresses.
type Extra struct {
	Pod     *Pod // as it is in the Cluster
	Addrs   []netip.Addr
	Refused string // what it may not have of what it asks for, and why; "" if nothing
}

// WithAllowed returns c in which node's pods have the addresses that they are
// allowed beside their own (Pod.Allowed), so that their policies are for these
// too, and lists these. Nobody gets an address that is another pod's, a node's,
// or inside reserved: else a pod could speak in the name of another. Of several
// that share one, as those that move a virtual address among them, the one that
// was created last is taken to have it. To policies of other nodes the addresses
// are nobody's.
func (c Cluster) WithAllowed(node string, reserved []netip.Prefix) (Cluster, []Extra) {
	here := func(p *Pod) bool { return p.Node == node && p.holds() && len(p.Allowed) > 0 }
	if !slices.ContainsFunc(c.Pods, here) {
		return c, nil
	}
	taken := map[netip.Addr]bool{}
	for _, p := range c.Pods {
		for _, a := range p.Addrs {
			taken[a] = true
		}
	}
	var extras []Extra
	pods := slices.Clone(c.Pods)
	for i, p := range pods {
		if !here(p) {
			continue
		}
		e := Extra{Pod: p}
		e.Addrs, e.Refused = p.allowed(reserved, taken)
		if len(e.Addrs) > 0 {
			more := *p
			more.Addrs = slices.Concat(p.Addrs, e.Addrs)
			pods[i], e.Pod = &more, &more
		}
		extras = append(extras, e)
	}
	c.Pods = pods
	return c, extras
}

// allowed returns what p may have of what it asks for, and what it may not.
func (p *Pod) allowed(reserved []netip.Prefix, taken map[netip.Addr]bool) (out []netip.Addr, refused string) {
	for _, want := range p.Allowed {
		if i := slices.IndexFunc(reserved, want.Overlaps); i >= 0 {
			refused = fmt.Sprintf("%s is in %s, where addresses are pods' and nodes'", want, reserved[i])
			continue
		}
		if first, last := want.Masked().Addr(), Last(want); !single(first) || !single(last) {
			refused = fmt.Sprintf("%s has addresses of no single host", want)
			continue
		}
		for a := want.Masked().Addr(); want.Contains(a); a = a.Next() {
			if slices.Contains(p.Addrs, a) || slices.Contains(out, a) {
				continue
			}
			if taken[a] {
				refused = fmt.Sprintf("%s is a pod's or a node's", a)
				continue
			}
			if len(out) == MaxAllowed {
				return out, fmt.Sprintf("%s and what follows: want at most %d addresses in all", want, MaxAllowed)
			}
			out = append(out, a)
		}
	}
	return out, refused
}

// single reports whether a can be the source of one host that is no link's own.
func single(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
