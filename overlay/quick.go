// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"weft.dev/weft/subnet"
)

// quick applies a change of some leases without looking at the whole: what
// Desired makes of the new ones alone, less what it made of the old ones
// alone. It reports false, and has done nothing, unless that is what a whole
// pass would do: nothing else has changed; the kernel was as wanted when it
// was last looked at; and the leases claim nothing that others claim, have
// nothing wrong with them, and are not so many going at once that they might
// be held. What the kernel has made of it the next audit sees, or an event.
func (l *loop) quick(ctx context.Context, in inputs) bool {
	if !l.calmFor(in) {
		return false
	}
	removed, added := differences(l.crowd.leases, in.snap.Leases)
	crowd := l.crowd
	l.crowd = nil // wrong from here on, unless all goes well
	if !few(removed, added, in.snap.Leases.Len()) || !crowd.follow(in.snap.Leases, removed, added) {
		return false
	}
	base, was, is := byThemselves(in, nil), byThemselves(in, removed), byThemselves(in, added)
	if !was.fine(base) || !is.fine(base) || !maps.Equal(base.state.Filters, l.last.state.Filters) {
		return false
	}
	changes := Diff(is.state, was.state)
	l.crowd = crowd
	l.last.planner.reached += is.reached - was.reached
	d := *l.last
	d.inputs = in
	for _, c := range changes {
		d.digest.change(c)
		if !d.thin {
			d.state.change(c)
		}
	}
	l.last, l.tried = &d, &d
	l.r.decided.Store(in.snap)
	l.put(ctx, in, changes)
	return true
}

// calmFor reports whether nothing but the snapshot has changed since the last
// pass, that left nothing to do or to wait for, and no mass of leases has gone
// in between.
func (l *loop) calmFor(in inputs) bool {
	return l.last != nil && l.crowd != nil && l.clean && l.r.Status().InSync &&
		l.last.inputs.self == in.self && l.last.inputs.config == in.config && l.last.inputs.snap != in.snap &&
		!l.hold.active() && !l.linger.active() && !l.r.released.Load() && !l.swept(in.snap)
}

// few reports whether so few leases come and go that a quick pass pays, and
// that no removal would be held.
func few(removed, added []subnet.Lease, all int) bool {
	const least = 64
	stays := Set[netip.Prefix]{}
	for _, l := range added {
		for _, p := range l.Paths {
			stays.Add(p.Subnet)
		}
	}
	gone := 0
	for _, l := range removed {
		for _, p := range l.Paths {
			if !stays.Has(p.Subnet) {
				gone++
			}
		}
	}
	return gone <= massLeast && len(removed)+len(added) <= max(least, all/8)
}

// byThemselves returns what leases give by themselves.
func byThemselves(in inputs, leases []subnet.Lease) *planner {
	p := newPlanner(*in.self, *in.config, NewState())
	p.run(leases)
	return p
}

// fine reports whether nothing is wrong with the leases of p, and they ask for
// no other table: base is without leases.
func (p *planner) fine(base *planner) bool {
	return len(p.problems) == len(base.problems) && maps.Equal(p.state.Filters, base.state.Filters)
}

// put applies the changes of a quick pass and publishes its outcome.
func (l *loop) put(ctx context.Context, in inputs, changes Changes) {
	l.debug(changes)
	st := l.r.Status()
	st.Snapshot, st.Peers = in.snap.at, l.last.reached
	if !changes.Empty() {
		if err := l.r.kernel.Apply(ctx, changes); err != nil {
			l.clean = false
			st.InSync, st.Reason, st.Pending = false, fmt.Sprintf("apply the change of a lease: %v", err), changes
			l.due = time.Now()
		}
	}
	if ctx.Err() != nil {
		return
	}
	st.LastPass = time.Now()
	st.Problems = l.problemList()
	l.gap = st.LastPass.Add(l.r.opts.MinGap)
	l.publish(st)
}

// change makes one change.
func (s State) change(c Change) {
	if c.Op == Delete {
		s.remove(c.Entry)
		return
	}
	if c.Was != nil {
		s.remove(c.Was)
	}
	s.Add(c.Entry)
}
