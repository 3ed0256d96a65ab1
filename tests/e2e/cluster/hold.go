// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// holdSpec is what a node's holder needs to know.
type holdSpec struct {
	Name string
	Dir  string // the node's files
}

// startHolder starts the process that keeps a node's namespaces, and waits
// until they are prepared.
func startHolder(spec holdSpec) (*os.Process, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", spec.Name, err)
	}
	defer ready.Close()
	cmd := self(stageNode, string(b))
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", spec.Name, err)
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
	return nil, fmt.Errorf("start node %s: %s", spec.Name, line)
}

// self returns a command that runs this program as stage.
func self(stage string, args ...string) *exec.Cmd {
	return &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{stage}, args...), Env: os.Environ()}
}

// runNode prepares the namespaces that it was started in and keeps them until
// it is killed.
func runNode(args []string) error {
	unix.CloseOnExec(3)
	ready := os.NewFile(3, "ready")
	var spec holdSpec
	err := json.Unmarshal([]byte(args[0]), &spec)
	if err == nil {
		err = spec.prepare()
	}
	if err != nil {
		fmt.Fprintln(ready, strings.ReplaceAll(err.Error(), "\n", "; "))
		return err
	}
	fmt.Fprintln(ready, "ready")
	ready.Close()
	if err := nullStdio(); err != nil {
		return err
	}
	for {
		unix.Pause()
	}
}

// nullStdio lets go of whatever terminal or pipe the process was started on.
func nullStdio() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("let go of descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// prepare makes this process's namespaces those of a node.
func (s holdSpec) prepare() error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("separate the node's mounts: %w", err)
	}
	if err := s.sysfs(); err != nil {
		return err
	}
	for _, d := range []string{"etc", "opt"} {
		if err := s.overlay(d); err != nil {
			return err
		}
	}
	if err := s.tunables(); err != nil {
		return err
	}
	for _, b := range []struct{ from, to string }{
		{"cni", "/etc/cni"}, {"cnibin", "/opt/cni/bin"}, {"lib", "/var/lib"}, {"log", "/var/log"},
		{"run", "/run"}, // last: it hides the lab's state
	} {
		if err := s.bind(b.from, b.to); err != nil {
			return err
		}
	}
	if err := ownDevices(); err != nil {
		return err
	}
	if st, err := os.Lstat("/var/run"); err == nil && st.IsDir() { // not the usual link to /run
		if err := mount("/run", "/var/run", unix.MS_BIND|unix.MS_REC); err != nil {
			return err
		}
	}
	// The kubelet expects a node to share its mounts with those of pods. Only
	// now, so that no two of them share with each other.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the node's mounts: %w", err)
	}
	return os.WriteFile("/etc/machine-id", fmt.Appendf(nil, "%032x\n", s.Name), 0o644) // in the overlay
}

// ownDevices gives the daemons' directories file systems of their own. The
// kubelet's cadvisor looks for the one file system that a directory is on by
// its device number, and one that is mounted in several places misleads it.
func ownDevices() error {
	for _, dir := range []string{"/var/lib/kubelet", "/var/lib/containerd"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare the node's files: %w", err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount a file system on %s: %w", dir, err)
		}
	}
	return nil
}

// sysfs mounts a /sys that shows the node's network devices and the machine's
// control groups.
func (s holdSpec) sysfs() error {
	aside := filepath.Join(s.Dir, "cgroup")
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	if err := mount(cgroupMount, aside, unix.MS_BIND|unix.MS_REC); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return mount(aside, cgroupMount, unix.MS_BIND|unix.MS_REC)
}

// overlay lets the node change a directory of the machine's for itself.
func (s holdSpec) overlay(dir string) error {
	upper, work := filepath.Join(s.Dir, dir, "upper"), filepath.Join(s.Dir, dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("prepare the node's files: %w", err)
		}
	}
	opts := fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := unix.Mount("weft-e2e", "/"+dir, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount an overlay over /%s: %w", dir, err)
	}
	return nil
}

// bind puts one of the node's own directories in a place of the machine's.
func (s holdSpec) bind(from, to string) error {
	from = filepath.Join(s.Dir, from)
	for _, d := range []string{from, to} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("prepare the node's files: %w", err)
		}
	}
	return mount(from, to, unix.MS_BIND)
}

// tunables shows the node settings as the kubelet wants them. They are the
// machine's, not a namespace's, and the kubelet would set them.
func (s holdSpec) tunables() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without it
		}
		file := filepath.Join(s.Dir, "tunables", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("prepare the node's settings: %w", err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("prepare the node's settings: %w", err)
		}
		if err := mount(file, target, unix.MS_BIND); err != nil {
			return err
		}
	}
	return nil
}

func mount(from, to string, flags uintptr) error {
	if err := unix.Mount(from, to, "", flags, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", from, to, err)
	}
	return nil
}
