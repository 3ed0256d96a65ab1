// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// ttl is the time to live of the leases that env.options asks for.
const ttl = 3 * time.Second

func reservationByAddress(e *env) {
	cfg := v4(e)
	e.put(e.key("10.42.9.0-24"), `{"PublicIP":"192.168.0.1"}`)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if got := e.only(); got.key != e.key("10.42.9.0-24") || !got.Equal(l) || got.lease != clientv3.NoLease {
		e.Fatalf("stored %+v, granted %+v, want the reservation without etcd lease", got, l)
	}
	e.stays(2*ttl, "the reservation without etcd lease", func() bool {
		got := e.only()
		return got.lease == clientv3.NoLease && got.Equal(l)
	})
}

func reservationByName(e *env) {
	cfg := dual(e)
	w := at(want(cfg, 1), "10.42.9.0/24", "fd42:0:0:9::/64")
	reserved := w.Clone()
	reserved.Instance = ""
	key := e.putLease(reserved, 0)
	l := e.hold(e.store(), cfg, want(cfg, 1)).granted()
	if got := e.only(); got.key != key || !got.Equal(w) || !l.Equal(w) || got.lease != clientv3.NoLease {
		e.Fatalf("stored %+v, want %+v without etcd lease", got, w)
	}
}

// stays fails when ok stops being true within d.
func (e *env) stays(d time.Duration, what string, ok func() bool) {
	e.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if !ok() {
			e.Fatalf("no longer: %s", what)
		}
	}
}

// flannel's way to make a reservation: put the same value without a lease.
func becomesReservation(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(), cfg, want(cfg, 1))
	h.granted()
	before := e.only()
	e.put(before.key, before.value)
	e.eventually("the former etcd lease revoked", func() bool { return e.alive(before.lease) == 0 })
	e.stays(2*ttl, "the reservation", func() bool {
		got := e.only()
		return got.lease == clientv3.NoLease && got.value == before.value
	})
}

func renewal(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(), cfg, want(cfg, 1))
	h.granted()
	before := e.only()
	e.stays(3*ttl, "key, value and etcd lease", func() bool { return same(e.only(), before) })
	if n := len(h.leases); n != 0 {
		e.Errorf("granted %d times more", n)
	}
}

func same(a, b entry) bool { return a.key == b.key && a.value == b.value && a.lease == b.lease }

func outage(e *env) {
	cfg := dual(e)
	proxy := etcdtest.NewProxy(e, e.srv.Endpoint)
	s := e.store(func(o *etcd.Options) { o.Endpoints = []string{proxy.Endpoint} })
	h := e.hold(s, cfg, want(cfg, 1))
	l := h.granted()
	proxy.Cut()
	e.eventually("the lease expired", func() bool { return len(e.entries()) == 0 })
	e.reason(s, "waiting for etcd", proxy.Endpoint, "connection refused")
	if err := proxy.Heal(); err != nil {
		e.Fatal(err)
	}
	e.eventually("the lease back", func() bool { return len(e.entries()) == 1 })
	if got := e.only(); !got.Equal(l) {
		e.Errorf("stored %+v, want %+v again", got.Lease, l)
	}
	e.eventually("no reason to wait", func() bool { return s.Reason() == "" })
	if n := len(h.leases); n != 0 {
		e.Errorf("granted %d times more", n)
	}
}

// asleep stops a process that holds a lease until the lease has expired.
func (e *env) asleep(then func(l subnet.Lease)) *child {
	e.Helper()
	c := e.child(holdRole)
	c.await("granted")
	l := e.only().Lease
	c.freeze()
	e.eventually("the lease expired", func() bool { return len(e.entries()) == 0 })
	then(l)
	c.thaw()
	return c
}

func asleepUntaken(e *env) {
	var l subnet.Lease
	c := e.asleep(func(x subnet.Lease) { l = x })
	e.eventually("the lease back", func() bool { return len(e.entries()) == 1 })
	if got := e.only(); !got.Equal(l) {
		e.Errorf("stored %+v, want %+v again", got.Lease, l)
	}
	c.stop()
}

func asleepTaken(e *env) {
	var taken string
	c := e.asleep(func(l subnet.Lease) {
		taken = e.putLease(at(want(v4(e), 2), l.Paths[0].Subnet.String()), 60)
	})
	err := c.await("lost")
	for _, word := range []string{taken, `"n1"`, `"n2"`} {
		if !strings.Contains(err, word) {
			e.Errorf("error %q does not name %s", err, word)
		}
	}
	if got := e.only(); got.Node != "n2" {
		e.Errorf("stored node %q, want n2", got.Node)
	}
}

func asleepOverlapped(e *env) {
	var taken subnet.Lease
	c := e.asleep(func(l subnet.Lease) {
		half := netip.PrefixFrom(l.Paths[0].Subnet.Addr(), l.Paths[0].Subnet.Bits()+1)
		taken = at(want(v4(e), 2), half.String())
		e.putLease(taken, 60)
	})
	c.await("lost")
	if got := e.only(); !got.Equal(taken) {
		e.Errorf("stored %+v, want %+v", got.Lease, taken)
	}
}

func ownKeyDeleted(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(func(o *etcd.Options) { o.LeaseTTL = time.Hour }), cfg, want(cfg, 1))
	l := h.granted()
	before := e.only()
	e.del(before.key)
	e.eventually("the key back", func() bool { return len(e.entries()) == 1 })
	if got := e.only(); !got.Equal(l) || got.lease == clientv3.NoLease {
		e.Errorf("stored %+v, want %+v with an etcd lease", got, l)
	}
}

