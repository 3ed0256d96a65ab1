// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// mutants is how many entries junkLeases writes in one injection.
const mutants = 2500

// junkLeases fills the store with mutated copies of live leases, and with
// what somebody would write who means harm. No entry of a live peer may
// change; entries of what happens to be a valid lease may come.
func junkLeases(ctx context.Context, s *scene) error {
	leases, err := s.Leases(ctx)
	if err != nil {
		return err
	}
	count := mutants
	if !s.full {
		count = 100
	}
	var keys []string
	defer func() { s.clean(context.WithoutCancel(ctx), keys) }() // again after a failure: its lab has to be usable
	err = s.outage(func() error {
		for range count {
			key, value := s.mutant(leases)
			if err := s.put(ctx, key, value); err != nil {
				return fmt.Errorf("put %q: %w", key, err)
			}
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// etcd delivers in order: when this one has arrived, so have all others.
	const key, prefix = "10.42.230.0-24", "10.42.230.0/24"
	if err := s.put(ctx, s.key(key), lease("192.168.77.230", "0a:00:00:00:02:30")); err != nil {
		return err
	}
	keys = append(keys, s.key(key))
	s.notef("%d entries", count)
	arrived := func() error { return everywhere(ctx, s.Nodes(), prefix, true) }
	if err := s.wait(ctx, "the last of the leases", arrived); err != nil {
		return err
	}
	if err := s.nothingMissing(ctx); err != nil {
		return err
	}
	if err := s.until(ctx, "the last of the leases", arrived); err != nil {
		return err
	}
	if err := s.clean(ctx, keys); err != nil {
		return err
	}
	return s.heals(ctx)
}

// clean deletes keys and releases what the nodes hold back: many of the
// mutants are valid leases, and that many peers do not go at once.
func (s *scene) clean(ctx context.Context, keys []string) error {
	slices.Sort(keys)
	for part := range slices.Chunk(slices.Compact(keys), 100) {
		var ops []clientv3.Op
		for _, k := range part {
			ops = append(ops, clientv3.OpDelete(k))
		}
		if _, err := s.Client().Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("remove the junk: %w", err)
		}
	}
	return s.wait(ctx, "nodes that hold nothing back", func() error {
		for _, n := range s.Nodes() {
			if _, err := n.Run(ctx, filepath.Join(s.Config().BinDir, "weft"), "peers", "release"); err != nil {
				return err
			}
			is, err := stateOf(ctx, n)
			if err != nil {
				return err
			}
			if len(is) > len(s.before[n.Name()]) {
				return fmt.Errorf("%s has %d entries, had %d", n, len(is), len(s.before[n.Name()]))
			}
		}
		return nil
	})
}

// nothingMissing returns nil if every entry that was there still is.
func (s *scene) nothingMissing(ctx context.Context) error {
	for _, n := range s.Nodes() {
		is, err := stateOf(ctx, n)
		if err != nil {
			return err
		}
		for _, l := range s.before[n.Name()] {
			if _, found := slices.BinarySearch(is, l); !found {
				return fmt.Errorf("junk in the store cost %s %q; %s", n, l, state(s.before[n.Name()]).diff(is))
			}
		}
	}
	return nil
}

// mutant returns a key and a value, made from a live lease by chance. It never
// is a live lease's own key: who may write that may take the node's place.
func (s *scene) mutant(leases map[string]string) (key, value string) {
	live := slices.Sorted(maps.Keys(leases))
	from := pick(s, live)
	value = s.mutateValue(leases[from], leases[pick(s, live)])
	for {
		key = s.mutateKey(from)
		if !slices.Contains(live, key) && key != "" {
			return s.key(key), value
		}
	}
}

// mutateKey makes another key: a free subnet, one that overlaps a live one, or
// no subnet at all.
func (s *scene) mutateKey(from string) string {
	v4, v6, _ := strings.Cut(from, "&")
	base, _, _ := strings.Cut(v4, "-")
	switch s.rng.IntN(8) {
	case 0:
		return fmt.Sprintf("10.42.%d.0-24", 200+s.rng.IntN(30))
	case 1:
		return fmt.Sprintf("10.42.%d.0-24&fd42:0:0:%x::-64", 200+s.rng.IntN(30), 0xff00+s.rng.IntN(200))
	case 2: // the live subnet, and another of the other family
		return fmt.Sprintf("%s&fd42:0:0:%x::-64", v4, 0xff00+s.rng.IntN(200))
	case 3: // around, or inside, the live subnet
		return fmt.Sprintf("%s-%d", base, 8+s.rng.IntN(25))
	case 4:
		return fmt.Sprintf("10.%d.%d.0-24", s.rng.IntN(256), s.rng.IntN(256))
	case 5:
		return v4 + "&" + strings.Replace(v6, "-64", fmt.Sprintf("-%d", 48+s.rng.IntN(81)), 1)
	case 6:
		return fmt.Sprintf("0.0.0.0-%d", s.rng.IntN(34))
	}
	return s.scramble(from)
}

// mutateValue makes another value of a lease.
func (s *scene) mutateValue(own, other string) string {
	replace := func(field, with string) string {
		i := strings.Index(own, `"`+field+`":"`)
		if i < 0 {
			return s.scramble(own)
		}
		i += len(field) + 4
		return own[:i] + with + own[i+strings.IndexByte(own[i:], '"'):]
	}
	switch s.rng.IntN(10) {
	case 0:
		return own // somebody else's lease, word for word
	case 1:
		return other
	case 2:
		return replace("VtepMAC", pick(s, []string{"ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00", "zz", ""}))
	case 3:
		return replace("PublicIP", pick(s, []string{"0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "::1", "192.168.77.1", "192.168.77.2", "10.42.1.1", "not an address"}))
	case 4:
		return replace("PublicIPv6", pick(s, []string{"::", "ff02::1", "::1", "fe80::1", "fd77::1", "fd77::2", "192.168.77.2"}))
	case 5:
		return replace("BackendType", pick(s, []string{"", "host-gw", "extension", "udp", "VXLAN"}))
	case 6:
		return replace("Node", pick(s, []string{"", "n1", "n2", "../../etc/passwd", strings.Repeat("n", 4096)}))
	case 7:
		return lease("192.168.77.2", "0a:00:00:00:66:66") // a live node's address, another MAC
	case 8:
		return own[:s.rng.IntN(len(own))]
	}
	return s.scramble(own)
}

// scramble changes a few bytes.
func (s *scene) scramble(text string) string {
	b := []byte(text)
	for range 1 + s.rng.IntN(4) {
		b[s.rng.IntN(len(b))] = byte(s.rng.IntN(256))
	}
	return string(b)
}
