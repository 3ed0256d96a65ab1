// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// applyLink makes one change to a device. Add of a device that exists changes
// it in place where that is enough, and else replaces it.
func (k *Kernel) applyLink(ctx context.Context, op overlay.Op, want overlay.Link) error {
	cur, found, err := k.ownLink(ctx, want.Name)
	switch {
	case err != nil:
		return err
	case op == overlay.Delete && !found:
		return nil
	case op == overlay.Delete:
		return k.deleteLink(ctx, cur)
	case op == overlay.Modify && !found:
		return unix.ENODEV
	case !found:
		return k.createLink(ctx, want)
	}
	have, err := k.overlayLink(ctx, cur)
	if err != nil {
		return err
	}
	if op == overlay.Replace || op == overlay.Add && !inPlace(have, want) {
		if err := k.deleteLink(ctx, cur); err != nil {
			return err
		}
		return k.createLink(ctx, want)
	}
	return k.modifyLink(ctx, cur.index, have, want)
}

// inet6MinMTU is the MTU below which Linux switches IPv6 off on a device (RFC
// 8200 section 5; IPV6_MIN_MTU, net/ipv6.h).
const inet6MinMTU = 1280

// inPlace reports whether have can become want without a new device.
func inPlace(have, want overlay.Link) bool {
	have.MAC, have.MTU, have.Learning = want.MAC, want.MTU, want.Learning
	have.NoGRO, have.Up, have.RPFilter, have.AddrGen = want.NoGRO, want.Up, want.RPFilter, want.AddrGen
	return have == want
}

func (k *Kernel) deleteLink(ctx context.Context, cur rawLink) error {
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(cur.index)
	if err := k.conn.change(ctx, request(unix.RTM_DELLINK, 0, h)); err != nil && !gone(err) {
		return err
	}
	k.log.WithField("dev", cur.name).WithField("op", "delete").Info("device deleted")
	return nil
}

// createLink makes the device in three steps. MAC and MTU are in the first,
// so that the device never has others and the MAC counts as set by hand
// (NET_ADDR_SET, linux/netdevice.h), which udev respects. rp_filter and the
// address generation mode are refused there (EAFNOSUPPORT on Linux 6.18) and
// follow while the device is still down, so that no link-local address appears.
func (k *Kernel) createLink(ctx context.Context, want overlay.Link) error {
	underlay := 0
	if want.Underlay != "" {
		l, found, err := k.link(ctx, want.Underlay, 0)
		if err == nil && !found {
			err = unix.ENODEV
		}
		if err != nil {
			return fmt.Errorf("underlay %s: %w", want.Underlay, err)
		}
		underlay = l.index
	}
	if err := k.conn.change(ctx, createRequest(want, underlay)); err != nil {
		return k.explainCreate(ctx, want, err)
	}
	k.log.WithField("dev", want.Name).WithField("op", "add").Info("device created")
	l, found, err := k.ownLink(ctx, want.Name)
	if err == nil && !found {
		err = unix.ENODEV
	}
	if err != nil {
		return fmt.Errorf("look up the new device: %w", err)
	}
	have, err := k.overlayLink(ctx, l)
	if err != nil {
		return err
	}
	have.MTU = want.MTU // the kernel may have reduced it: the next dump tells
	return k.modifyLink(ctx, l.index, have, want)
}

// createRequest asks for a VXLAN device. It says what flannel v0.28 says
// (pkg/backend/vxlan/device.go); the rest are the kernel's defaults.
func createRequest(want overlay.Link, underlay int) *nl.NetlinkRequest {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kindVXLAN))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(unix.IFLA_VXLAN_ID, nl.Uint32Attr(want.VNI))
	data.AddRtAttr(unix.IFLA_VXLAN_PORT, nl.BEUint16Attr(want.Port))
	data.AddRtAttr(unix.IFLA_VXLAN_LEARNING, boolean(want.Learning))
	if underlay != 0 {
		data.AddRtAttr(unix.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(underlay)))
	}
	switch subnet.FamilyOf(want.Local) {
	case subnet.IPv4:
		data.AddRtAttr(unix.IFLA_VXLAN_LOCAL, want.Local.AsSlice())
	case subnet.IPv6:
		data.AddRtAttr(unix.IFLA_VXLAN_LOCAL6, want.Local.AsSlice())
	}
	if want.GBP {
		data.AddRtAttr(unix.IFLA_VXLAN_GBP, nil)
	}
	return request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(want.Name)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, want.MAC[:]),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(want.MTU))),
		info)
}