func ownReservationDeleted(e *env) {
	cfg := v4(e)
	key := e.key("10.42.9.0-24")
	e.put(key, `{"PublicIP":"192.168.0.1"}`)
	h := e.hold(e.store(), cfg, want(cfg, 1))
	l := h.granted()
	e.del(key)
	e.eventually("the key back", func() bool { return len(e.entries()) == 1 })
	if got := e.only(); !got.Equal(l) || got.lease == clientv3.NoLease {
		e.Errorf("stored %+v, want %+v with an etcd lease now", got, l)
	}
	e.stays(2*ttl, "the key", func() bool { return len(e.entries()) == 1 })
}

func ownValueAltered(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(), cfg, want(cfg, 1))
	l := h.granted()
	before := e.only()
	other := l.Clone()
	other.Paths[0].MAC = subnet.MAC{2, 2, 2, 2, 2, 2}
	_, value, err := subnet.EncodeLease(other)
	if err != nil {
		e.Fatal(err)
	}
	e.put(before.key, string(value), clientv3.WithIgnoreLease())
	e.eventually("value and etcd lease as before", func() bool { return same(e.only(), before) })
}

func ownValueJunk(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(), cfg, want(cfg, 1))
	h.granted()
	before := e.only()
	e.put(before.key, "junk")
	e.eventually("value and etcd lease as before", func() bool { return same(e.only(), before) })
}

func ownKeyTaken(e *env) {
	cfg := v4(e)
	h := e.hold(e.store(), cfg, want(cfg, 1))
	l := h.granted()
	taken := at(want(cfg, 2), l.Paths[0].Subnet.String())
	key := e.putLease(taken, 60)
	err := h.lost()
	for _, word := range []string{key, `"n1"`, `"n2"`, "192.168.0.1", "192.168.0.2"} {
		if !strings.Contains(err.Error(), word) {
			e.Errorf("error %q does not name %s", err, word)
		}
	}
	if got := e.only(); !got.Equal(taken) {
		e.Errorf("stored %+v, want it left alone: %+v", got.Lease, taken)
	}
}

// cloneTakesOver copies a whole disk, instance id and all, to a host with
// another address. It cannot be told from the same host that moved, so the
// later one wins; the first must not write any more.
func cloneTakesOver(e *env) {
	cfg := v4(e)
	first := e.hold(e.store(), cfg, want(cfg, 1))
	first.granted()
	w := want(cfg, 1)
	w.Paths[0].Underlay = netip.MustParseAddr("192.168.77.77")
	second := e.hold(e.store(), cfg, w)
	l := second.granted()
	first.lost()
	if got := e.only(); !got.Equal(l) {
		e.Errorf("stored %+v, want the second's %+v", got.Lease, l)
	}
	select {
	case err := <-second.err:
		e.Errorf("the second lost too: %v", err)
	default:
	}
}

func cloneRefused(e *env) {
	cfg := v4(e)
	first := e.hold(e.store(), cfg, want(cfg, 1))
	l := first.granted()
	held := e.only()
	w := want(cfg, 1)
	w.Instance = "clone"
	w.Paths[0].Underlay = netip.MustParseAddr("192.168.77.77")
	s := e.store()
	second := e.hold(s, cfg, w)
	e.reason(s, `"i1"`, `"clone"`, "192.168.0.1", "192.168.77.77", held.key, "etcdctl del")
	if got := e.only(); !same(got, held) {
		e.Errorf("stored %+v, want %+v", got, held)
	}
	first.stop()
	e.del(held.key)
	if again := second.granted(); again.Instance != "clone" {
		e.Errorf("granted %+v after %+v", again, l)
	}
	e.eventually("no reason to wait", func() bool { return s.Reason() == "" })
}

// clonesRace starts hosts that differ in instance and address alone: one gets
// the lease, and the others are told who has it without ever having had it.
func clonesRace(e *env) {
	cfg := v4(e)
	var hs []*holding
	for i := range 8 {
		w := want(cfg, 1)
		w.Instance = fmt.Sprint("clone", i)
		w.Paths[0].Underlay = netip.AddrFrom4([4]byte{192, 168, 7, byte(i + 1)})
		hs = append(hs, e.hold(e.store(func(o *etcd.Options) { o.LeaseTTL = time.Hour }), cfg, w))
	}
	e.eventually("one lease and seven refusals", func() bool {
		granted, refused := 0, 0
		for _, h := range hs {
			granted += len(h.leases)
			if strings.Contains(h.store.Reason(), "node name is taken") {
				refused++
			}
		}
		if granted > 1 {
			e.Fatalf("%d leases granted for one name", granted)
		}
		return granted == 1 && refused == len(hs)-1
	})
}

func poolExhausted(e *env) {
	cfg := config(e, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.2.0"}`)
	keys := []string{
		e.putLease(at(flannel(want(cfg, 11)), "10.42.1.0/24"), 0),
		e.putLease(at(want(cfg, 12), "10.42.2.0/24"), 0),
	}
	s := e.store()
	h := e.hold(s, cfg, want(cfg, 1))
	e.reason(s, "10.42.0.0/16", "10.42.1.0", "10.42.2.0", "2 keys")
	e.del(keys[0])
	if l := h.granted(); subnets(l)[0] != netip.MustParsePrefix("10.42.1.0/24") {
		e.Errorf("granted %v, want the freed 10.42.1.0/24", subnets(l))
	}
}
