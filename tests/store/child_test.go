// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
)

// roleVar makes this test binary another process of a test: it then runs the
// role and no tests.
const roleVar = "WEFT_STORE_ROLE"

// The roles.
const (
	holdRole = "hold" // holds n1's lease until stdin closes
	raceRole = "race" // holds several leases at once, see race_test.go
)

// task tells a child what to do.
type task struct {
	Role      string
	Endpoints []string
	Prefix    string
	First, N  int // nodes of a race
}

func TestMain(m *testing.M) {
	text := os.Getenv(roleVar)
	if text == "" {
		// Cases wait much more than they compute. The command line, which is
		// parsed later, still has the last word.
		if err := flag.Set("test.parallel", "16"); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		fmt.Println("error", err)
		os.Exit(2)
	}
	switch t.Role {
	case holdRole:
		holdInChild(t)
	case raceRole:
		raceInChild(t)
	}
}

// child is a process with a role. Its stdout is lines of a word and text.
type child struct {
	e     *env
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string
}

func (e *env) child(role string) *child {
	return e.startChild(task{Role: role, Endpoints: []string{e.srv.Endpoint}, Prefix: e.prefix})
}

func (e *env) startChild(t task) *child {
	e.Helper()
	text, err := json.Marshal(t)
	if err != nil {
		e.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		e.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		e.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		e.Fatal(err)
	}
	c := &child{e: e, cmd: cmd, stdin: in, lines: make(chan string, 1024)}
	var read sync.WaitGroup
	read.Go(func() {
		defer close(c.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			c.lines <- sc.Text()
		}
	})
	e.Cleanup(func() {
		cmd.Process.Kill()
		read.Wait()
		cmd.Wait() // reports the kill
	})
	return c
}

// await returns the text of the next line, which must begin with word.
func (c *child) await(word string) string {
	c.e.Helper()
	select {
	case line, ok := <-c.lines:
		first, rest, _ := strings.Cut(line, " ")
		if !ok || first != word {
			c.e.Fatalf("child says %q, want %q", line, word)
		}
		return rest
	case <-time.After(patience):
		c.e.Fatalf("child does not say %q within %s", word, patience)
	}
	return ""
}

func (c *child) signal(s syscall.Signal) {
	c.e.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.e.Fatal(err)
	}
}

func (c *child) freeze() { c.e.Helper(); c.signal(syscall.SIGSTOP) }
func (c *child) thaw()   { c.e.Helper(); c.signal(syscall.SIGCONT) }

// stop ends the child as a shutdown does.
func (c *child) stop() {
	c.e.Helper()
	c.stdin.Close()
	c.await("stopped")
}

// untilStdinCloses is the lifetime of a child.
func untilStdinCloses() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the parent, too
		cancel()
	}()
	return ctx
}

func holdInChild(t task) {
	ctx := untilStdinCloses()
	s, err := etcd.New(etcd.Options{Endpoints: t.Endpoints, Prefix: t.Prefix, LeaseTTL: ttl})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.42.0.0/16"}`), "test", subnet.Defaults{})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	err = s.Hold(ctx, cfg, want(cfg, 1), func(l subnet.Lease) { fmt.Println("granted", l.Paths[0].Subnet) })
	if ctx.Err() != nil {
		fmt.Println("stopped")
		return
	}
	fmt.Println("lost", err)
	<-ctx.Done()
}
