// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// A held is the lease as it should stand in the store.
type held struct {
	lease subnet.Lease
	key   string // whole
	value []byte
	etcd  clientv3.LeaseID // NoLease for a reservation
	ttl   time.Duration    // as etcd granted it

	// wrote is the revision of our key when it was last seen as it should be;
	// 0 before. What is found in our place with a lower one cannot have come
	// after us: the store was restored from a backup. (The store's own
	// revision tells less: it may have grown past ours since, or have been
	// raised by the restoration.)
	wrote    int64
	disputed time.Time // since when another's older key is in our place
}

// older reports whether r was in the store before what we wrote last.
func (h *held) older(r record) bool { return r.changed < h.wrote }

// A lostError says who has our lease.
type lostError struct {
	h     *held
	by    record
	how   string
	older bool // by is older than what we wrote
}

func (e *lostError) Error() string {
	text := fmt.Sprintf("lease %s of %s is lost: %s%s has %s now", e.h.key, holderOf(record{lease: e.h.lease}), e.how, holderOf(e.by), e.by.key)
	if e.twin() {
		text += fmt.Sprintf(": %v; stop one of the two, or, if this disk is a copy, remove the state directory and give this node another --node-name", subnet.ErrTwin)
	}
	return text
}

// twin reports whether another process has the lease as this node.
func (e *lostError) twin() bool {
	return sameHolder(e.by.lease, e.h.lease) || renamed(e.by.lease, e.h.lease)
}

// Is makes a lostError a subnet.ErrConflict, and a subnet.ErrTwin where it is
// one.
func (e *lostError) Is(target error) bool {
	return target == subnet.ErrConflict || target == subnet.ErrTwin && e.twin()
}

// bear turns a loss to an older key into errRewound for as long as the older
// key's holder may still correct it; every node does when it finds its own
// lease missing from a restored store.
func (h *held) bear(err error, now time.Time) error {
	var lost *lostError
	if !errors.As(err, &lost) || !lost.older {
		return err
	}
	if h.disputed.IsZero() {
		h.disputed = now
	}
	if now.Sub(h.disputed) >= rewindGrace {
		return err
	}
	return fmt.Errorf("%w: %s is as it was before this node's lease %s was written; waiting for up to %s until %s has corrected it",
		errRewound, lost.by.key, h.key, rewindGrace, holderOf(lost.by))
}

// A state is what has become of our key.
type state int

const (
	intact   state = iota
	absent         // deleted or expired
	altered        // ours, with another value
	adopted        // ours, put again without an etcd lease: a reservation now
	restored       // ours, as it was before: back from a backup
)

// judge compares the stored key with what we hold. Someone else's etcd lease
// on it, or another holder in it, means that it is lost, with a *lostError. A
// value that does not parse names no other holder.
func (s *Store) judge(h *held, stored *mvccpb.KeyValue) (state, error) {
	if stored == nil {
		return absent, nil
	}
	same := bytes.Equal(stored.Value, h.value)
	r := readRecord(s.subnetsKey(), stored)
	_, differ := compareUnderlays(r.lease, h.lease)
	ours := same || r.err == nil && !differ &&
		(sameHolder(r.lease, h.lease) || r.lease.Node == "" && standingOf(r.lease, h.lease) == own)
	switch {
	case same && r.etcd == h.etcd:
		return intact, nil
	case h.older(r) && r.err == nil && standingOf(r.lease, h.lease) == own:
		if r.reserved() && h.etcd != clientv3.NoLease {
			return adopted, nil
		}
		return restored, nil
	case r.etcd != h.etcd && !r.reserved():
		// Whatever it says, another process wrote it: only we know our id.
	case r.err != nil, ours && r.etcd == h.etcd:
		return altered, nil
	case ours:
		return adopted, nil
	}
	return intact, &lostError{h: h, by: r, older: h.older(r)}
}

// obstacles judges what t holds beside our absent key. It returns those of
// our own that a backup brought back, to be deleted, and fails with a
// *lostError on what holds our name or a subnet that overlaps ours. An older
// one does not hide a newer one, which settles it.
func (h *held) obstacles(t *table) (drop []record, err error) {
	var old error
	for _, r := range t.sorted(func(record) bool { return true }) {
		overlaps := false
		for _, p := range h.lease.Paths {
			overlaps = overlaps || r.overlaps(p.Subnet)
		}
		ours := r.err == nil && standingOf(r.lease, h.lease) == own
		switch {
		case ours && h.older(r) && (sameHolder(r.lease, h.lease) || renamed(r.lease, h.lease) || r.lease.Node != "" && !r.reserved()):
			drop = append(drop, r)
		case ours && h.older(r) && !overlaps:
			// A reservation for us, or flannel's lease: it was there before.
		case overlaps, r.err == nil && r.lease.Node == h.lease.Node:
			e := &lostError{h: h, by: r, how: "it expired or was deleted, and ", older: h.older(r)}
			if !e.older {
				return nil, e
			}
			old = e
		}
	}
	return drop, old
}
