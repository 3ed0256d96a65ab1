// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"testing"
	"time"
)

// What a pass waits for is not followed by a rest, which made policies late on
// busy nodes; what it computes is, and no longer than the pass took.
func TestRestIsForWork(t *testing.T) {
	for _, c := range []struct{ took, used, want time.Duration }{
		{400 * time.Millisecond, 5 * time.Millisecond, 15 * time.Millisecond},
		{20 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond},
		{20 * time.Millisecond, 35 * time.Millisecond, 60 * time.Millisecond}, // others on another CPU
		{time.Millisecond, 0, 0},
	} {
		if got := rest(c.took, c.used); got != c.want {
			t.Errorf("after %s with %s of CPU: %s, want %s", c.took, c.used, got, c.want)
		}
	}
	before := cpuTime()
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
		_ = cpuTime()
	}
	if cpuTime() <= before {
		t.Error("computing takes no CPU time")
	}
}
