// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// directory lists a standing lab's places: how a process in the lab's mount
// and PID namespaces gets there.
type directory struct {
	Bin    string          `json:"bin"` // weft's programs, for PATH
	Places map[string]door `json:"places"`
}

// A door is the files of a place's namespaces.
type door struct {
	Net string `json:"net"`
	Mnt string `json:"mnt,omitempty"`
	UTS string `json:"uts,omitempty"`
}

const directoryPath = stateDir + "/directory.json"

// directory lists the lab's places for runEnter.
func (l *Lab) directory() directory {
	places := map[string]door{"fabric": fabricDoor()}
	for _, n := range l.Nodes() {
		places[n.name] = doorOf(n.holder.Pid)
	}
	for _, p := range l.Pods() {
		node := places[p.node.name]
		places[p.name] = door{Net: p.path(), Mnt: node.Mnt, UTS: node.UTS}
	}
	return directory{Bin: l.cfg.BinDir, Places: places}
}

// write puts the directory where runEnter finds it.
func (d directory) write() error {
	b, err := json.Marshal(d)
	if err == nil {
		err = os.WriteFile(directoryPath, b, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the list of the lab's places: %w", err)
	}
	return nil
}

// Exec runs a command in a place of the lab, on this process's terminal, and
// returns its exit status. What is typed, Ctrl-C included, is the command's;
// SIGTERM and SIGHUP are passed on to it.
func (r Record) Exec(place string, args []string) (int, error) {
	if err := r.Alive(); err != nil {
		return 1, err
	}
	pidns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", r.PID))
	if err != nil {
		return 1, fmt.Errorf("enter lab %s: %w", r.ID, err)
	}
	defer pidns.Close()
	mnt, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", r.PID))
	if err != nil {
		return 1, fmt.Errorf("enter lab %s: %w", r.ID, err)
	}
	defer mnt.Close()
	cmd := self(stageEnter, append([]string{place}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{mnt}
	cmd.Env = append(cmd.Env, IDEnv+"="+r.ID)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: its children are in the lab from here on
		err := unix.Setns(int(pidns.Fd()), unix.CLONE_NEWPID)
		if err == nil {
			err = cmd.Start()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return 1, fmt.Errorf("enter lab %s: %w", r.ID, err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer close(signals)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM || s == syscall.SIGHUP {
				cmd.Process.Signal(s) // fails only if it has ended
			}
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitCode(err)
	}
	return 0, err
}

// runEnter is in the lab's PID namespace. It moves into the place and becomes
// the command.
func runEnter(args []string) error {
	runtime.LockOSThread() // namespaces are per thread, and exec keeps the calling one's
	mnt := ownFiles(1)[0]
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Setns(int(mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the lab's mounts: %w", err)
	}
	b, err := os.ReadFile(directoryPath)
	if err != nil {
		return fmt.Errorf("read the list of the lab's places: %w", err)
	}
	var d directory
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("read the list of the lab's places: %w", err)
	}
	place, ok := d.Places[args[0]]
	if !ok {
		return fmt.Errorf("no %q in the lab; it has %s", args[0], strings.Join(slices.Sorted(maps.Keys(d.Places)), ", "))
	}
	if err := place.enter(); err != nil {
		return fmt.Errorf("enter %s: %w", args[0], err)
	}
	if err := os.Setenv("PATH", d.Bin+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	if err := unix.Exec(path, args[1:], os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// enter moves the calling thread. All files are opened before the mount
// namespace changes, which hides some of them.
func (d door) enter() error {
	type move struct {
		file *os.File
		kind int
	}
	var moves []move
	for _, ns := range []struct {
		path string
		kind int
	}{{d.Net, unix.CLONE_NEWNET}, {d.UTS, unix.CLONE_NEWUTS}, {d.Mnt, unix.CLONE_NEWNS}} {
		if ns.path == "" {
			continue
		}
		f, err := os.Open(ns.path)
		if err != nil {
			return err
		}
		moves = append(moves, move{f, ns.kind})
	}
	for _, m := range moves {
		if err := unix.Setns(int(m.file.Fd()), m.kind); err != nil {
			return fmt.Errorf("setns %s: %w", m.file.Name(), err)
		}
	}
	return nil
}
