// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"slices"
	"time"

	"weft.dev/weft/subnet"
)

// linkLinger is how long devices stay that a change to host-gw would remove,
// and how long packets are let in on the underlay that they came on before our
// lease named another: peers that have not heard of it yet still send there.
const linkLinger = 30 * time.Second

// decision is the last desired state and what it was made from.
type decision struct {
	inputs
	*planner
	target State  // what to bring about: the desired state, and what is kept beyond it
	digest Digest // of target
	thin   bool   // planner and target are without the peers; see thin.go
}

// holding is a mass removal that waits; the zero value is none.
type holding struct {
	held
	since, until time.Time
}

// lingering is what stays of devices that are no longer wanted.
type lingering struct {
	state State
	until time.Time
}

func (h holding) active() bool   { return !h.until.IsZero() }
func (l lingering) active() bool { return !l.until.IsZero() }

// decide brings l.last up to date with the inputs and the clock. Who is the
// incumbent, and which peers there were before a removal, is read from the
// kernel once, at the start; from then on it is what we decided for, so that
// a device which loses its entries does not hand a contested subnet to a
// rival, and what others put into the kernel is never held. With that the
// state depends on the inputs and the clock alone, and an audit costs no more
// than the comparison.
func (l *loop) decide(in inputs, have State) {
	now := time.Now()
	over := l.r.released.Swap(false) && l.hold.active() || l.hold.active() && !now.Before(l.hold.until)
	late := l.linger.active() && !now.Before(l.linger.until)
	if l.last != nil && l.last.inputs == in && !over && !late {
		return
	}
	if over {
		l.hold = holding{}
	}
	if late {
		l.linger = lingering{}
	}
	before, incumbents := have, have
	if l.last != nil {
		l.last.enlarge()
		before, incumbents = l.last.state, l.last.target
	}
	d := &decision{inputs: in}
	if l.last != nil && l.last.inputs == in {
		d.planner = l.last.planner
	} else {
		d.planner = newPlanner(*in.self, *in.config, incumbents)
		d.planner.run(in.snap.Leases.Slice())
		d.planner.have = programmed{} // or each state would keep the one before
		l.crowd = newCrowd(in.config, in.snap.Leases)
	}
	l.followLinks(d, have)
	l.followHold(d, before, now)
	d.target = l.hold.over(d.state)
	if l.linger.active() {
		d.target = d.target.with(l.linger.state)
	}
	d.digest = d.target.Digest(l.hasher)
	l.last = d
}

// followHold begins, narrows or ends the hold. The time runs from when it
// began, however often what is held changes.
func (l *loop) followHold(d *decision, before State, now time.Time) {
	if l.r.opts.MassRemovalHold < 0 {
		return
	}
	if l.hold.active() {
		before = before.with(l.hold.state)
	}
	h := massRemoval(d.state, before, *d.inputs.self, l.hold.subnets, l.swept(d.inputs.snap))
	switch {
	case len(h.subnets) == 0:
		l.hold = holding{}
	case l.hold.active():
		l.hold.held = h
	default:
		l.hold = holding{h, now, now.Add(l.r.opts.MassRemovalHold)}
	}
}

// swept reports whether the store has lost a mass of leases since the last
// decision, though most may be back by now. Their holders are taking them back:
// whoever is late must not lose its packets.
func (l *loop) swept(snap *delivery) bool {
	if l.last == nil || l.last.inputs.snap == snap {
		return false
	}
	before := l.last.inputs.snap.Leases.Len()
	return mass(before-snap.fewest, before)
}

// followLinks begins or ends the linger of devices, or of a way in.
func (l *loop) followLinks(d *decision, have State) {
	switch {
	case !d.hostGW && l.last != nil && l.last.hostGW:
		l.linger = lingering{}
	case d.hostGW && l.last != nil && !l.last.hostGW:
		l.linger = lingering{leftover(d.state, l.last.target, have), time.Now().Add(linkLinger)}
	case l.last != nil && movedIn(l.last.inputs.self.Lease, d.inputs.self.Lease):
		l.linger = lingering{wayIn(d, l.last.target), time.Now().Add(linkLinger)}
	}
}

// movedIn reports whether a lease leads peers to a subnet on another underlay
// family than before.
func movedIn(was, is subnet.Lease) bool {
	for _, f := range subnet.Families() {
		a, before := was.Path(f)
		b, now := is.Path(f)
		if before && now && subnet.FamilyOf(a.Underlay) != subnet.FamilyOf(b.Underlay) {
			return true
		}
	}
	return false
}

// wayIn returns the sources of was that d's table has sets for, without what
// could pass for one of our own pods.
func wayIn(d *decision, was State) State {
	s := NewState()
	for f := range d.state.Filters {
		for src := range was.Sources {
			ours := slices.ContainsFunc(d.inputs.self.Lease.Paths, func(p subnet.Path) bool { return p.Subnet.Overlaps(src.Inner) })
			if f.Guard == GuardBind && !ours && d.state.Nodes.Has(Node{Addr: src.Outer}) && (src.Inner.IsSingleIP() || f.Lengths == f.Lengths.With(src.Inner)) {
				s.Sources.Add(src)
			}
		}
	}
	return s
}

// leftover returns the devices of was that want has not and the kernel still
// has, with all that is on them but routes.
func leftover(want, was, have State) State {
	s := NewState()
	wanted := linksByName(want)
	for l := range was.Links {
		if _, ok := wanted[l.Name]; !ok && have.Links.Has(l) {
			s.Links.Add(l)
		}
	}
	stays := linksByName(s)
	addOn(s.Addrs, was.Addrs, func(a Addr) string { return a.Dev }, stays)
	addOn(s.FDB, was.FDB, func(f FDB) string { return f.Dev }, stays)
	addOn(s.Neighs, was.Neighs, func(n Neigh) string { return n.Dev }, stays)
	return s
}

// addOn adds to out what of s is on one of the devices.
func addOn[E comparable](out, s Set[E], dev func(E) string, devices map[string]Link) {
	for e := range s {
		if _, ok := devices[dev(e)]; ok {
			out.Add(e)
		}
	}
}

// status returns h as Status shows it, nil for none.
func (h holding) status() *Hold {
	if !h.active() {
		return nil
	}
	return &Hold{Since: h.since, Until: h.until, Routes: len(h.subnets)}
}

// problem returns h as a Problem. h must be active.
func (h holding) problem() subnet.Problem {
	return subnet.Problem{Kind: "MassRemovalHeld", Object: "peers", Detail: fmt.Sprintf(
		"no usable lease is left for %d of %d subnets of peers since %s: their entries are kept until %s, unless the leases come back; `weft peers release` removes them now",
		len(h.subnets), h.of, utc(h.since), utc(h.until))}
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// problemList returns all that is wrong, sorted.
func (l *loop) problemList() []subnet.Problem {
	others := append([]subnet.Problem(nil), l.last.inputs.snap.Problems...)
	if l.hold.active() {
		others = append(others, l.hold.problem())
	}
	if p, ok := l.fight.problem(time.Now()); ok {
		others = append(others, p)
	}
	return l.last.with(others)
}
