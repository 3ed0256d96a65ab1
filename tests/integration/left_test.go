// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/tests/netlab"
)

// members returns the processes that carry the lab's ID in their environment.
func members(id string) []int {
	var out []int
	mark := []byte(netlab.IDEnv + "=" + id + "\x00")
	for _, pid := range processes() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(env, mark) {
			out = append(out, pid)
		}
	}
	return out
}

// member returns the lab's process with that argv[0], or 0.
func member(id, name string) int {
	for _, pid := range members(id) {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(string(cmd), name+"\x00") {
			return pid
		}
	}
	return 0
}

// processes lists /proc.
func processes() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only for a bad pattern
	var out []int
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// nsfsMount finds network namespaces among mounts (proc_pid_mountinfo(5)).
var nsfsMount = regexp.MustCompile(`net:\[\d+\]`)

// namespaces returns the network namespaces that process pid is in, holds
// open or can see mounted, as "net:[4026531840]". Processes that have ended
// meanwhile have none.
func namespaces(pid int) []string {
	var out []string
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range append(links, fds...) {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "net:[") {
			out = append(out, to)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err == nil {
		out = append(out, nsfsMount.FindAllString(string(mounts), -1)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// footprint returns the network namespaces of a running lab, without the one
// that this process is in.
func footprint(t *testing.T, id string) []string {
	t.Helper()
	own, err := os.Readlink("/proc/thread-self/ns/net")
	must(t, err)
	var out []string
	for _, pid := range members(id) {
		for _, ns := range namespaces(pid) {
			if ns != own && !slices.Contains(out, ns) {
				out = append(out, ns)
			}
		}
	}
	return out
}

// gone fails the test if anything of the lab is left on this machine: a
// process, one of the namespaces, a mount, a file or a record. What the
// kernel still takes apart is given a moment.
func gone(t *testing.T, id string, ns []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	left := remains(id, ns)
	for len(left) > 0 && wait(ctx, 50*time.Millisecond) == nil {
		left = remains(id, ns)
	}
	for _, l := range left {
		t.Errorf("left of lab %s: %s", id, l)
	}
}

func remains(id string, ns []string) []string {
	var left []string
	for _, pid := range members(id) {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d %q", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
	}
	for _, pid := range processes() {
		for _, n := range namespaces(pid) {
			if slices.Contains(ns, n) {
				left = append(left, fmt.Sprintf("namespace %s, by process %d", n, pid))
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		left = append(left, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		// "weft-lab" is the source of every file system that a lab mounts.
		if strings.Contains(line, " weft-lab ") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, f := range []string{filepath.Join(netlab.RecordDir, id+".json"), "/run/lab"} {
		if _, err := os.Lstat(f); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, "file "+f)
		}
	}
	return left
}
