// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// MaxAllowed bounds the addresses that a pod may have beside its own: a prefix
// of 24 bits, or of 120.
const MaxAllowed = 256

// An Extra is what one of a node's pods gets of what it asks for beside its own
// addresses.
type Extra struct {
	Pod     *Pod   // as it is in the Cluster
	Refused string // what it does not get, and why; "" if it gets all
}

// Allowance is what pods of one node may ask for.
type Allowance struct {
	Node string
	// Of are the addresses that the node's operator lets pods have. Nothing else is
	// theirs to ask for: who names a stranger's address is let speak in its name,
	// and cuts the node's other pods off from it.
	Of []netip.Prefix
	// Reserved are pods' and nodes' all the same.
	Reserved []netip.Prefix
}

// WithAllowed returns c in which the node's pods have what they are allowed
// beside their own addresses (Pod.Extra), and lists these pods. What is another
// pod's or a node's nobody gets. Pods of one namespace with the same labels can
// share an address, as those do that move a virtual one among them; else the
// pod that was created first has it.
func (c Cluster) WithAllowed(may Allowance) (Cluster, []Extra) {
	var asking []int
	for i, p := range c.Pods {
		if p.Node == may.Node && p.holds() && len(p.Allowed) > 0 {
			asking = append(asking, i)
		}
	}
	if len(asking) == 0 {
		return c, nil
	}
	slices.SortFunc(asking, func(i, j int) int {
		a, b := c.Pods[i], c.Pods[j]
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.UID, b.UID))
	})
	r := rationing{may: may, taken: map[netip.Addr]bool{}, given: map[netip.Addr]*Pod{}}
	for _, p := range c.Pods {
		for _, a := range p.Addrs {
			r.taken[a] = r.taken[a] || !p.Ended
		}
	}
	var out []Extra
	c.Pods = slices.Clone(c.Pods)
	for _, i := range asking {
		p := *c.Pods[i]
		refused := r.give(&p)
		c.Pods[i] = &p
		out = append(out, Extra{&p, refused})
	}
	return c, out
}

// rationing gives addresses to one pod after another.
type rationing struct {
	may   Allowance
	taken map[netip.Addr]bool
	given map[netip.Addr]*Pod
}

// give gives p what it asks for, and returns why not all.
func (r *rationing) give(p *Pod) (refused string) {
	p.Extra = nil
	for _, want := range p.Allowed {
		if !slices.ContainsFunc(r.may.Of, func(o netip.Prefix) bool { return o.Bits() <= want.Bits() && o.Overlaps(want) }) {
			refused = fmt.Sprintf("%s is not among what --allow-addresses lets pods have", want)
			continue
		}
		if i := slices.IndexFunc(r.may.Reserved, want.Overlaps); i >= 0 {
			refused = fmt.Sprintf("%s overlaps %s, where addresses are pods' and nodes'", want, r.may.Reserved[i])
			continue
		}
		tried := 0
		for a := want.Masked().Addr(); want.Contains(a); a = a.Next() {
			if tried++; tried > MaxAllowed || len(p.Extra) == MaxAllowed {
				return fmt.Sprintf("%s and what follows: want at most %d addresses in all", want, MaxAllowed)
			}
			if why := r.refuses(p, a); why != "" {
				refused = why
				continue
			}
			if !slices.Contains(p.Extra, a) {
				r.given[a] = p
				p.Extra = append(p.Extra, a)
			}
		}
	}
	return refused
}

// refuses says why p cannot have a.
func (r *rationing) refuses(p *Pod, a netip.Addr) string {
	switch o := r.given[a]; {
	case !single(a):
		return fmt.Sprintf("%s is no address of a single host", a)
	case r.taken[a]:
		return fmt.Sprintf("%s is a pod's or a node's", a)
	case o != nil && (o.Namespace != p.Namespace || o.Labels.Key() != p.Labels.Key()):
		return fmt.Sprintf("%s is %s's already, which has other labels or is in another namespace", a, o)
	}
	return ""
}

// single reports whether a can be the source of one host that is no link's own.
func single(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
