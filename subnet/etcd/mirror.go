// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// rewindGrace is how long a store whose revision went back is not believed.
// A member that lags does not answer linearizable reads; what remains is an
// etcd restored from a backup or set up anew under the same name. Its nodes
// publish their leases again within verifyEvery, so that after the grace the
// content is whole.
const rewindGrace = 2 * verifyEvery

// maxDetail bounds what a Problem quotes from the store, in bytes.
const maxDetail = 300

// A mirror is the content of <prefix>/subnets/ as last seen. For a key whose
// value does not parse it keeps the last lease that did.
type mirror struct {
	prefix  string
	always  []subnet.Problem // part of every snapshot
	rev     int64
	cluster uint64
	items   map[string]item

	rewound   time.Time // when the store was first seen at an older revision
	delivered bool
	last      subnet.Snapshot // as delivered
}

// An item is one key.
type item struct {
	changed int64 // revision of what is here
	lease   subnet.Lease
	usable  bool  // lease is the key's current or last good one
	err     error // why the current value does not parse
}

func newMirror(prefix string, always []subnet.Problem) *mirror {
	return &mirror{prefix: prefix, always: always, items: make(map[string]item)}
}

// admit reports whether a listing at revision rev of cluster may replace the
// content. One that is older, or another cluster's, may not until it has been
// so for rewindGrace.
func (m *mirror) admit(cluster uint64, rev int64, now time.Time) bool {
	switch {
	case !m.delivered, rev >= m.rev && cluster == m.cluster:
		m.rewound = time.Time{}
		return true
	case m.rewound.IsZero():
		m.rewound = now
	}
	return now.Sub(m.rewound) >= rewindGrace
}

// replace takes a listing that admit let pass.
func (m *mirror) replace(resp *clientv3.GetResponse) {
	before := m.items
	m.items = make(map[string]item, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		m.put(before[string(kv.Key)], readRecord(m.prefix, kv))
	}
	m.rev, m.cluster, m.rewound = resp.Header.Revision, resp.Header.ClusterId, time.Time{}
}

// put stores r over what was there before.
func (m *mirror) put(before item, r record) {
	now := item{changed: r.changed, lease: r.lease, usable: r.err == nil, err: r.err}
	if r.err != nil && before.usable {
		now.lease, now.usable = before.lease, true
	}
	m.items[r.key] = now
}

// apply takes the events of one response. An event that is not newer than
// what is here is a repetition and changes nothing.
func (m *mirror) apply(resp clientv3.WatchResponse) {
	for _, e := range resp.Events {
		key := string(e.Kv.Key)
		before, known := m.items[key]
		switch {
		case known && e.Kv.ModRevision <= before.changed:
		case e.Type == clientv3.EventTypeDelete:
			delete(m.items, key)
		default:
			m.put(before, readRecord(m.prefix, e.Kv))
		}
	}
	m.rev = max(m.rev, resp.Header.Revision)
}

// snapshot renders the content, ordered by key.
func (m *mirror) snapshot() subnet.Snapshot {
	keys := make([]string, 0, len(m.items))
	for key := range m.items {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	snap := subnet.Snapshot{Problems: slices.Clone(m.always)}
	for _, key := range keys {
		it := m.items[key]
		if it.usable {
			snap.Leases = append(snap.Leases, it.lease)
		}
		if it.err != nil {
			snap.Problems = append(snap.Problems, junk(key, it))
		}
	}
	if !m.rewound.IsZero() {
		snap.Problems = append(snap.Problems, subnet.Problem{Kind: "StoreRewound", Object: m.prefix,
			Detail: fmt.Sprintf("etcd was restored or replaced: it is another cluster, or below revision %d seen before; what was seen is kept for %s", m.rev, rewindGrace)})
	}
	return snap
}

func junk(key string, it item) subnet.Problem {
	detail := it.err.Error()
	if it.usable {
		detail = "its last good value is kept: " + detail
	}
	return subnet.Problem{Kind: "JunkLease", Object: clip(key), Detail: clip(detail)}
}

// clip bounds text that came from the store.
func clip(text string) string {
	if len(text) <= maxDetail {
		return text
	}
	return strings.ToValidUTF8(text[:maxDetail], "") + "..."
}

// deliver hands the content to set when it differs from what was delivered.
// Leases are not modified later; the receiver must not modify them either.
func (m *mirror) deliver(set func(subnet.Snapshot)) {
	snap := m.snapshot()
	if m.delivered && slices.EqualFunc(snap.Leases, m.last.Leases, subnet.Lease.Equal) && slices.Equal(snap.Problems, m.last.Problems) {
		return
	}
	m.last, m.delivered = snap, true
	set(subnet.Snapshot{Leases: slices.Clone(snap.Leases), Problems: slices.Clone(snap.Problems)})
}
