// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestRoll compares a Roll with a map while both are changed at random. What
// was handed out before must stay as it was.
func TestRoll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Roll
		want := map[string]string{}
		keep, kept := Leases{}, []string(nil)
		for range rapid.IntRange(0, 600).Draw(t, "steps") {
			key := fmt.Sprint("n", rapid.IntRange(0, 300).Draw(t, "key"))
			switch id := rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "instance"); {
			case id == "":
				_, had := want[key]
				if r.Remove(key) != had {
					t.Fatalf("Remove(%s) is not %v", key, had)
				}
				delete(want, key)
			default:
				was, had := want[key]
				if r.Put(key, Lease{Node: key, Instance: id}) != (!had || was != id) {
					t.Fatalf("Put(%s, %s) over %q", key, id, was)
				}
				want[key] = id
			}
			if rapid.IntRange(0, 20).Draw(t, "look") == 0 {
				keep = r.Leases()
				kept = texts(keep)
				var all []string
				for k, id := range want {
					all = append(all, k+id)
				}
				slices.Sort(all)
				if !slices.Equal(kept, all) {
					t.Fatalf("leases %v, want %v", kept, all)
				}
			}
			if got := texts(keep); !slices.Equal(got, kept) {
				t.Fatalf("what was handed out has changed: %v, was %v", got, kept)
			}
		}
		for key := range maps.Keys(want) {
			if !r.Has(key) {
				t.Fatalf("%s is missing", key)
			}
		}
	})
}

func texts(l Leases) []string {
	var out []string
	for lease := range l.All() {
		out = append(out, lease.Node+lease.Instance)
	}
	slices.Sort(out)
	return out
}

// What has not changed is the same memory in the next list.
func TestRollSharesParts(t *testing.T) {
	var r Roll
	for i := range 3 * PartSize {
		r.Put(fmt.Sprint(i), Lease{Node: fmt.Sprint(i)})
	}
	before := r.Leases()
	r.Put("0", Lease{Node: "0"}) // no change
	r.Put("130", Lease{Node: "130", Instance: "x"})
	n := 0
	for range before.Changed(r.Leases()) {
		n++
	}
	if n != 1 {
		t.Errorf("%d parts differ after one change, want 1", n)
	}
}
