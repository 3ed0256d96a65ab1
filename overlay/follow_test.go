// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft.dev/weft/subnet"
)

// config is testConfig with a change.
func config(change func(*subnet.BackendConfig)) subnet.Config {
	c := testConfig()
	change(&c.Backend)
	return c
}

// A changed configuration is followed like a changed lease: at once, with
// nothing done that need not be.
func TestSetConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 3)
		_, writes := b.k.counts()
		b.SetConfig(testConfig())
		b.sleep(time.Second)
		if _, now := b.k.counts(); now != writes {
			t.Errorf("%d writes for the same configuration", now-writes)
		}
		smaller := config(func(c *subnet.BackendConfig) { c.MTU = 1400 })
		b.SetConfig(smaller)
		synctest.Wait() // no time has passed
		want, _ := Desired(b.self, smaller, b.leases(3), NewState())
		if c := Diff(want, b.k.content()); !c.Empty() {
			t.Errorf("still to do\n%s", c)
		}
		if tried := b.k.tried[len(b.k.tried)-2:]; tried[0].Op != Modify || tried[1].Op != Modify {
			t.Errorf("the last changes were %s, want two devices modified", tried)
		}
		b.k.edit(func(s State) { s.drop("weft.1") })
		b.Poke()
		b.sleep(time.Second)
		if c := Diff(want, b.k.content()); !c.Empty() {
			t.Errorf("still to do\n%s", c)
		}
		b.stop()
	})
}

// The inputs may come in any order, and before Run.
func TestSetConfigBeforeTheFirstPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		smaller := config(func(c *subnet.BackendConfig) { c.MTU = 1400 })
		b.SetConfig(smaller)
		b.SetSelf(b.self)
		b.deliver(2)
		synctest.Wait()
		want, _ := Desired(b.self, smaller, b.leases(2), NewState())
		if c := Diff(want, b.k.content()); !c.Empty() || b.k.applies() != 1 {
			t.Errorf("after %d passes still to do\n%s", b.k.applies(), c)
		}
		b.stop()
	})
}

// devices returns the names of the kernel's VXLAN devices.
func (b *bench) devices() string { return strings.Join(sortedKeys(linksByName(b.k.content())), " ") }

// Peers that have not heard that this node went over to host-gw still send to
// its devices: they stay for 30 s, to the moment.
func TestDevicesLingerWhenTheBackendBecomesHostGW(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 3)
		began := time.Now()
		b.SetConfig(config(func(c *subnet.BackendConfig) { c.Type = subnet.BackendHostGW }))
		b.lingers()
		b.sleep(20 * time.Second)
		b.deliver(2) // something else changes
		b.sleep(time.Second)
		b.lingers()
		b.sleep(time.Until(began.Add(linkLinger)) - time.Nanosecond)
		b.lingers()
		b.sleep(time.Nanosecond)
		if got := b.devices(); got != "" || !b.Status().InSync {
			t.Errorf("devices %q after the linger, status %+v", got, b.Status())
		}
		b.stop()
	})
}

// lingers checks that both devices are there, with their addresses, though
// nothing wants them, and that Status knows of nothing left to do.
func (b *bench) lingers() {
	b.t.Helper()
	synctest.Wait()
	s := b.k.content()
	if got := b.devices(); got != "weft.1 weft6.1" || len(s.Addrs) != 2 {
		b.t.Errorf("%s: devices %q with %d addresses, want both", time.Now().Format(time.StampMilli), got, len(s.Addrs))
	}
	if st := b.Status(); !st.InSync || len(st.Pending) != 0 {
		b.t.Errorf("status %+v", st)
	}
}

func TestALingeringDeviceStaysWhenVXLANComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 3)
		b.SetConfig(config(func(c *subnet.BackendConfig) { c.Type = subnet.BackendHostGW }))
		b.sleep(10 * time.Second)
		b.SetConfig(testConfig())
		b.sleep(time.Minute)
		b.notHolding(3)
		for _, c := range b.k.tried {
			if l, ok := c.Entry.(Link); ok && c.Op != Add {
				t.Errorf("a device was touched: %s", Change{c.Op, l, c.Was})
			}
		}
		b.stop()
	})
}

// A device that is gone, or that others have changed, is not worth keeping.
func TestALostDeviceDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 3)
		b.k.edit(func(s State) { s.drop("weft.1") })
		b.SetConfig(config(func(c *subnet.BackendConfig) { c.Type = subnet.BackendHostGW }))
		b.sleep(time.Second)
		if got := b.devices(); got != "weft6.1" {
			t.Errorf("devices %q", got)
		}
		b.stop()
	})
}

// A device stays for the peers that are held on it, whatever the linger.
func TestHoldAndLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 8)
		b.give()
		b.SetConfig(config(func(c *subnet.BackendConfig) { c.Type = subnet.BackendHostGW }))
		b.sleep(2 * time.Minute)
		s := b.k.content()
		if h := b.Status().Hold; h == nil || h.Routes != 16 || len(s.Routes) != 16 || len(s.Links) != 2 {
			t.Errorf("hold %+v of\n%s", h, s)
		}
		for r := range s.Routes {
			if _, ok := chain(s, r); !ok {
				t.Errorf("%s leads nowhere", r)
			}
		}
		b.sleep(holdTime)
		if s := b.k.content(); s.Counts().Total() != 0 {
			t.Errorf("left:\n%s", s)
		}
		b.stop()
	})
}

