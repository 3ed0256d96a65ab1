// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Monitor hears what changes in a network namespace. It is subscribed from
// the moment it is made, so that nothing is missed between NewMonitor and Run.
type Monitor struct {
	sock    *nl.NetlinkSocket
	devices []string
	own     map[int32]bool // indexes that the own devices have or had
}

// NewMonitor subscribes to links, addresses, neighbours and routes (rtnetlink
// groups, linux/rtnetlink.h) of the calling thread's network namespace.
// devices names our own devices, whether they exist yet or not.
func NewMonitor(devices []string) (*Monitor, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to rtnetlink events: %w", err)
	}
	// Room for a storm; an overrun costs no more than the audit it causes.
	if s.SetReceiveBufferSize(receiveBuffer, true) != nil {
		_ = s.SetReceiveBufferSize(receiveBuffer, false)
	}
	m := &Monitor{sock: s, devices: slices.Clone(devices), own: map[int32]bool{}}
	for _, d := range devices {
		if i, err := net.InterfaceByName(d); err == nil {
			m.own[int32(i.Index)] = true
		}
	}
	return m, nil
}

// Run calls own after events that concern our devices and what is on them,
// and host after events of other links and their addresses, until ctx ends;
// it returns ctx.Err() then. Neither may block. What has changed is not said:
// whoever is called looks at the whole. That is why events that the kernel
// had to drop (ENOBUFS) are no error but one more call of both. Run closes the
// monitor.
//
// A link that goes down takes its IPv4 routes with it without a word about
// them (no RTM_DELROUTE), so events of routes alone would not be enough.
func (m *Monitor) Run(ctx context.Context, own, host func()) error {
	stop := context.AfterFunc(ctx, m.sock.Close)
	defer func() {
		if stop() {
			m.sock.Close()
		}
	}()
	for {
		msgs, _, err := m.sock.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			m.discard(ctx)
			own()
			host()
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("receive rtnetlink events: %w", err)
		}
		var ours, others bool
		for _, msg := range msgs {
			o, h := m.concerns(msg)
			ours, others = ours || o, others || h
		}
		if ours {
			own()
		}
		if others {
			host()
		}
	}
}

// discard empties the queue after an overrun. Until it is empty the kernel
// drops further events without another ENOBUFS (NETLINK_S_CONGESTED,
// net/netlink/af_netlink.c), so only a look at the whole that comes after
// covers them all.
func (m *Monitor) discard(ctx context.Context) {
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		_, _, err := unix.Recvfrom(m.sock.GetFd(), buf, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// concerns reports whether a message is about our devices and whether it is
// about other links or their addresses. Neighbours of other devices, which
// come and go all the time, are about neither.
func (m *Monitor) concerns(msg syscall.NetlinkMessage) (own, host bool) {
	switch msg.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		// struct ifinfomsg: the index is at 4. Bridge ports are announced as
		// AF_BRIDGE too; those are no news about a link.
		index, ok := indexAt(msg.Data, 4)
		if !ok || msg.Data[0] == unix.AF_BRIDGE {
			return false, false
		}
		if m.named(msg.Data) {
			m.own[index] = true
		}
		return m.own[index], !m.own[index]
	case unix.RTM_NEWADDR, unix.RTM_DELADDR: // struct ifaddrmsg: index at 4
		index, ok := indexAt(msg.Data, 4)
		return ok && m.own[index], ok && !m.own[index]
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH: // struct ndmsg: index at 4
		index, ok := indexAt(msg.Data, 4)
		return ok && m.own[index], false
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return m.routeIsOurs(msg), false
	}
	return false, false
}

// named reports whether a link message carries the name of an own device.
func (m *Monitor) named(data []byte) bool {
	if len(data) < unix.SizeofIfInfomsg {
		return false
	}
	for typ, val := range attrs(data[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_IFNAME {
			return slices.Contains(m.devices, string(bytes.TrimRight(val, "\x00")))
		}
	}
	return false
}

// routeIsOurs reports whether a route message is about one of our devices, or
// may be about one that took the place of a route of ours.
func (m *Monitor) routeIsOurs(msg syscall.NetlinkMessage) bool {
	if len(msg.Data) < unix.SizeofRtMsg {
		return false
	}
	if msg.Header.Flags&unix.NLM_F_REPLACE != 0 {
		return true
	}
	for typ, val := range attrs(msg.Data[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_OIF:
			index, ok := indexAt(val, 0)
			return ok && m.own[index]
		case unix.RTA_MULTIPATH:
			return true // may name one of ours; rare
		}
	}
	return false
}

func indexAt(b []byte, at int) (int32, bool) {
	if len(b) < at+4 {
		return 0, false
	}
	return int32(binary.NativeEndian.Uint32(b[at:])), true
}
