// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"net/netip"
	"testing"
	"time"

	"weft.dev/weft/policy"
)

func families() []string { return []string{v4, v6} }

// What is revoked ends at once, whichever side sends next, and nothing else
// loses a packet; what is let pass again goes on where it was.
func TestRevokedStreamStopsAndOthersDoNot(t *testing.T) {
	w := newTown(t)
	w.update(func(*policy.Table) {})
	for _, like := range families() {
		a, b := w.stream("a", netip.AddrPortFrom(at("c", like), 80)), w.stream("b", netip.AddrPortFrom(at("c", like), 80))
		w.goesOn(a, 50)
		w.goesOn(b, 50)
		was := w.counter(DeniedIngress)
		row := rowOf(policy.Ingress, classC, isA, 80)
		before := w.p.Generation()
		r := w.update(func(t *policy.Table) { delete(t.Rows, row) })
		if r.Generation != before+1 || r.Deleted != 1 || r.Added != 0 || r.Replaced != nil {
			t.Errorf("revoked by %+v, from generation %d", r, before)
		}
		turns := a.turns.Load()
		w.goesOn(b, 100)
		if more := a.turns.Load() - turns; more > 1 {
			t.Errorf("%s: %d more turns on the revoked stream", like, more)
		}
		if n := w.counter(DeniedIngress); n == was {
			t.Errorf("%s: nothing was counted", like)
		}
		if n := w.retransmits(b); n != 0 {
			t.Errorf("%s: the other stream repeated %d segments", like, n)
		}
		w.update(func(t *policy.Table) { t.Rows[row] = true })
		w.goesOn(a, 50)
		if n := w.retransmits(b); n != 0 {
			t.Errorf("%s: the other stream repeated %d segments", like, n)
		}
	}
}

// Each of 300 generations judges every stream anew: twice through all labels,
// with those in between cleared.
func TestStreamsOutliveGenerations(t *testing.T) {
	w := newTown(t)
	w.update(func(*policy.Table) {})
	b := w.stream("b", netip.AddrPortFrom(at("c", v4), 80))
	spare := rowOf(policy.Ingress, classC, isB, 443)
	row := rowOf(policy.Ingress, classC, isA, 80)
	a := w.dial("a", netip.AddrPortFrom(at("c", v4), 80), time.Minute)
	turn := func(wait time.Duration) bool {
		buf := make([]byte, 1)
		_, _ = a.Write(buf)
		_ = a.SetReadDeadline(time.Now().Add(wait))
		n, _ := a.Read(buf)
		return n == 1
	}
	const must, mustNot = time.Minute, 30 * time.Millisecond
	if !turn(must) {
		t.Fatal("a does not reach c")
	}
	for i := range 300 {
		w.update(func(t *policy.Table) { t.Rows[spare] = true })
		was := w.p.Generation()
		w.update(func(t *policy.Table) { delete(t.Rows, spare) })
		if g := w.p.Generation(); g != (was+1)%128 {
			t.Fatalf("generation %d after %d", g, was)
		}
		w.goesOn(b, 1)
		switch {
		case i < 5 && !turn(must): // and has the labels of the first generations
			t.Fatalf("a does not reach c in generation %d", w.p.Generation())
		case i == 5:
			w.update(func(t *policy.Table) { delete(t.Rows, row) })
		case i > 5 && w.p.Generation() < 6 && turn(mustNot):
			t.Fatalf("a stream that was revoked went on when its label %d came again", w.p.Generation())
		}
	}
	if n := w.retransmits(b); n != 0 {
		t.Errorf("the other stream repeated %d segments", n)
	}
}

// Ports and addresses are those after translation, in both directions.
func TestServiceIsJudgedByThePodsPort(t *testing.T) {
	w := newTown(t)
	w.router.NFT(`table inet services {
chain c {
type nat hook prerouting priority dstnat
ip daddr 10.96.0.1 tcp dport 99 dnat ip to 10.42.1.12:80
ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.42.1.12:81
ip6 daddr fd96::1 tcp dport 99 dnat ip6 to [fd42:0:0:1::c]:80
ip6 daddr fd96::1 tcp dport 80 dnat ip6 to [fd42:0:0:1::c]:81
}
}`)
	for _, vip := range []string{"10.96.0.1", "fd96::1"} {
		w.router.Run("ip route add blackhole " + vip) // only what is translated goes anywhere
	}
	w.update(func(*policy.Table) {})
	for _, like := range families() {
		vip := addr("10.96.0.1")
		if like == v6 {
			vip = addr("fd96::1")
		}
		for _, pod := range []string{"a", "b"} {
			if !w.connects(pod, netip.AddrPortFrom(vip, 99)) {
				t.Errorf("%s does not reach port 80 by way of port 99 of %v", pod, vip)
			}
			if w.reaches(pod, netip.AddrPortFrom(vip, 80)) {
				t.Errorf("%s reaches port 81 by way of port 80 of %v", pod, vip)
			}
		}
	}
}

// An address of the node's subnets is let in and out only once it is known.
func TestUnknownPodsReachNothing(t *testing.T) {
	w := newTown(t)
	for _, like := range families() {
		w.update(func(t *policy.Table) { delete(t.Known, at("b", like)) })
		was := w.counter(UnknownPod)
		if w.reaches("b", netip.AddrPortFrom(at("c", like), 80)) {
			t.Errorf("%s: an unknown pod reaches a known one", like)
		}
		if n := w.counter(UnknownPod); n == was {
			t.Errorf("%s: nothing was counted", like)
		}
		before := w.p.Generation()
		r := w.update(func(t *policy.Table) { t.Known[at("b", like)] = true })
		if !w.connects("b", netip.AddrPortFrom(at("c", like), 80)) || r.Generation != before {
			t.Errorf("%s: a pod that is known now: %+v", like, r)
		}
	}
}

