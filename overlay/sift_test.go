// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

// What is to be done about drift is the same whether the whole desired state is
// compared or what of it is missing, share by share.
func TestDriftIsSiftedToTheSameChanges(t *testing.T) {
	sifted := 0
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t)
		r := NewReconciler(newFakeKernel(), Options{Config: n.cfg})
		r.SetSelf(n.self)
		r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(drawMembers(t, 0)...)})
		in, err := r.inputs()
		if err != nil {
			t.Fatal(err)
		}
		d := newLoop(r).first(in)
		if !d.thin {
			return
		}
		whole := *d
		whole.enlarge()
		other, _ := n.desired(drawMembers(t, 1), NewState())
		have := meddled(t, whole.target, other)
		if !d.framed(have) {
			t.Fatal("drift is not in the frame")
		}
		had := whole.complete(have.without(d.digest))
		want := Diff(whole.target, had)
		got := Diff(d.sift(have.without(d.digest), rapid.IntRange(1, 8).Draw(t, "share")))
		if !slices.Equal(got, want) {
			t.Fatalf("sifted:\n%s\nof the whole:\n%s", got, want)
		}
		if len(want) > 0 {
			sifted++
		}
	})
	if sifted < 20 {
		t.Errorf("%d times drift proves little", sifted)
	}
}

// meddled returns s without some of its entries and with some of others', and
// with routes that are not ours, to where ours lead and elsewhere.
func meddled(t *rapid.T, s, other State) State {
	out := s.Clone()
	out.Nodes, out.Sources = drifted(t, s.Nodes, other.Nodes), drifted(t, s.Sources, other.Sources)
	out.Pods = drifted(t, s.Pods, other.Pods)
	out.FDB, out.Neighs = drifted(t, s.FDB, other.FDB), drifted(t, s.Neighs, other.Neighs)
	out.Routes = drifted(t, s.Routes, other.Routes)
	for _, r := range append(sorted(s.Routes), sorted(other.Routes)...) {
		switch rapid.IntRange(0, 9).Draw(t, "strange") {
		case 0:
			r.Metric, r.Proto = r.Metric+1, 4
		case 1:
			r.Metric, r.Proto, r.Onlink = 0, protoBoot, r.Via == r.Dst.Addr()
		case 2:
			r.Onlink = false
		case 3:
			r.Metric, r.Proto, r.Dev, r.Onlink = 0, protoBoot, "eth9", false
		default:
			continue
		}
		out.Routes.Add(r)
	}
	return out
}

// drifted leaves s alone one time in three.
func drifted[E entryOf[E]](t *rapid.T, s, other Set[E]) Set[E] {
	out := Set[E]{}
	drifts := rapid.IntRange(0, 2).Draw(t, "drifts") > 0
	for _, e := range sorted(s) {
		if !drifts || rapid.IntRange(0, 3).Draw(t, "stays") > 0 {
			out.Add(e)
		}
	}
	for _, e := range sorted(other) {
		if drifts && rapid.IntRange(0, 3).Draw(t, "comes") == 0 {
			out.Add(e)
		}
	}
	return out
}
