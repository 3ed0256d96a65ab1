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
	items   []item           // in no order
	parts   [][]subnet.Lease // the usable leases of items, subnet.PartSize items each, as last delivered; nil where something changed
	index   map[string]int   // into items, by key

	rewound   time.Time // when the store was first seen at an older revision
	delivered bool
	changed   bool // since the last snapshot was delivered
	fewest    int  // items there were since then, at most those that there are
}

// An item is one key.
type item struct {
	key     string
	changed int64 // revision of what is here
	lease   subnet.Lease
	usable  bool  // lease is the key's current or last good one
	err     error // why the current value does not parse
}

func newMirror(prefix string, always []subnet.Problem) *mirror {
	return &mirror{prefix: prefix, always: always, index: map[string]int{}}
}

// admit reports whether a listing at revision rev of cluster may replace the
// content. One that is older, or another cluster's, may not until it has been
// so for rewindGrace.
func (m *mirror) admit(cluster uint64, rev int64, now time.Time) bool {
	switch {
	case !m.delivered, rev >= m.rev && cluster == m.cluster:
		m.changed = m.changed || !m.rewound.IsZero()
		m.rewound = time.Time{}
		return true
	case m.rewound.IsZero():
		m.rewound, m.changed = now, true
	}
	return now.Sub(m.rewound) >= rewindGrace
}

// replace makes a listing the content.
func (m *mirror) replace(l listing) {
	if len(m.items) == 0 {
		m.items, m.index = make([]item, 0, len(l.records)), make(map[string]int, len(l.records))
	}
	for _, r := range l.records {
		m.put(r)
	}
	for i := len(m.items) - 1; i >= 0; i-- {
		if !l.has(m.items[i].key) {
			m.remove(i)
		}
	}
	m.changed = m.changed || !m.rewound.IsZero()
	m.rev, m.cluster, m.rewound = l.rev, l.cluster, time.Time{}
}

// put makes r what is at its key. What is equal to what was there stays the
// same in memory too.
func (m *mirror) put(r record) {
	now := item{key: r.key, changed: r.changed, lease: r.lease, usable: r.err == nil, err: r.err}
	i, known := m.index[r.key]
	if !known {
		m.index[r.key] = len(m.items)
		m.items = append(m.items, now)
		m.touch(len(m.items) - 1)
		return
	}
	before := &m.items[i]
	switch {
	case before.usable && (r.err != nil || now.lease.Equal(before.lease)):
		now.lease, now.usable = before.lease, true
	case before.usable || now.usable:
		m.touch(i)
	}
	m.changed = m.changed || fmt.Sprint(now.err) != fmt.Sprint(before.err)
	*before = now
}

// remove takes the i-th item out; the last one takes its place.
func (m *mirror) remove(i int) {
	last := len(m.items) - 1
	delete(m.index, m.items[i].key)
	if i != last {
		m.items[i] = m.items[last]
		m.index[m.items[i].key] = i
	}
	m.touch(i)
	m.touch(last)
	m.items[last] = item{}
	m.items = m.items[:last]
	m.fewest = min(m.fewest, last)
}

// touch notes that the i-th item changed.
func (m *mirror) touch(i int) {
	m.changed = true
	for len(m.parts) <= i/subnet.PartSize {
		m.parts = append(m.parts, nil)
	}
	m.parts[i/subnet.PartSize] = nil
}

// apply takes over what a watch brought. Events older than what is there are
// passed over.
func (m *mirror) apply(resp clientv3.WatchResponse) {
	for _, e := range resp.Events {
		i, known := m.index[string(e.Kv.Key)]
		switch {
		case known && e.Kv.ModRevision <= m.items[i].changed:
		case e.Type != clientv3.EventTypeDelete:
			m.put(readRecord(m.prefix, e.Kv))
		case known:
			m.remove(i)
		}
	}
	m.rev = max(m.rev, resp.Header.Revision)
}

// snapshot returns the content. Leases that have not changed since the last
// one share their memory with it.
func (m *mirror) snapshot() subnet.Snapshot {
	for i := range m.parts {
		if m.parts[i] == nil {
			m.parts[i] = m.part(i)
		}
	}
	snap := subnet.Snapshot{Leases: subnet.LeasesIn(slices.Clone(m.parts)), Problems: slices.Clone(m.always)}
	for i := range m.items {
		if it := &m.items[i]; it.err != nil {
			snap.Problems = append(snap.Problems, junk(it))
		}
	}
	if !m.rewound.IsZero() {
		snap.Problems = append(snap.Problems, subnet.Problem{Kind: "StoreRewound", Object: m.prefix,
			Detail: fmt.Sprintf("etcd was restored or replaced: it is another cluster, or below revision %d seen before; what was seen is kept for %s", m.rev, rewindGrace)})
	}
	return snap
}

// part returns the usable leases of the i-th subnet.PartSize items.
func (m *mirror) part(i int) []subnet.Lease {
	from := min(i*subnet.PartSize, len(m.items))
	items := m.items[from:min(from+subnet.PartSize, len(m.items))]
	out := make([]subnet.Lease, 0, len(items))
	for j := range items {
		if items[j].usable {
			out = append(out, items[j].lease)
		}
	}
	return out
}

func junk(it *item) subnet.Problem {
	detail := it.err.Error()
	if it.usable {
		detail = "its last good value is kept: " + detail
	}
	return subnet.Problem{Kind: "JunkLease", Object: clip(it.key), Detail: clip(detail)}
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
	if m.delivered && !m.changed {
		return
	}
	snap := m.snapshot()
	if m.delivered {
		snap.Dip = len(m.items) - m.fewest
	}
	m.delivered, m.changed, m.fewest = true, false, len(m.items)
	set(snap)
}
