// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// VXLAN attributes that golang.org/x/sys/unix does not name yet
// (linux/if_link.h, Linux 6.14 and 6.17).
const (
	iflaVXLANReservedBits = 0x21
	iflaVXLANMCRoute      = 0x22
)

// A vxlanAttr is an attribute that weft's create message leaves out. show
// renders the value the kernel reports, or "" when it is the one that
// leaving it out gives.
type vxlanAttr struct {
	typ  uint16
	show func(value []byte) string
}

// word shows a switch that is off unless somebody turned it on.
func word(on string) func([]byte) string {
	return func(b []byte) string {
		if u8(b) == 0 {
			return ""
		}
		return on
	}
}

// present shows an attribute without value, whose presence is its meaning.
func present(on string) func([]byte) string {
	return func([]byte) string { return on }
}

// off shows a switch that is on unless somebody turned it off.
func off(name string) func([]byte) string {
	return func(b []byte) string {
		if u8(b) != 0 {
			return ""
		}
		return name
	}
}

// number shows an integer other than 0.
func number(name string, read func([]byte) uint32) func([]byte) string {
	return func(b []byte) string {
		if read(b) == 0 {
			return ""
		}
		return fmt.Sprintf("%s %d", name, read(b))
	}
}

func octet(b []byte) uint32 { return uint32(u8(b)) }

// vxlanAttrs lists what weft never sets, in the order of `ip -d link`. The
// defaults are those of vxlan_nl2conf and vxlan_fill_info
// (drivers/net/vxlan/vxlan_core.c).
func vxlanAttrs() []vxlanAttr {
	return []vxlanAttr{
		{unix.IFLA_VXLAN_COLLECT_METADATA, word("external")},
		{unix.IFLA_VXLAN_VNIFILTER, word("vnifilter")},
		{unix.IFLA_VXLAN_GROUP, remote},
		{unix.IFLA_VXLAN_GROUP6, remote},
		{unix.IFLA_VXLAN_PORT_RANGE, portRange},
		{unix.IFLA_VXLAN_PROXY, word("proxy")},
		{unix.IFLA_VXLAN_RSC, word("rsc")},
		{unix.IFLA_VXLAN_L2MISS, word("l2miss")},
		{unix.IFLA_VXLAN_L3MISS, word("l3miss")},
		{unix.IFLA_VXLAN_TOS, number("tos", octet)},
		{unix.IFLA_VXLAN_TTL, number("ttl", octet)},
		{unix.IFLA_VXLAN_TTL_INHERIT, word("ttl inherit")},
		{unix.IFLA_VXLAN_DF, number("df", octet)},
		{unix.IFLA_VXLAN_LABEL, number("flowlabel", be32)},
		{unix.IFLA_VXLAN_LABEL_POLICY, number("flowlabel-policy", u32)},
		{unix.IFLA_VXLAN_LIMIT, number("maxaddr", u32)},
		{unix.IFLA_VXLAN_UDP_CSUM, off("noudpcsum")},
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, word("udp6zerocsumtx")},
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, word("udp6zerocsumrx")},
		{unix.IFLA_VXLAN_REMCSUM_TX, word("remcsumtx")},
		{unix.IFLA_VXLAN_REMCSUM_RX, word("remcsumrx")},
		{unix.IFLA_VXLAN_REMCSUM_NOPARTIAL, present("noremcsumpartial")},
		{unix.IFLA_VXLAN_LOCALBYPASS, off("nolocalbypass")},
		{unix.IFLA_VXLAN_GPE, present("gpe")},
		{iflaVXLANMCRoute, word("mcroute")},
	}
}

// foreignVXLAN returns what in seen differs from the device that weft's
// create message makes.
func foreignVXLAN(seen map[uint16][]byte, v vxlan) []string {
	var out []string
	for _, a := range vxlanAttrs() {
		if b, ok := seen[a.typ]; ok {
			if s := a.show(b); s != "" {
				out = append(out, s)
			}
		}
	}
	// Only learned entries age: without learning the time means nothing.
	const defaultAgeing = 300 // seconds, FDB_AGE_DEFAULT (vxlan_core.c)
	if b, ok := seen[unix.IFLA_VXLAN_AGEING]; ok && v.learning && u32(b) != defaultAgeing {
		out = append(out, fmt.Sprintf("ageing %d", u32(b)))
	}
	if b, ok := seen[iflaVXLANReservedBits]; ok && !bytes.Equal(b, reservedBits(v.gbp)) {
		out = append(out, fmt.Sprintf("reserved_bits 0x%x", b))
	}
	return out
}

// reservedBits are the header bits that a device requires to be zero unless
// told otherwise: all that its extensions do not use (RFC 7348 section 5,
// draft-smith-vxlan-group-policy section 2.1).
func reservedBits(gbp bool) []byte {
	const (
		validVNI = 0x08000000 // the I flag
		gbpBits  = 0x80ffffff // the G flag, the policy id, and the bits beside it
		vniBits  = 0xffffff00
	)
	used := uint32(validVNI)
	if gbp {
		used |= gbpBits
	}
	b := binary.BigEndian.AppendUint32(nil, ^used)
	return binary.BigEndian.AppendUint32(b, ^uint32(vniBits))
}

// remote shows the default destination, a multicast group or one peer.
func remote(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	switch {
	case !ok || a.IsUnspecified():
		return ""
	case a.IsMulticast():
		return "group " + a.String()
	}
	return "remote " + a.String()
}

// portRange shows the outer source ports, struct ifla_vxlan_port_range.
func portRange(b []byte) string {
	if len(b) < 4 || be32(b) == 0 {
		return ""
	}
	return fmt.Sprintf("srcport %d %d", be16(b), be16(b[2:]))
}
