// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"weft.dev/weft/tests/netlab"
)

// The cluster's own processes are this program again, told apart by argv[0].
const (
	stageKeeper = "weft-e2e-keeper"
	stageNode   = "weft-e2e-node"
)

const (
	cgroupEnv = "WEFT_E2E_CGROUP" // name of the cluster's control group
	launchEnv = "WEFT_E2E_LAUNCH" // from launcher to keeper: keeperSpec
)

// idPrefix tells clusters from other labs.
const idPrefix = "e2e"

// Stage runs the part of a cluster that args, the process's os.Args, ask for,
// and returns its exit status and true. For an ordinary start, and in the
// control process, it does nothing and returns false. Call it before anything
// else.
func Stage(args []string) (code int, ran bool) {
	stages := map[string]func([]string) error{stageNode: runNode, stageKeeper: runKeeper}
	if len(args) > 0 && stages[args[0]] != nil {
		err := stages[args[0]](args[1:])
		var status exitStatus
		switch {
		case err == nil:
			return 0, true
		case errors.As(err, &status):
			return int(status), true
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[0], err)
		return 1, true
	}
	return netlab.Stage(args)
}

// exitStatus ends a stage with a status and without a message.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// A Launcher starts a cluster's control process: this program again, with Args
// and with Env added to its environment.
type Launcher struct {
	ID     string // unique; empty for a random one
	Args   []string
	Env    []string
	Stdout io.Writer
	Stderr io.Writer
	Stay   bool // the cluster may be left standing (Cluster.Stand)
}

// keeperSpec is a Launcher on its way to the keeper.
type keeperSpec struct {
	ID   string
	Args []string
	Stay bool
}

// NewID returns a fresh name for a cluster.
func NewID() string { return strings.Replace(netlab.NewID(), "lab", idPrefix, 1) }

// Run starts a cluster's control process and waits for it to end, or to leave
// the cluster standing. It returns that process's status. When ctx ends, the
// cluster is gone before Run returns.
func (l Launcher) Run(ctx context.Context) (int, error) {
	if err := netlab.Preflight(); err != nil {
		return 1, err
	}
	if l.ID == "" {
		l.ID = NewID()
	}
	spec, err := json.Marshal(keeperSpec{ID: l.ID, Args: l.Args, Stay: l.Stay})
	if err != nil {
		return 1, err
	}
	lifeRead, lifeWrite, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer lifeWrite.Close()
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer reportRead.Close()
	cmd := self(stageKeeper)
	cmd.Env = append(append(cmd.Env, l.Env...), launchEnv+"="+string(spec))
	cmd.Stdout, cmd.Stderr = l.Stdout, l.Stderr
	cmd.ExtraFiles = []*os.File{lifeRead, reportWrite}
	// Neither Ctrl-C nor what ends the launcher's group ends the keeper.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	lifeRead.Close()
	reportWrite.Close()
	if err != nil {
		return 1, fmt.Errorf("start the cluster's keeper: %w", err)
	}
	code, err := follow(ctx, cmd, lifeWrite, reportRead)
	if e := cleanUp(context.WithoutCancel(ctx), cmd.Process.Pid, l.ID); e != nil {
		err = errors.Join(err, e)
	}
	return code, err
}

// cleanUp removes the control groups in the keeper's stead if it was killed.
func cleanUp(ctx context.Context, keeper int, id string) error {
	if name := cgroupName(id, keeper); !kept(name) {
		return removeCgroups(ctx, name)
	}
	return nil
}

// follow waits for the first of: the keeper ends, the cluster stands, ctx ends.
func follow(ctx context.Context, cmd *exec.Cmd, life io.WriteCloser, report io.Reader) (int, error) {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stands := make(chan int, 1)
	go func() {
		var status int
		if line, err := bufio.NewReader(report).ReadString('\n'); err == nil {
			if _, err := fmt.Sscan(line, &status); err == nil {
				stands <- status
			}
		}
	}()
	select {
	case err := <-ended:
		return exitCode(err)
	case status := <-stands:
		return status, nil
	case <-ctx.Done():
	}
	life.Close() // upon which the keeper ends the cluster
	t := time.NewTimer(time.Minute)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		cmd.Process.Kill() // and the lab with it
		<-ended
	}
	return 1, context.Cause(ctx)
}

// exitCode translates what Wait returned.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 128 + int(ws.Signal()), nil // as a shell reports it
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, fmt.Errorf("wait for the cluster's keeper: %w", err)
	}
	return 0, nil
}
