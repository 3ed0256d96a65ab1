// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// Attribute names of linux/neighbour.h and linux/if_addr.h that
// golang.org/x/sys/unix lacks or that are clearer by one name.
const (
	ndaNHID = 0xd // NDA_NH_ID, Linux 5.8

	afInet  = unix.AF_INET
	afInet6 = unix.AF_INET6
)

// ndmsg is struct ndmsg (linux/neighbour.h).
type ndmsg struct {
	family uint8
	index  int
	state  uint16
	flags  uint8
	typ    uint8
}

const sizeofNdmsg = 12

func (m ndmsg) Len() int { return sizeofNdmsg }

func (m ndmsg) Serialize() []byte {
	b := make([]byte, 4, sizeofNdmsg)
	b[0] = m.family
	b = append(b, nl.Uint32Attr(uint32(m.index))...)
	b = append(b, nl.Uint16Attr(m.state)...)
	return append(b, m.flags, m.typ)
}

func decodeNdmsg(b []byte) (ndmsg, []byte, bool) {
	if len(b) < sizeofNdmsg {
		return ndmsg{}, nil, false
	}
	return ndmsg{family: b[0], index: int(int32(u32(b[4:]))), state: u16(b[8:]), flags: b[10], typ: b[11]}, b[sizeofNdmsg:], true
}

// ifaddrmsg is struct ifaddrmsg (linux/if_addr.h).
type ifaddrmsg struct {
	family, bits, flags, scope uint8
	index                      int
}

func (m ifaddrmsg) Len() int { return unix.SizeofIfAddrmsg }

func (m ifaddrmsg) Serialize() []byte {
	return append([]byte{m.family, m.bits, m.flags, m.scope}, nl.Uint32Attr(uint32(m.index))...)
}

// dumpAddrs adds dev's addresses of family f to s.
func (k *Kernel) dumpAddrs(ctx context.Context, dev device, f subnet.Family, s overlay.Set[overlay.Addr]) error {
	msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETADDR, 0, ifaddrmsg{family: afOf(f), index: dev.index})
	})
	if errors.Is(err, unix.ENODEV) {
		return nil // gone since we asked for the link: the next dump shows it
	}
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if a, index, ok := decodeAddr(m); ok && index == dev.index {
			s.Add(overlay.Addr{Dev: dev.name, Prefix: a})
		}
	}
	return nil
}

// decodeAddr reads an RTM_NEWADDR message. ok is false for an IPv6 link-local
// address and for what is no IP address.
func decodeAddr(msg []byte) (p netip.Prefix, index int, ok bool) {
	if len(msg) < unix.SizeofIfAddrmsg {
		return p, 0, false
	}
	var local, address netip.Addr
	for t, v := range attrs(msg[unix.SizeofIfAddrmsg:]) {
		switch t {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(v)
		}
	}
	if !address.IsValid() { // the prefix; differs from the local address on a point-to-point link
		address = local
	}
	p = netip.PrefixFrom(address, int(msg[1]))
	ok = p.IsValid() && !(address.Is6() && address.IsLinkLocalUnicast())
	return p, int(u32(msg[4:])), ok
}

// addrRequest adds or deletes an address. A new one replaces lifetimes that
// somebody put on it, and is used at once: it is derived from a lease that
// nobody else holds, so duplicate address detection would only delay it.
func addrRequest(a overlay.Addr, index int, del bool) *nl.NetlinkRequest {
	m := ifaddrmsg{family: afOf(subnet.FamilyOf(a.Prefix.Addr())), bits: uint8(a.Prefix.Bits()), index: index}
	ip := a.Prefix.Addr().AsSlice()
	address := nl.NewRtAttr(unix.IFA_ADDRESS, ip)
	if del { // without IFA_LOCAL it matches whatever the local address is
		return request(unix.RTM_DELADDR, 0, m, address)
	}
	if a.Prefix.Addr().Is6() {
		m.flags = unix.IFA_F_NODAD
	}
	return request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, nl.NewRtAttr(unix.IFA_LOCAL, ip), address)
}

// dumpNeighs hands dev's permanent unicast neighbours of family f to to.
func (k *Kernel) dumpNeighs(ctx context.Context, dev device, f subnet.Family, to sink[overlay.Neigh]) error {
	err := k.tables.conn.stream(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETNEIGH, 0, ndmsg{family: afOf(f)}, nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(dev.index))))
	}, to.begin, func(m []byte) {
		if n, index, ok := decodeNeigh(m); ok && index == dev.index {
			n.Dev = dev.name
			to.add(n)
		}
	})
	if err == nil {
		to.end()
	}
	return err
}

// decodeNeigh reads an RTM_NEWNEIGH message of an IP family. ok is false for
// an entry that is not permanent: the kernel made it, and a permanent one of
// ours takes its place without asking.
func decodeNeigh(msg []byte) (n overlay.Neigh, index int, ok bool) {
	h, rest, ok := decodeNdmsg(msg)
	if !ok || h.family != afInet && h.family != afInet6 || h.state&unix.NUD_PERMANENT == 0 {
		return n, 0, false
	}
	for t, v := range attrs(rest) {
		switch t {
		case unix.NDA_DST:
			n.IP, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			if len(v) == len(n.MAC) {
				n.MAC = subnet.MAC(v)
			}
		}
	}
	return n, h.index, n.IP.IsValid() && !n.IP.IsMulticast()
}

// neighRequest sets or deletes a neighbour.
func neighRequest(n overlay.Neigh, index int, del bool) *nl.NetlinkRequest {
	m := ndmsg{family: afOf(subnet.FamilyOf(n.IP)), index: index, typ: unix.RTN_UNICAST}
	dst := nl.NewRtAttr(unix.NDA_DST, n.IP.AsSlice())
	if del {
		return request(unix.RTM_DELNEIGH, 0, m, dst)
	}
	m.state = unix.NUD_PERMANENT
	return request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, dst, nl.NewRtAttr(unix.NDA_LLADDR, n.MAC[:]))
}
