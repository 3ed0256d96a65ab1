// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
)

func oneHour(o *etcd.Options) { o.LeaseTTL = time.Hour }

// twins are two agents with one state directory: the later one has the lease,
// and the other is told that it is not just any node that has it.
func twins(e *env) {
	cfg := v4(e)
	first := e.hold(e.store(oneHour), cfg, want(cfg, 1))
	first.granted()
	before := e.only()
	second := e.hold(e.store(oneHour), cfg, want(cfg, 1))
	l := second.granted()
	err := first.lost()
	if !errors.Is(err, subnet.ErrTwin) {
		e.Errorf("error %v is no ErrTwin", err)
	}
	for _, word := range []string{before.key, `"n1"`, `"i1"`, "192.168.0.1", "this node's own lease, by another process", "stop one of the two"} {
		if !strings.Contains(err.Error(), word) {
			e.Errorf("error %q does not say %s", err, word)
		}
	}
	if got := e.only(); !got.Equal(l) || got.lease == before.lease {
		e.Errorf("stored %+v, want the second's %+v", got, l)
	}
	e.eventually("the first's etcd lease revoked", func() bool { return e.alive(before.lease) == 0 })
	select {
	case err := <-second.err:
		e.Errorf("the second lost too: %v", err)
	default:
	}
}

// holdAgain is B4 with what comes after: fenced by another node, a node may
// ask again as often as it likes; nothing of the earlier calls stays behind.
func holdAgain(e *env) {
	cfg := v4(e)
	s := e.store(oneHour)
	w := at(want(cfg, 1), "10.42.7.0/24")
	var ours []clientv3.LeaseID
	for range 3 {
		h := e.hold(s, cfg, w)
		if l := h.granted(); subnets(l)[0] != w.Paths[0].Subnet {
			e.Fatalf("granted %v, want %v, which is free", subnets(l), w.Paths[0].Subnet)
		}
		ours = append(ours, e.only().lease)
		key := e.putLease(at(want(cfg, 2), "10.42.7.0/24"), 3600)
		if err := h.lost(); errors.Is(err, subnet.ErrTwin) {
			e.Errorf("%v: this is another node", err)
		}
		// While the other node has it, ours is another subnet.
		other := e.hold(s, cfg, w)
		if l := other.granted(); subnets(l)[0] == w.Paths[0].Subnet {
			e.Fatalf("granted %v, which n2 has", subnets(l))
		}
		for _, x := range e.entries() {
			if x.Node == "n1" {
				ours = append(ours, x.lease)
				other.stop()
				e.del(x.key)
			}
		}
		e.del(key)
	}
	h := e.hold(s, cfg, w)
	h.granted()
	// A fenced one is revoked; one that was stopped by us holds until it
	// expires, as a lease of a node that is shut down does.
	e.eventually("no etcd lease of a fenced life", func() bool { return e.alive(ours[0], ours[2], ours[4]) == 0 })
}

// renamedNode restarts a node with another --node-name. One lease for its
// address is there at any time, and the subnet stays.
func renamedNode(e *env) {
	cfg := dual(e)
	h := e.hold(e.store(oneHour), cfg, want(cfg, 1))
	first := h.granted()
	before := e.only()
	w := e.watch(e.store())
	h.stop()
	next := want(cfg, 1)
	next.Node = "newname"
	l := e.hold(e.store(oneHour), cfg, next).granted()
	if !slices.Equal(subnets(l), subnets(first)) {
		e.Errorf("granted %v after %v", subnets(l), subnets(first))
	}
	if got := e.only(); !got.Equal(l) || got.Node != "newname" {
		e.Errorf("stored %+v, granted %+v", got.Lease, l)
	}
	e.eventually("the etcd lease of the old name revoked", func() bool { return e.alive(before.lease) == 0 })
	e.eventually("the new name in the watch", func() bool { return leasesOf(w.last(), map[string]subnet.Lease{"": l}) })
	for _, snap := range w.all() {
		if snap.Leases.Len() != 1 {
			e.Errorf("a snapshot with %d leases: %+v", snap.Leases.Len(), snap)
		}
	}
}

// renamedTwice has left two leases, one of which does not fit any more: both
// go in one step. A live agent under the old name is fenced.
func renamedTwice(e *env) {
	cfg := v4(e)
	old := want(cfg, 1)
	old.Node = "oldname"
	stale := e.putLease(at(old, "10.42.9.0/25"), 60)
	h := e.hold(e.store(), cfg, old)
	h.granted()
	e.putLease(at(old, "10.42.9.0/25"), 60)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if err := h.lost(); !errors.Is(err, subnet.ErrTwin) {
		e.Errorf("error %v is no ErrTwin", err)
	}
	if got := e.only(); !got.Equal(l) || got.key == stale {
		e.Errorf("stored %+v, granted %+v", got, l)
	}
}

// otherInstanceStays: the same name change without the instance is another
// node's lease as far as anyone can tell, and so is a copied disk elsewhere.
func otherInstanceStays(e *env) {
	cfg := v4(e)
	old, copied := want(cfg, 1), want(cfg, 2)
	old.Node, old.Instance = "oldname", "other"
	copied.Instance = "i1"
	keys := []string{e.putLease(at(old, "10.42.8.0/24"), 60), e.putLease(at(copied, "10.42.9.0/24"), 60)}
	e.hold(e.store(), cfg, want(cfg, 1)).granted()
	all := e.leases()
	for _, key := range keys {
		if _, ok := all[key]; !ok {
			e.Errorf("%s is gone", key)
		}
	}
	if len(all) != 3 {
		e.Errorf("%d leases, want 3", len(all))
	}
}

// prefixWiped is T16 (F13): everything is deleted again and again for 3 s.
// flannel's agents exit with status 0. Ours all come back as they were.
func prefixWiped(e *env) {
	cfg := dual(e)
	var hs []*holding
	for i := 1; i <= 4; i++ {
		hs = append(hs, e.hold(e.store(oneHour), cfg, want(cfg, i)))
		hs[i-1].granted()
	}
	before := e.leases()
	w := e.watch(e.store())
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := e.c.Delete(e.Context(), e.key(""), clientv3.WithPrefix()); err != nil {
			e.Fatal(err)
		}
	}
	e.eventually("all leases as before", func() bool { return leasesOf(subnet.Snapshot{Leases: subnet.LeasesOf(e.list()...)}, before) })
	e.eventually("all leases watched", func() bool { return leasesOf(w.last(), before) })
	for _, h := range hs {
		select {
		case err := <-h.err:
			e.Errorf("a Hold ended: %v", err)
		default:
		}
	}
	for _, x := range e.entries() {
		if x.lease == clientv3.NoLease {
			e.Errorf("%s has no etcd lease any more", x.key)
		}
	}
}
