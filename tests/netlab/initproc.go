// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where a lab keeps things, seen from its own mount namespace. All of it is
// on one tmpfs that only the lab's processes can see.
const (
	stateDir = "/run/lab"
	netnsDir = "/run/netns"
)

// runInit is PID 1 of the lab. It prepares the file system, starts the
// control process, reaps whatever is orphaned, and ends with control's
// status, upon which the kernel kills the rest.
func runInit(args []string) error {
	files := ownFiles(3)
	lifeline, report, outside := files[0], files[1], files[2]
	// PID 1 ignores a signal that it has no handler for; Go installs some.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := privateFiles(); err != nil {
		return err
	}
	control := self(stageControl, args...)
	control.Env = append(control.Env, "TMPDIR=/run") // private in every mount namespace of the lab
	control.Stdout, control.Stderr = os.Stdout, os.Stderr
	control.ExtraFiles = []*os.File{report, outside}
	if err := control.Start(); err != nil {
		return fmt.Errorf("start the control process: %w", err)
	}
	report.Close()
	outside.Close()
	ended := make(chan error, 2)
	go func() { ended <- reap(control.Process.Pid) }()
	go func() {
		if err := holdOn(lifeline); err != nil {
			ended <- err
		}
	}()
	return <-ended
}

// holdOn returns an error when the launcher is gone, unless it has let go
// before. The parent-death signal does the same, but only after prctl(2) has
// run, and never in a lab that may stay.
func holdOn(lifeline *os.File) error {
	var b [1]byte
	if _, err := io.ReadFull(lifeline, b[:]); err != nil || b[0] != detach {
		return errors.New("the launcher has ended")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("let go of the terminal: %w", err)
	}
	return redirect(null, 0, 1, 2) // nothing to tell anyone any more
}

// reap waits for all children until pid has ended, and returns its status.
func reap(pid int) error {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the control process: %w", err)
		case got == pid && (ws.Exited() || ws.Signaled()):
			return exitStatus(statusOf(ws))
		}
	}
}

// privateFiles cuts the mount namespace off from the machine's, and mounts
// this PID namespace's /proc and a tmpfs over /run.
func privateFiles() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("weft-lab", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs over /run: %w", err)
	}
	for _, d := range []string{"log", "nodes"} {
		if err := os.MkdirAll(filepath.Join(stateDir, d), 0o755); err != nil {
			return fmt.Errorf("prepare the lab's files: %w", err)
		}
	}
	// Pods' namespaces appear here; nodes, which start as copies of this
	// mount namespace, see those that are mounted later because the mount
	// is shared among them.
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("prepare the lab's files: %w", err)
	}
	if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", netnsDir, err)
	}
	if err := unix.Mount("", netnsDir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}
