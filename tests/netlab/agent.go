// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errNotRunning is returned when there is no agent to end.
var errNotRunning = errors.New("weftd does not run")

const (
	agentHealth = "127.0.0.1:9469"
	readyWithin = 30 * time.Second
)

// agent is a node's weftd. The zero value is one that does not run.
type agent struct {
	mu     sync.Mutex
	cmd    *exec.Cmd     // nil before the first start
	ended  chan struct{} // closed when cmd has ended
	starts int
}

func (a *agent) running() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd == nil {
		return false
	}
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}

// StartAgent starts weftd on the node, with the lab's AgentArgs and more of
// the caller's. It does not wait for it to be ready.
func (n *Node) StartAgent(ctx context.Context, more ...string) error {
	if n.agent.running() {
		return fmt.Errorf("weftd on %s runs already", n.name)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	log, err := os.OpenFile(n.lab.LogPath(n.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start weftd on %s: %w", n.name, err)
	}
	defer log.Close()
	l := n.lab
	etcd, env := l.agentArgs()
	args := append([]string{filepath.Join(l.cfg.BinDir, "weftd"), "--node-name=" + n.name}, etcd...)
	args = append(append(args, l.cfg.AgentArgs...), more...)
	cmd := self(stageAgent, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.Start(cmd); err != nil {
		return err
	}
	a := &n.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	ended := make(chan struct{})
	a.cmd, a.ended = cmd, ended
	a.starts++
	go func() {
		cmd.Wait() // its status is in ProcessState
		close(ended)
	}()
	return nil
}

// AgentPID returns the process ID of the node's weftd, in the lab's PID
// namespace, or 0.
func (n *Node) AgentPID() int {
	if !n.agent.running() {
		return 0
	}
	return n.agent.cmd.Process.Pid
}

// SignalAgent sends weftd a signal that does not end it, such as SIGSTOP.
func (n *Node) SignalAgent(sig syscall.Signal) error {
	if !n.agent.running() {
		return fmt.Errorf("on %s: %w", n.name, errNotRunning)
	}
	if err := n.agent.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %s to weftd on %s: %w", sig, n.name, err)
	}
	return nil
}

// KillAgent ends weftd with SIGKILL.
func (n *Node) KillAgent() error { return n.endAgent(syscall.SIGKILL) }

// TermAgent ends weftd with SIGTERM. It is an error if weftd then ends with
// another status than 0.
func (n *Node) TermAgent() error {
	if err := n.endAgent(syscall.SIGTERM); err != nil {
		return err
	}
	if s := n.agent.cmd.ProcessState; !s.Success() {
		return fmt.Errorf("weftd on %s after SIGTERM: %s\n%s", n.name, s, n.lab.tail(n.name, 20))
	}
	return nil
}

func (n *Node) endAgent(sig syscall.Signal) error {
	if !n.agent.running() {
		return fmt.Errorf("on %s: %w", n.name, errNotRunning)
	}
	if err := n.agent.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to weftd on %s: %w", sig, n.name, err)
	}
	t := time.NewTimer(readyWithin)
	defer t.Stop()
	select {
	case <-n.agent.ended:
		return nil
	case <-t.C:
		return fmt.Errorf("weftd on %s still runs %s after %s\n%s", n.name, readyWithin, sig, n.lab.tail(n.name, 20))
	}
}

// WaitReady waits until the node's weftd answers 200 at /readyz, and checks
// its privileges (CheckPrivileges).
func (n *Node) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	last := "no answer"
	for {
		code, body, err := n.HTTP(ctx, "/readyz?verbose")
		if err == nil && code == http.StatusOK {
			return n.CheckPrivileges()
		}
		if err == nil {
			last = fmt.Sprintf("%d %s", code, strings.TrimSpace(body))
		}
		select {
		case <-n.agent.ended:
			return fmt.Errorf("weftd on %s has ended: %s\n%s", n.name, n.agent.cmd.ProcessState, n.lab.tail(n.name, 20))
		default:
		}
		if Pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("weftd on %s is not ready: %s\n%s", n.name, last, n.lab.tail(n.name, 20))
		}
	}
}

// HTTP asks weftd's health address on the node for path.
func (n *Node) HTTP(ctx context.Context, path string) (code int, body string, err error) {
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return n.Dial(ctx, "tcp", agentHealth)
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentHealth+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, "", fmt.Errorf("ask weftd on %s for %s: %w", n.name, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", fmt.Errorf("ask weftd on %s for %s: %w", n.name, path, err)
	}
	return resp.StatusCode, string(b), nil
}

// AgentCapabilities is what weftd has to work with, CAP_NET_ADMIN alone, as
// /proc/PID/status shows it (capabilities(7), proc_pid_status(5)).
const (
	AgentCapabilities = "0000000000001000"
	noNewPriv         = "1"
)

// CheckPrivileges returns an error unless the node's weftd runs with
// CAP_NET_ADMIN as its only capability, effective, permitted and bounding,
// none inheritable or ambient, no_new_privs set, and a read-only /proc/sys.
func (n *Node) CheckPrivileges() error {
	pid := n.AgentPID()
	if pid == 0 {
		return fmt.Errorf("on %s: %w", n.name, errNotRunning)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return fmt.Errorf("privileges of weftd on %s: %w", n.name, err)
	}
	none := strings.Repeat("0", len(AgentCapabilities))
	want := map[string]string{
		"CapEff": AgentCapabilities, "CapPrm": AgentCapabilities, "CapBnd": AgentCapabilities,
		"CapInh": none, "CapAmb": none, "NoNewPrivs": noNewPriv,
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		w, ok := want[key]
		if !ok {
			continue
		}
		delete(want, key)
		if value = strings.TrimSpace(value); value != w {
			return fmt.Errorf("weftd on %s has %s %s, want %s", n.name, key, value, w)
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("privileges of weftd on %s: /proc/%d/status lacks %v", n.name, pid, want)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil {
		return fmt.Errorf("mounts of weftd on %s: %w", n.name, err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[1] == "/proc/sys" && strings.HasPrefix(f[3], "ro,") {
			return nil
		}
	}
	return fmt.Errorf("weftd on %s can write /proc/sys", n.name)
}

// runAgent reduces this process, which is in a node's namespaces, to the
// privileges that weft's manifest grants, and becomes args.
func runAgent(args []string) error {
	runtime.LockOSThread() // all of this is per thread, and exec keeps the calling one's
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount /proc/sys: %w", err)
	}
	if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make /proc/sys read-only: %w", err)
	}
	if err := dropCapabilities(unix.CAP_NET_ADMIN); err != nil {
		return err
	}
	if err := unix.Exec(args[0], args, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", args[0], err)
	}
	return nil
}

// dropCapabilities leaves the calling thread, and what it execs, with one
// capability and without the means to gain another.
func dropCapabilities(keep int) error {
	for c := 0; c <= 63; c++ { // capabilities are 64 bits; EINVAL is past the kernel's last
		if c == keep {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // two words of 32 bits each (capset(2))
	data[keep/32].Effective = 1 << (keep % 32)
	data[keep/32].Permitted = 1 << (keep % 32)
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
