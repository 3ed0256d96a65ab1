// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// This file deals with routes on devices that are not ours: those to peers on
// our own link, of DirectRouting and host-gw.

// dumpDirect hands to to the main table's routes on other devices that are ours
// by their mark, and those that flannel may have left. The kernel picks both
// by their protocol, so that a large table of others costs a walk over it and
// no messages.
func (k *Kernel) dumpDirect(ctx context.Context, own []int, to sink[overlay.Route]) error {
	names := map[int]string{}
	elsewhere := func(index int) (name string, ok bool, err error) {
		name, known := names[index]
		if !known && index != 0 {
			l, found, err := k.link(ctx, "", index)
			if err != nil {
				return "", false, fmt.Errorf("look up device with index %d: %w", index, err)
			}
			if found && l.kind != kindVXLAN && !slices.Contains(k.devices, l.name) {
				name = l.name
			}
			names[index] = name
		}
		return name, name != "", nil
	}
	for _, f := range subnet.Families() {
		for _, proto := range []uint8{overlay.RouteProtocol, unix.RTPROT_BOOT} {
			if err := k.dumpProto(ctx, f, proto, own, elsewhere, to); err != nil {
				return fmt.Errorf("%v routes of protocol %d: %w", f, proto, err)
			}
		}
	}
	return nil
}

// dumpProto hands out the routes of one protocol. own are the indexes of
// our devices; elsewhere names a device that is not ours.
func (k *Kernel) dumpProto(ctx context.Context, f subnet.Family, proto uint8, own []int, elsewhere func(int) (string, bool, error), to sink[overlay.Route]) error {
	head := unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN, Protocol: proto}
	routes, err := gatherRoutes(ctx, k.tables.conn, head, 0, func(out []rawRoute, m []byte) []rawRoute {
		if oif := oifOf(m); oif != 0 && slices.Contains(own, oif) {
			return out // most are: no need to look closer
		}
		r, ok := decodeRoute(m, f)
		if !ok || r.proto != proto || proto == unix.RTPROT_BOOT && !r.flannelDirect() {
			return out
		}
		r.attrs = nil // of the message
		return append(out, r)
	})
	if err != nil {
		return err
	}
	to.begin()
	for _, r := range routes {
		for _, h := range r.hops {
			name, ok, err := elsewhere(h.index)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			for o := range r.on(device{name: name, index: h.index}) {
				to.add(o)
			}
		}
	}
	to.end()
	return nil
}

// oifOf reads the device of a route message, 0 if it names none.
func oifOf(msg []byte) int {
	if len(msg) < unix.SizeofRtMsg {
		return 0
	}
	v, _ := attr(msg[unix.SizeofRtMsg:], unix.RTA_OIF)
	return int(u32(v))
}

// flannelDirect reports whether r looks like a route to a peer that flannel
// v0.28 makes without VXLAN (pkg/backend/hostgw, and DirectRouting in
// pkg/backend/vxlan): a prefix, a gateway outside of it, and the rest as the
// kernel chooses. Other people's static routes look the same: whoever takes
// one over has to know prefix and gateway.
func (r rawRoute) flannelDirect() bool {
	const inet6Default = 1024 // metric, IP6_RT_PRIO_USER (net/ip6_route.h)
	metric := uint32(0)
	if r.dst.Addr().Is6() {
		metric = inet6Default
	}
	return r.proto == unix.RTPROT_BOOT && r.typ == unix.RTN_UNICAST && !r.odd && r.metric == metric && !r.src.IsValid() &&
		len(r.hops) == 1 && r.hops[0].index != 0 && !r.hops[0].onlink &&
		r.hops[0].via.IsValid() && r.dst.Bits() > 0 && !r.dst.Contains(r.hops[0].via)
}

// mayHold reports whether an entry may be on a device that is not ours: a
// route with our mark, or one that flannel left, to be deleted.
func mayHold(c overlay.Change) bool {
	r, ok := c.Entry.(overlay.Route)
	return ok && (r.Proto == overlay.RouteProtocol || c.Op == overlay.Delete && r.Proto == unix.RTPROT_BOOT && r.Via.IsValid() && !r.Onlink)
}

// leftByFlannel reports whether deleting e is deleting a route that flannel
// left on a device that is not ours: all that names it is in e.
func (k *Kernel) leftByFlannel(e overlay.Route) bool {
	return e.Proto == unix.RTPROT_BOOT && !slices.Contains(k.devices, e.Dev)
}

// is reports whether r is what Dump showed as e on a device that is not ours.
func (r rawRoute) is(e overlay.Entry) bool {
	o, ok := e.(overlay.Route)
	return ok && r.flannelDirect() && r.dst == o.Dst && r.metric == o.Metric && r.proto == o.Proto && r.hops[0].via == o.Via
}

// besideGateway makes a change that the kernel has refused with cause (EINVAL)
// because another route leads the IPv6 gateway elsewhere: it asks that before
// it looks at RTNH_F_ONLINK (ip6_route_check_nh_onlink, net/ipv6/route.c), and
// also when that other route is the one to be replaced. So a route to the
// gateway alone goes ahead, for that moment. Thus the old route stays until
// the new one is there, as in IPv4.
func (a *applier) besideGateway(ctx context.Context, c overlay.Change, dev device, cause error) error {
	r, ok := c.Entry.(overlay.Route)
	if !ok || !r.Via.Is6() || !r.Onlink || c.Op == overlay.Delete {
		return cause
	}
	if !r.Dst.Contains(r.Via) { // elsewhere it might lead others' packets astray
		return a.k.explainRoute(ctx, c.Entry, dev, cause)
	}
	helper := overlay.Route{Dev: r.Dev, Dst: netip.PrefixFrom(r.Via, r.Via.BitLen()), Metric: 1, Proto: overlay.RouteProtocol}
	err := a.k.conn.change(ctx, routeRequest(helper, dev.index, unix.NLM_F_EXCL, false))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return a.k.explainRoute(ctx, c.Entry, dev, cause)
	}
	err = a.k.conn.change(ctx, message(c, dev.index))
	if errors.Is(err, unix.EEXIST) {
		err = a.exists(ctx, c, dev, err)
	}
	// Whatever happened: nobody else deletes it before the next pass.
	gone := a.k.conn.change(context.WithoutCancel(ctx), routeRequest(helper, dev.index, 0, true))
	if gone != nil {
		gone = fmt.Errorf("delete the route to gateway %s: %w", r.Via, gone)
	}
	if errors.Is(err, unix.EINVAL) {
		err = a.k.explainRoute(ctx, c.Entry, dev, err)
	}
	return errors.Join(err, gone)
}
