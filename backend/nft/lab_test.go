// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/internal/nshost"
)

const (
	macNode = "\x02\x00\x00\x00\x00\x01" // the node's underlay device
	macVTEP = "\x02\x00\x00\x00\x00\x02" // each of the node's VXLAN devices
	macElse = "\x02\x00\x00\x00\x00\x09" // everybody else
	burst   = 200
)

// lab is a node with VXLAN devices for VNI 1 on both underlays, and for the
// foreign VNI 99; a pod on it; and a wire that plays everybody else with raw
// frames.
type lab struct {
	t               testing.TB
	wire, node, pod *nshost.Host
	conn            *Conn
	raw             int            // packet socket on the wire
	sock            net.PacketConn // of the pod, port 9000
	got             chan string
}

func newLab(t testing.TB) *lab {
	l := &lab{t: t, wire: nshost.New(t), node: nshost.New(t), pod: nshost.New(t), got: make(chan string, 4096)}
	l.node.Link("u0", l.wire, "x0")
	l.node.Link("p0", l.pod, "eth0")
	l.node.Sysctl("1", "ipv4/ip_forward", "ipv6/conf/all/forwarding")
	l.node.Sysctl("0", "ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter", "ipv4/conf/u0/rp_filter", "ipv4/conf/p0/rp_filter")
	l.pod.Run(`ip addr add 10.42.1.2/24 dev eth0
		ip addr add fd42:0:0:1::2/64 dev eth0 nodad
		ip route add default via 10.42.1.1
		ip route add default via fd42:0:0:1::1`)
	l.node.Run(`ip link set u0 address 02:00:00:00:00:01
		ip addr add 10.0.0.1/24 dev u0
		ip addr add fd00::1/64 dev u0 nodad
		ip addr add 10.42.1.1/24 dev p0
		ip addr add fd42:0:0:1::1/64 dev p0 nodad
		ip route add default via 10.0.0.254
		ip route add default via fd00::254
		ip link add weft.1 address 02:00:00:00:00:02 type vxlan id 1 local 10.0.0.1 dev u0 dstport 8472 nolearning
		ip link add weft6.1 address 02:00:00:00:00:02 type vxlan id 1 local fd00::1 dev u0 dstport 8472 nolearning
		ip link add other address 02:00:00:00:00:02 type vxlan id 99 local 10.0.0.1 dev u0 dstport 8472 nolearning
		ip link set weft.1 up
		ip link set weft6.1 up
		ip link set other up
		ip route add 10.42.2.0/24 via 10.42.2.0 dev weft.1 onlink
		ip route add fd42:0:0:2::/64 via fd42:0:0:2:: dev weft6.1 onlink`)
	for _, n := range []string{"2", "3", "7", "66", "254"} {
		l.node.Run("ip neigh add 10.0.0." + n + " lladdr 02:00:00:00:00:09 dev u0 nud permanent")
		l.node.Run("ip neigh add fd00::" + n + " lladdr 02:00:00:00:00:09 dev u0 nud permanent")
	}
	l.pod.Run("ip link set eth0 address 02:00:00:00:00:09")
	l.node.Run("ip link set p0 address 02:00:00:00:00:01")
	for _, a := range []string{"10.42.1.", "fd42:0:0:1::"} {
		l.node.Run("ip neigh add " + a + "2 lladdr 02:00:00:00:00:09 dev p0 nud permanent")
		l.pod.Run("ip neigh add " + a + "1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")
	}
	l.conn = dial(l.t, l.node)
	l.open()
	return l
}

// open makes the wire's packet socket and the pod's receiver.
func (l *lab) open() {
	l.wire.Do(func() (err error) {
		l.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		dev, err := net.InterfaceByName("x0")
		if err != nil {
			return err
		}
		return unix.Bind(l.raw, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	})
	l.t.Cleanup(func() { _ = unix.Close(l.raw) })
	room := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		}), err)
	}}
	l.pod.Do(func() (err error) { l.sock, err = room.ListenPacket(context.Background(), "udp", ":9000"); return err })
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := l.sock.ReadFrom(buf)
			if err != nil {
				return
			}
			l.got <- string(buf[:n])
		}
	})
	l.t.Cleanup(func() { _ = l.sock.Close(); wg.Wait() })
}

// send puts packets onto the wire towards the node.
func (l *lab) send(list ...packet) {
	l.t.Helper()
	for _, p := range list {
		if _, err := unix.Write(l.raw, ethernet(macNode, macElse, etherTypeOf(p.src), p.bytes())); err != nil {
			l.t.Fatalf("send %v > %v: %v", p.src, p.dst, err)
		}
	}
}

