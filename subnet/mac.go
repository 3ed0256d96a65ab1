// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
)

// MAC is a 48-bit Ethernet address. The zero value means none.
type MAC [6]byte

// ParseMAC reads six colon-separated octets, e.g. "0a:58:c0:00:02:01".
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, fmt.Errorf("MAC %q: want six octets like 0a:58:c0:00:02:01", s)
	}
	return MACFrom(hw)
}

// MACFrom converts a net.HardwareAddr. It fails unless b has six octets.
func MACFrom(b net.HardwareAddr) (MAC, error) {
	if len(b) != 6 {
		return MAC{}, fmt.Errorf("MAC %q has %d octets, want 6", b, len(b))
	}
	return MAC(b), nil
}

// String returns the address as six lower-case colon-separated octets.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// HardwareAddr returns the address as the standard library's type.
func (m MAC) HardwareAddr() net.HardwareAddr { return append(net.HardwareAddr(nil), m[:]...) }

// IsUnicast reports whether m can be a VTEP's address: not zero, and without
// the group bit (IEEE 802-2014, 8.2.2).
func (m MAC) IsUnicast() bool { return m != MAC{} && m[0]&1 == 0 }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// DeriveMAC returns the VTEP MAC of a node on an underlay of family f: a
// locally administered unicast address that is the same after a reboot or a
// re-creation of the device. network names the overlay, which must not be a
// setting that a restart can change by mistake; node is the node's name. See
// docs/adr/0002.
func DeriveMAC(network string, vni uint32, f Family, node string) MAC {
	h := sha256.New()
	var n [5]byte
	binary.BigEndian.PutUint32(n[:4], vni)
	n[4] = byte(f)
	h.Write([]byte(network))
	h.Write([]byte{0}) // keeps ("a","bc") and ("ab","c") apart
	h.Write(n[:])
	h.Write([]byte(node))
	var m MAC
	copy(m[:], h.Sum(nil))
	m[0] = m[0]&^1 | 2 // unicast, locally administered
	return m
}
