// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// monitor hears every neighbour, forwarding entry and route that comes or goes
// on a node. It has nothing in common with the agent's.
type monitor struct {
	fd       int
	ended    chan struct{}
	concerns func(syscall.NetlinkMessage) bool // what counts

	mu      sync.Mutex
	heard   int       // events
	last    time.Time // of the last
	lost    bool      // the socket overran: nothing is certain
	awaited map[fdb]chan time.Time
}

// fdb is a forwarding entry.
type fdb struct {
	mac subnet.MAC
	dst netip.Addr
}

// listen starts a monitor on a node.
func listen(n *netlab.Node) (*monitor, error) {
	return listenOn(n, unix.NETLINK_ROUTE, unix.RTMGRP_NEIGH|unix.RTMGRP_IPV4_ROUTE|unix.RTMGRP_IPV6_ROUTE, concerns)
}

// listenOn starts a monitor of what concerns it in some groups of a netlink
// family.
func listenOn(n *netlab.Node, family int, groups uint32, concerns func(syscall.NetlinkMessage) bool) (*monitor, error) {
	m := &monitor{ended: make(chan struct{}), concerns: concerns, awaited: map[fdb]chan time.Time{}}
	err := n.Do(func() (err error) {
		m.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 512<<20),
			unix.Bind(m.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}),
			unix.SetsockoptTimeval(m.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("monitor %s: %w", n, err)
	}
	go m.read()
	return m, nil
}

// stop ends the monitor.
func (m *monitor) stop() {
	m.mu.Lock()
	fd := m.fd
	m.fd = -1
	m.mu.Unlock()
	if fd >= 0 {
		<-m.ended
		unix.Close(fd)
	}
}

func (m *monitor) read() {
	defer close(m.ended)
	buf := make([]byte, 1<<20)
	m.mu.Lock()
	fd := m.fd
	m.mu.Unlock()
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		now := time.Now()
		m.mu.Lock()
		over := m.fd < 0
		switch {
		case err == nil:
			m.take(buf[:n], now)
		case errors.Is(err, unix.ENOBUFS):
			m.lost = true
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			m.lost, over = true, true
		}
		m.mu.Unlock()
		if over {
			return
		}
	}
}

// take counts the events in b.
func (m *monitor) take(b []byte, now time.Time) {
	msgs, err := syscall.ParseNetlinkMessage(b)
	m.lost = m.lost || err != nil
	for _, msg := range msgs {
		if !m.concerns(msg) {
			continue
		}
		m.heard++
		m.last = now
		if len(m.awaited) == 0 || msg.Header.Type != unix.RTM_NEWNEIGH || len(msg.Data) < 12 || msg.Data[0] != unix.AF_BRIDGE {
			continue
		}
		e := entryOf(msg.Data[12:])
		if c, ok := m.awaited[e]; ok {
			c <- now
			delete(m.awaited, e)
		}
	}
}

// concerns reports whether an event is of an entry such as weft makes: a route
// with its mark, a forwarding entry, a permanent neighbour.
func concerns(m syscall.NetlinkMessage) bool {
	const weftsMark = 87
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) > 5 && m.Data[5] == weftsMark // rtm_protocol
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return len(m.Data) > 8 && m.Data[8]&unix.NUD_PERMANENT != 0 // ndm_state
	}
	return false
}

// entryOf reads the attributes of a forwarding entry (linux/neighbour.h).
func entryOf(b []byte) (e fdb) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(uint16(b[0]) | uint16(b[1])<<8) // both architectures are little-endian
		if n < unix.SizeofRtAttr || n > len(b) {
			return e
		}
		v := b[unix.SizeofRtAttr:n]
		switch uint16(b[2]) | uint16(b[3])<<8 {
		case unix.NDA_DST:
			e.dst, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			if len(v) == len(e.mac) {
				e.mac = subnet.MAC(v)
			}
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return e
}

// await returns a channel that tells when e comes.
func (m *monitor) await(e fdb) <-chan time.Time {
	c := make(chan time.Time, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awaited[e] = c
	return c
}

// state returns the number of events so far and when the last one came.
func (m *monitor) state() (heard int, last time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		err = errors.New("the monitor has missed events")
	}
	return m.heard, m.last, err
}
