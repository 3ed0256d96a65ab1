// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft.dev/weft/subnet"
)

// Guard says what a VXLAN packet for our port and VNI has to show before the
// VXLAN device sees it.
type Guard string

// The modes of the ingress guard. The empty Guard makes the same rules as
// GuardOff.
const (
	GuardBind  Guard = "bind"  // a peer's outer source, with an inner source that is this peer's
	GuardPeers Guard = "peers" // a peer's outer source
	GuardOff   Guard = "off"   // nothing
)

// Params is what the rules of table inet weft are made from. Peers are none
// of it but through Lengths. What is per family stands in the order of
// subnet.Families and is zero where there is none. A network that is the whole
// of its family is open: its pods are in Subnets and in the subnets that are
// elements.
type Params struct {
	Guard      Guard
	Masquerade bool
	Port       uint16          // outer UDP destination port
	VNI        uint32          // 24 bits
	Networks   [2]netip.Prefix // pod networks
	Subnets    [2]netip.Prefix // this node's pod subnets
	Devices    [2]string       // our VXLAN devices by underlay family, at most 15 bytes each
	Bridge     string          // the device that pods are behind, at most 15 bytes; empty for none known
	// Lengths are the lengths of the prefixes that the guard looks for as inner
	// ones, and of peers' subnets where the network is open, single addresses
	// left out, ordered by family, then length, no two the same.
	Lengths []Length
}

// Length is a prefix length of a family. Comparable.
type Length struct {
	Family subnet.Family
	Bits   int
}

// compare orders lengths as Params wants them.
func (l Length) compare(o Length) int {
	return cmp.Or(cmp.Compare(l.Family, o.Family), cmp.Compare(l.Bits, o.Bits))
}

func lengthOf(p netip.Prefix) Length {
	return Length{Family: subnet.FamilyOf(p.Addr()), Bits: p.Bits()}
}

// single is the length of one address.
func single(f subnet.Family) Length { return Length{f, f.Bits()} }

// guards lists the modes by their number in userdata.
func guards() []Guard { return []Guard{"", GuardBind, GuardPeers, GuardOff} }

// open reports whether pods of family f are told by sets from what is outside.
func (p Params) open(f subnet.Family) bool {
	for i, family := range subnet.Families() {
		if n := p.Networks[i]; family == f && n.IsValid() {
			return p.Masquerade && n.Bits() == 0
		}
	}
	return false
}

// guarded reports whether anything is asked of VXLAN packets.
func (p Params) guarded() bool { return p.Guard == GuardBind || p.Guard == GuardPeers }

// Check says what of p no table can be made from, so that every table can be
// read back: Ruleset asks for a p without an error here.
func (p Params) Check() error {
	if !slices.Contains(guards(), p.Guard) {
		return fmt.Errorf("guard %q: want one of %q", p.Guard, guards())
	}
	if p.VNI > 0xffffff {
		return fmt.Errorf("VNI %d: want at most %d", p.VNI, 0xffffff)
	}
	for _, d := range append(p.Devices[:], p.Bridge) {
		if len(d) > maxDevice {
			return fmt.Errorf("device name %q: want at most %d bytes", d, maxDevice)
		}
	}
	for i, f := range subnet.Families() {
		for _, n := range []netip.Prefix{p.Networks[i], p.Subnets[i]} {
			if n.IsValid() && (lengthOf(n).Family != f || n.Addr().Is4In6() || n != n.Masked()) {
				return fmt.Errorf("prefix %s: want a masked one of %v", n, f)
			}
		}
	}
	for i, l := range p.Lengths {
		if l.Bits < 0 || l.Bits >= l.Family.Bits() || i > 0 && p.Lengths[i-1].compare(l) >= 0 {
			return fmt.Errorf("length %d of %v: want one of no single address, in order", l.Bits, l.Family)
		}
	}
	return nil
}

