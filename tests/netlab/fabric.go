// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// The fabric is one Ethernet segment: a bridge in the lab's own network
// namespace, which has no other device and does not forward. The addresses
// are private (RFC 1918, RFC 4193).
const (
	fabricBridge = "fabric"
	underlayDev  = "eth0" // a node's end of its cable
	fabricHost   = 254    // last part of the fabric's own addresses, where etcd listens
	maxNodes     = 200
)

// fabricPrefix returns the fabric's prefix of family f.
func fabricPrefix(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("192.168.77.0/24")
	}
	return netip.MustParsePrefix("fd77::/64")
}

// fabricAddr returns host number n of the fabric: 192.168.77.N or fd77::N,
// where N reads the same in both.
func fabricAddr(f subnet.Family, n int) netip.Addr {
	base := fabricPrefix(f).Addr().String()
	return netip.MustParseAddr(fmt.Sprintf("%s%d", strings.TrimSuffix(base, "0"), n))
}

// ParseUnderlay turns "dual", "ipv4" or "ipv6" into families.
func ParseUnderlay(s string) ([]subnet.Family, error) {
	switch s {
	case "dual":
		return []subnet.Family{subnet.IPv4, subnet.IPv6}, nil
	case "ipv4":
		return []subnet.Family{subnet.IPv4}, nil
	case "ipv6":
		return []subnet.Family{subnet.IPv6}, nil
	}
	return nil, fmt.Errorf("underlay %q: want dual, ipv4 or ipv6", s)
}

// buildFabric makes the bridge in the calling process's network namespace,
// with addresses of the given families.
func (l *Lab) buildFabric() error {
	return l.fabric.Netlink(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = fabricBridge, l.cfg.MTU
		snoop := false // without a querier, snooping can lose neighbour solicitations
		br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
		if err := h.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge %s: %w", fabricBridge, err)
		}
		for _, f := range l.cfg.Underlay {
			if err := addAddr(h, br, netip.PrefixFrom(fabricAddr(f, fabricHost), fabricPrefix(f).Bits())); err != nil {
				return err
			}
		}
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err == nil {
			err = h.LinkSetUp(br)
		}
		if err != nil {
			return fmt.Errorf("set %s up: %w", fabricBridge, err)
		}
		return nil
	})
}

// Plug connects the node to the fabric: a veth pair, addresses, and a
// default route to the fabric, which leads nowhere.
func (n *Node) Plug() error {
	err := n.lab.fabric.Netlink(func(h *netlink.Handle) error {
		br, err := h.LinkByName(fabricBridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", fabricBridge, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = n.name, n.lab.cfg.MTU, br.Attrs().Index
		attrs.Flags = net.FlagUp
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: underlayDev, PeerNamespace: netlink.NsFd(n.net.Fd()),
			// As burnt in: the others remember it over a reboot. Locally
			// administered (IEEE 802-2014, 8.4).
			PeerHardwareAddr: net.HardwareAddr{0x02, 0x77, 0, 0, 0, byte(n.number)},
		}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", n.name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, a := range n.Underlay() {
		if err := n.SetUnderlay(netip.Addr{}, a); err != nil {
			return err
		}
	}
	return nil
}

// Unplug takes the node's cable away: its underlay device is gone, and with
// it, by the kernel's doing, every VXLAN device on it. Plug brings it back,
// with the addresses that it had.
func (n *Node) Unplug() error {
	return n.lab.fabric.Netlink(func(h *netlink.Handle) error {
		dev, err := h.LinkByName(n.name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err == nil {
			err = h.LinkDel(dev)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("unplug node %s: %w", n.name, err)
		}
		return nil
	})
}

// SetUnderlay replaces the node's underlay address was by is; either may be
// the zero Addr. The default route of the family is there as long as an
// address is.
func (n *Node) SetUnderlay(was, is netip.Addr) error {
	err := n.Netlink(func(h *netlink.Handle) error {
		dev, err := h.LinkByName(underlayDev)
		if err != nil {
			return fmt.Errorf("find %s on %s: %w", underlayDev, n.name, err)
		}
		if err := h.LinkSetUp(dev); err != nil {
			return fmt.Errorf("set %s up on %s: %w", underlayDev, n.name, err)
		}
		if is.IsValid() {
			f := subnet.FamilyOf(is)
			if err := addAddr(h, dev, netip.PrefixFrom(is, fabricPrefix(f).Bits())); err != nil {
				return err
			}
			gw := fabricAddr(f, fabricHost)
			if err := h.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("add the default route via %s on %s: %w", gw, n.name, err)
			}
		}
		if was.IsValid() {
			p := netip.PrefixFrom(was, fabricPrefix(subnet.FamilyOf(was)).Bits())
			if err := h.AddrDel(dev, kernelAddr(p)); err != nil {
				return fmt.Errorf("delete address %s on %s: %w", p, n.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	n.underlay = slices.DeleteFunc(n.underlay, func(a netip.Addr) bool { return a == was || a == is })
	if is.IsValid() {
		n.underlay = append(n.underlay, is)
	}
	slices.SortFunc(n.underlay, netip.Addr.Compare)
	return nil
}

// addAddr adds an address, without the second that IPv6 spends on looking
// for duplicates.
func addAddr(h *netlink.Handle, dev netlink.Link, p netip.Prefix) error {
	if err := h.AddrAdd(dev, kernelAddr(p)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", p, dev.Attrs().Name, err)
	}
	return nil
}

func kernelAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: kernelNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func kernelNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
