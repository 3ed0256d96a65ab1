// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// kindVeth and kindBridge are the drivers' names in IFLA_INFO_KIND.
const (
	kindVeth   = "veth"
	kindBridge = "bridge"
)

// Attachment is a veth device on the pods' bridge, with what can be seen of
// its other end.
type Attachment struct {
	Host  string // the end on the bridge
	Index int    // of Host
	// Addrs are the addresses of the pod's end, sorted, without link-local
	// ones. Empty while the pod is being set up.
	Addrs []netip.Addr
	// Unreadable says why Addrs is not known. Then it is nil, which must
	// not be taken for a pod without addresses.
	Unreadable error
}

// errNoPeer is why an attachment is Unreadable whose other end has gone, or
// is going, with its network namespace.
var errNoPeer = errors.New("the network namespace of its other end is going")

// Attachments returns the veth devices on a bridge of the calling thread's
// network namespace, by name; none where there is no such bridge. The pods'
// ends are read through the ids that the kernel gives to their network
// namespaces (IFLA_LINK_NETNSID, IFA_TARGET_NETNSID; Linux 4.20), which takes
// CAP_NET_ADMIN and enters none of them. A pod that comes or goes meanwhile
// may be missing or Unreadable.
func Attachments(ctx context.Context, bridge string) ([]Attachment, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	k := &Kernel{conn: c}
	b, found, err := k.link(ctx, bridge, 0)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up bridge %s: %w", bridge, err)
	case !found:
		return nil, nil
	case b.kind != kindBridge:
		return nil, &ForeignDeviceError{Dev: bridge, Kind: b.kind}
	}
	ports, err := k.ports(ctx, b.index)
	if err != nil {
		return nil, fmt.Errorf("list the ports of bridge %s: %w", bridge, err)
	}
	var out []Attachment
	for _, p := range ports {
		a := Attachment{Host: p.name, Index: p.index}
		a.Addrs, a.Unreadable = k.peerAddrs(ctx, p)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Attachment) int { return strings.Compare(a.Host, b.Host) })
	return out, nil
}

// ports returns the veth devices whose master has the given index.
func (k *Kernel) ports(ctx context.Context, master int) ([]rawLink, error) {
	msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
			nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))),
			nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	})
	if err != nil {
		return nil, err
	}
	var out []rawLink
	for _, m := range msgs {
		l, err := decodeLink(m)
		if err != nil {
			return nil, err
		}
		if l.master == master && l.kind == kindVeth {
			out = append(out, l)
		}
	}
	return out, nil
}

// peerAddrs reads the addresses of a veth device's other end. Without a
// network namespace id that end is in this namespace: a pod's that has not
// been moved there, or has come back.
func (k *Kernel) peerAddrs(ctx context.Context, l rawLink) ([]netip.Addr, error) {
	if l.peer == 0 || l.elsewhere && l.netns < 0 {
		return nil, errNoPeer
	}
	var out []netip.Addr
	for _, f := range subnet.Families() {
		msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
			r := request(unix.RTM_GETADDR, 0, ifaddrmsg{family: afOf(f), index: l.peer})
			if l.elsewhere {
				r.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.netns))))
			}
			return r
		})
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV): // no such id, or no such device, any more
			return nil, fmt.Errorf("%w: %w", errNoPeer, err)
		case err != nil:
			return nil, fmt.Errorf("list %v addresses of the other end of %s: %w", f, l.name, err)
		}
		for _, m := range msgs {
			a, index, ok := decodeNICAddr(m)
			if ok && index == l.peer && subnet.FamilyOf(a.ip) == f && !a.ip.IsLinkLocalUnicast() {
				out = append(out, a.ip)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}

// DeleteVeth deletes the veth device with the given name and index, and with
// it the pod's end. One that is not there any more is no error; a device with
// one of both, or of another kind, is, and stays.
func DeleteVeth(ctx context.Context, name string, index int) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	k := &Kernel{conn: c}
	l, found, err := k.link(ctx, "", index)
	switch {
	case err != nil:
		return fmt.Errorf("look up device %s: %w", name, err)
	case !found:
		return nil
	case l.name != name || l.kind != kindVeth:
		return fmt.Errorf("delete veth %s: device %d is now %s of kind %q", name, index, l.name, l.kind)
	}
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(index)
	if err := c.change(ctx, request(unix.RTM_DELLINK, 0, h)); err != nil && !gone(err) {
		return fmt.Errorf("delete veth %s: %w", name, err)
	}
	return nil
}
