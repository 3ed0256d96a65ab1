// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/sirupsen/logrus"
	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

// modelKernel applies changes to a state as a kernel would.
type modelKernel struct{ state State }

func (k *modelKernel) Dump(_ context.Context, like Digest) (State, error) {
	return k.state.without(like), nil
}

func (k *modelKernel) Apply(_ context.Context, c Changes) error { return applyAll(k.state, c) }

// A quick pass does what a whole one would, or nothing.
func TestAQuickPassDoesWhatAWholeOneWould(t *testing.T) {
	quick, whole := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		log := logrus.New()
		log.SetOutput(t.Output())
		k := &modelKernel{NewState()}
		r := NewReconciler(k, Options{Config: n.cfg, MassRemovalHold: -1, Log: log})
		r.SetSelf(n.self)
		l := newLoop(r)
		l.share = rapid.IntRange(1, 8).Draw(t, "share")
		leases := drawMembers(t, 0)
		if rapid.IntRange(0, 3).Draw(t, "with junk") == 0 {
			leases = append(leases, drawJunkList(t)...)
		}
		r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(leases...)})
		l.pass(t.Context())
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			leases = change(t, leases)
			r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(leases...)})
			in, err := r.inputs()
			if err != nil {
				t.Fatal(err)
			}
			l.last.enlarge()
			before := l.last.target.Clone()
			if rapid.Bool().Draw(t, "slim") {
				l.slim()
			}
			want, problems := n.desired(leases, before)
			if !l.quick(t.Context(), in) {
				whole++
				if !k.state.Equal(before) {
					t.Fatalf("a quick pass gave up and yet did:\n%s", Diff(k.state, before))
				}
				l.pass(t.Context())
				continue
			}
			quick++
			st := r.Status()
			// What is said of others may be put in other words once they are
			// programmed; of whom it is said may not.
			if !st.InSync || st.Peers != reachedBy(n, leases, before) || !maps.Equal(objects(st.Problems), objects(problems)) {
				t.Fatalf("status %+v, problems should be %v", st, problems)
			}
			if d := want.Digest(l.hasher); l.last.digest != d {
				t.Fatalf("the digest is %v, and should be %v", l.last.digest, d)
			}
			l.last.enlarge()
			if !k.state.Equal(want) || !l.last.target.Equal(want) {
				t.Fatalf("the kernel should have had\n%sof the kernel, and\n%sof the target", Diff(want, k.state), Diff(want, l.last.target))
			}
		}
	})
	if quick*4 < whole {
		t.Errorf("%d quick passes of %d prove little", quick, quick+whole)
	}
}

func objects(problems []subnet.Problem) Set[string] {
	out := Set[string]{}
	for _, p := range problems {
		out.Add(p.Object)
	}
	return out
}

func reachedBy(n node, leases []subnet.Lease, have State) int {
	p := newPlanner(n.self, n.cfg, have)
	p.run(leases)
	return p.reached
}

// change returns leases after something has happened to one or two of them.
func change(t *rapid.T, leases []subnet.Lease) []subnet.Lease {
	out := slices.Clone(leases)
	for range rapid.IntRange(1, 2).Draw(t, "at once") {
		i := -1
		if len(out) > 0 {
			i = rapid.IntRange(0, len(out)-1).Draw(t, "which")
		}
		switch what := rapid.SampledFrom([]string{"new", "gone", "changed", "swapped", "junk"}).Draw(t, "what"); {
		case what == "new" || i < 0:
			l := drawPeer(t, rapid.IntRange(2, 9).Draw(t, "n"), 1)
			out = append(out, l)
		case what == "gone":
			out[i] = out[len(out)-1]
			out = out[:len(out)-1]
		case what == "changed" && len(out[i].Paths) > 0:
			out[i] = edit(out[i], func(p *subnet.Path) { p.MAC[4]++ })
		case what == "swapped":
			out[i], out[0] = out[0], out[i]
		default:
			out[i] = drawJunk(t, rapid.IntRange(0, 6).Draw(t, "n"))
		}
	}
	return out
}

// inParts divides list. A part that is equal to one in before is that one.
func inParts(list []subnet.Lease, before [][]subnet.Lease) [][]subnet.Lease {
	var parts [][]subnet.Lease
	for part := range slices.Chunk(list, 2) {
		if i := len(parts); i < len(before) && slices.EqualFunc(part, before[i], subnet.Lease.Equal) {
			part = before[i]
		}
		parts = append(parts, part)
	}
	return parts
}

// Whatever order two lists are in, their differences are what it takes to make
// one of the other.
func TestDifferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was := drawPeers(t, 0)
		is := change(t, change(t, was))
		before := inParts(was, nil)
		removed, added := differences(subnet.LeasesIn(before), subnet.LeasesIn(inParts(is, before)))
		count := map[string]int{}
		add := func(list []subnet.Lease, by int) {
			for _, l := range list {
				count[fmt.Sprint(l)] += by
			}
		}
		add(was, 1)
		add(removed, -1)
		add(added, 1)
		add(is, -1)
		for l, n := range count {
			if n != 0 {
				t.Fatalf("%s: %d too many; removed %v, added %v", l, n, removed, added)
			}
		}
	})
}

// What this node is, said once more as it was, does not make a pass over
// everything of the next lease's change.
func TestTheSameSelfIsNoNews(t *testing.T) {
	v4 := [2]subnet.Family{4, 4}
	self := func() Self { return testSelf(v4, [2]subnet.Family{6, 6}) }
	r := NewReconciler(&modelKernel{NewState()}, Options{Config: testConfig()})
	r.SetSelf(self())
	r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(lease(2, v4))})
	l := newLoop(r)
	l.pass(t.Context())
	r.SetSelf(self())
	r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(lease(2, v4), lease(3, v4))})
	in, err := r.inputs()
	if err != nil {
		t.Fatal(err)
	}
	if !l.quick(t.Context(), in) {
		t.Error("a lease's change is not quick after the same Self")
	}
	other := self()
	other.Masquerade = !other.Masquerade
	r.SetSelf(other)
	if now, err := r.inputs(); err != nil || now.self == in.self {
		t.Errorf("another Self is not taken: %v", err)
	}
}
