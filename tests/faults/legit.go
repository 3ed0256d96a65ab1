// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// legitimate is what the guard must let pass, with none refused: pings and
// refusals are counted, both must be 0 lost.
func legitimate() []fault {
	return []fault{
		{ID: "G1", Name: "a peer behind address translation", Flannel: "no guard", Seeds: 1, Tells: true, Limit: 10 * time.Second, Loses: true, Run: translated},
		{ID: "G2", Name: "a peer that flannel runs", Flannel: "no guard", Seeds: 1, Tells: true, Limit: 10 * time.Second, Run: flannelPeer},
		{ID: "G3", Name: "sockets of a host bound to its node address", Flannel: "no guard", Seeds: 1, Tells: true, Run: hostSockets},
		{ID: "F23", Name: "2,000 flows at once make no conntrack entry for outer packets", Flannel: "one entry for each", Seeds: 1, Tells: true, Run: flows},
	}
}

// refusals adds up the refused packets of all nodes with an agent.
func (s *scene) refusals(ctx context.Context) (int, error) {
	sum := 0
	for _, n := range s.Nodes() {
		if !s.has(n) {
			continue
		}
		more, _, err := refused(ctx, n)
		if err != nil {
			return 0, err
		}
		sum += more
	}
	return sum, nil
}

// noneRefused runs traffic and returns an error if the guards refused any of
// it, or if any was lost.
func (s *scene) noneRefused(ctx context.Context, what string, traffic func() (sent int, err error)) error {
	before, err := s.refusals(ctx)
	if err != nil {
		return err
	}
	sent, err := traffic()
	if err != nil {
		return err
	}
	after, err := s.refusals(ctx)
	if err != nil {
		return err
	}
	s.notef("%s: %d sent, 0 lost, %d refused", what, sent, after-before)
	if after != before || sent == 0 {
		return fmt.Errorf("%s: %d of %d were refused", what, after-before, sent)
	}
	return nil
}

// pings sends many echo requests with ping(8), none of which may be lost.
func (s *scene) pings(ctx context.Context, from *netlab.Place, to netip.Addr, args ...string) (int, error) {
	n := s.count()
	all := append([]string{"ping", "-n", "-q", "-i", "0.002", "-c", fmt.Sprint(n), "-W", "2"}, args...)
	out, err := from.Run(ctx, append(all, to.String())...)
	if err != nil || !strings.Contains(out, " 0% packet loss") {
		return n, fmt.Errorf("ping from %s to %s %v: %w: %s", from, to, args, err, out)
	}
	return n, nil
}

// translated puts n3 behind one-to-one address translation in the fabric: it
// announces addresses that it does not have, what is sent there reaches it,
// and what it sends is translated on the way, as in a cloud.
func translated(ctx context.Context, s *scene) error {
	n3 := s.Node("n3")
	args, undo, err := s.translate(ctx, n3)
	if err != nil {
		return err
	}
	if err := s.restart(ctx, n3, args...); err != nil {
		return err
	}
	sees := func() error {
		is, err := stateOf(ctx, s.Node("n1"))
		if err == nil && !(is.has("fdb", "dst 192.168.77.133") && is.has("fdb", "dst fd77::133")) {
			err = errors.New("n1 does not send to the announced addresses")
		}
		return err
	}
	if err := s.wait(ctx, "peers that send to the announced addresses", sees); err != nil {
		return err
	}
	if err := s.wait(ctx, "pods that reach each other", s.traffic.flows); err != nil {
		return err
	}
	if err := s.everyPair(ctx, "pods behind translated addresses", n3); err != nil {
		return err
	}
	s.injected = time.Now()
	if err := undo(); err != nil {
		return err
	}
	if err := s.restart(ctx, n3); err != nil {
		return err
	}
	return s.heals(ctx)
}

// translate makes the fabric translate the node's addresses in packets to our
// port, and returns what its agent has to be told. The others find the way to
// an address that nobody has by a permanent neighbour.
func (s *scene) translate(ctx context.Context, n *netlab.Node) (args []string, undo func() error, err error) {
	mac, err := hardware(n.Place, "eth0")
	if err != nil {
		return nil, nil, err
	}
	var rules, add, del strings.Builder
	for _, a := range n.Underlay() {
		public, kind, flag := "192.168.77.133", "ip", "--public-ip="
		if a.Is6() {
			public, kind, flag = "fd77::133", "ip6", "--public-ipv6="
		}
		args = append(args, flag+public)
		fmt.Fprintf(&rules, "iifname %[1]s %[2]s saddr %[3]s udp dport 8472 %[2]s saddr set %[4]s; %[2]s daddr %[4]s %[2]s daddr set %[3]s; ", n, kind, a, public)
		fmt.Fprintf(&add, "ip neigh replace %s lladdr %s dev eth0 nud permanent\n", public, mac)
		fmt.Fprintf(&del, "ip neigh del %s dev eth0\n", public)
	}
	everywhere := func(script string) error {
		for _, o := range s.others(n) {
			if err := s.do(ctx, o.Place, script); err != nil {
				return err
			}
		}
		return nil
	}
	undo = func() error {
		return errors.Join(s.nft(ctx, s.Fabric(), "delete table bridge translate"), everywhere(del.String()))
	}
	err = s.nft(ctx, s.Fabric(), "table bridge translate { chain c { type filter hook prerouting priority -300; "+rules.String()+"} ; }")
	return args, undo, errors.Join(err, everywhere(add.String()))
}

