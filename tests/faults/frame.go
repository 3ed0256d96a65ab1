// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

const vxlanPort = 8472

// be appends 16-bit numbers in network order.
func be(b []byte, v ...int) []byte {
	for _, n := range v {
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	return b
}

func ethernet(dst, src []byte, a netip.Addr, payload []byte) []byte {
	typ := unix.ETH_P_IP
	if a.Is6() {
		typ = unix.ETH_P_IPV6
	}
	b := append(append([]byte(nil), dst...), src...)
	return append(be(b, typ), payload...)
}

// A packet is IP with a payload, or a fragment of one.
type packet struct {
	src, dst netip.Addr
	proto    byte
	payload  []byte
	id       uint32
	offset   int // of a fragment, bytes
	more     bool
	fragment bool
}

func (p packet) bytes() []byte {
	if p.src.Is4() { // RFC 791 section 3.1
		frag := p.offset / 8
		if p.more {
			frag |= 0x2000
		}
		b := be([]byte{0x45, 0}, 20+len(p.payload), int(p.id&0xffff), frag)
		b = be(append(b, 64, p.proto), 0)
		b = append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[10:], checksum(b))
		return append(b, p.payload...)
	}
	next, ext := p.proto, []byte(nil)
	if p.fragment { // RFC 8200 section 4.5
		frag := p.offset
		if p.more {
			frag |= 1
		}
		ext = binary.BigEndian.AppendUint32(be([]byte{next, 0}, frag), p.id)
		next = unix.IPPROTO_FRAGMENT
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

// checksum is that of RFC 1071.
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

func udp(src, dst netip.Addr, sport, dport int, payload []byte) packet {
	body := append(be(nil, sport, dport, 8+len(payload), 0), payload...)
	pseudo := be(append(src.AsSlice(), dst.AsSlice()...), 0, len(body), unix.IPPROTO_UDP)
	binary.BigEndian.PutUint16(body[6:], checksum(pseudo, body))
	return packet{src: src, dst: dst, proto: unix.IPPROTO_UDP, payload: body}
}

// vxlan wraps an Ethernet frame (RFC 7348 section 5).
func vxlan(vni uint32, frame []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8)
	return append(b, frame...)
}
