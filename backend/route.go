// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// rtaNHID is RTA_NH_ID (linux/rtnetlink.h, Linux 5.3).
const rtaNHID = 0x1e

// sizeofRTNexthop is the size of struct rtnexthop (linux/rtnetlink.h).
const sizeofRTNexthop = 8

// hop is one path of a route.
type hop struct {
	index  int // 0 when the message does not say
	via    netip.Addr
	onlink bool
}

// rawRoute is an RTM_NEWROUTE message of the main table.
type rawRoute struct {
	dst    netip.Prefix
	src    netip.Addr
	metric uint32
	proto  uint8
	typ    uint8
	tos    uint8
	hops   []hop
	odd    bool   // has attributes that weft never sets
	attrs  []byte // of the message
}

// decodeRoute reads a message of family f. ok is false for one of another
// family or table, and for a cached copy of a route. The result's attrs share
// the message's memory.
func decodeRoute(msg []byte, f subnet.Family) (r rawRoute, ok bool) {
	if len(msg) < unix.SizeofRtMsg || msg[0] != afOf(f) {
		return r, false
	}
	h, rest := nl.DeserializeRtMsg(msg), msg[unix.SizeofRtMsg:]
	table := uint32(h.Table)
	r = rawRoute{proto: h.Protocol, typ: h.Type, tos: h.Tos, odd: h.Tos != 0, attrs: rest}
	base := netip.IPv4Unspecified()
	if f == subnet.IPv6 {
		base = netip.IPv6Unspecified()
	}
	single := hop{onlink: h.Flags&unix.RTNH_F_ONLINK != 0}
	var paths []hop
	for t, v := range attrs(rest) {
		switch t {
		case unix.RTA_DST:
			base, _ = netip.AddrFromSlice(v)
		case unix.RTA_TABLE:
			table = u32(v)
		case unix.RTA_PRIORITY:
			r.metric = u32(v)
		case unix.RTA_PREFSRC:
			r.src, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			single.index = int(u32(v))
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			single.via = gateway(t, v)
			r.odd = r.odd || t == unix.RTA_VIA
		case unix.RTA_MULTIPATH:
			paths = decodeHops(v)
			r.odd = true
		case unix.RTA_METRICS, unix.RTA_ENCAP, unix.RTA_FLOW, rtaNHID:
			r.odd = true
		case unix.RTA_CACHEINFO: // struct rta_cacheinfo: rta_expires is its third member
			r.odd = r.odd || len(v) >= 12 && u32(v[8:]) != 0
		}
	}
	r.dst = netip.PrefixFrom(base, int(h.Dst_len))
	r.hops = append(paths, single)
	if len(paths) > 0 {
		r.hops = paths
	}
	return r, table == unix.RT_TABLE_MAIN && r.dst.IsValid() && h.Flags&unix.RTM_F_CLONED == 0
}

// bitsOf and protoOf read the prefix length and the protocol of a route message
// (struct rtmsg, linux/rtnetlink.h) before anything of it is decoded. 0 where
// there is none.

func bitsOf(msg []byte) uint8  { return headOf(msg).Dst_len }
func protoOf(msg []byte) uint8 { return headOf(msg).Protocol }

func headOf(msg []byte) unix.RtMsg {
	if len(msg) < unix.SizeofRtMsg {
		return unix.RtMsg{}
	}
	return unix.RtMsg{Family: msg[0], Dst_len: msg[1], Src_len: msg[2], Tos: msg[3], Table: msg[4], Protocol: msg[5], Scope: msg[6], Type: msg[7]}
}

// key returns the attributes that tell r from its twins when it is deleted,
// besides dst, metric, proto and tos. A nexthop object excludes the description
// of its content.
func (r rawRoute) key() []*nl.RtAttr {
	var out []*nl.RtAttr
	for t, v := range attrs(r.attrs) {
		switch t {
		case rtaNHID:
			return []*nl.RtAttr{nl.NewRtAttr(rtaNHID, v)}
		case unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH, unix.RTA_METRICS, unix.RTA_PREFSRC:
			out = append(out, nl.NewRtAttr(int(t), v))
		}
	}
	return out
}

// gateway reads RTA_GATEWAY, or RTA_VIA: a gateway of the other family, after
// two bytes that name it (struct rtvia).
func gateway(t uint16, v []byte) netip.Addr {
	if t == unix.RTA_VIA && len(v) > 2 {
		v = v[2:]
	}
	a, _ := netip.AddrFromSlice(v)
	return a
}

