// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
)

// DropAddrs removes the addresses of device dev that drop says yes to, and with
// them the kernel's routes to their subnets, and returns those that were there. A
// device that does not exist has none. drop is asked of addresses with their
// prefix length, link-local ones left out.
func DropAddrs(ctx context.Context, dev string, drop func(netip.Prefix) bool) (dropped []netip.Prefix, err error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	nics, err := (&Kernel{conn: c}).nics(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nics {
		if n.name != dev {
			continue
		}
		for _, a := range n.addrs {
			p := netip.PrefixFrom(a.ip, a.net.Bits())
			if a.ip.IsLinkLocalUnicast() || !drop(p) {
				continue
			}
			// With IFA_LOCAL it is this address, and no other of its subnet.
			r := addrRequest(overlay.Addr{Dev: dev, Prefix: p}, n.index, true)
			r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.ip.AsSlice()))
			if err := c.change(ctx, r); err != nil && !gone(err) {
				return dropped, fmt.Errorf("delete addr %v dev %s: %w", p, dev, err)
			}
			dropped = append(dropped, p)
		}
	}
	return dropped, nil
}
