// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"errors"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// socket enters a network namespace of its own, with a veth v0, and opens a
// socket there. The thread is given up with it.
func socket(t *testing.T) int {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	run(t, "ip link add v0 type veth peer name v1")
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func run(t *testing.T, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// TestAgainstEthtool: ethtool sees what Set did, and Get what ethtool did.
func TestAgainstEthtool(t *testing.T) {
	fd := socket(t)
	long := map[Feature]string{TSO: "tx-tcp-segmentation", GSO: "generic-segmentation-offload", GRO: "generic-receive-offload"}
	for f, name := range long {
		for _, on := range []bool{false, true, false} {
			if err := Set(fd, "v0", f, on); err != nil {
				t.Fatal(err)
			}
			want := map[bool]string{true: "on", false: "off"}[on]
			if out := run(t, "ethtool -k v0"); !strings.Contains(out, name+": "+want) {
				t.Errorf("%s set %s, but ethtool reads:\n%s", f, want, out)
			}
		}
		run(t, "ethtool -K v0 "+f.String()+" on")
		if on, err := Get(fd, "v0", f); err != nil || !on {
			t.Errorf("%s switched on by ethtool: got %v, %v", f, on, err)
		}
	}
}

func TestNoSuchDevice(t *testing.T) {
	fd := socket(t)
	for _, dev := range []string{"v2", strings.Repeat("v", unix.IFNAMSIZ)} {
		if _, err := Get(fd, dev, GRO); !errors.Is(err, unix.ENODEV) {
			t.Errorf("get: %v", err)
		}
		if err := Set(fd, dev, GRO, true); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "set gro on at "+dev) {
			t.Errorf("set: %v", err)
		}
	}
}
