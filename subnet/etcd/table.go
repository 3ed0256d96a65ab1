// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// A record is one key under <prefix>/subnets/ as read.
type record struct {
	key     string         // whole
	subnets []netip.Prefix // as the key spells them; nil when it is junk
	lease   subnet.Lease   // zero when err is set
	err     error          // why key or value does not parse
	created int64          // revision
	changed int64          // revision
	etcd    clientv3.LeaseID
}

// reserved reports whether the key outlives its holder: it has no etcd lease.
func (r record) reserved() bool { return r.etcd == clientv3.NoLease }

// overlaps reports whether one of the record's subnets overlaps p.
func (r record) overlaps(p netip.Prefix) bool { return slices.ContainsFunc(r.subnets, p.Overlaps) }

// readRecord decodes kv, whose key begins with prefix.
func readRecord(prefix string, kv *mvccpb.KeyValue) record {
	r := record{key: string(kv.Key), created: kv.CreateRevision, changed: kv.ModRevision, etcd: clientv3.LeaseID(kv.Lease)}
	name := strings.TrimPrefix(r.key, prefix)
	if !strings.Contains(name, "/") {
		if r.lease, r.err = subnet.DecodeLease(name, kv.Value); r.err == nil {
			r.subnets = make([]netip.Prefix, len(r.lease.Paths))
			for i, p := range r.lease.Paths {
				r.subnets[i] = p.Subnet
			}
			return r
		}
	}
	var err error
	if r.subnets, err = subnet.ParseKey(name); err != nil {
		r.err = err
	} else if r.err == nil {
		r.err = errors.New("want the lease directly below subnets/, without another slash")
	}
	return r
}

// A table is all keys under <prefix>/subnets/, complete as to creation at
// revision rev.
type table struct {
	prefix  string
	rev     int64
	records map[string]record
	patched bool // holds what came later than the listing; deletions are missed
}

// list reads the table, linearizably.
func (s *Store) list(ctx context.Context) (*table, error) {
	l, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return newTable(s.subnetsKey(), l), nil
}

func newTable(prefix string, l listing) *table {
	t := &table{prefix: prefix, rev: l.rev, records: make(map[string]record, len(l.records))}
	for _, r := range l.records {
		t.records[r.key] = r
	}
	return t
}

func (t *table) add(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		t.records[string(kv.Key)] = readRecord(t.prefix, kv)
	}
}

// patch adds keys created after t.rev, as read at revision rev.
func (t *table) patch(kvs []*mvccpb.KeyValue, rev int64) {
	t.add(kvs)
	t.rev, t.patched = rev, true
}

// sorted returns the records that want says, by key.
func (t *table) sorted(want func(record) bool) []record {
	var list []record
	for _, r := range t.records {
		if want(r) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b record) int { return strings.Compare(a.key, b.key) })
	return list
}

// taken returns the subnets of all records but those in except. A value that
// does not parse still occupies what its key spells.
func (t *table) taken(except map[string]bool) []netip.Prefix {
	var taken []netip.Prefix
	for key, r := range t.records {
		if !except[key] {
			taken = append(taken, r.subnets...)
		}
	}
	return taken
}

// holderOf describes the holder of r for a message.
func holderOf(r record) string {
	var addrs []string
	for _, p := range r.lease.Paths {
		if a := p.Underlay.String(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	at := strings.Join(addrs, " and ")
	switch l := r.lease; {
	case r.err != nil:
		return "an unreadable lease"
	case l.Node == "":
		return "flannel or a reservation at " + at
	default:
		return fmt.Sprintf("node %q instance %q at %s", l.Node, l.Instance, at)
	}
}
