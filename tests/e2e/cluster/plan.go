// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/netip"
	"strings"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// Addresses are private ones (RFC 1918, RFC 4193). The fabric's are the same
// as netlab's; those of pods and services are kind's, which users know.
const (
	fabricHost  = 254 // last part of the addresses of the host that is no node
	controlNode = 1   // number of the node in whose network the control plane is
	maxNodes    = 50  // more do not fit into one machine
	apiPort     = 6443
)

// fabricPrefix returns the prefix of the nodes' own network.
func fabricPrefix(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("192.168.77.0/24")
	}
	return netip.MustParsePrefix("fd77::/64")
}

// fabricAddr returns address number n of the fabric; n reads the same in both
// families.
func fabricAddr(f subnet.Family, n int) netip.Addr {
	base := fabricPrefix(f).Addr().String()
	return netip.MustParseAddr(fmt.Sprintf("%s%d", strings.TrimSuffix(base, "0"), n))
}

// podNetwork returns what the controller manager gives nodes their podCIDRs
// from.
func podNetwork(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("10.244.0.0/16")
	}
	return netip.MustParsePrefix("fd00:10:244::/48")
}

func serviceNetwork(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("10.96.0.0/16")
	}
	return netip.MustParsePrefix("fd00:10:96::/112")
}

// serviceAddr returns address number n of the services' network: 1 is the API
// server's, 10 by custom the DNS server's.
func serviceAddr(f subnet.Family, n int) netip.Addr {
	a := serviceNetwork(f).Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// Families are what the cluster's addresses are of, the first one first.
func (c Config) Families() []subnet.Family {
	f, err := netlab.ParseUnderlay(c.Family)
	if err != nil {
		return nil // Check has refused it
	}
	return f
}

// each joins what fn says of each family with commas, as Kubernetes wants it.
func each[T fmt.Stringer](families []subnet.Family, fn func(subnet.Family) T) string {
	var all []string
	for _, f := range families {
		all = append(all, fn(f).String())
	}
	return strings.Join(all, ",")
}

// endpoint returns the URL of the API server.
func (c Config) endpoint() string {
	at := netip.AddrPortFrom(fabricAddr(c.Families()[0], controlNode), apiPort)
	return "https://" + at.String()
}

// Outside returns the addresses of the fabric, a host in the nodes' network
// that is no node and has no route to pods.
func (c *Cluster) Outside() []netip.Addr {
	var out []netip.Addr
	for _, f := range c.cfg.Families() {
		out = append(out, fabricAddr(f, fabricHost))
	}
	return out
}
