// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// detach is what the launcher writes to the lifeline to let the lab outlive
// it. Anything else, and the end of the launcher, ends the lab.
const detach = 'D'

// A Launch says how to start a lab.
type Launch struct {
	ID     string   // unique name of the lab; empty for a random one
	Args   []string // arguments of the control process, without argv[0]
	Env    []string // additions to the control process's environment
	Stdout io.Writer
	Stderr io.Writer
	// Standing is called when the control process asks to be left standing
	// (Stand), with the lab's record. If it returns nil, Run returns and the
	// lab stays. Where Standing is nil a lab never outlives Run.
	Standing func(Record) error
}

// Ask starts a lab whose control process finds question, as JSON, in the
// environment variable env, and reads answer, as JSON, from what that process
// prints. It fails when the lab does. l's Stdout is not used.
func (l Launch) Ask(ctx context.Context, env string, question, answer any) error {
	b, err := json.Marshal(question)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	l.Env, l.Stdout = append(slices.Clone(l.Env), env+"="+string(b)), &out
	code, err := l.Run(ctx)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("its lab ended with status %d", code)
	}
	return json.Unmarshal(out.Bytes(), answer)
}

// NewID returns a fresh name for a lab, e.g. "lab-5f0c2a".
func NewID() string {
	var b [3]byte
	rand.Read(b[:]) // never fails, crypto/rand
	return "lab-" + hex.EncodeToString(b[:])
}

// Preflight returns an error that says what is missing: root, or one of the
// named tools.
func Preflight(tools ...string) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab is made of namespaces, and making them needs root: run it with sudo")
	}
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t); err != nil {
			missing = append(missing, t)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s; `make deps` installs what the lab uses", strings.Join(missing, ", "))
	}
	return nil
}

// Run starts a lab and waits for its control process. It returns the
// status of that process, or the one it gave to Stand. When ctx
// ends, the lab is gone before Run returns.
func (l Launch) Run(ctx context.Context) (int, error) {
	if err := Preflight(); err != nil {
		return 1, err
	}
	if l.ID == "" {
		l.ID = NewID()
	}
	p, err := l.pipes()
	if err != nil {
		return 1, err
	}
	defer p.close()
	cmd := l.command(p)
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel sends the parent-death signal when the *thread* that
		// forked ends, so this one stays for as long as the lab lives.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return 1, fmt.Errorf("start the lab's init in new namespaces: %w", err)
	}
	p.closeTheirs()
	return l.follow(ctx, cmd, p, ended)
}

// command prepares the lab's init. It is in a session of its own, so that
// Ctrl-C reaches the launcher alone.
func (l Launch) command(p *pipes) *exec.Cmd {
	cmd := self(stageInit, l.Args...)
	cmd.Env = append(append(cmd.Env, l.Env...), IDEnv+"="+l.ID)
	cmd.Stdout, cmd.Stderr = l.Stdout, l.Stderr
	cmd.ExtraFiles = []*os.File{p.lifeRead, p.reportWrite, p.outside}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Setsid:     true,
	}
	if l.Standing == nil {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	return cmd
}

// follow waits for the first of: the lab ends, the lab wants to stand, ctx ends.
func (l Launch) follow(ctx context.Context, cmd *exec.Cmd, p *pipes, ended <-chan error) (int, error) {
	report := make(chan Record, 1)
	go func() {
		line, err := bufio.NewReader(p.reportRead).ReadBytes('\n')
		var r Record
		if err == nil && json.Unmarshal(line, &r) == nil {
			report <- r
		}
	}()
	kill := func(err error) (int, error) {
		cmd.Process.Kill() // fails only if it has already ended
		<-ended
		return 1, err
	}
	select {
	case err := <-ended:
		return exitCode(err)
	case <-ctx.Done():
		return kill(context.Cause(ctx))
	case r := <-report:
		r.PID = cmd.Process.Pid
		if err := l.letGo(r, p.lifeWrite); err != nil {
			return kill(err)
		}
		return r.Status, nil
	}
}

// letGo leaves the lab standing.
func (l Launch) letGo(r Record, lifeline io.Writer) error {
	if l.Standing == nil {
		return errors.New("the lab wants to stay, and this launcher does not allow it")
	}
	if err := r.complete(); err != nil {
		return err
	}
	if err := l.Standing(r); err != nil {
		return err
	}
	if _, err := lifeline.Write([]byte{detach}); err != nil {
		return fmt.Errorf("detach the lab: %w", err)
	}
	return nil
}

// exitCode translates what Wait returned.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return statusOf(exit.Sys().(syscall.WaitStatus)), nil
	}
	if err != nil {
		return 1, fmt.Errorf("wait for the lab: %w", err)
	}
	return 0, nil
}

// pipes connect the launcher with the lab.
type pipes struct {
	lifeRead, lifeWrite     *os.File // the lab ends when this one closes
	reportRead, reportWrite *os.File // the control process's Record, when it wants to stand
	outside                 *os.File // the launcher's network namespace, for the etcd relay
}

func (Launch) pipes() (*pipes, error) {
	var p pipes
	var err error
	if p.lifeRead, p.lifeWrite, err = os.Pipe(); err == nil {
		if p.reportRead, p.reportWrite, err = os.Pipe(); err == nil {
			p.outside, err = os.Open("/proc/thread-self/ns/net")
		}
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("prepare the lab's pipes: %w", err)
	}
	return &p, nil
}

// closeTheirs closes the ends that the lab now holds.
func (p *pipes) closeTheirs() {
	p.lifeRead.Close()
	p.reportWrite.Close()
	p.outside.Close()
}

func (p *pipes) close() {
	for _, f := range []*os.File{p.lifeRead, p.lifeWrite, p.reportRead, p.reportWrite, p.outside} {
		f.Close() // a nil or closed file answers with an error that means nothing here
	}
}
