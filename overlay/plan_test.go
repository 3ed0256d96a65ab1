// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"weft.dev/weft/subnet"
)

// Who asks for a plan when news has come but is not looked at yet does not
// take it away: it is applied as soon, and what comes after it builds on what
// is in the kernel.
func TestAPlanIsWithoutEffects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReconciler(newFakeKernel(), Options{Config: testConfig()})
		b := &bench{t: t, k: r.kernel.(*fakeKernel), Reconciler: r, self: testSelf([2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})}
		b.SetSelf(b.self)
		b.deliver(9)
		l := newLoop(r)
		if p := l.plan(t.Context()); p.err != nil || len(p.changes) == 0 {
			t.Fatalf("plan: %+v", p)
		}
		l.pass(t.Context())
		b.expect(9)
		time.Sleep(time.Second)
		for _, tt := range []struct{ planned, then int }{
			{10, 10}, // the news alone
			{11, 12}, // and more
		} {
			b.deliver(tt.planned)
			if p := l.plan(t.Context()); p.err != nil || len(p.changes) == 0 {
				t.Fatalf("plan: %+v", p)
			}
			if tt.then != tt.planned {
				b.deliver(tt.then)
			}
			l.woken()
			if at := l.next(); at.After(time.Now()) {
				t.Errorf("what was planned would be done in %v", time.Until(at))
			}
			l.turn(t.Context())
			b.expect(tt.then)
			time.Sleep(time.Second)
		}
	})
}

// A mass removal that is released while somebody asks for a plan is made, and
// one that a plan saw is held from when it was decided on.
func TestAPlanReleasesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReconciler(newFakeKernel(), Options{Config: testConfig()})
		b := &bench{t: t, k: r.kernel.(*fakeKernel), Reconciler: r, self: testSelf([2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})}
		b.SetSelf(b.self)
		b.deliver(9)
		l := newLoop(r)
		l.pass(t.Context())
		b.deliver(0)
		if p := l.plan(t.Context()); p.err != nil || len(p.problems) != 1 || l.hold.active() {
			t.Fatalf("plan: %+v; held %v", p, l.hold.active())
		}
		l.pass(t.Context())
		b.Release()
		if p := l.plan(t.Context()); p.err != nil || len(p.changes) == 0 || len(p.problems) != 0 {
			t.Fatalf("plan: %+v", p)
		}
		time.Sleep(time.Second)
		l.woken()
		if at := l.next(); at.After(time.Now()) {
			t.Errorf("what is released would go in %v", time.Until(at))
		}
		l.turn(t.Context())
		b.expect(0)
	})
}
