// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// told collects what a mirror delivers.
type told struct{ snaps []subnet.Snapshot }

func (d *told) set(s subnet.Snapshot) { d.snaps = append(d.snaps, s) }

func put(kv *mvccpb.KeyValue) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv}
}

func del(key string, rev int64) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(prefix + key), ModRevision: rev}}
}

func events(rev int64, es ...*clientv3.Event) clientv3.WatchResponse {
	return clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev}, Events: es}
}

func TestMirror(t *testing.T) {
	one := at(node("n1", "i1", "192.0.2.1"), "10.42.1.0/24")
	two := at(node("n2", "i2", "192.0.2.2"), "10.42.2.0/24")
	moved := at(node("n2", "i2", "192.0.2.22"), "10.42.2.0/24")
	junk := func(rev int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(prefix + "10.42.2.0-24"), Value: []byte("junk"), ModRevision: rev}
	}
	var d told
	m := newMirror(prefix, nil)
	step := func(name string, snaps, leases, problems int) {
		t.Helper()
		m.deliver(d.set)
		if len(d.snaps) != snaps {
			t.Fatalf("%s: %d snapshots, want %d", name, len(d.snaps), snaps)
		}
		last := d.snaps[len(d.snaps)-1]
		if last.Leases.Len() != leases || len(last.Problems) != problems {
			t.Fatalf("%s: %+v, want %d leases and %d problems", name, last, leases, problems)
		}
	}
	m.replace(listed(10))
	step("an empty store is a snapshot, too", 1, 0, 0)
	m.replace(listed(11, kv(t, one, 11, 1)))
	step("first lease", 2, 1, 0)
	m.apply(events(13, put(kv(t, two, 12, 1)), put(kv(t, two, 13, 2))))
	step("two events, one change", 3, 2, 0)
	m.apply(events(14, put(kv(t, one, 14, 9))))
	step("another etcd lease is no change", 3, 2, 0)
	m.apply(events(15, put(junk(15))))
	step("junk keeps the last good", 4, 2, 1)
	if p := d.snaps[3].Problems[0]; p.Kind != "JunkLease" || p.Object != prefix+"10.42.2.0-24" || !strings.Contains(p.Detail, "last good value is kept") {
		t.Errorf("problem %v", p)
	}
	m.replace(listed(16, kv(t, one, 14, 9), junk(15)))
	step("so does a new listing", 4, 2, 1)
	m.apply(events(17, put(kv(t, moved, 17, 3))))
	step("good again", 5, 2, 0)
	m.apply(events(17, put(kv(t, two, 13, 2))))
	step("an old event is not believed", 5, 2, 0)
	m.apply(events(18, del("10.42.2.0-24", 18), put(junk(19))))
	step("junk after deletion has no last good", 6, 1, 1)
	m.replace(listed(20))
	step("all gone", 7, 0, 0)
}

func TestMirrorSlashIsJunk(t *testing.T) {
	good := kv(t, at(node("n1", "i1", "192.0.2.1"), "10.42.1.0/24"), 5, 1)
	good.Key = []byte(prefix + "old/10.42.1.0-24")
	m := newMirror(prefix, nil)
	m.replace(listed(10, good))
	if s := m.snapshot(); s.Leases.Len() != 0 || len(s.Problems) != 1 {
		t.Errorf("snapshot %+v, want a problem alone", s)
	}
}

// A value that never parsed is no news each time that it is listed, but another
// error is.
func TestMirrorJunkIsNoNews(t *testing.T) {
	junk := func(value string, rev int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(prefix + "10.42.2.0-24"), Value: []byte(value), ModRevision: rev}
	}
	var d told
	m := newMirror(prefix, nil)
	for i, tt := range []struct {
		value string
		snaps int
	}{{"junk", 1}, {"junk", 1}, {"{}", 2}, {"{}", 2}} {
		m.replace(listed(int64(10+i), junk(tt.value, 10)))
		m.deliver(d.set)
		if len(d.snaps) != tt.snaps {
			t.Errorf("listing %d: %d snapshots, want %d", i, len(d.snaps), tt.snaps)
		}
	}
}

