// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The agent is stopped and goes on with these.
const (
	stop = syscall.SIGSTOP
	goOn = syscall.SIGCONT
)

// check counts what the kernel holds for peers: routes, neighbours,
// forwarding entries, and elements of the guard's sets.
func (n *node) check(ctx context.Context) error {
	families := map[string]int{"-4": netlink.FAMILY_V4}
	sets := []string{"peers4", "bind4_inner4_24"}
	if n.q.Dual {
		families["-6"] = netlink.FAMILY_V6
		sets = append(sets, "peers6", "bind6_inner6_64")
	}
	for flag, family := range families {
		routes, err := n.Run(ctx, "ip", "-o", flag, "route", "show", "proto", "87")
		if err != nil {
			return err
		}
		if got := strings.Count(routes, "\n"); got != n.q.Peers {
			return fmt.Errorf("%d routes of ip %s, want %d", got, flag, n.q.Peers)
		}
		err = n.Netlink(func(h *netlink.Handle) error {
			neighs, err := h.NeighListExecute(netlink.Ndmsg{Family: uint8(family), State: unix.NUD_PERMANENT})
			permanent := 0
			for _, e := range neighs {
				if e.State == unix.NUD_PERMANENT && !e.IP.IsMulticast() {
					permanent++
				}
			}
			if err == nil && permanent != n.q.Peers {
				err = fmt.Errorf("%d neighbours of ip %s, want %d", permanent, flag, n.q.Peers)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, set := range sets {
		out, err := n.Run(ctx, "nft", "list", "set", "inet", "weft", set)
		if err != nil {
			return err
		}
		_, elements, _ := strings.Cut(out, "elements = {")
		elements, _, _ = strings.Cut(elements, "}")
		if got := strings.Count(elements, ",") + 1; got != n.q.Peers {
			return fmt.Errorf("%d elements in set %s, want %d", got, set, n.q.Peers)
		}
	}
	fdb, err := n.Run(ctx, "bridge", "fdb", "show")
	if err != nil {
		return err
	}
	if got := strings.Count(fdb, " dev weft.1 dst "); got != n.q.Peers {
		return fmt.Errorf("%d forwarding entries on weft.1, want %d", got, n.q.Peers)
	}
	return nil
}

// confirmedSince counts permanent neighbours that were written since then:
// an entry that is replaced by the same makes no event, but is confirmed anew.
func (n *node) confirmedSince(begin time.Time) (int, error) {
	age := time.Since(begin)
	fresh := 0
	err := n.Netlink(func(h *netlink.Handle) error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			neighs, err := h.NeighListExecute(netlink.Ndmsg{Family: uint8(family)})
			if err != nil {
				return err
			}
			for _, e := range neighs {
				if e.State == unix.NUD_PERMANENT && !e.IP.IsMulticast() && time.Duration(e.Confirmed)*tick < age {
					fresh++
				}
			}
		}
		return nil
	})
	return fresh, err
}

func writeFile(name, content string) error { return os.WriteFile(name, []byte(content), 0o644) }
