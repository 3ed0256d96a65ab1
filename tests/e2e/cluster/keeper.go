// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// runKeeper runs a lab and removes its control groups when it has ended.
func runKeeper([]string) error {
	var spec keeperSpec
	if err := json.Unmarshal([]byte(os.Getenv(launchEnv)), &spec); err != nil {
		return fmt.Errorf("what to launch, %s: %w", launchEnv, err)
	}
	for fd := 3; fd <= 4; fd++ {
		unix.CloseOnExec(fd)
	}
	life, report := os.NewFile(3, "life"), os.NewFile(4, "report")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k := &keeper{spec: spec, report: report, group: cgroupName(spec.ID, os.Getpid())}
	go func() {
		io.Copy(io.Discard, life) // nothing is sent: it ends with the launcher
		if !k.standing() {
			cancel(errors.New("the launcher has ended"))
		}
	}()
	code, err := k.run(ctx)
	// The lab is gone; what ended it must not keep its groups.
	err = errors.Join(err, removeCgroups(context.WithoutCancel(ctx), k.group))
	if err == nil && code != 0 {
		err = exitStatus(code)
	}
	return err
}

// A keeper is between a launcher and its lab.
type keeper struct {
	spec   keeperSpec
	group  string
	report *os.File
	stands atomic.Pointer[netlab.Record] // of the lab, once it stands
}

func (k *keeper) standing() bool { return k.stands.Load() != nil }

// run returns when the lab has ended.
func (k *keeper) run(ctx context.Context) (int, error) {
	if err := sweepCgroups(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "control groups of earlier clusters are left: %v\n", err)
	}
	la := netlab.Launch{
		ID: k.spec.ID, Args: k.spec.Args, Env: []string{cgroupEnv + "=" + k.group}, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if k.spec.Stay {
		la.Standing = func(r netlab.Record) error {
			err := r.Save()
			if err == nil {
				k.stands.Store(&r)
			}
			return err
		}
	}
	code, err := la.Run(ctx)
	if err != nil || !k.standing() {
		return code, err
	}
	fmt.Fprintln(k.report, code) // the launcher may go
	k.report.Close()
	if err := nullStdio(); err != nil {
		return 1, err
	}
	return 0, waitFor(ctx, k.stands.Load().PID)
}

// waitFor returns when process pid, a child of this one, has ended. When ctx
// ends it ends the process.
func waitFor(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	stop := context.AfterFunc(ctx, func() { unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	defer stop()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
	}
}

// Standing returns the cluster of that ID that stands, or the only one if id
// is empty.
func Standing(id string) (netlab.Record, error) {
	if id != "" {
		return netlab.LoadRecord(id)
	}
	all, err := netlab.Records()
	if err != nil {
		return netlab.Record{}, err
	}
	var ours []netlab.Record
	var ids []string
	for _, r := range all {
		if strings.HasPrefix(r.ID, idPrefix) {
			ours, ids = append(ours, r), append(ids, r.ID)
		}
	}
	switch len(ours) {
	case 0:
		return netlab.Record{}, errors.New("no cluster stands; `make e2e-up` makes one")
	case 1:
		return ours[0], nil
	}
	return netlab.Record{}, fmt.Errorf("several clusters stand, name one of %s", strings.Join(ids, ", "))
}

// Down ends a standing cluster. When it returns nothing of it is left.
func Down(ctx context.Context, r netlab.Record) error {
	if err := r.Down(); err != nil {
		return err
	}
	return awaitKeeper(ctx, r.ID)
}
