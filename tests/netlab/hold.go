// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodeSettings is what a node's administrator provides, since weftd writes
// no kernel setting: forwarding, and the values that systemd ships for the
// rest (50-default.conf).
func nodeSettings() [][2]string {
	return [][2]string{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "2"},
		{"net.ipv4.conf.all.promote_secondaries", "1"},
	}
}

// startHolder starts the process that keeps a node's namespaces, and waits
// until they are prepared. dir holds the node's files; hosts is appended to
// its /etc/hosts.
func startHolder(name, dir, cniBin, hosts string) (*os.Process, error) {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", name, err)
	}
	defer ready.Close()
	cmd := self(stageHold, name, dir, cniBin, hosts)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", name, err)
	}
	line, err := bufio.NewReader(ready).ReadString('\n')
	if line = strings.TrimSpace(line); line == "ready" {
		return cmd.Process, nil
	}
	cmd.Process.Kill()
	cmd.Process.Wait()
	if errors.Is(err, io.EOF) && line == "" {
		line = "its process ended"
	}
	return nil, fmt.Errorf("start node %s: %s", name, line)
}

// runHold prepares the namespaces it was started in and keeps them until it
// is killed.
func runHold(args []string) error {
	ready := ownFiles(1)[0]
	name, dir, cniBin, hosts := args[0], args[1], args[2], args[3]
	if err := prepareNode(name, dir, cniBin, hosts); err != nil {
		fmt.Fprintln(ready, strings.ReplaceAll(err.Error(), "\n", "; "))
		return exitStatus(1)
	}
	fmt.Fprintln(ready, "ready")
	ready.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := redirect(null, 0, 1, 2); err != nil {
		return err
	}
	for {
		unix.Pause()
	}
}

// prepareNode makes this process's namespaces those of a node.
func prepareNode(name, dir, cniBin, hosts string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := nodeFiles(dir, cniBin); err != nil {
		return err
	}
	if hosts != "" {
		if err := appendFile("/etc/hosts", hosts); err != nil { // in the overlay, not the machine's
			return err
		}
	}
	for _, s := range nodeSettings() {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// nodeFiles gives the node its own /run, /etc/cni, /opt/cni/bin and /var/lib.
// /etc and /opt become overlays over the machine's, so that directories which
// the machine does not have can be mounted on, and so that nothing written
// there gets out of the lab.
func nodeFiles(dir, cniBin string) error {
	run := filepath.Join(dir, "run")
	for _, d := range []string{"run/netns", "cni", "lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("prepare the node's files: %w", err)
		}
	}
	for _, d := range []string{"etc", "opt"} {
		if err := overlay(filepath.Join(dir, d), "/"+d); err != nil {
			return err
		}
	}
	binds := []struct{ from, to string }{
		{filepath.Join(dir, "cni"), "/etc/cni"},
		{cniBin, "/opt/cni/bin"},
		{filepath.Join(dir, "lib"), "/var/lib"},
		{netnsDir, filepath.Join(run, "netns")},
		{run, "/run"}, // last: it hides the lab's state
	}
	for _, b := range binds {
		if err := os.MkdirAll(b.to, 0o755); err != nil {
			return fmt.Errorf("prepare the node's files: %w", err)
		}
		if err := unix.Mount(b.from, b.to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", b.from, b.to, err)
		}
	}
	if st, err := os.Lstat("/var/run"); err == nil && st.IsDir() { // not the usual link to /run
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount /run on /var/run: %w", err)
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err) // /sys/class/net of this node, not of the machine
	}
	return nil
}

// overlay mounts an overlay over target that keeps its changes below dir.
func overlay(dir, target string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("prepare the node's files: %w", err)
		}
	}
	if err := os.Chmod(upper, 0o755); err != nil {
		return fmt.Errorf("prepare the node's files: %w", err)
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", target, upper, work)
	if err := unix.Mount("weft-lab", target, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount an overlay over %s: %w", target, err)
	}
	return nil
}
