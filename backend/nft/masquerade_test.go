// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"weft.dev/weft/internal/nshost"
)

// S3: a masqueraded flow never comes from the VXLAN port, whatever port the
// pod uses: a peer's answer to it would be taken for VXLAN and not be tracked.
// The range shows, where a single port among 64,512 would hardly.
func TestMasqueradeLeavesTheVXLANPortAlone(t *testing.T) {
	const flows = 1000
	for vxlanPort, allowed := range map[uint16][2]int{8472: {8473, 65535}, 60000: {1024, 59999}} {
		for _, c := range []struct{ to, pod, want string }{
			{"203.0.113.5", "10.42.1.2", "10.0.0.1"},
			{"2001:db8:1::5", "fd42:0:0:1::2", "fd00::1"},
			{"10.0.0.2", "10.42.1.2", "10.0.0.1"}, // a peer
		} {
			t.Run(fmt.Sprintf("port %d to %s", vxlanPort, c.to), func(t *testing.T) {
				l := newLab(t)
				p := params()
				p.Port = vxlanPort
				install(t, l.conn, Weft(p, peers()))
				wire := l.capture(func(s seen) bool { return s.dst == addr(c.to) && s.dport >= 2000 && s.dport < 2000+flows })
				for i := range flows {
					from := netip.AddrPort{} // any
					if i%4 == 0 {
						from = port(c.pod, int(vxlanPort))
					}
					talk(l.pod, from, port(c.to, 2000+i), 1, []byte("x"))
				}
				ports := map[int]bool{}
				for _, s := range wire(flows) {
					if s.src != addr(c.want) || s.sport < allowed[0] || s.sport > allowed[1] {
						t.Fatalf("a flow comes from %v port %d, want %s and a port of %v", s.src, s.sport, c.want, allowed)
					}
					ports[s.sport] = true
				}
				if len(ports) < flows*9/10 { // some meet by chance
					t.Errorf("%d ports for %d flows: they should be random", len(ports), flows)
				}
			})
		}
	}
}

// An answer finds its way back to the pod, from peers too.
func TestMasqueradedFlowsAreAnswered(t *testing.T) {
	l := newLab(t)
	install(t, l.conn, Weft(params(), peers()))
	for _, to := range []string{"203.0.113.5", "10.0.0.2", "fd00::2"} {
		wire := l.capture(func(s seen) bool { return s.dst == addr(to) && s.dport == 5000 })
		l.answer(to, 5000) // a question, from port 9000
		asked := wire(1)[0]
		l.send(udp(addr(to), asked.src, 5000, asked.sport, []byte("answer from "+to)))
		if got := <-l.got; got != "answer from "+to {
			t.Errorf("the pod got %q", got)
		}
	}
}

// In an open network the pods are where a subnet is leased: what they send to
// each other stays as it is, and what they send elsewhere is masqueraded. A
// lease that comes or goes is one element, and counts from the next flow on.
func TestMasqueradeInAnOpenNetwork(t *testing.T) {
	l := newLab(t)
	// So that the wire shows what stays among pods, too.
	l.node.Run("ip route add 10.42.9.0/24 via 10.0.0.254\nip route add fd42:0:0:9::/64 via fd00::254")
	p, late := params(), Peer{Outer: addrs("10.0.0.9", "fd00::9"), Inner: prefixes("10.42.9.0/24", "fd42:0:0:9::/64")}
	p.opens()
	install(t, l.conn, Weft(p, peers()))
	dport := 6000
	expect := func(when string, from *nshost.Host, source, to, want string) {
		t.Helper()
		dport++
		wire := l.capture(func(s seen) bool { return s.dst == addr(to) && s.dport == dport })
		talk(from, netip.AddrPortFrom(addr(source), 7000), port(to, dport), 1, []byte("x"))
		if got := wire(1)[0].src; got != addr(want) {
			t.Errorf("%s: %s to %s comes from %v, want %s", when, source, to, got, want)
		}
	}
	outside := func(when string) {
		t.Helper()
		expect(when, l.pod, "10.42.1.2", "203.0.113.5", "10.0.0.1")
		expect(when, l.pod, "fd42:0:0:1::2", "2001:db8:1::5", "fd00::1")
		expect(when, l.pod, "10.42.1.2", "10.0.0.66", "10.0.0.1")
		expect(when, l.node, "10.0.0.1", "203.0.113.5", "10.0.0.1")
	}
	outside("before the lease")
	expect("before the lease", l.pod, "10.42.1.2", "10.42.9.5", "10.0.0.1")
	install(t, l.conn, Weft(p, append(peers(), late)))
	outside("with the lease")
	expect("with the lease", l.pod, "10.42.1.2", "10.42.9.5", "10.42.1.2")
	expect("with the lease", l.pod, "fd42:0:0:1::2", "fd42:0:0:9::5", "fd42:0:0:1::2")
	install(t, l.conn, Weft(p, peers()))
	expect("after the lease", l.pod, "10.42.1.2", "10.42.9.5", "10.0.0.1")
	expect("after the lease", l.pod, "fd42:0:0:1::2", "fd42:0:0:9::5", "fd00::1")
}
