// SPDX-License-Identifier: Apache-2.0

package backend

import (
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
	nhid  uint32          // nexthop group; then there is no dst
	extra map[uint16]bool // which of NDA_PORT, NDA_VNI, NDA_IFINDEX, ... are there
	key   []*nl.RtAttr    // all that names it, to delete exactly this one
}

func decodeFDB(msg []byte) (rawFDB, bool) {
	h, rest, ok := decodeNdmsg(msg)
	if !ok || h.family != unix.AF_BRIDGE || h.flags&unix.NTF_SELF == 0 {
		return rawFDB{}, false
	}
	e := rawFDB{ndmsg: h, extra: map[uint16]bool{}}
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
			e.extra[t] = true
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_SRC_VNI, unix.NDA_IFINDEX:
			e.extra[t] = true
		default:
			continue
		}
		e.key = append(e.key, nl.NewRtAttr(int(t), v))
	}
	return e, e.dst.IsValid() || e.nhid != 0
}

// static reports whether the entry stays until somebody deletes it.
func (e rawFDB) static() bool { return e.state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 }

// plain reports whether overlay.FDB says all there is to say about e.
func (e rawFDB) plain() bool { return e.static() && len(e.extra) == 0 }

// overlay translates e; see Dump for entries that are not plain.
func (e rawFDB) overlay(dev string) overlay.FDB {
	f := overlay.FDB{Dev: dev, MAC: e.mac}
	if e.plain() {
		f.Dst = e.dst
	}
	return f
}

// fdb returns dev's FDB. Entries that a device learned by itself are left out
// while it is meant to learn: they come and go with traffic.
func (k *Kernel) fdb(ctx context.Context, dev device) ([]rawFDB, error) {
	msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETNEIGH, 0, ndmsg{family: unix.AF_BRIDGE, index: dev.index})
	})
	if err != nil {
		return nil, err
	}
	var out []rawFDB
	for _, m := range msgs {
		if e, ok := decodeFDB(m); ok && e.index == dev.index && (e.static() || !dev.learning) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (k *Kernel) dumpFDB(ctx context.Context, dev device, s overlay.Set[overlay.FDB]) error {
	entries, err := k.fdb(ctx, dev)
	for _, e := range entries {
		s.Add(e.overlay(dev.name))
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
func (k *Kernel) deleteOdd(ctx context.Context, dev device, mac subnet.MAC) error {
	entries, err := k.fdb(ctx, dev)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.mac != mac || e.plain() {
			continue
		}
		r := request(unix.RTM_DELNEIGH, 0, ndmsg{family: unix.AF_BRIDGE, index: dev.index, flags: unix.NTF_SELF})
		for _, a := range e.key {
			if e.nhid != 0 && a.Type != unix.NDA_LLADDR && a.Type != unix.NDA_SRC_VNI {
				continue // the whole entry goes; the kernel refuses NDA_NH_ID here
			}
			r.AddData(a)
		}
		if err := k.conn.change(ctx, r); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}