func boolean(b bool) []byte {
	if b {
		return []byte{1}
	}
	return []byte{0}
}

// modifyLink sets what differs, each by a request of its own so that one that
// is refused stops no other, and up or down last.
func (k *Kernel) modifyLink(ctx context.Context, index int, have, want overlay.Link) error {
	if !inPlace(have, want) {
		return fmt.Errorf("only MAC, MTU, learning, gro, rp_filter, addrgenmode and up can change in place: have %s, want %s", have, want)
	}
	var errs []error
	set := func(name string, value any, parts ...nl.NetlinkRequestData) {
		if err := k.conn.change(ctx, request(unix.RTM_SETLINK, 0, parts...)); err != nil {
			errs = append(errs, fmt.Errorf("set %s %v: %w", name, value, err))
		}
	}
	head := func() *nl.IfInfomsg {
		h := nl.NewIfInfomsg(unix.AF_UNSPEC)
		h.Index = int32(index)
		return h
	}
	if have.MAC != want.MAC { // flushes the neighbours even if it is the same
		set("address", want.MAC, head(), nl.NewRtAttr(unix.IFLA_ADDRESS, want.MAC[:]))
	}
	if have.MTU != want.MTU {
		r := request(unix.RTM_SETLINK, 0, head(), nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(want.MTU))))
		if err := k.conn.change(ctx, r); err != nil {
			errs = append(errs, k.explainMTU(ctx, want, err))
		}
	}
	if have.Learning != want.Learning {
		if err := k.conn.change(ctx, learningRequest(head(), want.Learning)); err != nil {
			errs = append(errs, fmt.Errorf("set learning %v: %w", want.Learning, err))
		}
	}
	if have.NoGRO != want.NoGRO {
		if err := k.conn.setGRO(want.Name, !want.NoGRO); err != nil {
			errs = append(errs, err)
		}
	}
	if have.RPFilter != want.RPFilter {
		set("rp_filter", want.RPFilter, head(), inetConf(want.RPFilter))
	}
	// Raising the MTU gives the device its IPv6 half back, with defaults.
	if have.AddrGen != want.AddrGen || have.MTU < inet6MinMTU && want.MTU >= inet6MinMTU {
		if spec, err := addrGenSpec(want.AddrGen); err != nil {
			errs = append(errs, err)
		} else {
			set("addrgenmode", want.AddrGen, head(), spec)
		}
	}
	if have.Up != want.Up {
		if err := k.setUp(ctx, head(), want); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setUp sets the device that h names up or down, as want says.
func (k *Kernel) setUp(ctx context.Context, h *nl.IfInfomsg, want overlay.Link) error {
	h.Change = unix.IFF_UP
	if want.Up {
		h.Flags = unix.IFF_UP
	}
	if err := k.conn.change(ctx, request(unix.RTM_SETLINK, 0, h)); err != nil {
		return k.explainUp(ctx, want, err)
	}
	return nil
}

// learningRequest changes a VXLAN device in place. Such a request may carry
// nothing that vxlan_changelink refuses, an MTU for one.
func learningRequest(h *nl.IfInfomsg, on bool) *nl.NetlinkRequest {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kindVXLAN))
	info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(unix.IFLA_VXLAN_LEARNING, boolean(on))
	return request(unix.RTM_NEWLINK, 0, h, info)
}

// inetConf sets net.ipv4.conf.DEV.rp_filter without /proc/sys.
func inetConf(rpFilter uint8) *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil).
		AddRtAttr(devconfRPFilter, nl.Uint32Attr(uint32(rpFilter)))
	return spec
}

// addrGenSpec sets the IPv6 address generation mode.
func addrGenSpec(mode string) (*nl.RtAttr, error) {
	for i, name := range addrGenModes() {
		if name == mode {
			spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
			spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(uint8(i)))
			return spec, nil
		}
	}
	return nil, fmt.Errorf("addrgenmode %q: want one of %q", mode, addrGenModes())
}