// A first repair is made at once; somebody who undoes it each time at the event
// is answered ever more slowly, down to once a second, and named.
func TestAFightIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 2)
		began := time.Now()
		var repairs []time.Duration
		foe := func() { // deletes a route whenever it sees it
			for time.Since(began) < 20*time.Second {
				b.k.edit(func(s State) {
					for _, r := range sorted(s.Routes)[:max(0, len(s.Routes)-3)] {
						delete(s.Routes, r)
						b.Poke()
					}
				})
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if n := b.k.applies(); n > len(repairs)+1 {
					repairs = append(repairs, time.Since(began).Round(10*time.Millisecond))
				}
			}
		}
		foe()
		want := []time.Duration{0, 50, 150, 350, 750, 1550, 2550, 3550}
		for i := range want {
			want[i] *= time.Millisecond
		}
		if len(repairs) < 20 || len(repairs) > 26 || !slices.EqualFunc(repairs[:len(want)], want, func(a, b time.Duration) bool {
			return (a - b).Abs() <= 20*time.Millisecond
		}) {
			t.Errorf("repairs at %v, want %v and then one a second", repairs, want)
		}
		ps := b.problemsOf("KernelContested")
		if len(ps) != 1 || ps[0].Object != "kernel" || !strings.Contains(ps[0].Detail, "`ip route add 10.5.2.0/24 ") {
			t.Errorf("problems %v", b.Status().Problems)
		}
		if !b.Status().Synced {
			t.Error("not synced")
		}
		b.sleep(time.Minute + 6*time.Second)
		b.notHolding(2)
		if ps := b.problemsOf("KernelContested"); len(ps) != 0 {
			t.Errorf("a minute later: %v", ps)
		}
		b.sleep(max(0, 50*time.Millisecond-time.Since(b.Status().LastPass))) // an audit may have been just now
		b.k.edit(func(s State) { clear(s.Routes) })
		b.Poke()
		b.expect(2) // at once again
		b.stop()
	})
}

// Ten repairs a minute are nobody's business.
func TestTenRepairsAreNoFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 2)
		for i := range 11 {
			b.k.edit(func(s State) { clear(s.Routes) })
			b.Poke()
			b.expect(2) // each at once
			if got := len(b.problemsOf("KernelContested")); got != i/10 {
				t.Errorf("%d problems after %d repairs", got, i+1)
			}
			b.sleep(3 * time.Second) // less than an audit
		}
		b.stop()
	})
}

// A new input is not delayed by a fight, and is no part of it.
func TestInputsAreNotDelayedByAFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 2)
		for range 8 {
			b.k.edit(func(s State) { clear(s.Routes) })
			b.Poke()
			b.sleep(time.Second)
			b.k.edit(func(s State) { clear(s.Routes) })
			b.Poke()
			b.sleep(50 * time.Millisecond)
		}
		for n := range 5 {
			b.deliver(3 + n)
			b.sleep(50 * time.Millisecond)
			b.expect(3 + n)
		}
		b.stop()
	})
}

// What the kernel refuses again and again is a failure, not a fight, however
// often it is asked for.
func TestARefusalIsNoFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 2)
		b.k.edit(func(s State) {
			clear(s.Routes)
			b.k.fail = func(c Change) error {
				if _, ok := c.Entry.(Route); ok {
					return errors.New("operation not permitted")
				}
				return nil
			}
		})
		before := b.k.applies()
		for range 6000 { // a minute of events
			b.Poke()
			b.sleep(10 * time.Millisecond)
		}
		if n := b.k.applies() - before; n > 80 {
			t.Errorf("%d attempts in a minute", n)
		}
		if ps := b.problemsOf("KernelContested"); len(ps) != 0 {
			t.Errorf("%v", ps)
		}
		b.stop()
	})
}

// Changes that do not last are a fight, even if no pass ever sees them last.
func TestChangesThatNeverLastAreAFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 2)
		b.k.edit(func(s State) {
			clear(s.Neighs)
			b.k.during = func() { clear(b.k.state.Neighs) }
		})
		for range 6000 {
			b.Poke()
			b.sleep(10 * time.Millisecond)
		}
		if n := b.k.applies(); n > 80 {
			t.Errorf("%d attempts in a minute", n)
		}
		if ps := b.problemsOf("KernelContested"); len(ps) != 1 || !strings.Contains(ps[0].Detail, "`ip neigh add 10.5.2.0 ") {
			t.Errorf("%v", b.Status().Problems)
		}
		b.stop()
	})
}

// The end of a hold is not somebody else's doing.
func TestTheEndOfAHoldIsNoRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		b.give()
		b.sleep(holdTime)
		b.notHolding(0)
		for _, e := range b.log.AllEntries() {
			if strings.HasPrefix(e.Message, "somebody else") {
				t.Errorf("logged: %s", e.Message)
			}
		}
		b.stop()
	})
}

// A failing dump at the end of a hold is retried like any other.
func TestAFailedDumpAtTheEndOfAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := ready(t, 10)
		b.give()
		b.k.edit(func(State) { b.k.failDump = errors.New("nftables: resource temporarily unavailable") })
		b.sleep(holdTime)
		dumps, _ := b.k.counts()
		b.sleep(time.Minute)
		if now, _ := b.k.counts(); now-dumps > 20 {
			t.Errorf("%d dumps in a minute", now-dumps)
		}
		b.k.edit(func(State) { b.k.failDump = nil })
		b.sleep(5 * time.Second)
		b.notHolding(0)
		b.stop()
	})
}
