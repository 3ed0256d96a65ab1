// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// observe returns what was seen of the agent while do ran, and until all of it
// had arrived.
func (n *kubeNode) observe(do func() error) (s span, err error) {
	begin := time.Now()
	heard, err := n.heard()
	if err != nil {
		return s, err
	}
	cpu, err := cpuOf(n.AgentPID())
	if err != nil {
		return s, err
	}
	received, sent, err := n.traffic()
	if err != nil {
		return s, err
	}
	if err := do(); err != nil {
		return s, err
	}
	s.Seconds = time.Since(begin).Seconds()
	after, afterSent, err := n.traffic()
	if err != nil {
		return s, err
	}
	if after < received || afterSent < sent {
		return s, errors.New("the agent has connected anew: its traffic was not counted")
	}
	s.Received, s.Sent = after-received, afterSent-sent
	afterCPU, err := cpuOf(n.AgentPID())
	if err != nil {
		return s, err
	}
	s.CPU = (afterCPU - cpu).Seconds()
	afterHeard, err := n.heard()
	if err != nil {
		return s, err
	}
	fresh, err := n.confirmedSince(begin)
	s.Writes = afterHeard - heard + fresh
	return s, err
}

// traffic returns what the node has received and sent on TCP connections to the
// API server, bytes of payload, as the kernel counts them. Nobody but the agent
// connects to it from there.
func (n *kubeNode) traffic() (received, sent uint64, err error) {
	u, err := url.Parse(n.srv.URL)
	if err != nil {
		return 0, 0, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return 0, 0, err
	}
	connections := 0
	err = n.Do(func() error {
		all, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
		for _, c := range all {
			if int(c.InetDiagMsg.ID.DestinationPort) == port && c.TCPInfo != nil {
				connections++
				received += c.TCPInfo.Bytes_received
				sent += c.TCPInfo.Bytes_acked
			}
		}
		return err
	})
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("connections of %s: %w", n, err)
	case connections == 0:
		return 0, 0, fmt.Errorf("%s has no connection to %s", n, n.srv.URL)
	}
	return received, sent, nil
}

// heard is how many writes the monitors of everything have heard of so far.
func (n *kubeNode) heard() (sum int, err error) {
	for _, m := range n.wide {
		heard, _, err := m.state()
		if err != nil {
			return 0, err
		}
		sum += heard
	}
	return sum, nil
}

// listenToAll starts monitors of whatever an agent could write on a node, be it
// its own or not: links, addresses, neighbours, routes, rules, nexthops and
// nftables.
func listenToAll(n *netlab.Node) ([]*monitor, error) {
	var groups uint32
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF} {
		groups |= 1 << (g - 1)
	}
	route, err := listenOn(n, unix.NETLINK_ROUTE, groups, written)
	if err != nil {
		return nil, err
	}
	nft, err := listenOn(n, unix.NETLINK_NETFILTER, 1<<(unix.NFNLGRP_NFTABLES-1), func(syscall.NetlinkMessage) bool { return true })
	return []*monitor{route, nft}, err
}

// written reports whether somebody has written what an event tells of: the
// kernel itself tells of neighbours, too, as it finds them.
func written(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return concerns(m)
	}
	return true
}
