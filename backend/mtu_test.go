// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

// TestMTUOfRunningPods: the underlay's MTU falls under running pods. Only our
// devices follow. A pod keeps its own, and is told at once by its own node
// (ICMP, from the bridge's address) what fits: the largest packet that does
// passes, one byte more is refused with the right MTU, and none is sent in
// fragments.
//
// The bridge and the pods' veths are left alone on purpose. Their other ends
// belong to the pods, and a host's end with a smaller MTU than the pod's drops
// what is larger without a word (is_skb_forwardable, net/core/dev.c), which
// the last step shows.
func TestMTUOfRunningPods(t *testing.T) {
	enterNetns(t)
	one, two, other := twoNodes(t)
	run(t, "ip link add cni0 mtu 1430 type bridge")
	run(t, "ip link set cni0 addrgenmode none up")
	for _, a := range []string{"10.42.1.1/24 dev cni0", "fd42:0:0:1::1/64 dev cni0 nodad", "fe80::1/64 dev cni0 nodad"} {
		run(t, "ip addr add "+a)
	}
	pod := addPod(t, "veth1", "10.42.1.7/24", "fd42:0:0:1::7/64", "fe80::7/64")
	run(t, "ip link set veth1 mtu 1430")
	pod.run("ip link set eth0 mtu 1430")
	pod.run("ip route add default via 10.42.1.1")
	pod.run("ip -6 route add default via fd42:0:0:1::1")
	sysctl(t, "net/ipv4/ip_forward", "1")
	sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	converge(t, one, node(1, 2, false))
	converge(t, two, node(2, 1, false))
	ping := func(f subnet.Family, size int) (string, error) {
		to, headers := "10.42.2.5", 28
		if f == subnet.IPv6 {
			to, headers = "fd42:0:0:2::5", 48
		}
		out, err := pod.command(fmt.Sprintf("ping -c 1 -W 1 -M do -s %d %s", size-headers, to)).CombinedOutput()
		return string(out), err
	}
	for _, f := range subnet.Families() {
		eventually(t, "a full packet to pass", func() bool { _, err := ping(f, 1430); return err == nil })
	}

	run(t, "ip link set u0 mtu 1400")
	other.run("ip link set u0 mtu 1400")
	low := func(self, peer int) scenario {
		s := node(self, peer, false)
		for i := range s.self.Underlays {
			s.self.Underlays[i].MTU = 1400
		}
		return s
	}
	converge(t, one, low(1, 2))
	converge(t, two, low(2, 1))
	for f, fits := range map[subnet.Family]int{subnet.IPv4: 1350, subnet.IPv6: 1330} {
		eventually(t, fmt.Sprintf("a refusal of %d bytes that names %d", fits+1, fits), func() bool {
			out, err := ping(f, fits+1)
			if err == nil {
				t.Fatalf("%v: %d bytes pass\n%s", f, fits+1, out)
			}
			return strings.Contains(strings.ReplaceAll(out, " ", ""), fmt.Sprintf("mtu=%d", fits))
		})
		eventually(t, fmt.Sprintf("%d bytes to pass", fits), func() bool { _, err := ping(f, fits); return err == nil })
	}
	if n := fragments(t); n != [2]int{} {
		t.Errorf("%d fragments of IPv4 and %d of IPv6 were made, want none", n[0], n[1])
	}

	// What it would do to lower the host's end too.
	pod.run("ip route flush cache")
	run(t, "ip link set veth1 mtu 1350")
	if out, err := ping(subnet.IPv4, 1430); err == nil || strings.Contains(out, "mtu") {
		t.Errorf("a smaller MTU on the host's end is told to the pod now: the reason to leave it alone is gone\n%s", out)
	}
}

// fragments counts those that this namespace has made, IPv4 first.
func fragments(t *testing.T) (n [2]int) {
	t.Helper()
	const created = 19 // FragCreates in the line of values, after its name
	for line := range strings.Lines(run(t, "cat /proc/self/net/snmp /proc/self/net/snmp6")) {
		var err error
		switch f := strings.Fields(line); {
		case f[0] == "Ip:" && f[created] != "FragCreates":
			n[0], err = strconv.Atoi(f[created])
		case f[0] == "Ip6FragCreates":
			n[1], err = strconv.Atoi(f[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}
