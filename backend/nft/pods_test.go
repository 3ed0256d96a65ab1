// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/internal/nshost"
)

func port(a string, p int) netip.AddrPort { return netip.AddrPortFrom(addr(a), uint16(p)) }

func toPort(p int) func(seen) bool { return func(s seen) bool { return s.dport == p } }

// A4: a pod sends VXLAN to a peer through its own node, and masquerading
// gives it the address that the peer trusts.
func TestPodsSendNoVXLANToNodes(t *testing.T) {
	for _, c := range []struct{ name, peer, own, other string }{
		{"IPv4", "10.0.0.2", "10.0.0.1", "10.0.0.66"},
		{"IPv6", "fd00::2", "fd00::1", "fd00::66"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			p := params()
			p.Subnets = [2]netip.Prefix{} // no rules about pods
			install(t, l.conn, Weft(p, peers()))
			wire := l.capture(toPort(8472))
			talk(l.pod, netip.AddrPort{}, port(c.peer, 8472), burst, []byte("x"))
			for _, s := range wire(burst) {
				if s.src != addr(c.own) {
					t.Fatalf("without the rules, peers see %v; want the node's address", s.src)
				}
			}
			install(t, l.conn, Weft(params(), peers()))
			talk(l.pod, netip.AddrPort{}, port(c.peer, 8472), burst, []byte("x"))
			talk(l.pod, netip.AddrPort{}, port(c.own, 8472), burst, []byte("x"))
			talk(l.pod, netip.AddrPort{}, port(c.other, 8472), 1, []byte("x")) // no node of ours: allowed
			if got := wire(1); len(got) != 1 || got[0].dst != addr(c.other) {
				t.Errorf("with the rules the wire carries %v", got)
			}
			if n := l.counter(RefusedPodVXLAN); n != 2*burst {
				t.Errorf("%d refused, want %d", n, 2*burst)
			}
		})
	}
}

// A service address that is translated to a node's is no way around.
func TestPodsSendNoVXLANThroughAService(t *testing.T) {
	l := newLab(t)
	l.node.NFT("table ip foreign {\nchain c {\ntype nat hook prerouting priority dstnat\nip daddr 10.96.0.1 udp dport 53 dnat to 10.0.0.2:8472\n}\n}")
	p := params()
	p.Subnets = [2]netip.Prefix{}
	install(t, l.conn, Weft(p, peers()))
	wire := l.capture(toPort(8472))
	talk(l.pod, netip.AddrPort{}, port("10.96.0.1", 53), burst, []byte("x"))
	wire(burst)
	install(t, l.conn, Weft(params(), peers()))
	talk(l.pod, netip.AddrPort{}, port("10.96.0.1", 53), burst, []byte("x"))
	talk(l.pod, netip.AddrPort{}, port("10.0.0.66", 8472), 1, []byte("x"))
	if got := wire(1); len(got) != 1 {
		t.Errorf("%d packets came through", len(got)-1)
	}
	if n := l.counter(RefusedPodVXLAN); n != burst {
		t.Errorf("%d refused, want %d", n, burst)
	}
}

func (l *lab) counter(name string) int {
	return int(mustDump(l.t, l.conn, Table{Family: Inet, Name: TableName}).Counters[name].Packets)
}

// tracked counts conntrack entries of UDP to the given port that mention all
// of words.
func (l *lab) tracked(dport int, words ...string) int {
	n := 0
	l.node.Do(func() error {
		all, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		for line := range strings.Lines(string(all)) {
			ok := strings.Contains(line, " udp ") && strings.Contains(line, fmt.Sprintf(" dport=%d ", dport))
			for _, w := range words {
				ok = ok && strings.Contains(line, w)
			}
			if ok {
				n++
			}
		}
		return err
	})
	return n
}

func TestOuterPacketsAreNotTracked(t *testing.T) {
	l := newLab(t)
	send := func() {
		wire := l.capture(toPort(8472))
		for i := range 50 {
			for _, a := range []attack{{outer: "10.0.0.2", inner: "10.42.2.5"}, {outer: "fd00::2", inner: "fd42:0:0:2::5"}} {
				l.send(a.packets("x", i)...)
			}
		}
		// What the node itself sends from the VXLAN port's point of view.
		for i := range 50 { // ports of their own: each is a flow
			talk(l.node, port("10.0.0.1", 20000+i), port("10.0.0.2", 8472), 1, []byte("x"))
			talk(l.node, port("fd00::1", 20000+i), port("fd00::2", 8472), 1, []byte("x"))
		}
		wire(100)
		// Other uses of the port: a stranger's, the peers' own for another
		// address of ours, and from here to a stranger.
		l.send(udp(addr("10.0.0.66"), addr("10.0.0.1"), 1000, 8472, []byte("x")))
		l.send(udp(addr("10.0.0.2"), addr("10.42.1.1"), 1001, 8472, []byte("x")))
		talk(l.node, netip.AddrPort{}, port("10.0.0.66", 8472), 1, []byte("x"))
		nshost.Eventually(t, "other uses of the port to be tracked", func() bool {
			return l.tracked(8472, " sport=1000 ") == 1 && l.tracked(8472, " sport=1001 ") == 1 &&
				l.tracked(8472, "] src=10.0.0.66 ") == 1
		})
	}
	// Without notrack each packet is an entry: conntrack is on because of
	// the masquerading.
	p := params()
	p.Own = nil
	install(t, l.conn, Weft(p, peers()))
	send()
	if n := l.tracked(8472); n != 203 {
		t.Errorf("without notrack: %d entries for the port, want 203", n)
	}
	l = newLab(t)
	install(t, l.conn, Weft(params(), peers()))
	send()
	if n := l.tracked(8472); n != 3 {
		t.Errorf("with notrack: %d entries for the port, want the 3 others", n)
	}
	if n := l.tracked(9000); n != 2 {
		t.Errorf("%d inner flows tracked, want 2", n)
	}
}

