// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

const (
	// kindVXLAN is the name of the VXLAN driver in IFLA_INFO_KIND.
	kindVXLAN = "vxlan"
	// devconfRPFilter is IPV4_DEVCONF_RP_FILTER (linux/ip.h). Messages to
	// the kernel carry it as an attribute type; the kernel's dump is an array
	// of u32 whose first element is setting 1.
	devconfRPFilter = 8
	// skipStats is RTEXT_FILTER_SKIP_STATS (linux/rtnetlink.h).
	skipStats = 1 << 3
)

// ForeignDeviceError says that a device has the name of one of ours and is
// none: weft neither changes nor deletes it.
type ForeignDeviceError struct {
	Dev  string // the name that weft wants
	Kind string // what holds it: "bridge", "veth", ...
}

// Error names the device and what it is.
func (e *ForeignDeviceError) Error() string {
	return fmt.Sprintf("device %s is a %s, not ours: delete or rename it", e.Dev, e.Kind)
}

// rawLink is the part of an RTM_NEWLINK message that weft looks at.
type rawLink struct {
	index     int
	flags     uint32
	name      string
	kind      string // "" for a physical device
	mac       subnet.MAC
	mtu       int
	master    int // ifindex, 0 for none
	protoDown bool
	peer      int    // IFLA_LINK: index of a veth's other end, a VXLAN device's underlay
	elsewhere bool   // that is in another network namespace
	netns     int    // its id; negative for one that has none, because it is going
	data      []byte // IFLA_INFO_DATA
	afSpec    []byte // IFLA_AF_SPEC
}

func decodeLink(msg []byte) (rawLink, error) {
	if len(msg) < unix.SizeofIfInfomsg {
		return rawLink{}, fmt.Errorf("link message of %d bytes is too short", len(msg))
	}
	h := nl.DeserializeIfInfomsg(msg)
	l := rawLink{index: int(h.Index), flags: h.Flags}
	for t, v := range attrs(msg[unix.SizeofIfInfomsg:]) {
		switch t {
		case unix.IFLA_IFNAME:
			l.name = text(v)
		case unix.IFLA_ADDRESS:
			if len(v) == len(l.mac) {
				l.mac = subnet.MAC(v)
			}
		case unix.IFLA_MTU:
			l.mtu = int(u32(v))
		case unix.IFLA_MASTER:
			l.master = int(u32(v))
		case unix.IFLA_LINK:
			l.peer = int(u32(v))
		case unix.IFLA_PROTO_DOWN:
			l.protoDown = u8(v) != 0
		case unix.IFLA_LINK_NETNSID:
			l.elsewhere, l.netns = true, int(int32(u32(v)))
		case unix.IFLA_AF_SPEC:
			l.afSpec = v
		case unix.IFLA_LINKINFO:
			for t, v := range attrs(v) {
				switch t {
				case unix.IFLA_INFO_KIND:
					l.kind = text(v)
				case unix.IFLA_INFO_DATA:
					l.data = v
				}
			}
		}
	}
	return l, nil
}

