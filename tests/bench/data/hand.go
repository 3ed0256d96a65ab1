// SPDX-License-Identifier: Apache-2.0

package data

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// handSubnet is the pod subnet of node i of the pair by hand.
func handSubnet(f subnet.Family, i int) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix(fmt.Sprintf("10.200.%d.0/24", i+1))
	}
	return netip.MustParsePrefix(fmt.Sprintf("fd42:0:0:200%d::/64", i+1))
}

func handMAC(f subnet.Family, i int) string { return fmt.Sprintf("0a:20:00:00:%02d:%02d", f, i) }

// byHand programs node i of a pair for pods of MTU mtu the way flannel
// v0.28 does (pkg/backend/vxlan, pkg/trafficmngr/nftables): device, neighbour,
// forwarding entry and onlink route for each peer, accept and masquerade rules,
// and the bridge that its CNI plugin asks for.
func byHand(ctx context.Context, n *netlab.Node, pair, i, mtu int) error {
	var ip, nft strings.Builder
	var ranges, routes []string
	for _, f := range subnet.Families() {
		own, peer, network := handSubnet(f, i), handSubnet(f, 1-i), handNetwork(f)
		dev, table, family := "flannel.1", "flannel-ipv4", "ip"
		if f == subnet.IPv6 {
			dev, table, family = "flannel-v6.1", "flannel-ipv6", "ip6"
		}
		bits := own.Addr().BitLen()
		fmt.Fprintf(&ip, "link add %s address %s mtu %d type vxlan id 1 dev %s local %s dstport 8472 nolearning\n",
			dev, handMAC(f, i), wireMTU-overhead(f), wireDev, wireAddr(f, pair, i).Addr())
		fmt.Fprintf(&ip, "addr add %s/%d dev %s\nlink set %s up\n", own.Addr(), bits, dev, dev)
		fmt.Fprintf(&ip, "neigh replace %s lladdr %s dev %s nud permanent\n", peer.Addr(), handMAC(f, 1-i), dev)
		fmt.Fprintf(&ip, "route replace %s via %s dev %s onlink\n", peer, peer.Addr(), dev)
		fmt.Fprintf(&nft, handRules, family, table, map[subnet.Family]string{subnet.IPv4: "224.0.0.0/4", subnet.IPv6: "ff00::/8"}[f], family, own, network)
		ranges = append(ranges, fmt.Sprintf(`[{"subnet":"%s"}]`, own))
		routes = append(routes, fmt.Sprintf(`{"dst":"%s"}`, network))
	}
	if err := stdin(ctx, n, ip.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	for _, f := range subnet.Families() {
		dev := map[subnet.Family]string{subnet.IPv4: "flannel.1", subnet.IPv6: "flannel-v6.1"}[f]
		if _, err := n.Run(ctx, "bridge", "fdb", "append", handMAC(f, 1-i), "dev", dev, "dst", wireAddr(f, pair, 1-i).Addr().String(), "self", "permanent"); err != nil {
			return err
		}
	}
	if err := stdin(ctx, n, nft.String(), "nft", "-f", "-"); err != nil {
		return err
	}
	conf := fmt.Sprintf(handConf, mtu, strings.Join(ranges, ","), strings.Join(routes, ","))
	path := n.Path("/etc/cni/net.d/05-weft.conflist") // where the lab looks
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(conf), 0o644)
}

func handNetwork(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("10.0.0.0/8")
	}
	return netip.MustParsePrefix("fd42::/48")
}

// overhead is what VXLAN over an underlay of family f takes from its MTU.
func overhead(f subnet.Family) int {
	if f == subnet.IPv4 {
		return 50
	}
	return 70
}

// handRules are flannel's: family, table, multicast, family's keyword, the
// node's subnet and the network.
const handRules = `table %[1]s %[2]s {
 chain forward { type filter hook forward priority filter; policy accept;
  %[4]s saddr %[6]s accept
  %[4]s daddr %[6]s accept
 }
 chain postrtg { type nat hook postrouting priority srcnat; policy accept;
  meta mark 0x4000 return
  %[4]s saddr %[5]s %[4]s daddr %[6]s return
  %[4]s saddr %[6]s %[4]s daddr %[5]s return
  %[4]s saddr != %[5]s %[4]s daddr %[6]s return
  %[4]s saddr %[6]s %[4]s daddr != %[3]s masquerade fully-random
  %[4]s saddr != %[6]s %[4]s daddr %[6]s masquerade fully-random
 }
}
`

// handConf is what flannel's CNI plugin hands to bridge.
const handConf = `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"isDefaultGateway":true,` +
	`"hairpinMode":true,"ipMasq":false,"mtu":%d,"ipam":{"type":"host-local","ranges":[%s],"routes":[%s]}},` +
	`{"type":"portmap","capabilities":{"portMappings":true}}]}`

// stdin runs a command on a node with that input.
func stdin(ctx context.Context, n *netlab.Node, input string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	_, err := n.RunCmd(ctx, cmd)
	return err
}
