// SPDX-License-Identifier: Apache-2.0

package data

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// services is how many Services the rules of kube-proxy stand for. Its chains
// look them up in maps, so the number hardly matters.
const services = 50

// proxyTable is kube-proxy's table in nftables mode as of Kubernetes 1.31
// (pkg/proxy/nftables/proxier.go): base chains, dispatch and checks. Its
// arguments: the table's family, the chains of Services, the type of an
// address, Service addresses, this node's addresses, and the elements of the
// dispatch. Traffic of the bench goes to pods, not to Services, but every flow
// asks these chains what it is.
const proxyTable = `table %[1]s kube-proxy {
%[2]s
 set cluster-ips { type %[3]s; elements = { %[4]s } }
 set nodeport-ips { type %[3]s; elements = { %[5]s } }
 map service-ips { type %[3]s . inet_proto . inet_service : verdict; elements = { %[6]s } }
 map service-nodeports { type inet_proto . inet_service : verdict; }
 map no-endpoint-services { type %[3]s . inet_proto . inet_service : verdict; }
 map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
 map firewall-ips { type %[3]s . inet_proto . inet_service : verdict; }
 chain masquerading {
  meta mark & 0x4000 == 0 return
  meta mark set mark ^ 0x4000
  masquerade fully-random
 }
 chain services {
  %[1]s daddr . meta l4proto . th dport vmap @service-ips
  %[1]s daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
 }
 chain service-endpoints-check { %[1]s daddr . meta l4proto . th dport vmap @no-endpoint-services; }
 chain nodeport-endpoints-check { %[1]s daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
 chain firewall-check { %[1]s daddr . meta l4proto . th dport vmap @firewall-ips; }
 chain cluster-ips-check { %[1]s daddr @cluster-ips reject; }
 chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
 chain filter-input {
  type filter hook input priority -110
  ct state new jump nodeport-endpoints-check
  ct state new jump service-endpoints-check
 }
 chain filter-forward {
  type filter hook forward priority -110
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
 }
 chain filter-output {
  type filter hook output priority -110
  ct state new jump service-endpoints-check
  ct state new jump firewall-check
 }
 chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
 chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
 chain nat-output { type nat hook output priority -100; jump services; }
 chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
`

// proxyRules are the tables of a node that has these addresses on the wire.
func proxyRules(at func(subnet.Family) netip.Addr) string {
	var out strings.Builder
	for _, f := range subnet.Families() {
		table, typ, first := "ip", "ipv4_addr", netip.MustParseAddr("172.30.0.1")
		if f == subnet.IPv6 {
			table, typ, first = "ip6", "ipv6_addr", netip.MustParseAddr("fd99::1")
		}
		var chains, addrs, dispatch []string
		for i, a := 0, first; i < services; i, a = i+1, a.Next() {
			chains = append(chains, fmt.Sprintf(" chain service-%d { meta l4proto tcp accept; }", i))
			addrs = append(addrs, a.String())
			dispatch = append(dispatch, fmt.Sprintf("%s . tcp . 80 : goto service-%d", a, i))
		}
		fmt.Fprintf(&out, proxyTable, table, strings.Join(chains, "\n"), typ, strings.Join(addrs, ", "), at(f), strings.Join(dispatch, ", "))
	}
	return out.String()
}

// proxied gives every node the rules of kube-proxy, or takes them away.
func (s *scene) proxied(ctx context.Context, on bool) error {
	each := func(n *netlab.Node, pair, i int) error {
		// To make a table before it is deleted is no error.
		rules := "table ip kube-proxy\ntable ip6 kube-proxy\ndelete table ip kube-proxy\ndelete table ip6 kube-proxy\n"
		if on {
			rules += proxyRules(func(f subnet.Family) netip.Addr { return wireAddr(f, pair, i).Addr() })
		}
		return stdin(ctx, n, rules, "nft", "-f", "-")
	}
	for p := range pairs {
		for i, n := range s.nodes[p] {
			if err := each(n, p, i); err != nil {
				return fmt.Errorf("rules of kube-proxy on %s: %w", n, err)
			}
		}
	}
	return nil
}