// everyPair pings between the pods of a node and all others, both ways.
func (s *scene) everyPair(ctx context.Context, what string, n *netlab.Node) error {
	return s.noneRefused(ctx, what, func() (int, error) {
		sum := 0
		for _, o := range s.others(n) {
			if !s.has(o) {
				continue
			}
			for _, pair := range [][2]*netlab.Pod{{n.Pods()[0], o.Pods()[0]}, {o.Pods()[0], n.Pods()[0]}} {
				for _, a := range pair[1].Addrs() {
					more, err := s.pings(ctx, pair[0].Place, a)
					sum += more
					if err != nil {
						return sum, err
					}
				}
			}
		}
		return sum, nil
	})
}

// flannelPeer makes the stranger a node as flannel v0.28 would: a device, a
// lease without anything of ours, and entries by hand.
func flannelPeer(ctx context.Context, s *scene) error {
	n4 := s.Node(stranger)
	const mac, key = "0a:00:00:00:04:01", "10.42.253.0-24"
	script := fmt.Sprintf(`ip link add flannel.1 address %s mtu 1450 type vxlan id 1 local %s dev eth0 dstport 8472 nolearning
		ip addr add 10.42.253.0/32 dev flannel.1
		ip addr add 10.42.253.5/32 dev flannel.1
		ip link set flannel.1 up
		`, mac, n4.Underlay()[0])
	for _, o := range s.others(n4) {
		subnets, err := o.Subnets()
		if err != nil {
			return err
		}
		hw, err := hardware(o.Place, "weft.1")
		if err != nil {
			return err
		}
		base := subnets[0].Addr()
		script += fmt.Sprintf("bridge fdb add %[1]s dev flannel.1 dst %[2]s\nip neigh add %[3]s lladdr %[1]s dev flannel.1 nud permanent\nip route add %[4]s via %[3]s dev flannel.1 onlink\n",
			hw, o.Underlay()[0], base, subnets[0])
	}
	if err := s.do(ctx, n4.Place, script); err != nil {
		return err
	}
	if err := s.put(ctx, s.key(key), lease(n4.Underlay()[0].String(), mac)); err != nil {
		return err
	}
	agents := s.others(n4)
	if err := s.wait(ctx, "a route to the flannel node", func() error { return everywhere(ctx, agents, "10.42.253.0/24", true) }); err != nil {
		return err
	}
	err := s.noneRefused(ctx, "a flannel node's device and pod, both ways", func() (int, error) {
		sum := 0
		for _, o := range agents {
			pod := o.Pods()[0]
			to, _ := pod.Addr(subnet.IPv4)
			for _, from := range []string{"10.42.253.0", "10.42.253.5"} {
				more, err := s.pings(ctx, n4.Place, to, "-I", from)
				if err == nil {
					_, err = s.pings(ctx, pod.Place, netip.MustParseAddr(from))
				}
				sum += 2 * more
				if err != nil {
					return sum, err
				}
			}
		}
		return sum, nil
	})
	if err != nil {
		return err
	}
	s.injected = time.Now()
	if err := s.remove(ctx, s.key(key)); err != nil {
		return err
	}
	if err := s.do(ctx, n4.Place, "ip link del flannel.1"); err != nil {
		return err
	}
	return s.heals(ctx)
}

// hostSockets pings pods from hosts, bound to each of the node's addresses
// and to none.
func hostSockets(ctx context.Context, s *scene) error {
	err := s.noneRefused(ctx, "from hosts, bound and not", func() (int, error) {
		sum := 0
		from, to := s.Node("n2"), s.Node("n1").Pods()[0]
		for _, a := range to.Addrs() {
			for _, args := range [][]string{{}, {"-I", underlayOf(from, a).String()}} {
				more, err := s.pings(ctx, from.Place, a, args...)
				sum += more
				if err != nil {
					return sum, err
				}
			}
		}
		return sum, nil
	})
	if err != nil {
		return err
	}
	s.injected = time.Now()
	return s.heals(ctx)
}

// flows opens 2,000 flows between two pods at once and looks at the nodes'
// conntrack tables: the pods' flows are there, outer packets are not.
func flows(ctx context.Context, s *scene) error {
	const count = 2000
	n1, n2 := s.Node("n1"), s.Node("n2")
	for _, n := range []*netlab.Node{n1, n2} { // of what scripts before this one have left
		if err := n.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
			return fmt.Errorf("flush conntrack on %s: %w", n, err)
		}
	}
	from, to := n1.Pods()[0], n2.Pods()[0]
	r, err := listen(ctx, to.Place)
	if err != nil {
		return err
	}
	defer r.conn.Close()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range count {
		a := to.Addrs()[i%len(to.Addrs())]
		c, err := from.Dial(ctx, "udp", netip.AddrPortFrom(a, receivePort).String())
		if err != nil {
			return err
		}
		conns = append(conns, c)
		if _, err := c.Write([]byte{0, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)}); err != nil {
			return err
		}
		if err := pace(ctx, i); err != nil {
			return err
		}
	}
	if err := s.wait(ctx, "all datagrams", func() error {
		if n := r.count(); n != count {
			return fmt.Errorf("%d of %d arrived", n, count)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, n := range []*netlab.Node{n1, n2} {
		text, err := n.Run(ctx, "cat", "/proc/net/nf_conntrack")
		if err != nil {
			return err
		}
		inner, outer := strings.Count(text, fmt.Sprintf("dport=%d", receivePort)), strings.Count(text, fmt.Sprintf("dport=%d", vxlanPort))
		s.notef("%s: %d entries of the pods' flows, %d of outer packets", n, inner, outer)
		if inner < count || outer != 0 {
			return fmt.Errorf("conntrack on %s has %d entries of %d flows and %d of outer packets", n, inner, count, outer)
		}
	}
	s.injected = time.Now()
	return s.heals(ctx)
}
