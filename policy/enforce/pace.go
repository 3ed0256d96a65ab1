// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"time"

	"golang.org/x/sys/unix"
)

// restFactor times the CPU time of a pass is the least time to the next one, but
// for pods that wait: so a storm of changes takes at most a quarter of a core.
const restFactor = 3

// rest is the least time between a pass that took so long, and for which the
// process had so much of the CPUs, and the next one. A pass that waits, for the
// kernel or for a CPU that others have, costs nothing meanwhile; on a busy node it
// would be made longer by what it waits, and policies later.
func rest(took, used time.Duration) time.Duration { return restFactor * min(took, used) }

// cpuTime is how much of the CPUs this process has had.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil { // no Linux says this
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
