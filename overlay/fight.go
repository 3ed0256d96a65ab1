// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"time"

	"weft.dev/weft/subnet"
)

const (
	fightMax    = time.Second // longest wait between two repairs in a row
	fightWindow = time.Minute
	fightMost   = 10 // repairs in that time that nobody is told of
)

// fight is what is known of somebody who undoes our changes. Two daemons that
// correct each other at every event would keep two cores busy.
type fight struct {
	gap   time.Duration // between the last pass that repeated a change and the next
	last  time.Time     // when that pass was
	times []time.Time   // of repairs in fightWindow, oldest first; at most fightMost+1
	first string        // a change that was undone, as long as it lasts
}

// pace takes note of a pass at now that changes the kernel though nothing new
// was asked for. It returns how long to wait before the next of its kind:
// least, or twice as long as last time when they come in a row.
func (f *fight) pace(now time.Time, least time.Duration) time.Duration {
	if f.gap > 0 && now.Sub(f.last) < 2*f.gap {
		f.gap = min(2*f.gap, max(least, fightMax))
	} else {
		f.gap = least
	}
	f.last = now
	return f.gap
}

// count takes note of a repair whose first change was c.
func (f *fight) count(now time.Time, c Change) {
	f.expire(now)
	f.times = append(f.times, now)
	if len(f.times) > fightMost+1 {
		f.times = f.times[1:]
	}
	if f.first == "" && len(f.times) > fightMost {
		f.first = c.String()
	}
}

func (f *fight) expire(now time.Time) {
	for len(f.times) > 0 && now.Sub(f.times[0]) >= fightWindow {
		f.times = f.times[1:]
	}
	if len(f.times) <= fightMost {
		f.first = ""
	}
}

// problem returns the fight as a Problem, if it is one.
func (f *fight) problem(now time.Time) (subnet.Problem, bool) {
	f.expire(now)
	return subnet.Problem{Kind: "KernelContested", Object: "kernel", Detail: fmt.Sprintf(
		"somebody else keeps undoing what weft sets up, more than %d times a minute, among it `%s`: find the program that does (another network agent, a network manager) and stop it",
		fightMost, f.first)}, f.first != ""
}
