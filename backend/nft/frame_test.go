// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// be appends 16-bit numbers in network order.
func be(b []byte, v ...int) []byte {
	for _, n := range v {
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	return b
}

func ethernet(dst, src string, typ int, payload []byte) []byte {
	return append(be([]byte(dst+src), typ), payload...)
}

func etherTypeOf(a netip.Addr) int {
	if a.Is4() {
		return etherIPv4
	}
	return etherIPv6
}

// packet is an IP packet; before lies between the IP header and the payload:
// IPv4 options, or one IPv6 extension header whose first byte is filled in.
type packet struct {
	src, dst netip.Addr
	proto    byte
	before   []byte
	beforeIs byte // protocol number of before (IPv6)
	payload  []byte
	id       uint32
	offset   int // of a fragment, bytes
	more     bool
	fragment bool
}

func (p packet) bytes() []byte {
	if p.src.Is4() {
		frag := p.offset / 8
		if p.more {
			frag |= 0x2000
		}
		n := 20 + len(p.before)
		b := be([]byte{0x40 | byte(n/4), 0}, n+len(p.payload), int(p.id), frag)
		b = be(append(b, 64, p.proto), 0)
		b = append(append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...), p.before...)
		binary.BigEndian.PutUint16(b[10:], checksum(b))
		return append(b, p.payload...)
	}
	next, ext := p.proto, []byte(nil)
	if p.fragment {
		frag := p.offset
		if p.more {
			frag |= 1
		}
		ext = binary.BigEndian.AppendUint32(be([]byte{next, 0}, frag), p.id)
		next = unix.IPPROTO_FRAGMENT
	}
	if p.before != nil {
		before := slices.Clone(p.before)
		before[0] = next
		ext, next = append(before, ext...), p.beforeIs
	}
	b := be([]byte{0x60, 0, 0, 0}, len(ext)+len(p.payload))
	b = append(b, next, 64)
	b = append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...)
	return append(append(b, ext...), p.payload...)
}

// split cuts p into two fragments, the first with cut bytes of payload.
func (p packet) split(cut int, id uint32) []packet {
	a, b := p, p
	a.fragment, b.fragment = true, true
	a.id, b.id = id, id
	a.payload, a.more = p.payload[:cut], true
	b.payload, b.offset = p.payload[cut:], cut
	return []packet{a, b}
}

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			sum += w
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// transport is the packet with a checksum over pseudo header and payload
// written at the given offset of the payload.
func transport(src, dst netip.Addr, proto byte, at int, payload []byte) packet {
	pseudo := be(append(src.AsSlice(), dst.AsSlice()...), 0, len(payload), int(proto))
	binary.BigEndian.PutUint16(payload[at:], checksum(pseudo, payload))
	return packet{src: src, dst: dst, proto: proto, payload: payload}
}

func udp(src, dst netip.Addr, sport, dport int, payload []byte) packet {
	return transport(src, dst, unix.IPPROTO_UDP, 6, append(be(nil, sport, dport, 8+len(payload), 0), payload...))
}

// vxlan wraps an Ethernet frame (RFC 7348 section 5).
func vxlan(vni uint32, frame []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8)
	return append(b, frame...)
}

// seen is what a test reads off the wire.
type seen struct {
	src, dst     netip.Addr
	sport, dport int
}

// parse reads an unfragmented UDP packet without options off an Ethernet
// frame.
func parse(frame []byte) (seen, bool) {
	if len(frame) < 14 {
		return seen{}, false
	}
	ip := frame[14:]
	var at, proto, n int
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		at, proto, n = 12, 9, 4
	case etherIPv6:
		at, proto, n = 8, 6, 16
	default:
		return seen{}, false
	}
	th := at + 2*n
	if len(ip) < th+8 || ip[proto] != unix.IPPROTO_UDP {
		return seen{}, false
	}
	src, _ := netip.AddrFromSlice(ip[at : at+n])
	dst, _ := netip.AddrFromSlice(ip[at+n : th])
	return seen{src, dst, int(binary.BigEndian.Uint16(ip[th:])), int(binary.BigEndian.Uint16(ip[th+2:]))}, true
}
