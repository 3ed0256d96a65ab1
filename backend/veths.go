// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Veth is a veth device, on the pods' bridge or not.
type Veth struct {
	Attachment
	Netns *int // id of the other end's network namespace; nil for this one, or one that is going
	Port  bool // of the bridge
	Bare  bool // of no bridge, nor a slave of anything else
}

// Veths returns every veth device of the calling thread's network namespace,
// by name. Addresses are read as Attachments does, whatever the veth is on:
// flannel's pods may be on a bridge of another name. A bridge that does not exist
// has no ports.
func Veths(ctx context.Context, bridge string) ([]Veth, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	k := &Kernel{conn: c}
	msgs, err := c.dump(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
			nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var veths []rawLink
	master := -1 // of the bridge's ports
	for _, m := range msgs {
		l, err := decodeLink(m)
		switch {
		case err != nil:
			return nil, fmt.Errorf("list devices: %w", err)
		case l.kind == kindVeth:
			veths = append(veths, l)
		case l.kind == kindBridge && l.name == bridge:
			master = l.index
		}
	}
	var out []Veth
	for _, l := range veths {
		v := Veth{Attachment: Attachment{Host: l.name, Index: l.index}, Port: l.master == master, Bare: l.master == 0}
		if l.elsewhere && l.netns >= 0 {
			v.Netns = &l.netns
		}
		v.Addrs, v.Unreadable = k.peerAddrs(ctx, l)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Veth) int { return strings.Compare(a.Host, b.Host) })
	return out, nil
}

// DeleteBridge deletes a bridge of the calling thread's network namespace and
// sets its ports free. One that is not there is no error; a device of that name
// and of another kind is a ForeignDeviceError, and stays.
func DeleteBridge(ctx context.Context, name string) (found bool, err error) {
	c, err := dial()
	if err != nil {
		return false, err
	}
	defer c.close()
	l, found, err := (&Kernel{conn: c}).link(ctx, name, 0)
	switch {
	case err != nil:
		return false, fmt.Errorf("look up bridge %s: %w", name, err)
	case !found:
		return false, nil
	case l.kind != kindBridge:
		return false, &ForeignDeviceError{Dev: name, Kind: l.kind}
	}
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(l.index)
	if err := c.change(ctx, request(unix.RTM_DELLINK, 0, h)); err != nil && !gone(err) {
		return true, fmt.Errorf("delete bridge %s: %w", name, err)
	}
	return true, nil
}
