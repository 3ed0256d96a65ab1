// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// nics returns every device with its addresses.
func (k *Kernel) nics(ctx context.Context) ([]nic, error) {
	msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
			nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var out []nic
	at := map[int]int{}
	for _, m := range msgs {
		l, err := decodeLink(m)
		if err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		at[l.index] = len(out)
		out = append(out, nic{rawLink: l})
	}
	for _, f := range subnet.Families() {
		msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
			return request(unix.RTM_GETADDR, 0, ifaddrmsg{family: afOf(f)})
		})
		if err != nil {
			return nil, fmt.Errorf("list %v addresses: %w", f, err)
		}
		for _, m := range msgs {
			a, index, ok := decodeNICAddr(m)
			if i, known := at[index]; ok && known && subnet.FamilyOf(a.ip) == f {
				out[i].addrs = append(out[i].addrs, a)
			}
		}
	}
	return out, nil
}

// decodeNICAddr reads an RTM_NEWADDR message as the owner of the address sees
// it.
func decodeNICAddr(msg []byte) (a nicAddr, index int, ok bool) {
	if len(msg) < unix.SizeofIfAddrmsg {
		return a, 0, false
	}
	a.flags = uint32(msg[2])
	var local, address netip.Addr
	for t, v := range attrs(msg[unix.SizeofIfAddrmsg:]) {
		switch t {
		case unix.IFA_LOCAL: // not there for IPv6 without a peer
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS: // all 32 bits; the header has 8
			a.flags = u32(v)
		}
	}
	a.ip = cmp.Or(local, address)
	a.net = netip.PrefixFrom(cmp.Or(address, local), int(msg[1])).Masked()
	return a, int(u32(msg[4:])), a.ip.IsValid()
}

// usable says why n cannot be an underlay, or "". named says that an operator
// wrote its name or address.
func (f *finder) usable(n nic, named bool) string {
	switch {
	case slices.Contains(f.spec.Skip, n.name):
		return "is our own"
	case n.flags&unix.IFF_LOOPBACK != 0:
		return "is loopback"
	case n.kind == kindVXLAN && !named:
		return "is a VXLAN device"
	case n.flags&unix.IFF_UP == 0:
		return "is down"
	}
	return ""
}

// address picks n's address of a family: pin if it is one, else a public one,
// else one to keep, else the first primary one. Of IPv6 addresses of one scope
// the kernel lists the newest first (ipv6_link_dev_addr, net/ipv6/addrconf.c):
// there it is the oldest, and one that has a link before a /128, such as a
// virtual address is.
func (n nic) address(f subnet.Family, pin netip.Addr, public, keep []netip.Addr) (nicAddr, bool) {
	for i, named := range slices.Concat([]netip.Addr{pin}, public, keep) {
		asked := i <= len(public) // an operator did
		for _, a := range n.addrs {
			if a.ip == named.Unmap() && subnet.FamilyOf(a.ip) == f && a.usable(asked) {
				return a, true
			}
		}
	}
	var best nicAddr
	for _, a := range n.addrs {
		if subnet.FamilyOf(a.ip) == f && a.usable(false) && (!best.ip.IsValid() || a.before(best)) {
			best = a
		}
	}
	return best, best.ip.IsValid()
}

// before reports whether a, listed after o, is the better underlay address.
// The bit that says secondary of IPv4 says temporary of IPv6, which is no
// underlay address; see usable.
func (a nicAddr) before(o nicAddr) bool {
	if a.ip.Is4() {
		return o.flags&unix.IFA_F_SECONDARY != 0 && a.flags&unix.IFA_F_SECONDARY == 0
	}
	return o.net.IsSingleIP() || !a.net.IsSingleIP()
}

// usable reports whether a can be the source of outer packets. An address
// that somebody named may be on its way out.
func (a nicAddr) usable(named bool) bool {
	never := uint32(unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED)
	if !named {
		never |= unix.IFA_F_DEPRECATED
		if a.ip.Is6() {
			never |= unix.IFA_F_TEMPORARY
		}
	}
	return a.ip.IsGlobalUnicast() && a.flags&never == 0 // global unicast excludes link-local, loopback and multicast
}

// routeTo asks the kernel which device and source address packets to an
// address get.
func (k *Kernel) routeTo(ctx context.Context, to netip.Addr) (index int, src netip.Addr, err error) {
	f := subnet.FamilyOf(to)
	msgs, err := k.conn.do(ctx, request(unix.RTM_GETROUTE, 0,
		&nl.RtMsg{RtMsg: unix.RtMsg{Family: afOf(f), Dst_len: uint8(to.BitLen())}},
		nl.NewRtAttr(unix.RTA_DST, to.AsSlice())))
	if err != nil {
		return 0, netip.Addr{}, err
	}
	for _, m := range msgs {
		if len(m) < unix.SizeofRtMsg {
			continue
		}
		for t, v := range attrs(m[unix.SizeofRtMsg:]) {
			switch t {
			case unix.RTA_OIF:
				index = int(u32(v))
			case unix.RTA_PREFSRC:
				src, _ = netip.AddrFromSlice(v)
			}
		}
	}
	return index, src, nil
}

// unreachable reports whether err is the kernel's way to say that no route
// leads there.
func unreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) ||
		errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// defaultRoutes returns the default routes of a family that have a device,
// the one the kernel prefers first.
func (k *Kernel) defaultRoutes(ctx context.Context, f subnet.Family) ([]rawRoute, error) {
	head := unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN}
	routes, err := gatherRoutes(ctx, k.conn, head, 0, func(out []rawRoute, msg []byte) []rawRoute {
		if bitsOf(msg) != 0 {
			return out // thousands, or a whole Internet: not even decoded
		}
		r, ok := decodeRoute(msg, f)
		if !ok || r.typ != unix.RTN_UNICAST || r.tos != 0 || r.hops[0].index == 0 {
			return out
		}
		r.attrs = bytes.Clone(r.attrs)
		return append(out, r)
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(routes, func(a, b rawRoute) int { return cmp.Compare(a.metric, b.metric) })
	return routes, nil
}

// LocalAddrs returns the addresses of the calling thread's network namespace
// on whatever device, without loopback and link-local ones, sorted.
func LocalAddrs(ctx context.Context) ([]netip.Addr, error) {
	nics, err := allNICs(ctx)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, n := range nics {
		for _, a := range n.addrs {
			if !a.ip.IsLoopback() && !a.ip.IsLinkLocalUnicast() {
				out = append(out, a.ip)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// OwnDevices returns the VXLAN devices of the calling thread's network
// namespace whose name is one of stems followed by their VNI in decimal:
// those that an agent of any configuration may have made. Sorted.
func OwnDevices(ctx context.Context, stems []string) ([]string, error) {
	nics, err := allNICs(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range nics {
		if n.kind != kindVXLAN {
			continue
		}
		vni := strconv.FormatUint(uint64(decodeVXLAN(n.data).vni), 10)
		if slices.ContainsFunc(stems, func(s string) bool { return n.name == s+vni }) {
			out = append(out, n.name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// allNICs returns every device of the calling thread's network namespace.
func allNICs(ctx context.Context) ([]nic, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	return (&Kernel{conn: c}).nics(ctx)
}
