// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// rawFDB is one destination of a VXLAN device's FDB entry as dumped.
type rawFDB struct {
	ndmsg
	mac   subnet.MAC
	dst   netip.Addr
	nhid  uint32 // nexthop group; then there is no dst
	extra bool   // NDA_PORT, NDA_VNI, NDA_IFINDEX or the like is there
	attrs []byte // of the message
}

// decodeFDB reads an RTM_NEWNEIGH message of a VXLAN device. The result shares
// its memory.
func decodeFDB(msg []byte) (rawFDB, bool) {
	h, rest, ok := decodeNdmsg(msg)
	if !ok || h.family != unix.AF_BRIDGE || h.flags&unix.NTF_SELF == 0 {
		return rawFDB{}, false
	}
	e := rawFDB{ndmsg: h, attrs: rest}
	for t, v := range attrs(rest) {
		switch t {
		case unix.NDA_LLADDR:
			if len(v) == len(e.mac) {
				e.mac = subnet.MAC(v)
			}
		case unix.NDA_DST:
			e.dst, _ = netip.AddrFromSlice(v)
		case ndaNHID:
			e.nhid = u32(v)
			e.extra = true
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_SRC_VNI, unix.NDA_IFINDEX:
			e.extra = true
		}
	}
	return e, e.dst.IsValid() || e.nhid != 0
}

// static reports whether the entry stays until somebody deletes it.
func (e rawFDB) static() bool { return e.state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 }

// plain reports whether overlay.FDB says all there is to say about e.
func (e rawFDB) plain() bool { return e.static() && !e.extra }

// overlay translates e; see Dump for entries that are not plain.
func (e rawFDB) overlay(dev string) overlay.FDB {
	f := overlay.FDB{Dev: dev, MAC: e.mac}
	if e.plain() {
		f.Dst = e.dst
	}
	return f
}

// streamFDB hands dev's FDB entries to each: see stream. Those that a device
// learned by itself are left out while it is meant to learn: they come and go
// with traffic.
func (k *Kernel) streamFDB(ctx context.Context, dev device, begin func(), each func(e rawFDB)) error {
	return k.tables.conn.stream(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETNEIGH, 0, ndmsg{family: unix.AF_BRIDGE, index: dev.index})
	}, begin, func(m []byte) {
		if e, ok := decodeFDB(m); ok && e.index == dev.index && (e.static() || !dev.learning) {
			each(e)
		}
	})
}

func (k *Kernel) dumpFDB(ctx context.Context, dev device, to sink[overlay.FDB]) error {
	err := k.streamFDB(ctx, dev, to.begin, func(e rawFDB) { to.add(e.overlay(dev.name)) })
	if err == nil {
		to.end()
	}
	return err
}

// fdbRequest sets or deletes an FDB entry of a VXLAN device. Setting one that
// has another destination moves it (vxlan_fdb_replace, vxlan_core.c); setting
// one again as it is has no effect and is not announced.
func fdbRequest(f overlay.FDB, index int, del bool) *nl.NetlinkRequest {
	m := ndmsg{family: unix.AF_BRIDGE, index: index, flags: unix.NTF_SELF}
	mac, dst := nl.NewRtAttr(unix.NDA_LLADDR, f.MAC[:]), nl.NewRtAttr(unix.NDA_DST, f.Dst.AsSlice())
	if del {
		return request(unix.RTM_DELNEIGH, 0, m, mac, dst)
	}
	m.state = unix.NUD_PERMANENT
	return request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, mac, dst)
}

// deleteOdd deletes the entries of a MAC that are not plain, each by all that
// names it, so that a plain one beside them stays.
func (a *applier) deleteOdd(ctx context.Context, dev device, mac subnet.MAC) error {
	if a.oddFDB[dev.index] == nil {
		odd, err := a.k.oddFDB(ctx, dev)
		if err != nil {
			return err
		}
		a.oddFDB[dev.index] = odd
	}
	requests := a.oddFDB[dev.index][mac]
	delete(a.oddFDB[dev.index], mac) // once: a nexthop group's goes by its MAC alone
	for _, r := range requests {
		if err := a.k.conn.change(ctx, r); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// oddFDB returns requests that delete the entries of dev that are not plain.
func (k *Kernel) oddFDB(ctx context.Context, dev device) (map[subnet.MAC][]*nl.NetlinkRequest, error) {
	var odd []rawFDB
	err := k.streamFDB(ctx, dev, func() { odd = odd[:0] }, func(e rawFDB) {
		if !e.plain() {
			e.attrs = bytes.Clone(e.attrs)
			odd = append(odd, e)
		}
	})
	out := map[subnet.MAC][]*nl.NetlinkRequest{}
	for _, e := range odd {
		out[e.mac] = append(out[e.mac], e.deleteRequest())
	}
	return out, err
}

// deleteRequest deletes exactly e. Of an entry that leads to a nexthop group
// the whole goes: the kernel refuses NDA_NH_ID here.
func (e rawFDB) deleteRequest() *nl.NetlinkRequest {
	r := request(unix.RTM_DELNEIGH, 0, ndmsg{family: unix.AF_BRIDGE, index: e.index, flags: unix.NTF_SELF})
	for t, v := range attrs(e.attrs) {
		switch t {
		case unix.NDA_LLADDR, unix.NDA_SRC_VNI:
		case unix.NDA_DST, unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX:
			if e.nhid != 0 {
				continue
			}
		default:
			continue
		}
		r.AddData(nl.NewRtAttr(int(t), v))
	}
	return r
}
