// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// deafen makes the node's agent miss every event of the kernel without it
// noticing, until the returned function is called.
//
// The lab takes duplicates of the agent's event sockets (pidfd_getfd(2)) and
// attaches a socket filter to them that accepts nothing (SO_ATTACH_FILTER,
// socket(7)). The kernel runs it when it delivers a multicast message to a
// netlink socket (do_one_broadcast, net/netlink/af_netlink.c): the message is
// gone, and there is no ENOBUFS, as there would be after an overrun, that
// would tell the agent to look. What the agent asks for itself goes through
// other sockets, so it works on as before.
func deafen(n *netlab.Node) (restore func() error, err error) {
	pid := n.AgentPID()
	inodes, err := eventSockets(pid)
	if err != nil {
		return nil, fmt.Errorf("event sockets of weftd on %s: %w", n, err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	var socks []int
	undo := func() error {
		var first error
		for _, fd := range socks {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil && first == nil {
				first = fmt.Errorf("let weftd on %s hear again: %w", n, err)
			}
			unix.Close(fd)
		}
		socks = nil
		return first
	}
	for _, target := range inodes {
		fd, err := unix.PidfdGetfd(pidfd, target, 0)
		if err == nil {
			socks = append(socks, fd)
			nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing})
		}
		if err != nil {
			undo() // the first error is the one to report
			return nil, fmt.Errorf("deafen descriptor %d of weftd on %s: %w", target, n, err)
		}
	}
	return undo, nil
}

// eventSockets returns the descriptors of a process that are netlink sockets
// with a subscription to a multicast group.
func eventSockets(pid int) ([]int, error) {
	subscribed, err := netlinkSockets(pid)
	if err != nil {
		return nil, err
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	var out []int
	for _, f := range fds {
		to, err := os.Readlink(f)
		if err != nil {
			continue // closed meanwhile
		}
		inode := strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")
		if _, ok := subscribed[inode]; ok {
			var fd int
			if _, err := fmt.Sscan(filepath.Base(f), &fd); err != nil {
				return nil, err
			}
			out = append(out, fd)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("process %d has none", pid)
	}
	return out, nil
}

// netlinkSockets returns the netlink sockets with subscriptions in a process's
// network namespace, by inode, with the number of messages that were dropped
// because there was no room (/proc/net/netlink: sk Eth Pid Groups Rmem Wmem
// Dump Locks Drops Inode).
func netlinkSockets(pid int) (map[string]int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 10 || f[0] == "sk" || strings.Trim(f[3], "0") == "" {
			continue
		}
		var drops int
		if _, err := fmt.Sscan(f[8], &drops); err != nil {
			return nil, fmt.Errorf("/proc/%d/net/netlink: %q: %w", pid, line, err)
		}
		out[f[9]] = drops
	}
	return out, nil
}

// overruns returns how many events the agent's sockets had no room for.
func overruns(n *netlab.Node) (int, error) {
	socks, err := netlinkSockets(n.AgentPID())
	if err != nil {
		return 0, fmt.Errorf("event sockets of weftd on %s: %w", n, err)
	}
	sum := 0
	for _, drops := range socks {
		sum += drops
	}
	return sum, nil
}
