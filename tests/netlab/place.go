// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Place is somewhere in the lab where programs run and sockets open: a
// network namespace and, for nodes and pods, the mount and UTS namespaces
// that go with it. Its methods may be called from any goroutine.
type Place struct {
	name string
	net  *os.File
	mnt  *os.File // nil: the lab's own
	uts  *os.File // nil: the lab's own
}

// Name returns the place's name, e.g. "n1", "n1-p2" or "fabric".
func (p *Place) Name() string { return p.name }

// String returns the name.
func (p *Place) String() string { return p.name }

// Network returns the place with its network only: programs there see the
// lab's own files. It is closed with p.
func (p *Place) Network() *Place { return &Place{name: p.name, net: p.net} }

// Here returns the place that the calling thread is in.
func Here(name string) (*Place, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of %s: %w", name, err)
	}
	return &Place{name: name, net: f}, nil
}

// placeOf returns the place that process pid is in.
func placeOf(name string, pid int) (*Place, error) {
	p := &Place{name: name}
	for _, ns := range []struct {
		kind string
		file **os.File
	}{{"net", &p.net}, {"mnt", &p.mnt}, {"uts", &p.uts}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.kind))
		if err != nil {
			p.close()
			return nil, fmt.Errorf("open the %s namespace of %s: %w", ns.kind, name, err)
		}
		*ns.file = f
	}
	return p, nil
}

// close lets go of the namespaces.
func (p *Place) close() {
	for _, f := range []*os.File{p.net, p.mnt, p.uts} {
		f.Close() // nil or closed is fine
	}
}

// Inode returns the inode number of the network namespace, which identifies
// it on this machine for as long as it lives.
func (p *Place) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(p.net.Fd()), &st); err != nil {
		return 0, fmt.Errorf("identify the network namespace of %s: %w", p.name, err)
	}
	return st.Ino, nil
}

// Do runs fn on an OS thread in the place's network namespace. Sockets that
// fn opens and processes that it starts, itself and not in another
// goroutine, belong there.
func (p *Place) Do(fn func() error) error { return p.on(false, fn) }

// on runs fn on a thread of its own, in the network namespace and, if files
// is set, in the others too.
func (p *Place) on(files bool, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, and
		// no other goroutine can find itself in the wrong namespace.
		runtime.LockOSThread()
		err := p.enter(files)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// enter moves the calling thread.
func (p *Place) enter(files bool) error {
	if files && p.mnt != nil {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("enter %s: unshare the working directory: %w", p.name, err)
		}
	}
	if files {
		for _, ns := range []struct {
			file *os.File
			kind int
		}{{p.mnt, unix.CLONE_NEWNS}, {p.uts, unix.CLONE_NEWUTS}} {
			if ns.file == nil {
				continue
			}
			if err := unix.Setns(int(ns.file.Fd()), ns.kind); err != nil {
				return fmt.Errorf("enter the mount namespace of %s: %w", p.name, err)
			}
		}
	}
	if err := unix.Setns(int(p.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace of %s: %w", p.name, err)
	}
	return nil
}

// Start starts cmd in the place. cmd.Dir must stay empty: setting the
// namespace sets it to the root directory.
func (p *Place) Start(cmd *exec.Cmd) error {
	return p.on(true, func() error {
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start %s on %s: %w", cmd.Path, p.name, err)
		}
		return nil
	})
}

// Run runs a command in the place and returns what it wrote to stdout. The
// error names the place and the command and holds what it wrote to stderr.
func (p *Place) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	return p.RunCmd(ctx, cmd)
}

// RunCmd is Run for a command that the caller has prepared.
func (p *Place) RunCmd(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second
	if cmd.Err != nil {
		return "", fmt.Errorf("run %s on %s: %w", cmd.Args[0], p.name, cmd.Err)
	}
	if err := p.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	said := strings.TrimSpace(stderr.String())
	if said == "" {
		said = strings.TrimSpace(stdout.String())
	}
	said = strings.Join(strings.FieldsFunc(said, func(r rune) bool { return r == '\n' }), "; ")
	return stdout.String(), fmt.Errorf("on %s: %s: %w: %s", p.name, strings.Join(cmd.Args, " "), err, said)
}

// Dial connects from the place. addr must be literal: names are not resolved.
func (p *Place) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := p.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", p.name, err)
	}
	return conn, nil
}

// Listen listens on a literal address in the place.
func (p *Place) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	var l net.Listener
	err := p.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("on %s: %w", p.name, err)
	}
	return l, nil
}

// Netlink calls fn with a netlink handle for the place.
func (p *Place) Netlink(fn func(h *netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(p.net.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink on %s: %w", p.name, err)
	}
	defer h.Close()
	return fn(h)
}

// SetSysctl writes a kernel setting of the place's network namespace, e.g.
// "net.ipv4.ip_forward".
func (p *Place) SetSysctl(name, value string) error {
	return p.Do(func() error { return writeSysctl(name, value) })
}

// writeSysctl writes a kernel setting of the calling thread's namespace.
func writeSysctl(name, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s=%s: %w", name, value, err)
	}
	return nil
}
