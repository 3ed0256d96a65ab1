// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// Whatever comes and goes, a snapshot is what is there, and stays as it was.
func TestMirrorInParts(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	m := newMirror(prefix, nil)
	m.replace(listed(1))
	want := map[string]bool{} // node names
	names := func(s subnet.Snapshot) []string {
		var out []string
		for l := range s.Leases.All() {
			out = append(out, l.Node)
		}
		slices.Sort(out)
		return out
	}
	var last subnet.Snapshot
	var then []string
	for rev := int64(2); rev < 2000; rev++ {
		n := rng.IntN(2*subnet.PartSize + 40)
		name := fmt.Sprint("n", n, "-", rng.IntN(2)) // two holders take turns
		lease := kv(t, at(node(name, "i", "192.0.2.2"), fmt.Sprintf("10.42.%d.0/28", n%256)), rev, 1)
		lease.Key = []byte(fmt.Sprintf("%s10.%d.%d.0-28", prefix, 42+n/256, n%256))
		e := put(lease)
		for _, other := range []string{fmt.Sprint("n", n, "-0"), fmt.Sprint("n", n, "-1")} {
			delete(want, other)
		}
		if rng.IntN(3) == 0 {
			e = &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: lease.Key, ModRevision: rev}}
		} else {
			want[name] = true
		}
		m.apply(events(rev, e))
		if rng.IntN(4) > 0 {
			continue
		}
		if got := names(last); !slices.Equal(got, then) {
			t.Fatalf("seed %d: an older snapshot has become %v, was %v", seed, got, then)
		}
		m.deliver(func(s subnet.Snapshot) { last = s })
		then = names(last)
		if sorted := slices.Sorted(maps.Keys(want)); !slices.Equal(then, sorted) {
			t.Fatalf("seed %d: %v, want %v", seed, then, sorted)
		}
	}
}
