// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every
// architecture that Go has for Linux.
const tick = 10 * time.Millisecond

// cpuOf returns the user and system time that a process has used.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // a name may have blanks
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	var sum time.Duration
	for _, s := range f[11:13] { // utime and stime, fields 14 and 15
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// peakOf returns the most memory that a process has had resident, MiB.
func peakOf(pid int) (float64, error) {
	return mib(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:")
}

// slabs returns what the kernel's slabs hold, of the whole machine, MiB.
func slabs() (float64, error) { return mib("/proc/meminfo", "Slab:") }

// mib reads a line of a file in which a number of KiB follows a name.
func mib(file, name string) (float64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
