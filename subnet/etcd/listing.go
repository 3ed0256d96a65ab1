// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// pageSize is how many keys are asked for at once. A page of dual-stack leases
// is half a megabyte, which three layers hold at the same time.
const pageSize = 1000

// listing is all keys under <prefix>/subnets/ as of one revision.
type listing struct {
	rev     int64
	cluster uint64
	records []record // by key
}

// has reports whether key is there.
func (l listing) has(key string) bool {
	_, found := slices.BinarySearchFunc(l.records, key, func(r record, key string) int { return strings.Compare(r.key, key) })
	return found
}

// read returns what is in the store, linearizably.
func (s *Store) read(ctx context.Context) (listing, error) {
	var l listing
	prefix := s.subnetsKey()
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; ; {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize)}
		if l.rev != 0 {
			opts = append(opts, clientv3.WithRev(l.rev))
		}
		page, err := s.get(ctx, from, opts...)
		if err != nil {
			return listing{}, err
		}
		if l.rev == 0 {
			l = listing{page.Header.Revision, page.Header.ClusterId, make([]record, 0, page.Count)}
		}
		for _, kv := range page.Kvs {
			l.records = append(l.records, readRecord(prefix, kv))
		}
		if !page.More || len(page.Kvs) == 0 {
			return l, nil
		}
		from = l.records[len(l.records)-1].key + "\x00"
	}
}

// join is read for callers that know nothing of the store yet: those who ask
// while another does get the other's answer. It must not be changed.
func (s *Store) join(ctx context.Context) (listing, error) {
	got := s.reads.DoChan("", func() (any, error) {
		return s.read(s.life.Context()) // one who gives up leaves the others their answer
	})
	select {
	case <-ctx.Done():
		return listing{}, fmt.Errorf("read %s: %w", s.subnetsKey(), ctx.Err())
	case r := <-got:
		if r.Err != nil {
			return listing{}, r.Err
		}
		return r.Val.(listing), nil
	}
}
