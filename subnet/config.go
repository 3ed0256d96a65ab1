// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"net/netip"
	"slices"
)

// Config is the network's configuration, as net-conf.json holds it, with
// every default filled in. ParseConfig guarantees: at least one Network, at
// most one of each family, IPv4 first; prefixes masked; SubnetMin and
// SubnetMax aligned, inside Prefix and in order, unless the Network is open;
// VNI, Port and MTU in range.
type Config struct {
	Networks []Network // enabled pod networks, IPv4 first
	Backend  BackendConfig
}

// A Network is one family's pod network and how it is cut into node subnets.
// Comparable.
//
// Where nobody has said which the pod network is, it is open: Prefix is the
// whole family, pods are in the subnets that are leased and nowhere else, and
// nothing is handed out, so that SubnetMin and SubnetMax are zero.
type Network struct {
	Prefix    netip.Prefix // e.g. 10.244.0.0/16
	SubnetLen int          // prefix length of a node's subnet
	SubnetMin netip.Addr   // base of the first subnet to hand out
	SubnetMax netip.Addr   // base of the last subnet to hand out
}

// BackendConfig is the Backend object of net-conf.json. Comparable.
type BackendConfig struct {
	Type          BackendType
	VNI           uint32 // VXLAN network identifier, 1 to 16777215; default 1
	Port          uint16 // outer UDP destination port; default 8472 (Linux, vxlan_core.c)
	MTU           int    // underlay MTU to assume where the device has more; 0 follows the device
	Learning      bool   // let the device learn remote VTEPs from traffic
	GBP           bool   // VXLAN group policy extension
	DirectRouting bool   // route without VXLAN to peers on the same link
}

// Equal reports whether c and o say the same.
func (c Config) Equal(o Config) bool {
	return c.Backend == o.Backend && slices.Equal(c.Networks, o.Networks)
}

// Network returns the pod network of family f.
func (c Config) Network(f Family) (Network, bool) {
	for _, n := range c.Networks {
		if FamilyOf(n.Prefix.Addr()) == f {
			return n, true
		}
	}
	return Network{}, false
}

// OpenNetwork returns the network of family f of which nobody has said which
// it is. length is the usual prefix length of a node's subnet, 0 when that is
// not known.
func OpenNetwork(f Family, length int) Network {
	any := netip.IPv4Unspecified()
	if f == IPv6 {
		any = netip.IPv6Unspecified()
	}
	return Network{Prefix: netip.PrefixFrom(any, 0), SubnetLen: length}
}

// Open reports whether the subnets of n are those that are leased. No network
// that was given is: ParseConfig refuses the whole of a family.
func (n Network) Open() bool { return n.Prefix.IsValid() && n.Prefix.Bits() == 0 }