// routerAdvertisement is RFC 4861 section 4.2 without options, from a
// link-local address inside VXLAN. It is a default route of 1800 s.
func routerAdvertisement() packet {
	body := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
	return transport(addr("fe80::bad"), addr("ff02::1"), unix.IPPROTO_ICMPV6, 2, body)
}

func TestRouterAdvertisementsAreDropped(t *testing.T) {
	l := newLab(t)
	l.node.Sysctl("0", "ipv6/conf/all/forwarding") // a router ignores them anyhow
	l.node.Run("sysctl -qw net/ipv6/conf/weft6.1/accept_ra=2 net/ipv6/conf/weft6.1/accept_ra_defrtr=1 net/ipv6/conf/weft6.1/accept_ra_min_hop_limit=0")
	l.node.Run("ip addr add fe80::1/64 dev weft6.1 nodad")
	ra := routerAdvertisement().bytes()
	ra[7] = 255
	frame := udp(addr("fd00::2"), addr("fd00::1"), 50000, 8472,
		vxlan(1, ethernet("\x33\x33\x00\x00\x00\x01", macElse, etherIPv6, ra)))
	off := params()
	off.Guard, off.Devices = GuardOff, [2]string{}
	install(t, l.conn, Weft(off, peers()))
	l.send(frame)
	nshost.Eventually(t, "a default route from a router advertisement", func() bool {
		return strings.Contains(l.node.Run("ip -6 route show default dev weft6.1"), "fe80::bad")
	})
	l.node.Run("ip -6 route del default via fe80::bad dev weft6.1")
	off.Devices = params().Devices
	install(t, l.conn, Weft(off, peers()))
	for range burst {
		l.send(frame)
	}
	nshost.Eventually(t, "router advertisements to be counted", func() bool { return l.counter(RefusedRouterAdv) == burst })
	if out := l.node.Run("ip -6 route show default dev weft6.1"); out != "" {
		t.Errorf("a route came through: %s", out)
	}
}

func TestMasquerade(t *testing.T) {
	l := newLab(t)
	// 10.42.9.0/24 goes out by the underlay, so that the wire shows what
	// stays inside the network too.
	l.node.Run("ip route add 10.42.9.0/24 via 10.0.0.254\nip route add fd42:0:0:9::/64 via fd00::254\nip route add 224.1.0.0/16 via 10.0.0.254")
	install(t, l.conn, Weft(params(), peers()))
	const n = 50
	for _, c := range []struct {
		name, to string
		from     *nshost.Host
		source   netip.AddrPort // with port: must stay
		want     string
		mark     bool
	}{
		{"pod to outside", "203.0.113.5", l.pod, port("10.42.1.2", 7000), "10.0.0.1", false},
		{"pod to outside", "2001:db8:1::5", l.pod, port("fd42:0:0:1::2", 7000), "fd00::1", false},
		{"pod to underlay", "10.0.0.66", l.pod, port("10.42.1.2", 7001), "10.0.0.1", false},
		{"pod to pod", "10.42.9.5", l.pod, port("10.42.1.2", 7002), "10.42.1.2", false},
		{"pod to pod", "fd42:0:0:9::5", l.pod, port("fd42:0:0:1::2", 7002), "fd42:0:0:1::2", false},
		{"host to outside", "203.0.113.5", l.node, port("10.0.0.1", 7003), "10.0.0.1", false},
		{"host to pod", "10.42.9.5", l.node, port("10.0.0.1", 7004), "10.0.0.1", false},
		{"kube-proxy's", "203.0.113.5", l.pod, port("10.42.1.2", 7005), "10.42.1.2", true},
	} {
		t.Run(c.name+" "+c.to, func(t *testing.T) {
			if c.mark {
				l.node.NFT("table ip foreign {\nchain c {\ntype filter hook prerouting priority 0\nmeta mark set meta mark or 0x4000\n}\n}")
			}
			wire := l.capture(func(s seen) bool { return s.dst == addr(c.to) && s.dport >= 6000 && s.dport < 6000+n })
			for i := range n {
				talk(c.from, c.source, port(c.to, 6000+i), 1, []byte("x"))
			}
			kept := 0
			for _, s := range wire(n) {
				if s.src != addr(c.want) {
					t.Fatalf("source %v, want %s", s.src, c.want)
				}
				if s.sport == int(c.source.Port()) {
					kept++
				}
			}
			if same := c.source.Addr() == addr(c.want); same && kept != n {
				t.Errorf("the port of %d of %d flows changed", n-kept, n)
			} else if !same && kept > n/5 {
				t.Errorf("%d of %d masqueraded flows kept their port; they should be random", kept, n)
			}
		})
	}
	l.node.Run("nft delete table ip foreign")
	t.Run("answers", func(t *testing.T) {
		wire := l.capture(func(s seen) bool { return s.sport == 9000 })
		l.send(udp(addr("203.0.113.9"), addr("10.42.1.2"), 4000, 9000, []byte("q")))
		<-l.got
		l.answer("203.0.113.9", 4000)
		if got := wire(1); got[0].src != addr("10.42.1.2") {
			t.Errorf("the answer comes from %v", got[0].src)
		}
	})
}

// answer sends from the pod's port 9000, as an answer would.
func (l *lab) answer(to string, dport int) {
	l.t.Helper()
	if _, err := l.sock.WriteTo([]byte("a"), net.UDPAddrFromAddrPort(port(to, dport))); err != nil {
		l.t.Fatal(err)
	}
}
