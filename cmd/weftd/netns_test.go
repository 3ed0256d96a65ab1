// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// inNetns runs f in a network namespace of its own, with loopback up. The
// thread is not used again.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			t.Errorf("a network namespace, which needs root: %v", err)
			return
		}
		sh(t, "ip link set lo up")
		f()
	}()
	<-done
}

// sh runs commands, one a line, in the calling thread's network namespace, and
// returns what they print.
func sh(t *testing.T, lines string) string {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(lines) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", strings.TrimSpace(line), err, b)
			runtime.Goexit()
		}
		out.Write(b)
	}
	return out.String()
}

// podNamespace starts a process in a network namespace of its own, for a veth
// to end in, and returns its id.
func podNamespace(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: 0}
	if err := cmd.Start(); err != nil {
		t.Errorf("a network namespace for a pod: %v", err)
		runtime.Goexit()
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // by our signal
	})
	return cmd.Process.Pid
}