// A pod that is isolated in both directions, with nothing that may pass, reaches
// itself by way of a service.
func TestPodReachesItself(t *testing.T) {
	w := newTown(t)
	w.router.NFT(`table inet services {
chain c {
type nat hook prerouting priority dstnat
ip daddr 10.96.0.1 tcp dport 99 dnat ip to 10.42.1.12:80
}
chain s {
type nat hook postrouting priority srcnat
ip saddr 10.42.1.12 ip daddr 10.42.1.12 masquerade
}
}`)
	w.router.Run("ip route add blackhole 10.96.0.1\nip addr add 10.99.0.1 dev lo")
	w.update(func(t *policy.Table) {
		clear(t.Rows)
		t.Classes[policy.Egress][at("c", v4)] = classC
	})
	if !w.connects("c", netip.MustParseAddrPort("10.96.0.1:99")) {
		t.Error("it does not")
	}
	if w.reaches("b", netip.MustParseAddrPort("10.96.0.1:99")) {
		t.Error("another does")
	}
}

// Who takes over a table finds it in order and leaves it alone, its generation
// too.
func TestRestartChangesNothing(t *testing.T) {
	w := newTown(t)
	w.update(func(*policy.Table) {})
	w.update(func(t *policy.Table) { delete(t.Rows, rowOf(policy.Ingress, classC, isA, 80)) })
	s := w.stream("b", netip.AddrPortFrom(at("c", v4), 80))
	before, err := w.conn.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := NewProgrammer(dial(w.t, w.router), params())
	r, err := again.Sync(t.Context(), w.table, lease())
	if err != nil || r.Added+r.Deleted != 0 || r.Replaced != nil || r.Generation != 1 || again.Generation() != w.p.Generation() {
		t.Errorf("%+v, %v", r, err)
	}
	if after, err := w.conn.Generation(t.Context()); err != nil || after != before {
		t.Errorf("%d transactions, %v", after-before, err)
	}
	w.goesOn(s, 20)
}

// Generations change when something may be forbidden, and only then.
func TestGenerationsAreForRevocations(t *testing.T) {
	w := newTown(t)
	w.update(func(*policy.Table) {})
	extra := addr("10.42.1.99")
	for _, step := range []struct {
		name   string
		bumps  Generation
		change func(*policy.Table)
	}{
		{"nothing", 0, func(*policy.Table) {}},
		{"row added", 0, func(t *policy.Table) { t.Rows[rowOf(policy.Ingress, classC, isB, 443)] = true }},
		{"row deleted", 1, func(t *policy.Table) { delete(t.Rows, rowOf(policy.Ingress, classC, isB, 443)) }},
		{"isolated pod added", 0, func(t *policy.Table) { t.Known[extra], t.Classes[policy.Ingress][extra] = true, 7 }},
		{"pod isolated in the other direction too", 1, func(t *policy.Table) { t.Classes[policy.Egress][extra] = 7 }},
		{"class changed", 1, func(t *policy.Table) { t.Classes[policy.Egress][extra] = 8 }},
		{"pod no more isolated", 0, func(t *policy.Table) { delete(t.Classes[policy.Egress], extra) }},
		{"pod deleted", 1, func(t *policy.Table) { delete(t.Known, extra); delete(t.Classes[policy.Ingress], extra) }},
		{"identity added", 0, func(t *policy.Table) { t.Identities[extra] = 9 }},
		{"identity changed", 1, func(t *policy.Table) { t.Identities[extra] = 10 }},
		{"block added", 0, func(t *policy.Table) {
			t.Blocks = []policy.AddrRange{{From: addr("192.0.2.0"), To: addr("255.255.255.255"), Identity: 11}}
		}},
		{"block cut", 1, func(t *policy.Table) {
			t.Blocks = []policy.AddrRange{{From: addr("192.0.2.0"), To: addr("192.0.2.9"), Identity: 11}, {From: addr("192.0.2.10"), To: addr("255.255.255.255"), Identity: 12}}
		}},
		{"block made longer", 1, func(t *policy.Table) {
			t.Blocks = []policy.AddrRange{{From: addr("0.0.0.0"), To: addr("192.0.2.9"), Identity: 11}, {From: addr("192.0.2.10"), To: addr("255.255.255.255"), Identity: 12}}
		}},
		{"pod outside the subnets isolated", 1, func(t *policy.Table) {
			t.Known[addr("10.42.9.9")], t.Classes[policy.Ingress][addr("10.42.9.9")] = true, 7
		}},
	} {
		before := w.p.Generation()
		r := w.update(step.change)
		if r.Generation != before+step.bumps || r.Replaced != nil {
			t.Errorf("%s: %+v, from generation %d", step.name, r, before)
		}
		if plan := nftDiff(t, w); !plan.Empty() {
			t.Errorf("%s: still to do:\n%s", step.name, plan)
		}
	}
	before := w.p.Generation()
	if r, err := w.p.Update(t.Context(), w.table, append(lease(), prefixes("10.42.9.0/24")...)); err != nil || r.Generation != before+1 {
		t.Errorf("subnet added: %+v, %v", r, err)
	}
}
