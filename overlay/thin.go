// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"maps"
	"net/netip"
)

// While no lease claims what another does, each gives what it gives by itself,
// and all of it together need not be in memory: a digest tells whether the
// kernel has it, and the leases tell what it is when it has not. Such a
// decision is thin. What cannot be so, it is whole.

// shareSize is how many leases are turned into entries at once. A lease has
// about ten, of some 800 bytes each, with maps and changes, while they are on
// their way to the kernel: with 2,000 an agent that starts needs 10 MiB more, and
// no less time.
const shareSize = 500

// peekSize is the same where the entries are only looked at: so few that they
// stay in the processor's cache, and no more than fill Go's maps, which have a
// power of two of places and are seven eighths full at most, with two paths a
// lease.
const peekSize = 56

// first returns the decision for an empty kernel, and for one in which all
// that is wanted is in place.
func (l *loop) first(in inputs) *decision {
	d := &decision{inputs: in}
	l.crowd = newCrowd(in.config, in.snap.Leases)
	if !l.crowd.apart() || !d.sum(l.hasher, l.peek()) {
		d.enlarge()
		d.digest = d.target.Digest(l.hasher)
	}
	return d
}

// peek is how many leases are turned into entries at once to be looked at.
func (l *loop) peek() int { return min(l.share, peekSize) }

// sum makes d thin, looking at so many leases at once. It reports false when
// something is wrong with a lease.
func (d *decision) sum(h Hasher, size int) bool {
	base := byThemselves(d.inputs, nil)
	alone := base.state.Digest(h)
	all, reached := alone, 0
	for share := range d.inputs.snap.Leases.Shares(size) {
		p := byThemselves(d.inputs, share)
		if !p.fine(base) {
			return false
		}
		all = all.plus(p.state.Digest(h).minus(alone))
		reached += p.reached
	}
	base.reached = reached
	d.thin, d.planner, d.target, d.digest = true, base, base.state, all
	return true
}

// enlarge makes a thin decision, or an empty one, whole. Of leases that are
// each by themselves the outcome does not depend on what is programmed.
func (d *decision) enlarge() {
	if d.planner != nil && !d.thin {
		return
	}
	p := newPlanner(*d.inputs.self, *d.inputs.config, NewState())
	p.run(d.inputs.snap.Leases.Slice())
	p.have = programmed{}
	d.thin, d.planner, d.target = false, p, p.state
}

// slim makes the last decision thin if it can be: nothing waits, no two leases
// are in each other's way, and nothing is wrong with any.
func (l *loop) slim() {
	d := l.last
	if d.thin || l.hold.active() || l.linger.active() || l.crowd == nil || !l.crowd.apart() {
		return
	}
	base := byThemselves(d.inputs, nil)
	if !d.fine(base) {
		return
	}
	base.reached = d.reached
	d.thin, d.planner, d.target = true, base, base.state
}

// expected reports whether the kernel has what d wants: have is a dump that d's
// digest was given to.
func (d *decision) expected(have State) bool {
	return have.Nodes == nil && have.Sources == nil && have.Pods == nil && have.FDB == nil && have.Neighs == nil && have.Routes == nil && d.framed(have)
}

// complete returns have, a dump that d's digest was given to, with the sets
// that were as expected. They are shared.
func (d *decision) complete(have State) State {
	if have.Nodes != nil && have.Sources != nil && have.Pods != nil && have.FDB != nil && have.Neighs != nil && have.Routes != nil {
		return have
	}
	d.enlarge()
	known(&have.Nodes, d.target.Nodes)
	known(&have.Sources, d.target.Sources)
	known(&have.Pods, d.target.Pods)
	known(&have.FDB, d.target.FDB)
	known(&have.Neighs, d.target.Neighs)
	known(&have.Routes, d.target.Routes)
	return have
}

func known[E comparable](s *Set[E], expected Set[E]) {
	if *s == nil {
		*s = expected
	}
}

// bare reports whether a dump that d's digest was given to found nothing.
func (d *decision) bare(have State) bool {
	return have.Counts().Total() == 0 &&
		(have.Nodes != nil || d.digest.Nodes.N == 0) && (have.Sources != nil || d.digest.Sources.N == 0) &&
		(have.Pods != nil || d.digest.Pods.N == 0) &&
		(have.FDB != nil || d.digest.FDB.N == 0) && (have.Neighs != nil || d.digest.Neighs.N == 0) &&
		(have.Routes != nil || d.digest.Routes.N == 0)
}

// fill brings about a thin decision in an empty kernel, one share of the
// leases after the other, and looks what has become of it.
func (l *loop) fill(ctx context.Context, st *Status) {
	base := byThemselves(l.last.inputs, nil)
	have, made := NewState(), 0
	var errs []error
	for share := range l.last.inputs.snap.Leases.Shares(l.share) {
		if ctx.Err() != nil {
			return
		}
		p := byThemselves(l.last.inputs, share)
		changes := Diff(p.state, have)
		l.debug(changes)
		errs = append(errs, failures(l.r.kernel.Apply(ctx, changes))...)
		have = base.state // the other shares' peers do not count
		made += len(changes)
	}
	l.verify(ctx, st, errors.Join(errs...), made)
}

// framed reports whether have is as d wants it but for the entries that grow
// with the number of peers.
func (d *decision) framed(have State) bool {
	return maps.Equal(have.Filters, d.target.Filters) && maps.Equal(have.Links, d.target.Links) && maps.Equal(have.Addrs, d.target.Addrs)
}

// sift returns what is missing of what d, a thin decision, wants, and what have
// has too much, so that Diff makes of them what it would make of the whole
// without that this is ever in memory. have is a dump that d's digest was given
// to, framed, and is used up. Leases are turned into entries so many at once.
func (d *decision) sift(have State, size int) (missing, extra State) {
	// Whose a route without our mark is, Diff tells by what is wanted there:
	// of that it sees all.
	strange := Set[netip.Prefix]{}
	for r := range have.Routes {
		if r.Proto != RouteProtocol {
			strange.Add(r.Dst)
		}
	}
	base := byThemselves(d.inputs, nil).state
	missing = base.Clone()
	for share := range d.inputs.snap.Leases.Shares(size) {
		s := byThemselves(d.inputs, share).state
		sift(missing.Nodes, have.Nodes, s.Nodes, base.Nodes.Has)
		sift(missing.Sources, have.Sources, s.Sources, base.Sources.Has)
		sift(missing.Pods, have.Pods, s.Pods, base.Pods.Has)
		sift(missing.FDB, have.FDB, s.FDB, base.FDB.Has)
		sift(missing.Neighs, have.Neighs, s.Neighs, base.Neighs.Has)
		sift(missing.Routes, have.Routes, s.Routes, func(r Route) bool { return base.Routes.Has(r) || strange.Has(r.Dst) })
	}
	// The base's own of a kind that is as wanted.
	known(&have.Nodes, missing.Nodes)
	known(&have.Sources, missing.Sources)
	known(&have.Pods, missing.Pods)
	known(&have.FDB, missing.FDB)
	known(&have.Neighs, missing.Neighs)
	known(&have.Routes, missing.Routes)
	return missing, have
}

// sift takes the entries of some leases out of have, and puts those that are
// not there into missing. stays says which are left where they are, and put
// into missing in any case. A nil have is as wanted.
func sift[E comparable](missing, have, wanted Set[E], stays func(E) bool) {
	if have == nil {
		return
	}
	for e := range wanted {
		if have.Has(e) && !stays(e) {
			delete(have, e)
		} else {
			missing.Add(e)
		}
	}
}
