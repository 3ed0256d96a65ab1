// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"weft.dev/weft/subnet"
)

// What is refused while an empty kernel is filled, one share after the other,
// is counted and named as at any other time, in one line.
func TestFillSaysWhatWasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.fail = func(c Change) error {
			if _, ok := c.Entry.(Route); ok {
				return errors.New("no")
			}
			return nil
		}
		r := NewReconciler(k, Options{Config: testConfig()})
		b := &bench{t: t, k: k, Reconciler: r, self: testSelf([2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})}
		b.SetSelf(b.self)
		b.deliver(9)
		l := newLoop(r)
		l.share = 4
		l.pass(t.Context())
		want := b.want(9)
		begin := fmt.Sprintf("%d of %d changes failed, the first: add route ", len(want.Routes), want.Counts().Total())
		if st := r.Status(); !strings.HasPrefix(st.Reason, begin) || strings.Contains(st.Reason, "\n") || len(st.Pending) != len(want.Routes) {
			t.Errorf("%d pending, %q, want %s...", len(st.Pending), st.Reason, begin)
		}
		k.fail = nil
		l.pass(t.Context())
		b.expect(9)
	})
}
