// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/internal/nshost"
)

// MACs of the yard.
const (
	macGateway = "\x02\x00\x00\x00\x01\x01"
	macA       = "\x02\x00\x00\x00\x01\x0a"
	macB       = "\x02\x00\x00\x00\x01\x0b"
	macC       = "\x02\x00\x00\x00\x01\x0c"
	macUplink  = "\x02\x00\x00\x00\x01\x0d"
	toAll      = "\xff\xff\xff\xff\xff\xff"
)

// Link-local addresses that Linux makes from the MACs.
const (
	linkGateway = "fe80::ff:fe00:101"
	linkA       = "fe80::ff:fe00:10a"
	linkB       = "fe80::ff:fe00:10b"
)

// yard is a node with a bridge, pods a, b and c on it, and an uplink.
type yard struct {
	t        testing.TB
	node     *nshost.Host
	pods     map[string]*nshost.Host
	conn     *Conn
	raw      map[string]int // packet sockets to send from
	received map[string]int // and to capture with
}

// yardPods is what the table knows of the pods of a yard.
func yardPods() []SpoofPod {
	return []SpoofPod{
		{
			Port: "port-a", MAC: net.HardwareAddr(macA), Addrs: append(addrs("10.42.1.10", "fd42:0:0:1::a", "192.0.2.7", "2001:db8::7"), hostsOf("198.51.100.0/28")...),
		},
		{Port: "port-b", MAC: net.HardwareAddr(macB), Addrs: addrs("10.42.1.11", "fd42:0:0:1::b")},
		{Port: "port-c", MAC: net.HardwareAddr(macC), Addrs: addrs("10.42.1.12", "fd42:0:0:1::c")},
	}
}

// hostsOf returns all addresses of a prefix.
func hostsOf(s string) (out []netip.Addr) {
	p := netip.MustParsePrefix(s)
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	return out
}

// Spoof is what a node wants that has those pods.
func Spoof(t testing.TB, pods ...SpoofPod) Desired {
	t.Helper()
	d := Desired{Table: SpoofTable()}
	for _, p := range pods {
		e, err := SpoofElements(p)
		if err != nil {
			t.Fatal(err)
		}
		d.Elements = append(d.Elements, e...)
	}
	return d
}

func newYard(t testing.TB) *yard {
	y := &yard{t: t, node: nshost.New(t), pods: map[string]*nshost.Host{}, raw: map[string]int{}, received: map[string]int{}}
	y.node.Run("ip link add br0 address 02:00:00:00:01:01 type bridge\nip link set br0 up")
	y.node.Run("ip addr add 10.42.1.1/24 dev br0\nip addr add fd42:0:0:1::1/64 dev br0 nodad")
	y.node.Sysctl("1", "ipv4/ip_forward", "ipv6/conf/all/forwarding")
	for _, n := range []string{"a", "b", "c", "d"} {
		y.pods[n] = nshost.New(t)
		y.attach(y.pods[n], "port-"+n, "02:00:00:00:01:0"+n)
		if n != "d" {
			y.address(y.pods[n], "10.42.1.1"+fmt.Sprint(int(n[0]-'a')), "fd42:0:0:1::"+n)
		}
		y.raw[n] = y.socket(y.pods[n], "eth0")
		y.received[n] = y.socket(y.pods[n], "eth0")
	}
	y.received["node"] = y.socket(y.node, "br0")
	y.conn = dial(y.t, y.node)
	return y
}

// attach gives a pod a link to the bridge, as a CNI plugin does.
func (y *yard) attach(pod *nshost.Host, port, mac string) {
	y.node.Run("ip link add " + port + " type veth peer name eth0 address " + mac + " netns " + pod.Path)
	y.node.Run("ip link set " + port + " master br0\nip link set " + port + " up")
}

// address brings a pod's link up and gives it addresses; the IPv6 ones are
// tentative afterwards.
func (y *yard) address(pod *nshost.Host, v4, v6 string) {
	pod.Run("ip link set eth0 up\nip addr add " + v4 + "/24 dev eth0\nip addr add " + v6 + "/64 dev eth0")
	pod.Run("ip route add default via 10.42.1.1\nip route add default via fd42:0:0:1::1")
}