// link asks for one device by name, or by index when name is empty. found is
// false when there is none.
func (k *Kernel) link(ctx context.Context, name string, index int) (l rawLink, found bool, err error) {
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(index)
	r := request(unix.RTM_GETLINK, 0, h, nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	if name != "" {
		r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	msgs, err := k.conn.do(ctx, r)
	switch {
	case errors.Is(err, unix.ENODEV):
		return rawLink{}, false, nil
	case err != nil:
		return rawLink{}, false, err
	case len(msgs) != 1:
		return rawLink{}, false, fmt.Errorf("%d answers, want 1", len(msgs))
	}
	l, err = decodeLink(msgs[0])
	return l, err == nil, err
}

// ownLink asks for the device called name. It fails with ForeignDeviceError
// when the device is not VXLAN, or has name only as an alternative name.
func (k *Kernel) ownLink(ctx context.Context, name string) (l rawLink, found bool, err error) {
	l, found, err = k.link(ctx, name, 0)
	if err != nil {
		return l, false, fmt.Errorf("look up device %s: %w", name, err)
	}
	if !found || l.kind == kindVXLAN && l.name == name {
		return l, found, nil
	}
	kind := l.kind
	if kind == "" {
		kind = "physical device"
	}
	if l.name != name {
		kind += " called " + l.name + " with that alternative name"
	}
	return l, false, &ForeignDeviceError{Dev: name, Kind: kind}
}

// overlayLink translates a VXLAN device.
func (k *Kernel) overlayLink(ctx context.Context, l rawLink) (overlay.Link, error) {
	out := overlay.Link{
		Name:     l.name,
		MAC:      l.mac,
		MTU:      l.mtu,
		Up:       l.flags&unix.IFF_UP != 0,
		RPFilter: rpFilter(l.afSpec),
		AddrGen:  addrGen(l.afSpec),
	}
	var foreign []string
	if l.master != 0 {
		name, err := k.nameOf(ctx, l.master)
		if err != nil {
			return out, err
		}
		foreign = append(foreign, "master "+name)
	}
	if l.flags&unix.IFF_NOARP != 0 {
		foreign = append(foreign, "arp off")
	}
	if l.protoDown {
		foreign = append(foreign, "protodown on")
	}
	if l.elsewhere {
		foreign = append(foreign, "link-netns other")
	}
	v := decodeVXLAN(l.data)
	out.VNI, out.Port, out.Local, out.Learning, out.GBP = v.vni, v.port, v.local, v.learning, v.gbp
	out.Foreign = strings.Join(append(foreign, v.foreign...), " ")
	gro, err := k.conn.gro(l.name)
	if err != nil {
		return out, err
	}
	out.NoGRO = !gro
	if v.underlay != 0 && !l.elsewhere {
		name, err := k.nameOf(ctx, v.underlay)
		if err != nil {
			return out, err
		}
		out.Underlay = name
	}
	return out, nil
}

// nameOf returns a device's name. An index that no device has is shown as
// iproute2 does, so that it equals no wanted name.
func (k *Kernel) nameOf(ctx context.Context, index int) (string, error) {
	l, found, err := k.link(ctx, "", index)
	if err != nil {
		return "", fmt.Errorf("look up device with index %d: %w", index, err)
	}
	if !found {
		return fmt.Sprintf("if%d", index), nil
	}
	return l.name, nil
}

// rpFilter reads net.ipv4.conf.DEV.rp_filter from IFLA_AF_SPEC.
func rpFilter(afSpec []byte) uint8 {
	inet, _ := attr(afSpec, unix.AF_INET)
	conf, _ := attr(inet, unix.IFLA_INET_CONF)
	const at = 4 * (devconfRPFilter - 1)
	if len(conf) < at+4 {
		return 0
	}
	return uint8(u32(conf[at:]))
}

// addrGen reads the IPv6 address generation mode from IFLA_AF_SPEC, in the
// words of ip-link(8). A device on which IPv6 is off (by a kernel parameter,
// or because its MTU is below 1280) has none, and generates no address.
func addrGen(afSpec []byte) string {
	inet6, _ := attr(afSpec, unix.AF_INET6)
	v, ok := attr(inet6, unix.IFLA_INET6_ADDR_GEN_MODE)
	if !ok {
		return addrGenNone
	}
	names := addrGenModes()
	if int(u8(v)) >= len(names) {
		return fmt.Sprintf("mode%d", u8(v))
	}
	return names[u8(v)]
}

// addrGenNone is the mode that weft sets.
const addrGenNone = "none"

// addrGenModes names the modes by number (enum in6_addr_gen_mode,
// linux/if_link.h).
func addrGenModes() [4]string { return [...]string{"eui64", addrGenNone, "stable_secret", "random"} }

// vxlan is IFLA_INFO_DATA of a VXLAN device.
type vxlan struct {
	vni      uint32
	port     uint16
	local    netip.Addr
	underlay int // ifindex, 0 for none
	learning bool
	gbp      bool
	inet6    bool     // an address of it is IPv6
	foreign  []string // what weft never sets, as `ip -d link` shows it
}

// family is the underlay family. A device with neither local nor remote
// address is an IPv4 one.
func (v vxlan) family() subnet.Family {
	if v.inet6 {
		return subnet.IPv6
	}
	return subnet.IPv4
}

func decodeVXLAN(data []byte) vxlan {
	v := vxlan{}
	seen := make(map[uint16][]byte)
	for t, b := range attrs(data) {
		seen[t] = b
		switch t {
		case unix.IFLA_VXLAN_ID:
			v.vni = u32(b)
		case unix.IFLA_VXLAN_PORT:
			v.port = be16(b)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			v.local, _ = netip.AddrFromSlice(b)
			v.inet6 = v.inet6 || t == unix.IFLA_VXLAN_LOCAL6
		case unix.IFLA_VXLAN_GROUP6:
			v.inet6 = true
		case unix.IFLA_VXLAN_LINK:
			v.underlay = int(u32(b))
		case unix.IFLA_VXLAN_LEARNING:
			v.learning = u8(b) != 0
		case unix.IFLA_VXLAN_GBP:
			v.gbp = true
		}
	}
	v.foreign = foreignVXLAN(seen, v)
	return v
}