const (
	maxDevice     = 15 // IFNAMSIZ - 1, linux/if.h
	paramsVersion = 2
)

// ErrNoParams says that a table's user data holds no parameters: weft did not
// make it, or not as a whole.
var ErrNoParams = errors.New("no parameters in the table's user data")

// encode writes p for the table's user data, so that the table in the kernel
// says itself what it was made from: 76 bytes and the names of the devices.
func (p Params) encode() []byte {
	b := []byte{paramsVersion, byte(slices.Index(guards(), p.Guard)), 0}
	if p.Masquerade {
		b[2] = 1
	}
	b = binary.BigEndian.AppendUint16(b, p.Port)
	b = binary.BigEndian.AppendUint32(b, p.VNI)
	b = append(append(b, byte(len(p.Bridge))), p.Bridge...)
	for i, f := range subnet.Families() {
		for _, n := range []netip.Prefix{p.Networks[i], p.Subnets[i]} {
			b = appendPrefix(b, f, n)
		}
		b = append(append(b, byte(len(p.Devices[i]))), p.Devices[i]...)
		bits := make([]byte, f.Bits()/8)
		for _, l := range p.Lengths {
			if l.Family == f && l.Bits >= 0 && l.Bits < f.Bits() {
				bits[l.Bits/8] |= 1 << (l.Bits % 8)
			}
		}
		b = append(b, bits...)
	}
	return b
}

// appendPrefix writes the length plus one, zero for no prefix, and the address
// in as many bytes as the family has.
func appendPrefix(b []byte, f subnet.Family, p netip.Prefix) []byte {
	addr := make([]byte, f.Bits()/8)
	if !p.IsValid() {
		return append(append(b, 0), addr...)
	}
	copy(addr, p.Addr().AsSlice())
	return append(append(b, byte(p.Bits()+1)), addr...)
}

// decodeParams is the inverse of encode. It accepts nothing that encode does
// not write.
func decodeParams(b []byte) (Params, error) {
	r := reader{b: b}
	if v := r.number(1); v != paramsVersion {
		return Params{}, fmt.Errorf("parameters of version %d in the table's user data: this weft knows version %d", v, paramsVersion)
	}
	var p Params
	guard, masquerade := int(r.number(1)), r.number(1)
	if guard >= len(guards()) || masquerade > 1 {
		r.bad = true
	} else {
		p.Guard, p.Masquerade = guards()[guard], masquerade == 1
	}
	p.Port, p.VNI = uint16(r.number(2)), uint32(r.number(4))
	p.Bridge = string(r.take(int(r.number(1))))
	for i, f := range subnet.Families() {
		p.Networks[i], p.Subnets[i] = r.prefix(f), r.prefix(f)
		p.Devices[i] = string(r.take(int(r.number(1))))
		bits := r.take(f.Bits() / 8)
		for n := range len(bits) * 8 {
			if bits[n/8]&(1<<(n%8)) != 0 {
				p.Lengths = append(p.Lengths, Length{f, n})
			}
		}
	}
	if r.bad || len(r.b) > 0 {
		return Params{}, errors.New("malformed parameters in the table's user data")
	}
	if err := p.Check(); err != nil {
		return Params{}, fmt.Errorf("parameters in the table's user data: %w", err)
	}
	return p, nil
}

// reader takes apart what encode wrote. After it has met the end it returns
// zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) number(size int) (n uint64) {
	for _, c := range r.take(size) {
		n = n<<8 | uint64(c)
	}
	return n
}

func (r *reader) prefix(f subnet.Family) netip.Prefix {
	bits := int(r.number(1)) - 1
	a, ok := netip.AddrFromSlice(r.take(f.Bits() / 8))
	if !ok || bits < 0 {
		r.bad = r.bad || !ok || !a.IsUnspecified()
		return netip.Prefix{}
	}
	p := netip.PrefixFrom(a, bits)
	r.bad = r.bad || !p.IsValid()
	return p
}