// socket is a packet socket on a device that nobody has to read in time.
func (y *yard) socket(h *nshost.Host, dev string) int {
	fd := -1
	h.Run("ip link set " + dev + " up")
	h.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	y.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// settled waits until no pod has a tentative address.
func (y *yard) settled(pods ...*nshost.Host) {
	for _, p := range pods {
		nshost.Eventually(y.t, "duplicate address detection", func() bool {
			return !bytes.Contains([]byte(p.Run("ip -6 addr show dev eth0")), []byte("tentative"))
		})
		if out := p.Run("ip -6 addr show dev eth0 dadfailed"); out != "" {
			y.t.Fatalf("duplicate address detection failed: %s", out)
		}
	}
}

// refused is what the table has counted, by counter, without zeros.
func (y *yard) refused() map[string]int {
	out := map[string]int{}
	for name, c := range mustDump(y.t, y.conn, SpoofTable()).Counters {
		if c.Packets > 0 {
			out[name] = int(c.Packets)
		}
	}
	return out
}

// arrived adds to counts how often frame came to each capture since the last call. A
// tag is not part of what packet sockets see.
func (y *yard) arrived(frame []byte, counts map[string]int) {
	if n := len(frame); n > 18 && (bytes.HasPrefix(frame[12:], []byte("\x81\x00")) || bytes.HasPrefix(frame[12:], []byte("\x88\xa8"))) {
		frame = append(append([]byte(nil), frame[:12]...), frame[16:]...)
	}
	buf := make([]byte, 4096)
	for name, fd := range y.received {
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				break
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING && bytes.Equal(buf[:n], frame) {
				counts[name]++
			}
		}
	}
}

// send sends a frame from a pod.
func (y *yard) send(from string, f frame) {
	y.t.Helper()
	if _, err := unix.Write(y.raw[from], f.bytes); err != nil {
		y.t.Fatalf("send %s: %v", f.name, err)
	}
}

// deliver sends a frame n times from a pod and returns at whom how many
// arrived, and the counters' increase. It is done when each is either at the one
// who has most of them, or counted.
func (y *yard) deliver(from string, f frame, n int) (at, refused map[string]int) {
	y.t.Helper()
	before, at := y.refused(), map[string]int{}
	y.arrived(f.bytes, map[string]int{})
	for range n {
		y.send(from, f)
	}
	nshost.Eventually(y.t, fmt.Sprintf("%d of %s from %s: delivered or refused", n, f.name, from), func() bool {
		y.arrived(f.bytes, at)
		total := 0
		for _, c := range at {
			total = max(total, c)
		}
		refused = y.refused()
		for name, c := range before {
			if refused[name] -= c; refused[name] == 0 {
				delete(refused, name)
			}
		}
		for _, c := range refused {
			total += c
		}
		return total >= n
	})
	y.arrived(f.bytes, at)
	return at, refused
}

// frame is one kind of frame that pod a sends.
type frame struct {
	name  string
	bytes []byte
	want  string // counter that refuses it; empty when it is legitimate
}

// labelledAs is an IPv6 packet with a flow label that no kernel makes, so that a
// capture knows the test's frames from the pods' own.
func labelledAs(p packet, hops byte) []byte {
	b := p.bytes()
	if p.src.Is6() {
		b[1], b[2], b[3], b[7] = 0x0b, 0xad, 0xfa, hops
	}
	return b
}

func ip(dst, src string, p packet) []byte {
	return ethernet(dst, src, etherTypeOf(p.src), labelledAs(p, 64))
}

// arp is a frame of RFC 826 with padding that tells it from the kernel's.
func arp(dst, src string, op int, senderMAC, sender, target string) []byte {
	b := be(append(be(nil, 1, 0x0800), 6, 4), op)
	b = append(append(b, senderMAC...), addr(sender).AsSlice()...)
	b = append(append(b, "\x00\x00\x00\x00\x00\x00"...), addr(target).AsSlice()...)
	return ethernet(dst, src, unix.ETH_P_ARP, append(b, "padding of the test"...))
}

// icmp6 is a message with 4 bytes of zeros after its checksum.
func icmp6(src, dst string, typ byte, body ...[]byte) packet {
	b := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, bytes.Join(body, nil)...)
	return transport(addr(src), addr(dst), unix.IPPROTO_ICMPV6, 2, b)
}

// nd is a frame of neighbour discovery; before is an extension header.
func nd(dst, src string, p packet, before ...byte) []byte {
	if len(before) > 0 {
		p.before, p.beforeIs = before, unix.IPPROTO_HOPOPTS
	}
	return ethernet(dst, src, etherIPv6, labelledAs(p, 255))
}

// option is a link-layer address option: 1 of the source, 2 of the target.
func option(kind byte, mac string) []byte { return append([]byte{kind, 1}, mac...) }

func target(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
