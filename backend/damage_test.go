// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"regexp"
	"strings"

	"weft.dev/weft/subnet"
)

// damage does one thing to the node. In some states there is nothing there
// for many a command: it tries another one then.
func (v *vandal) damage() {
	v.t.Helper()
	for before := v.hits; v.hits == before; {
		v.try()
	}
}

func (v *vandal) try() {
	v.t.Helper()
	kinds := []func() string{v.link, v.link, v.addr, v.route, v.route, v.direct, v.neigh, v.fdb, v.nftables, v.nftables, v.underlay}
	for command := range strings.SplitSeq(kinds[v.r.IntN(len(kinds))](), " | ") {
		if _, err := try(command); err == nil {
			v.did = append(v.did, command)
			v.hits++
		}
	}
}

func (v *vandal) pick(of ...string) string { return of[v.r.IntN(len(of))] }

// fill puts args in the places of $1, $2 and so on; not all need be named.
func fill(template string, args ...any) string {
	for i, a := range args {
		template = strings.ReplaceAll(template, fmt.Sprint("$", i+1), fmt.Sprint(a))
	}
	return template
}

func (v *vandal) dev() string { return v.pick("weft.1", "weft.1", "weft6.1", "weft6.1", "weft.2") }

func (v *vandal) peer() int { return 2 + v.r.IntN(4) }

func (v *vandal) family() subnet.Family { return subnet.Families()[v.r.IntN(2)] }

func (v *vandal) link() string {
	d := v.dev()
	return fill(v.pick(
		"ip link del $1", "ip link set $1 down", "ip link set $1 down | ip link set $1 up",
		"ip link set $1 address 0a:58:00:00:00:$2", "ip link set $1 mtu $3", "ip link set $1 mtu 1000",
		"ip link set $1 type vxlan learning", "ip link set $1 type vxlan nolearning",
		"ip link set $1 addrgenmode eui64 | ip link set $1 down | ip link set $1 up",
		"ip link set $1 addrgenmode random", "ip link set $1 arp off", "ip link set $1 protodown on", "ip link set $1 master br9",
		"ip link set $1 type vxlan remote 10.0.0.9", "ip link set $1 type vxlan proxy",
		"ip link set $1 down | ip link set $1 name x | ip link set x name $1",
		"ip link del $1 | ip link add $1 type vxlan id 7 dev f0 local 10.9.0.1 dstport 8472",
		"ip link del $1 | ip link add $1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 learning | ip link set $1 up",
		"ip link add twin$2 type vxlan id 7$2 dev f0 local 10.9.0.1 dstport 8472 | ip link set twin$2 addrgenmode none",
		"sysctl -qw net/ipv4/conf/$1/rp_filter=$4", "sysctl -qw net/ipv6/conf/$1/addr_gen_mode=0",
	), d, 10+v.r.IntN(80), 1280+v.r.IntN(200), v.r.IntN(2))
}

func (v *vandal) addr() string {
	return fill(v.pick(
		"ip addr flush dev $1", "ip -4 addr flush dev $1", "ip -6 addr flush dev $1",
		"ip addr del 10.42.1.0/32 dev $1", "ip addr del fd42:0:0:1::/128 dev $1",
		"ip addr add 10.42.1.$2/32 dev $1", "ip addr add 10.42.1.0/24 dev $1", "ip addr add fd42:0:0:1::$2/128 dev $1",
		"ip addr replace fd42:0:0:1::/128 dev $1 valid_lft 1000 preferred_lft 0", "ip addr add fe80::$2/64 dev $1",
		"ip addr add 10.7.7.$2/24 dev $1", "ip addr add 10.42.1.0/32 dev f0", "ip addr add 169.254.9.$2 peer 10.42.2.0/24 dev $1",
	), v.dev(), 1+v.r.IntN(90))
}

// prefix names a peer's subnet: its prefix, its base and ip's option.
func (v *vandal) subnet() (p, base, option string) {
	f := v.family()
	s := pods(f, v.peer())
	if f == subnet.IPv6 {
		return s.String(), s.Addr().String(), "-6"
	}
	return s.String(), s.Addr().String(), "-4"
}

func (v *vandal) route() string {
	p, base, o := v.subnet()
	return fill(v.pick(
		"ip $4 route flush dev $1", "ip $4 route flush proto 87", "ip $4 route del $2", "ip $4 route del $2 | ip $4 route del $2",
		"ip $4 route replace $2 dev $1", "ip $4 route add $2 via $3 dev $1 onlink",
		"ip $4 route add $2 via $3 dev $1 onlink proto 87 metric $5", "ip $4 route add $2 dev $1 proto static metric 9",
		"ip $4 route add $2 via $3 dev $1 onlink mtu 1300 metric $5", "ip $4 route append $2 dev $1 metric $5 proto 87",
		"ip -4 route add 10.42.99.0/24 via 10.42.99.0 dev $1 onlink", "ip -4 route add 10.42.99.0/24 via 10.42.99.0 dev $1 onlink proto 87",
		"ip -6 route add fd42:0:0:99::/64 via fd42:0:0:99:: dev $1 onlink proto 87", "ip -4 route add 10.77.0.0/16 dev $1 proto static",
		"ip -4 route add 10.42.99.0/24 nexthop via 10.42.2.0 dev weft.1 onlink nexthop via 10.42.3.0 dev weft.1 onlink proto 87",
	), v.dev(), p, base, o, 1024+v.r.IntN(4096))
}

