// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stageVar tells a re-executed test binary which stage of confinement it is
// in: none, on its way, or confined.
const stageVar = "WEFT_TEST_STAGE"

// TestMain confines the process before any test when it was asked to.
func TestMain(m *testing.M) {
	if os.Getenv(stageVar) == "confine" {
		runtime.LockOSThread() // exec keeps this thread's capabilities
		fmt.Fprintln(os.Stderr, "confine:", confine())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// confine gives up everything that weftd's service unit takes away, then
// executes the same tests. It returns only on failure.
func confine() error {
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"make a pod", confinedPod},
		{"make mounts private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"bind /proc/sys", func() error { return unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, "") }},
		{"make /proc/sys read-only", func() error {
			return unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}},
		{"set no_new_privs", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"drop the bounding set", dropBoundingSet},
		{"set capabilities", setCapabilities},
		{"set the environment", func() error { return os.Setenv(stageVar, "confined") }},
		{"exec", func() error { return unix.Exec("/proc/self/exe", os.Args, os.Environ()) }},
	} {
		if err := c.do(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func dropBoundingSet() error {
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if c == unix.CAP_NET_ADMIN {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return nil
}

func setCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	const only = 1 << unix.CAP_NET_ADMIN
	data := [2]unix.CapUserData{{Effective: only, Permitted: only}}
	return unix.Capset(&header, &data[0])
}

// TestConfined runs the walk in a process that has CAP_NET_ADMIN alone,
// no_new_privs and a read-only /proc/sys, as the manifests give weftd: this
// same test, executed again.
func TestConfined(t *testing.T) {
	t.Parallel()
	if os.Getenv(stageVar) == "confined" {
		confinedWalk(t)
		return
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestConfined$", "-test.v")
	c.Env = append(os.Environ(), stageVar+"=confine")
	c.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestConfined") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func confinedWalk(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`CapEff:\s+0000000000001000\n`, `CapPrm:\s+0000000000001000\n`, `CapBnd:\s+0000000000001000\n`, `NoNewPrivs:\s+1\n`} {
		if !regexp.MustCompile(want).Match(status) {
			t.Fatalf("not confined: no %q in\n%s", want, status)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); !errors.Is(err, unix.EROFS) {
		t.Fatalf("write to /proc/sys: %v, want a read-only file system", err)
	}
	if _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP); !errors.Is(err, unix.EPERM) {
		t.Fatalf("raw socket: %v, want not permitted", err)
	}
	run(t, "ip link set lo up")
	walkNetns(t)
	walk(t, 200)
	confinedAttachments(t)

	problems, err := Probe(t.Context(), ProbeSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if p.Kind != "ForwardingOff" {
			t.Errorf("probe: %s", p)
		}
	}
	got, err := FindUnderlays(t.Context(), UnderlaySpec{Ifaces: []string{"u0"}}, families())
	if err != nil || len(got) != 2 {
		t.Errorf("FindUnderlays: %v, %v", got, err)
	}
}
