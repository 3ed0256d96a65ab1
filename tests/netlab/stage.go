// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The lab's own processes are this program again, told apart by argv[0], so
// that `ps` shows what each of them is.
const (
	stageInit    = "weft-lab-init"
	stageControl = "weft-lab-control"
	stageHold    = "weft-lab-hold"
	stageEtcd    = "weft-lab-etcd"
	stageAgent   = "weft-lab-agent"
	stageCNI     = "weft-lab-cni"
	stageEnter   = "weft-lab-enter"
)

// IDEnv is the environment variable that every process of a lab carries. Its
// value is the lab's ID.
const IDEnv = "WEFT_LAB_ID"

// Stage runs the part of the lab that args, the process's os.Args, ask for,
// and returns its exit status and true. For an ordinary start, and in the
// control process, it does nothing and returns false. Call it before
// anything else.
func Stage(args []string) (code int, ran bool) {
	stages := map[string]func([]string) error{
		stageInit:  runInit,
		stageHold:  runHold,
		stageEtcd:  runEtcd,
		stageAgent: runAgent,
		stageCNI:   runCNI,
		stageEnter: runEnter,
	}
	if len(args) == 0 {
		return 0, false
	}
	run, ok := stages[args[0]]
	if !ok {
		// Threads enter namespaces and end there (Place.on). The main thread
		// cannot end, and /proc/PID is its view: keep it here.
		runtime.LockOSThread()
		return 0, false
	}
	err := run(args[1:])
	var status exitStatus
	switch {
	case err == nil:
		return 0, true
	case asExit(err, &status):
		return int(status), true
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", strings.TrimPrefix(args[0], "weft-lab-"), err)
	return 1, true
}

// Inside reports whether this process is the control process of a lab.
func Inside() bool { return len(os.Args) > 0 && os.Args[0] == stageControl }

// exitStatus ends a stage with a status and without a message.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func asExit(err error, to *exitStatus) bool {
	e, ok := err.(exitStatus)
	if ok {
		*to = e
	}
	return ok
}

// self returns a command that runs this program as stage.
func self(stage string, args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path: "/proc/self/exe",
		Args: append([]string{stage}, args...),
		Env:  os.Environ(),
	}
}

// ownFiles keeps the n inherited files after stderr from reaching children:
// Go opens everything close-on-exec, but what a process inherits is not.
func ownFiles(n int) []*os.File {
	files := make([]*os.File, n)
	for i := range files {
		unix.CloseOnExec(3 + i)
		files[i] = os.NewFile(uintptr(3+i), fmt.Sprintf("inherited-%d", i))
	}
	return files
}

// redirect makes fd an alias of f.
func redirect(f *os.File, fds ...int) error {
	for _, fd := range fds {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("redirect descriptor %d to %s: %w", fd, f.Name(), err)
		}
	}
	return nil
}

// statusOf turns a wait status into what a shell would report.
func statusOf(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