// attack is one kind of VXLAN packet from the wire. Fields that are zero
// take what is ordinary.
type attack struct {
	outer, inner string // source addresses
	vni          uint32
	cut          int    // bytes of the first fragment; 0 for no fragments
	before       []byte // options or extension header of the outer packet
	hide         bool   // the UDP header behind an IPv6 header that is fragmented too
	vlan         bool   // 802.1Q between the inner Ethernet and IP headers
	want         string // counter that refuses it; empty when it is legitimate
}

func (a attack) packets(tag string, n int) []packet {
	outer, inner := addr(a.outer), addr(a.inner)
	pod, node := addr("10.42.1.2"), addr("10.0.0.1")
	if inner.Is6() {
		pod = addr("fd42:0:0:1::2")
	}
	if outer.Is6() {
		node = addr("fd00::1")
	}
	vni := a.vni
	if vni == 0 {
		vni = 1
	}
	ip := udp(inner, pod, 40000, 9000, []byte(tag)).bytes()
	frame := ethernet(macVTEP, macElse, etherTypeOf(inner), ip)
	if a.vlan {
		frame = ethernet(macVTEP, macElse, unix.ETH_P_8021Q, append(be(nil, 5, etherTypeOf(inner)), ip...))
	}
	p := udp(outer, node, 50000+n, 8472, vxlan(vni, frame))
	if a.before != nil {
		p.before, p.beforeIs = a.before, unix.IPPROTO_DSTOPTS
	}
	if a.hide {
		p.payload = append([]byte{p.proto, 0, 1, 4, 0, 0, 0, 0}, p.payload...)
		p.proto = unix.IPPROTO_DSTOPTS
	}
	if a.cut == 0 {
		return []packet{p}
	}
	return p.split(a.cut, uint32(n+1))
}

// deliver sends n of the attack and returns how many reached the pod, and the
// counters' increase by name. It knows that all were seen because each is
// either delivered or counted, within the patience of eventually.
func (l *lab) deliver(a attack, n int) (delivered int, refused map[string]int) {
	l.t.Helper()
	before := mustDump(l.t, l.conn, Table{Family: Inet, Name: TableName}).Counters
	tag := fmt.Sprintf("%+v", a)
	for i := range n {
		l.send(a.packets(tag, i)...)
	}
	nshost.Eventually(l.t, fmt.Sprintf("%d packets of %+v: delivered or refused", n, a), func() bool {
		for {
			select {
			case s := <-l.got:
				if s == tag {
					delivered++
				}
				continue
			default:
			}
			break
		}
		refused = map[string]int{}
		total := delivered
		for name, c := range mustDump(l.t, l.conn, Table{Family: Inet, Name: TableName}).Counters {
			if more := int(c.Packets - before[name].Packets); more > 0 {
				refused[name] = more
				total += more
			}
		}
		return total >= n
	})
	return delivered, refused
}

// capture returns what the node sends onto the wire and keep accepts, until
// n of them came.
func (l *lab) capture(keep func(seen) bool) (next func(n int) []seen) {
	l.t.Helper()
	fd := -1
	l.wire.Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		return err
	})
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return func(n int) []seen {
		l.t.Helper()
		var out []seen
		buf := make([]byte, 4096)
		nshost.Eventually(l.t, fmt.Sprintf("%d packets on the wire", n), func() bool {
			for {
				size, from, err := unix.Recvfrom(fd, buf, 0)
				if err != nil {
					return len(out) >= n
				}
				if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING || !bytes.Equal(buf[6:12], []byte(macNode)) {
					continue
				}
				if s, ok := parse(buf[:size]); ok && keep(s) {
					out = append(out, s)
				}
			}
		})
		return out
	}
}

// talk sends n UDP packets from a host with a socket of its own for each, so
// that each is a flow.
func talk(h *nshost.Host, from, to netip.AddrPort, n int, payload []byte) {
	h.T.Helper()
	h.Do(func() error {
		for range n {
			d := net.Dialer{}
			if from.IsValid() {
				d.LocalAddr = net.UDPAddrFromAddrPort(from)
			}
			c, err := d.DialContext(context.Background(), "udp", to.String())
			if err != nil {
				return err
			}
			_, werr := c.Write(payload)
			// EPERM is how a socket learns that its packet was dropped on the way out.
			if err := errors.Join(werr, c.Close()); err != nil && !errors.Is(err, unix.EPERM) {
				return err
			}
		}
		return nil
	})
}
