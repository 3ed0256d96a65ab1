// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Messages and attributes of linux/rtnetlink.h and linux/net_namespace.h.
const (
	rtmNewNSID = 88
	rtmGetNSID = 90
	netnsaNSID = 1
	netnsaFD   = 3
)

// netnsID returns the id that the network namespace at path has in the
// caller's, and gives it one if it has none. It stays the namespace's as long
// as that lives, and every veth that leads there names it. This is the only
// netlink of its own that the plugin speaks: two messages of fixed form.
func netnsID(path string) (int, error) {
	ns, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close() // only read
	sock, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer func() { _ = syscall.Close(sock) }()
	fd := uint32(ns.Fd())
	// -1 asks for any free id; one that has its id already keeps it.
	if _, err := nsidRequest(sock, rtmNewNSID, syscall.NLM_F_ACK, fd, ^uint32(0)); err != nil && !errors.Is(err, syscall.EEXIST) {
		return 0, fmt.Errorf("give an id to network namespace %s: %w", path, err)
	}
	id, err := nsidRequest(sock, rtmGetNSID, 0, fd)
	if err != nil {
		return 0, fmt.Errorf("ask for the id of network namespace %s: %w", path, err)
	}
	if id < 0 {
		return 0, fmt.Errorf("network namespace %s has no id", path)
	}
	return int(id), nil
}

// isOwnNetns reports whether path leads to the network namespace that this
// process runs in.
func isOwnNetns(path string) bool {
	own := inode("/proc/self/ns/net")
	return own != 0 && inode(path) == own
}

// hasInterface reports whether the network namespace at path has an interface
// of that name. The thread that looks comes back: it may be the first one,
// which does not end with its goroutine, and whose namespace passes for that of
// the process.
func hasInterface(path, name string) (has bool, err error) {
	ns, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer ns.Close() // only read
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return false, err
	}
	defer home.Close() // only read
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return false, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	all, err := net.Interfaces()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return false, fmt.Errorf("leave network namespace %s: %w", path, back) // on this thread nothing may run any more
	}
	runtime.UnlockOSThread()
	return slices.ContainsFunc(all, func(i net.Interface) bool { return i.Name == name }), err
}

// nsidRequest sends one message and reads its answer: an acknowledgement, for
// which it returns -1, or an id.
func nsidRequest(sock int, typ, flags uint16, fd uint32, id ...uint32) (int32, error) {
	ne := binary.NativeEndian
	body := []byte{0, 0, 0, 0} // struct rtgenmsg, padded
	attr := func(typ uint16, value uint32) {
		body = ne.AppendUint16(body, 8)
		body = ne.AppendUint16(body, typ)
		body = ne.AppendUint32(body, value)
	}
	attr(netnsaFD, fd)
	for _, v := range id {
		attr(netnsaNSID, v)
	}
	msg := ne.AppendUint32(nil, uint32(syscall.NLMSG_HDRLEN+len(body)))
	msg = ne.AppendUint16(msg, typ)
	msg = ne.AppendUint16(msg, syscall.NLM_F_REQUEST|flags)
	msg = append(msg, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port
	msg = append(msg, body...)
	if err := syscall.Sendto(sock, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return -1, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(sock, buf, 0)
	if err != nil {
		return -1, os.NewSyscallError("recvfrom", err)
	}
	return parseNSID(buf[:n])
}

// parseNSID reads an answer to nsidRequest.
func parseNSID(answer []byte) (int32, error) {
	msgs, err := syscall.ParseNetlinkMessage(answer)
	if err != nil {
		return -1, err
	}
	ne := binary.NativeEndian
	for _, m := range msgs {
		switch {
		case m.Header.Type == syscall.NLMSG_ERROR && len(m.Data) >= 4:
			if errno := int32(ne.Uint32(m.Data)); errno != 0 {
				return -1, syscall.Errno(-errno)
			}
			return -1, nil
		case m.Header.Type == rtmNewNSID && len(m.Data) >= 4:
			for rest := m.Data[4:]; len(rest) >= 8; {
				size, typ := int(ne.Uint16(rest)), ne.Uint16(rest[2:])
				if typ == netnsaNSID && size == 8 {
					return int32(ne.Uint32(rest[4:])), nil
				}
				size = (size + 3) &^ 3
				if size < 4 || size > len(rest) {
					return -1, errors.New("the kernel's answer is cut short")
				}
				rest = rest[size:]
			}
		}
	}
	return -1, errors.New("the kernel's answer has no id")
}

// inode returns the number of the namespace behind path, 0 when there is none.
func inode(path string) uint64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}
