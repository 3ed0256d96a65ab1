// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"weft.dev/weft/tests/netlab"
)

// endWithin is how long a daemon has after SIGTERM.
const endWithin = 20 * time.Second

// A Daemon is a program of the cluster that runs until it is ended, and may be
// started again. Its methods may be called from any goroutine.
type Daemon struct {
	name  string
	place func() *netlab.Place // where it runs; a node's changes with a reboot
	argv  []string
	env   []string
	log   string

	mu    sync.Mutex
	cmd   *exec.Cmd     // nil before the first start
	ended chan struct{} // closed when cmd has ended
}

// Name returns the daemon's name, e.g. "n1-kubelet".
func (d *Daemon) Name() string { return d.name }

// LogPath returns the file that it logs to, over all of its starts.
func (d *Daemon) LogPath() string { return d.log }

// Running reports whether it runs.
func (d *Daemon) Running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running()
}

func (d *Daemon) running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// PID returns its process ID in the lab's PID namespace, or 0.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return 0
	}
	return d.cmd.Process.Pid
}

// Start starts the daemon, with more arguments than it has by itself. It does
// not wait until the daemon can be used.
func (d *Daemon) Start(ctx context.Context, more ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running() {
		return fmt.Errorf("%s runs already", d.name)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	defer log.Close()
	cmd := exec.Command(d.argv[0], append(d.argv[1:len(d.argv):len(d.argv)], more...)...)
	cmd.Env = append(os.Environ(), d.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := d.place().Start(cmd); err != nil {
		return err
	}
	ended := make(chan struct{})
	d.cmd, d.ended = cmd, ended
	go func() {
		cmd.Wait() // its status is in ProcessState
		close(ended)
	}()
	return nil
}

// Signal sends the daemon a signal that does not end it, such as SIGSTOP.
func (d *Daemon) Signal(sig syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return fmt.Errorf("send %s to %s: it does not run", sig, d.name)
	}
	if err := d.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %s to %s: %w", sig, d.name, err)
	}
	return nil
}

// Stop ends the daemon with a signal and waits until it has ended. One that
// does not run is fine.
func (d *Daemon) Stop(ctx context.Context, sig syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", sig, d.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	select {
	case <-d.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s still runs after %s: %w", d.name, sig, ctx.Err())
	}
}

// wait calls ready until it returns nil. It fails early when the daemon ends,
// with what it last wrote.
func (d *Daemon) wait(ctx context.Context, within time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if !d.Running() {
			return fmt.Errorf("%s has ended: %s\n%s", d.name, d.state(), tailFile(d.log, 15))
		}
		if netlab.Pause(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("%s is not ready within %s: %w\n%s", d.name, within, err, tailFile(d.log, 15))
		}
	}
}

// state returns how the daemon ended.
func (d *Daemon) state() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return "never started"
	}
	return d.cmd.ProcessState.String()
}

// tailFile returns the last lines of a log file, indented.
func tailFile(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "    (no log: " + err.Error() + ")"
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}
