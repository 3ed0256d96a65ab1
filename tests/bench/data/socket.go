// SPDX-License-Identifier: Apache-2.0

package data

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The sockets are plain blocking ones: what Go's network poller does between
// a packet and its reader is not the data path's.

func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}, unix.AF_INET6
}

// open makes a socket that waits at most two seconds for anything.
func open(a netip.AddrPort, kind int) (int, unix.Sockaddr, error) {
	sa, family := sockaddr(a)
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("socket: %w", err)
	}
	limit := &unix.Timeval{Sec: 2}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, limit),
	)
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err != nil {
		return -1, nil, errors.Join(fmt.Errorf("set up a socket: %w", err), unix.Close(fd))
	}
	return fd, sa, nil
}

// dial connects.
func dial(a netip.AddrPort, kind int) (int, error) {
	fd, sa, err := open(a, kind)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return -1, errors.Join(fmt.Errorf("connect to %s: %w", a, err), unix.Close(fd))
	}
	return fd, nil
}

// bind listens, or for UDP just binds, and returns the port.
func bind(a netip.AddrPort, kind int) (int, uint16, error) {
	fd, sa, err := open(a, kind)
	if err != nil {
		return -1, 0, err
	}
	err = unix.Bind(fd, sa)
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 128)
	}
	var got unix.Sockaddr
	if err == nil {
		got, err = unix.Getsockname(fd)
	}
	if err != nil {
		return -1, 0, errors.Join(fmt.Errorf("listen at %s: %w", a, err), unix.Close(fd))
	}
	switch got := got.(type) {
	case *unix.SockaddrInet4:
		return fd, uint16(got.Port), nil
	case *unix.SockaddrInet6:
		return fd, uint16(got.Port), nil
	}
	return -1, 0, fmt.Errorf("listen at %s: address %v", a, got)
}

// full reads exactly len(b) bytes; n is less only at the end of the stream.
func full(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		if m <= 0 || err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// reset closes a connection at once, so that no TIME_WAIT is left of it.
func reset(fd int) error {
	return errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Close(fd))
}

// busy returns how long the machine's CPUs have worked, s: all times in the
// first line of /proc/stat but idle and iowait, in 1/100 s (proc_stat(5)).
func busy() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 8 {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	sum := 0.0
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += v / 100
	}
	return sum, nil
}