// direct damages routes on the underlay.
func (v *vandal) direct() string {
	p, _, o := v.subnet()
	via := underlay(map[string]subnet.Family{"-4": subnet.IPv4, "-6": subnet.IPv6}[o], v.peer())
	return fill(v.pick(
		"ip $3 route add $1 via $2 dev u0 onlink proto 87 metric $4", "ip $3 route append $1 via $2 dev u0 onlink proto 87",
		"ip $3 route add $1 via $2 dev u0 proto 87 metric $4 mtu 1300", "ip $3 route del $1 dev u0",
		"ip $3 route flush dev u0 proto 87", "ip $3 route add $1 via $2 dev u0", // as flannel would
		"ip $3 route add $1 via $2 dev u0 proto static metric 50000", "ip $3 route add $1 via $2 dev u0 table 7 proto 87",
		"ip $3 route change $1 via $2 dev u0 onlink proto 87",
	), p, via, o, 1024+v.r.IntN(4096))
}

func (v *vandal) neigh() string {
	_, base, _ := v.subnet()
	return fill(v.pick(
		"ip neigh flush dev $1 nud permanent", "ip neigh del $2 dev $1", "ip neigh replace $2 lladdr 0a:58:00:00:00:98 dev $1 nud permanent",
		"ip neigh replace $2 lladdr 0a:58:00:00:00:98 dev $1 nud reachable", "ip neigh add 10.42.99.0 lladdr 0a:58:00:00:00:98 dev $1 nud permanent",
		"ip neigh add fd42:0:0:99:: lladdr 0a:58:00:00:00:98 dev $1 nud permanent", "ip neigh replace $2 dev $1 nud failed",
		"ip neigh add proxy $2 dev $1",
	), v.dev(), base)
}

func (v *vandal) fdb() string {
	mac := nodeLease(v.peer()).Paths[v.r.IntN(2)].MAC
	return fill(v.pick(
		"bridge fdb del $2 dev $1", "bridge fdb replace $2 dev $1 dst 10.0.0.66 self permanent", "bridge fdb replace $2 dev $1 dst fd00::66 self permanent",
		"bridge fdb replace $2 dev $1 dst 10.0.0.3 port 99 self permanent", "bridge fdb add 0a:04:00:00:00:66 dev $1 dst 10.0.0.66 self permanent",
		"bridge fdb append 00:00:00:00:00:00 dev $1 dst 10.0.0.66 self permanent", "bridge fdb replace $2 dev $1 dst 10.0.0.2 self dynamic",
		"bridge fdb append 01:00:5e:00:00:01 dev $1 dst 10.0.0.66 self permanent", "bridge fdb replace $2 dev $1 dst 10.0.0.2 vni 9 self permanent",
	), v.dev(), mac)
}

// underlay does what happens to a node's own devices.
func (v *vandal) underlay() string {
	return fill(v.pick(
		"ip link set u0 down", "ip link set u0 down | ip link set u0 up", "ip link set u0 mtu $1", "ip link set u0 mtu 1280", "ip link set u0 address 0a:00:00:00:00:$2",
		"ip link set u0 down | ip link set u0 name ru0 | ip link set ru0 up", "ip link set ru0 down | ip link set ru0 name u0 | ip link set u0 up",
		"ip link del u0", "ip link del u1", "ip link del ru0", "ip link set u1 down", "ip link set u1 up",
		"ip addr del 10.0.0.1/24 dev u0", "ip addr del fd00::1/64 dev u0", "ip addr add 10.0.0.210/24 dev u0", "ip addr flush dev u0",
		"ip link del w0", "ip link set w0 mtu 9000", "ip rule add from 10.42.9.0/24 table 7", "ip link add v8 type veth peer name v9",
	), 1300+v.r.IntN(300), 10+v.r.IntN(80))
}

// nftables damages our table, whatever is in it.
func (v *vandal) nftables() string {
	table, err := try("nft -a list table inet weft")
	if err != nil {
		return v.pick("nft add table inet weft", "nft delete table inet weft")
	}
	names := func(kind string) []string {
		var out []string
		for _, m := range regexp.MustCompile(`(?m)^\t`+kind+` (\S+) \{`).FindAllStringSubmatch(table, -1) {
			out = append(out, m[1])
		}
		return append(out, "none")
	}
	chain, set := v.pick(names("chain")...), v.pick(names("set")...)
	rule := "1"
	if all := regexp.MustCompile(`handle (\d+)\n`).FindAllStringSubmatch(table, -1); len(all) > 0 {
		rule = all[v.r.IntN(len(all))][1]
	}
	return fill(v.pick(
		"nft flush table inet weft", "nft delete table inet weft", "nft flush chain inet weft $1", "nft delete chain inet weft $1",
		"nft insert rule inet weft $1 accept", "nft add rule inet weft $1 counter", "nft delete rule inet weft $1 handle $3",
		"nft flush set inet weft $2", "nft delete set inet weft $2", "nft add element inet weft $2 { 10.0.0.$4 }",
		"nft add element inet weft $2 { fd00::$4 }", "nft delete element inet weft $2 { 10.0.0.2 }", "nft delete element inet weft $2 { fd00::3 }",
		"nft add element inet weft $2 { 10.0.0.66 . 10.42.$4.0 }", "nft delete element inet weft $2 { 10.0.0.2 . 10.42.2.0 }",
		"nft add chain inet weft mine { type filter hook input priority -9 ; }", "nft add set inet weft mine { type ipv4_addr ; }",
		"nft rename chain inet weft $1 other", "nft add table inet weft { flags dormant ; }", "nft flush ruleset",
		"nft delete table inet weft | nft add table inet weft", "nft add counter inet weft mine",
	), chain, set, rule, v.r.IntN(90))
}
