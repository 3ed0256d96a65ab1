// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"slices"
	"sync"

	"weft.dev/weft/subnet"
)

// peers adds the entries of all leases but our own.
func (p *planner) peers(leases []subnet.Lease) {
	list := make([]candidate, 0, 2*len(leases))
	shared := sharedAmong(leases)
	for i := range leases {
		if l := &leases[i]; !p.isOwn(l) && p.validHolder(l) {
			list = p.candidates(list, l, shared)
		}
	}
	slices.SortFunc(list, candidate.compare)
	p.makeSpace(len(list))
	j := judge{planner: p, claims: newClaims(list), accepted: newAccepted(len(leases))}
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].compareClaim(list[0]) == 0 {
			n++
		}
		j.equals(list[:n])
		list = list[n:]
	}
	p.reached = len(j.accepted.leases)
	p.filter(j.accepted, slices.DeleteFunc(j.rejected, func(c *candidate) bool { return !j.claims.twin(c) }), j.claims)
}

// judge accepts candidates, the first first.
type judge struct {
	*planner
	claims   *claims
	accepted *accepted
	rejected []*candidate
}

// equals judges candidates that claim the same. The kernel knows no names: one
// that is programmed is not cut off because another comes by its name. But it
// only looks so if there is its equal, with whose name nothing is wrong.
func (j *judge) equals(list []candidate) {
	var doubles []*candidate
	for i := range list {
		c := &list[i]
		if detail := j.claims.named(c); detail != "" {
			j.problem("PeerDuplicateNode", peerName(c.lease), "%s", detail)
			doubles = append(doubles, c)
			continue
		}
		j.accept(c)
	}
	for _, c := range doubles {
		if c.incumbent {
			j.accept(c)
		} else {
			j.rejected = append(j.rejected, c)
		}
	}
}

// accept programs c unless somebody has what it claims.
func (j *judge) accept(c *candidate) {
	if kind, detail := j.claims.contested(c); kind != "" {
		j.problem(kind, peerName(c.lease), "%s", detail)
		j.rejected = append(j.rejected, c)
		return
	}
	j.claims.take(c)
	j.program(c)
	j.accepted.add(c)
}

// sharedAmong returns who reports whether another lease than l announces a:
// only then is a, published by l, not let in as l's. The index is made when it
// is first asked.
func sharedAmong(leases []subnet.Lease) func(l *subnet.Lease, a netip.Addr) bool {
	names := sync.OnceValue(func() map[netip.Addr]*subnet.Lease {
		out := make(map[netip.Addr]*subnet.Lease, 2*len(leases))
		for i := range leases {
			l := &leases[i]
			for _, path := range l.Paths {
				only(out, path.Underlay.Unmap(), l)
			}
		}
		return out
	})
	return func(l *subnet.Lease, a netip.Addr) bool {
		other, ok := names()[a]
		return ok && other != l
	}
}