// decodeHops reads RTA_MULTIPATH: a list of struct rtnexthop, each followed by
// its attributes.
func decodeHops(b []byte) []hop {
	var out []hop
	for len(b) >= sizeofRTNexthop {
		n := int(u16(b))
		if n < sizeofRTNexthop || n > len(b) {
			return out
		}
		h := hop{index: int(u32(b[4:])), onlink: b[2]&unix.RTNH_F_ONLINK != 0}
		for t, v := range attrs(b[sizeofRTNexthop:n]) {
			if t == unix.RTA_GATEWAY || t == unix.RTA_VIA {
				h.via = gateway(t, v)
			}
		}
		out = append(out, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}

// on returns r as overlay sees it: one Route for each path on dev. A path
// without a device is on dev, because the kernel picked r when asked for dev.
func (r rawRoute) on(dev device) iter.Seq[overlay.Route] {
	return func(yield func(overlay.Route) bool) {
		if r.typ != unix.RTN_UNICAST || r.proto == unix.RTPROT_KERNEL {
			return
		}
		for _, h := range r.hops {
			if h.index != dev.index && h.index != 0 {
				continue
			}
			if !yield(overlay.Route{
				Dev: dev.name, Dst: r.dst, Via: h.via, Src: r.src, Metric: r.metric,
				Onlink: h.onlink && !r.odd, Proto: r.proto,
			}) {
				return
			}
		}
	}
}

// routes returns the main table's routes of family f that keep wants. When
// index is not 0, only those that use that device. There may be a whole
// Internet of them: what is not kept is dropped as it comes.
func (k *Kernel) routes(ctx context.Context, f subnet.Family, index int, keep func(rawRoute) bool) ([]rawRoute, error) {
	head := unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN}
	return gatherRoutes(ctx, k.conn, head, index, func(out []rawRoute, m []byte) []rawRoute {
		r, ok := decodeRoute(m, f)
		if !ok || !keep(r) {
			return out
		}
		r.attrs = bytes.Clone(r.attrs)
		return append(out, r)
	})
}

// dumpRoutes hands dev's routes of family f to to.
func (k *Kernel) dumpRoutes(ctx context.Context, dev device, f subnet.Family, to sink[overlay.Route]) error {
	head := unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN}
	err := k.tables.conn.streamRoutes(ctx, head, dev.index, to.begin, func(m []byte) {
		if r, ok := decodeRoute(m, f); ok {
			for o := range r.on(dev) {
				to.add(o)
			}
		}
	})
	if err == nil {
		to.end()
	}
	return err
}

// gatherRoutes returns what collect makes of the routes that match head and,
// when index is not 0, use that device: see gather and streamRoutes.
func gatherRoutes[E any](ctx context.Context, c *conn, head unix.RtMsg, index int, collect func(out []E, m []byte) []E) ([]E, error) {
	var out []E
	err := c.streamRoutes(ctx, head, index, func() { out = out[:0] }, func(m []byte) { out = collect(out, m) })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// streamRoutes hands the routes that match head and, when index is not 0, use
// that device to each: see stream. The kernel filters where it can (strict
// checking, Linux 4.20): each looks again.
func (c *conn) streamRoutes(ctx context.Context, head unix.RtMsg, index int, begin func(), each func(m []byte)) error {
	err := c.stream(ctx, func() *nl.NetlinkRequest {
		r := request(unix.RTM_GETROUTE, 0, &nl.RtMsg{RtMsg: head})
		if index != 0 {
			r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
		}
		return r
	}, begin, each)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		begin() // no such table yet; or the device has just gone
		return nil
	}
	return err
}

// routeRequest adds or deletes a route. flags are NLM_F_EXCL or NLM_F_REPLACE
// for an addition. A deletion matches any scope.
func routeRequest(r overlay.Route, index int, flags int, del bool) *nl.NetlinkRequest {
	h := unix.RtMsg{
		Family: afOf(subnet.FamilyOf(r.Dst.Addr())), Dst_len: uint8(r.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: r.Proto, Type: unix.RTN_UNICAST,
	}
	typ := uint16(unix.RTM_NEWROUTE)
	switch {
	case del:
		typ, flags, h.Scope = unix.RTM_DELROUTE, 0, unix.RT_SCOPE_NOWHERE
	case !r.Via.IsValid() && r.Dst.Addr().Is4():
		h.Scope = unix.RT_SCOPE_LINK // the kernel wants link scope for what has no gateway
		flags |= unix.NLM_F_CREATE
	default:
		flags |= unix.NLM_F_CREATE
	}
	if r.Onlink && !del {
		h.Flags = unix.RTNH_F_ONLINK
	}
	m := request(typ, flags, &nl.RtMsg{RtMsg: h},
		nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()),
		nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	if r.Metric != 0 {
		m.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(r.Metric)))
	}
	if r.Via.IsValid() {
		m.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
	}
	if r.Src.IsValid() {
		m.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, r.Src.AsSlice()))
	}
	return m
}

// deleteRequest deletes exactly r.
func (r rawRoute) deleteRequest() *nl.NetlinkRequest {
	m := request(unix.RTM_DELROUTE, 0, &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: afOf(subnet.FamilyOf(r.dst.Addr())), Dst_len: uint8(r.dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: r.proto, Type: r.typ, Tos: r.tos, Scope: unix.RT_SCOPE_NOWHERE,
	}}, nl.NewRtAttr(unix.RTA_DST, r.dst.Addr().AsSlice()))
	if r.metric != 0 {
		m.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(r.metric)))
	}
	for _, a := range r.key() {
		m.AddData(a)
	}
	return m
}
