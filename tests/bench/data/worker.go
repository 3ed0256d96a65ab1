// SPDX-License-Identifier: Apache-2.0

package data

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// stage is argv[0] of a worker.
const stage = "weft-bench-traffic"

// The kinds of traffic.
const (
	stream  = "stream"  // one TCP stream
	pingers = "rtt"     // 64 bytes there and back in a TCP connection
	connect = "connect" // a connection for each request of 64 bytes
	packets = "packets" // 64 bytes of UDP, one way
	spin    = "spin"    // none: keeps the CPUs awake until its input ends
)

// order is one line to a worker. A server answers twice: with its port, and
// with what it has seen.
type order struct {
	Kind   string
	Server bool
	At     netip.AddrPort // to listen at (any port), or to connect to
	CPU    int
	For    time.Duration
}

// seen is a worker's answer.
type seen struct {
	Err   string  `json:",omitempty"`
	Port  uint16  `json:",omitempty"`
	Rate  float64 `json:",omitempty"` // bytes/s, or connections/s
	CPU   float64 `json:",omitempty"` // s of all CPUs for each byte
	Min   float64 `json:",omitempty"` // s
	P25   float64 `json:",omitempty"` // s
	Count int     `json:",omitempty"` // of packets
}

// Stage is a worker if args say so, and reports whether they did.
func Stage(args []string) (ran bool) {
	if len(args) == 0 || args[0] != stage {
		return false
	}
	runtime.LockOSThread()    // affinity is a thread's
	debug.SetGCPercent(-1)    // a pause would be a sample
	debug.SetMemoryLimit(1e9) // bytes; far more than samples take
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return true
		}
		s, err := o.run(out)
		if err != nil {
			s = seen{Err: err.Error()}
		}
		if out.Encode(s) != nil {
			return true
		}
	}
}

// run carries out one order.
func (o order) run(out *json.Encoder) (seen, error) {
	var set unix.CPUSet
	set.Set(o.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return seen{}, fmt.Errorf("bind to CPU %d: %w", o.CPU, err)
	}
	switch {
	case o.Kind == spin:
		return seen{}, spinUntilEOF()
	case o.Server:
		return o.serve(out)
	}
	return o.client()
}

// spinUntilEOF keeps the thread's CPU from sleeping, at the lowest priority
// there is.
func spinUntilEOF() error {
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is all that matters
		ended.Store(true)
	}()
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0); err != nil {
		return fmt.Errorf("become idle class: %w", err)
	}
	for !ended.Load() { // this is all that it is for
	}
	return io.EOF
}

// worker is a process in a place of the lab.
type worker struct {
	where string
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
}

// hire starts a worker.
func hire(p *netlab.Place) (*worker, error) {
	// Go's signal to a thread that it wants to preempt would interrupt a
	// socket's call that has a time limit (signal(7)).
	env := append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{stage}, Env: env, Stderr: os.Stderr}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.Start(cmd); err != nil {
		return nil, err
	}
	return &worker{where: p.Name(), cmd: cmd, in: in, out: bufio.NewScanner(out)}, nil
}

// dismiss ends the worker.
func (w *worker) dismiss() error {
	w.in.Close()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("worker on %s: %w", w.where, err)
	}
	return nil
}

func (w *worker) tell(o order) error {
	if err := json.NewEncoder(w.in).Encode(o); err != nil {
		return fmt.Errorf("worker on %s: %w", w.where, err)
	}
	return nil
}

func (w *worker) hear() (s seen, err error) {
	if !w.out.Scan() {
		return s, fmt.Errorf("worker on %s has ended: %v", w.where, w.out.Err())
	}
	if err = json.Unmarshal(w.out.Bytes(), &s); err == nil && s.Err != "" {
		err = fmt.Errorf("%s", s.Err)
	}
	if err != nil {
		err = fmt.Errorf("worker on %s: %w", w.where, err)
	}
	return s, err
}
