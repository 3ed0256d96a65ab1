// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A namespace is another network namespace than the test's. It ends when it
// is closed, or with the test.
type namespace struct {
	t    testing.TB
	file *os.File
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	f, err := makeNamespace()
	if err != nil {
		t.Fatal(err)
	}
	n := &namespace{t, f}
	t.Cleanup(n.close)
	return n
}

// makeNamespace returns the one reference to a new network namespace.
func makeNamespace() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("new network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

func (n *namespace) close() { _ = n.file.Close() } // again at the test's end

// path names the namespace to ip and nsenter.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// run executes one command in the namespace.
func (n *namespace) run(command string) string {
	n.t.Helper()
	out, err := n.command(command).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func (n *namespace) command(command string) *exec.Cmd {
	args := append([]string{"--net=" + n.path()}, strings.Fields(command)...)
	return exec.CommandContext(n.t.Context(), "nsenter", args...)
}

// addPod makes a pod on cni0: the device host, and eth0 with addrs.
func addPod(t testing.TB, host string, addrs ...string) *namespace {
	t.Helper()
	pod := newNamespace(t)
	run(t, "ip link add "+host+" type veth peer name eth0 netns "+pod.path())
	run(t, "ip link set "+host+" master cni0 up")
	pod.run("ip link set lo up")
	pod.run("ip link set eth0 addrgenmode none")
	pod.run("ip link set eth0 up")
	for _, a := range addrs {
		nodad := ""
		if strings.Contains(a, ":") {
			nodad = " nodad"
		}
		pod.run("ip addr add " + a + nodad + " dev eth0")
	}
	return pod
}

// wantAttachments compares names and addresses, e.g. "veth1 10.42.1.5".
func wantAttachments(t *testing.T, want ...string) {
	t.Helper()
	got, err := Attachments(t.Context(), "cni0")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, a := range got {
		if a.Unreadable != nil {
			t.Errorf("%s: %v", a.Host, a.Unreadable)
		}
		if a.Index != ifindex(t, a.Host) {
			t.Errorf("%s: index %d, want %d", a.Host, a.Index, ifindex(t, a.Host))
		}
		have = append(have, strings.TrimSpace(a.Host+" "+strings.Trim(fmt.Sprint(a.Addrs), "[]")))
	}
	if !slices.Equal(have, want) {
		t.Errorf("attachments %q, want %q", have, want)
	}
}

// TestAttachments: pods are on the bridge and have what their own namespace
// says, whatever the device there is called.
func TestAttachments(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	wantAttachments(t) // no bridge
	run(t, "ip link add cni0 type bridge")
	wantAttachments(t)
	addPod(t, "veth2", "10.42.1.6/24", "fd42:0:0:1::6/64", "fe80::6/64", "10.42.1.66/24")
	addPod(t, "veth1", "10.42.1.5/24")
	addPod(t, "veth3").run("ip link set eth0 name net1")
	run(t, "ip link add veth4 type veth peer name veth5") // the other end is here
	run(t, "ip link set veth4 master cni0")
	run(t, "ip addr add 10.42.1.9/32 dev veth5")
	run(t, "ip link add vx9 type vxlan id 9 dev u0 local 10.0.0.1 dstport 8472")
	run(t, "ip link set vx9 master cni0")
	run(t, "ip link add veth6 type veth peer name veth7") // not on the bridge
	wantAttachments(t, "veth1 10.42.1.5", "veth2 10.42.1.6 10.42.1.66 fd42:0:0:1::6", "veth3", "veth4 10.42.1.9")

	_, err := Attachments(t.Context(), "u0")
	var foreign *ForeignDeviceError
	if !errors.As(err, &foreign) || foreign.Kind != "veth" {
		t.Errorf("a bridge that is none: %v", err)
	}
}

// TestAttachmentsOfDyingPods: while a pod's namespace goes, its device is
// listed as unreadable or not at all, but never as a pod without addresses:
// that would look like one that nobody needs.
func TestAttachmentsOfDyingPods(t *testing.T) {
	enterNetns(t)
	run(t, "ip link add cni0 type bridge")
	stays := addPod(t, "stays", "10.42.1.250/24")
	for i := range 20 {
		addPod(t, fmt.Sprintf("goes%d", i), fmt.Sprintf("10.42.1.%d/24", i+1)).close()
	}
	seen := 0
	// The kernel takes namespaces down one batch after another, everybody's.
	for deadline := time.Now().Add(2 * time.Minute); ; {
		all, err := Attachments(t.Context(), "cni0")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			switch {
			case a.Unreadable != nil:
				seen++
				if !errors.Is(a.Unreadable, errNoPeer) || a.Addrs != nil || a.Host == "stays" {
					t.Fatalf("%s: %v, addresses %v", a.Host, a.Unreadable, a.Addrs)
				}
			case len(a.Addrs) != 1:
				t.Fatalf("%s: addresses %v", a.Host, a.Addrs)
			}
		}
		if len(all) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pods are still there", len(all)-1)
		}
	}
	wantAttachments(t, "stays 10.42.1.250")
	stays.run("ip link show eth0")
	t.Logf("%d times unreadable", seen)
}

// TestDeleteVeth: what is deleted is the device that was seen, and nothing
// that has taken its name or index.
func TestDeleteVeth(t *testing.T) {
	enterNetns(t)
	run(t, "ip link add cni0 type bridge")
	pod := addPod(t, "veth1", "10.42.1.5/24")
	index := ifindex(t, "veth1")
	wantErr(t, DeleteVeth(t.Context(), "veth9", index), "delete veth veth9", "is now veth1")
	wantErr(t, DeleteVeth(t.Context(), "cni0", ifindex(t, "cni0")), "delete veth cni0", `kind "bridge"`)
	pod.run("ip link show eth0")
	if err := DeleteVeth(t.Context(), "veth1", index); err != nil {
		t.Fatal(err)
	}
	if out, err := pod.command("ip link show eth0").CombinedOutput(); err == nil {
		t.Errorf("the pod's end is still there: %s", out)
	}
	addPod(t, "veth1", "10.42.1.5/24") // the name has come back
	if err := DeleteVeth(t.Context(), "veth1", index); err != nil {
		t.Errorf("again: %v", err)
	}
	wantAttachments(t, "veth1 10.42.1.5")
}

// confinedPod makes a pod that a process without the right to make, or to
// enter, a network namespace finds when it is confined.
func confinedPod() error {
	f, err := makeNamespace()
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil { // kept open by the next program
		return err
	}
	for _, c := range []string{
		"ip link add cni0 type bridge",
		"ip link add veth1 type veth peer name eth0 netns " + path,
		"ip link set veth1 master cni0 up",
		"nsenter --net=" + path + " ip addr add 10.42.1.5/24 dev eth0",
	} {
		if out, err := try(c); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

// confinedAttachments is a part of TestConfined.
func confinedAttachments(t *testing.T) {
	t.Helper()
	wantAttachments(t, "veth1 10.42.1.5")
	if err := DeleteVeth(t.Context(), "veth1", ifindex(t, "veth1")); err != nil {
		t.Error(err)
	}
	wantAttachments(t)
	if got, err := LocalAddrs(t.Context()); err != nil || !slices.Contains(got, netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("local addresses %v, %v", got, err)
	}
}
