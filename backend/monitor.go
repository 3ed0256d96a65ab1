// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// The waits before a Monitor subscribes again after a failure. They double.
const (
	resubscribeMin = 100 * time.Millisecond
	resubscribeMax = 5 * time.Second
)

// A Monitor hears what changes in a network namespace. It is subscribed from
// the moment it is made, so that nothing is missed between Kernel.Monitor and
// Run.
type Monitor struct {
	k      *Kernel
	sock   *nl.NetlinkSocket
	cookie uint64         // of the namespace, 0 if the kernel does not say
	nft    *nft.Monitor   // nil where nftables is left alone
	own    map[int32]bool // indexes that the own devices have or had
	direct map[int32]bool // and those that other devices with routes of ours have or had
}

// Monitor subscribes to links, addresses, neighbours, routes and rules
// (rtnetlink groups, linux/rtnetlink.h), and with Options.Filter to our
// nftables table, of the namespace that k was made in. The calling thread has
// to be in it still.
func (k *Kernel) Monitor() (*Monitor, error) {
	m := &Monitor{k: k, own: map[int32]bool{}, direct: map[int32]bool{}, cookie: namespaceCookie(k.conn.sock)}
	if err := m.subscribe(); err != nil {
		return nil, err
	}
	if k.nft != nil {
		l, err := k.listenNFT()
		if err != nil {
			m.sock.Close()
			return nil, err
		}
		m.nft = l
	}
	return m, nil
}

// subscribe gives m a new socket.
func (m *Monitor) subscribe() error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return fmt.Errorf("subscribe to rtnetlink events: %w", err)
	}
	if namespaceCookie(s) != m.cookie {
		s.Close()
		return errors.New("subscribe to rtnetlink events: this thread is in another network namespace")
	}
	// Room for a storm; an overrun costs no more than the audit it causes.
	if s.SetReceiveBufferSize(receiveBuffer, true) != nil {
		_ = s.SetReceiveBufferSize(receiveBuffer, false)
	}
	m.sock = s
	return nil
}

// namespaceCookie identifies the network namespace of a socket. 0 before
// Linux 5.14: then nobody can tell.
func namespaceCookie(s *nl.NetlinkSocket) uint64 {
	c, err := unix.GetsockoptUint64(s.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return c
}

// Run calls own after events that concern our devices, what is on them, our
// routes elsewhere, rules or our nftables table, and host after events of
// other links and their addresses, until ctx ends; it returns ctx.Err() then.
// Neither may block, and both may be called from two goroutines. What has
// changed is not said: whoever is called looks at the whole. That is why
// events that the kernel had to drop (ENOBUFS) are no error but one more call
// of both, and so is a subscription that fails: Run takes a new one, for which
// it must be called in the same namespace. Run closes the monitor.
//
// A link that goes down takes its IPv4 routes with it without a word about
// them (no RTM_DELROUTE), so events of routes alone would not be enough.
func (m *Monitor) Run(ctx context.Context, own, host func()) error {
	var nftables sync.WaitGroup
	if m.nft != nil {
		nftables.Go(func() { m.runNFT(ctx, own) })
	}
	wait := resubscribeMin
	for again := false; ; again = true {
		since := time.Now()
		err := m.hear(ctx, own, host, again)
		if time.Since(since) > resubscribeMax {
			wait = resubscribeMin
		}
		for err != nil && ctx.Err() == nil {
			m.k.log.WithField("err", err).Warn("kernel events lost; listening anew")
			pause(ctx, wait)
			wait = min(2*wait, resubscribeMax)
			if err = m.subscribe(); err != nil {
				own() // until we hear again, looking is all there is
				host()
			}
		}
		if ctx.Err() != nil {
			nftables.Wait()
			return ctx.Err()
		}
	}
}

// runNFT does for the nftables table what Run does for the rest.
func (m *Monitor) runNFT(ctx context.Context, own func()) {
	wait := resubscribeMin
	for {
		since := time.Now()
		err := m.nft.Watch(ctx, own)
		if time.Since(since) > resubscribeMax {
			wait = resubscribeMin
		}
		for err != nil && ctx.Err() == nil {
			m.k.log.WithField("err", err).Warn("nftables events lost; listening anew")
			pause(ctx, wait)
			wait = min(2*wait, resubscribeMax)
			if m.nft, err = m.k.listenNFT(); err != nil {
				own()
			}
		}
		if ctx.Err() != nil {
			return
		}
		own()
	}
}

func (k *Kernel) listenNFT() (*nft.Monitor, error) {
	return nft.Listen(k.nft, nft.Table{Family: nft.Inet, Name: nft.TableName})
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// hear reads m's socket until it fails or ctx ends, and closes it. missed says
// that there may have been events before.
func (m *Monitor) hear(ctx context.Context, own, host func(), missed bool) error {
	stop := context.AfterFunc(ctx, m.sock.Close)
	defer func() {
		if stop() {
			m.sock.Close()
		}
	}()
	m.orient(ctx)
	if missed {
		own()
		host()
	}
	for {
		msgs, _, err := m.sock.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			m.discard(ctx)
			m.orient(ctx)
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

// orient finds out which indexes the own devices have, and which other
// devices carry routes of ours: the events that told may have been lost. What
// cannot be found out now is told by events, or by the next audit.
func (m *Monitor) orient(ctx context.Context) {
	for _, name := range m.k.devices {
		if l, found, err := m.k.link(ctx, name, 0); err == nil && found {
			m.own[int32(l.index)] = true
		}
	}
	for _, f := range subnet.Families() {
		head := unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN, Protocol: overlay.RouteProtocol}
		_, _ = gatherRoutes(ctx, m.k.conn, head, 0, func(_ []struct{}, msg []byte) []struct{} {
			m.carries(msg)
			return nil
		})
	}
}

// carries notes the device of a route of ours.
func (m *Monitor) carries(route []byte) {
	if i := int32(oifOf(route)); i != 0 && !m.own[i] {
		m.direct[i] = true
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
	if msg.Header.Pid == m.k.conn.pid && msg.Header.Type >= unix.RTM_NEWROUTE {
		if msg.Header.Type <= unix.RTM_DELROUTE {
			m.carries(msg.Data)
		}
		return false, false // our own doing: routes and neighbours say who asked
	}
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
		return m.own[index] || m.direct[index], !m.own[index]
	case unix.RTM_NEWADDR, unix.RTM_DELADDR: // struct ifaddrmsg: index at 4
		index, ok := indexAt(msg.Data, 4)
		return ok && (m.own[index] || m.direct[index]), ok && !m.own[index]
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH: // struct ndmsg: index at 4
		index, ok := indexAt(msg.Data, 4)
		return ok && m.own[index] && !m.k.isEcho(msg.Header.Type == unix.RTM_DELNEIGH, msg.Data), false
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return m.routeIsOurs(msg), false
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return true, false
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
			return slices.Contains(m.k.devices, string(bytes.TrimRight(val, "\x00")))
		}
	}
	return false
}

// routeIsOurs reports whether a route message is about one of our devices, or
// of a route with our mark, or may be about one that took the place of a route
// of ours.
func (m *Monitor) routeIsOurs(msg syscall.NetlinkMessage) bool {
	if len(msg.Data) < unix.SizeofRtMsg {
		return false
	}
	const protocol = 5 // in struct rtmsg
	if msg.Data[protocol] == overlay.RouteProtocol {
		m.carries(msg.Data)
		return true
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