func TestMirrorAdmit(t *testing.T) {
	m := newMirror(prefix, nil)
	start := time.Now()
	if !m.admit(1, 100, start) {
		t.Fatal("the first listing is refused")
	}
	m.replace(listed(100))
	m.cluster = 1
	m.deliver(func(subnet.Snapshot) {})
	for _, c := range []struct {
		name    string
		cluster uint64
		rev     int64
		after   time.Duration
		ok      bool
		problem bool
	}{
		{"same revision", 1, 100, 0, true, false},
		{"older", 1, 99, time.Second, false, true},
		{"older still, within the grace", 1, 99, rewindGrace, false, true},
		{"caught up", 1, 100, rewindGrace + time.Second, true, false},
		{"another cluster", 2, 500, time.Hour, false, true},
		{"another cluster, after the grace", 2, 501, time.Hour + rewindGrace, true, true},
	} {
		if got := m.admit(c.cluster, c.rev, start.Add(c.after)); got != c.ok {
			t.Errorf("%s: %t, want %t", c.name, got, c.ok)
		}
		if got := len(m.snapshot().Problems) == 1; got != c.problem {
			t.Errorf("%s: problem %t, want %t", c.name, got, c.problem)
		}
	}
	m.replace(listed(501))
	if ps := m.snapshot().Problems; len(ps) != 0 {
		t.Errorf("problems %v after the listing is taken", ps)
	}
}

// What has been gone in between is told, once, though it is back. What was
// missing in the snapshot before counts as gone.
func TestMirrorDip(t *testing.T) {
	one := at(node("n1", "i1", "192.0.2.1"), "10.42.1.0/24")
	two := at(node("n2", "i2", "192.0.2.2"), "10.42.2.0/24")
	var d told
	m := newMirror(prefix, nil)
	m.replace(listed(10, kv(t, one, 9, 1), kv(t, two, 10, 1)))
	m.deliver(d.set)
	m.apply(events(11, del("10.42.1.0-24", 11), del("10.42.2.0-24", 11)))
	m.apply(events(12, put(kv(t, two, 12, 2))))
	m.deliver(d.set)
	m.apply(events(13, put(kv(t, one, 13, 3))))
	m.deliver(d.set)
	m.apply(events(14, del("10.42.1.0-24", 14)))
	m.deliver(d.set)
	var got []int
	for _, s := range d.snaps {
		got = append(got, s.Dip)
	}
	if want := []int{0, 1, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("dips %v, want %v", got, want)
	}
}

func TestDrain(t *testing.T) {
	one := kv(t, at(node("n1", "i1", "192.0.2.1"), "10.42.1.0/24"), 11, 1)
	two := kv(t, at(node("n2", "i2", "192.0.2.2"), "10.42.2.0/24"), 12, 1)
	m := newMirror(prefix, nil)
	m.replace(listed(10))
	more := make(chan clientv3.WatchResponse, 1)
	more <- events(12, put(two))
	if err := m.drain(events(11, put(one)), true, more); err != nil {
		t.Fatal(err)
	}
	if s := m.snapshot(); s.Leases.Len() != 2 || m.rev != 12 {
		t.Errorf("snapshot %+v at revision %d, want both leases", s, m.rev)
	}
	for name, resp := range map[string]clientv3.WatchResponse{
		"compacted": {Header: &etcdserverpb.ResponseHeader{}, CompactRevision: 20},
		"cancelled": {Header: &etcdserverpb.ResponseHeader{}, Canceled: true},
		"behind":    events(5),
	} {
		if err := m.drain(resp, true, nil); !errors.Is(err, errRelist) {
			t.Errorf("%s: error %v, want errRelist", name, err)
		}
	}
	if err := m.drain(clientv3.WatchResponse{}, false, nil); !errors.Is(err, errRelist) {
		t.Errorf("closed: error %v, want errRelist", err)
	}
}

func TestClip(t *testing.T) {
	long := strings.Repeat("ä", maxDetail)
	if got := clip(long); len(got) > maxDetail+3 || !strings.HasPrefix(long, strings.TrimSuffix(got, "...")) {
		t.Errorf("clipped to %d bytes: %q", len(got), got)
	}
	if got := clip("short"); got != "short" {
		t.Errorf("clipped to %q", got)
	}
}

func TestRenewEvery(t *testing.T) {
	s := &Store{o: Options{RenewMargin: time.Hour}}
	for ttl, want := range map[time.Duration]time.Duration{
		24 * time.Hour:   8 * time.Hour,
		90 * time.Minute: 30 * time.Minute,
		70 * time.Minute: 10 * time.Minute,
		30 * time.Second: 10 * time.Second, // etcd granted less than asked
	} {
		if got := s.renewEvery(ttl); got != want {
			t.Errorf("TTL %s: renew every %s, want %s", ttl, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := &backoff{dice: newDice()}
	low, high := minPause/2, minPause
	for range 20 {
		if d := b.take(); d < low || d > high {
			t.Fatalf("pause %s, want %s to %s", d, low, high)
		}
		high = min(2*high, maxPause)
		low = high / 2
	}
	b.reset()
	if d := b.take(); d > minPause {
		t.Errorf("pause %s after reset, want at most %s", d, minPause)
	}
	if d := newDice().between(math.MaxInt64/2, math.MaxInt64/2); d != math.MaxInt64/2 {
		t.Errorf("between equal bounds: %d", d)
	}
}
