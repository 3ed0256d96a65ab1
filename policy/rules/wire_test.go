// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
)

const (
	macRouter = "\x02\x00\x00\x00\x00\x01" // of all the router's devices
	macWire   = "\x02\x00\x00\x00\x00\x02" // of where packets come out
	macElse   = "\x02\x00\x00\x00\x00\x09"
)

// wireTag are the upper 32 bits of the tags of a wire's packets.
const wireTag = 0x77656674

// wire is a router between two cables. Who is at their ends plays every address
// there is, with raw frames: what goes in at one may come out at the other.
type wire struct {
	t           testing.TB
	router, end *nshost.Host
	conn        *nft.Conn
	in, out     int // packet sockets
	tag         uint64
	hops        byte // hop limit of packets; 0 for 64
}

func newWire(t testing.TB) *wire {
	// The router's own packets may well end in a small number.
	w := &wire{t: t, router: nshost.New(t), end: nshost.New(t), tag: wireTag << 32}
	for _, dev := range []string{"in", "out"} {
		w.router.Link("r"+dev, w.end, dev)
		w.router.Run("ip link set r" + dev + " address 02:00:00:00:00:01")
		w.end.Run("ip link set " + dev + " address 02:00:00:00:00:02")
		w.router.Sysctl("0", "ipv4/conf/r"+dev+"/rp_filter")
	}
	w.router.Sysctl("1", "ipv4/ip_forward", "ipv6/conf/all/forwarding")
	w.router.Sysctl("0", "ipv4/conf/all/rp_filter", "ipv4/conf/all/send_redirects", "netfilter/nf_conntrack_checksum")
	w.router.Run(`ip addr add 169.254.0.1/24 dev rout
		ip addr add fe80::1/64 dev rout nodad
		ip neigh add 169.254.0.2 lladdr 02:00:00:00:00:02 dev rout nud permanent
		ip neigh add fe80::2 lladdr 02:00:00:00:00:02 dev rout nud permanent
		ip route add default via 169.254.0.2 dev rout
		ip route add default via fe80::2 dev rout`)
	w.conn = dial(w.t, w.router)
	w.in, w.out = w.socket("in"), w.socket("out")
	return w
}

func (w *wire) socket(name string) (fd int) {
	w.t.Helper()
	w.end.Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		dev, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: all})
	})
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	w.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// be appends 16-bit numbers in network order.
func be(b []byte, v ...int) []byte {
	for _, n := range v {
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	return b
}

// transport is the start of a connection: UDP, a SYN of TCP, an INIT of SCTP, an
// echo request, or something without a header.
func transport(k policy.Packet, sport int) []byte {
	switch k.Proto {
	case policy.TCP:
		return append(be(nil, sport, int(k.Port), 0, 1, 0, 0), 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0)
	case policy.UDP:
		return be(nil, sport, int(k.Port), 16, 0)
	case policy.SCTP: // the verification tag of an INIT is 0; the tag of the test is in its chunk
		return append(be(nil, sport, int(k.Port), 0, 0, 0, 0), append([]byte{1, 0, 0, 28, 0, 0, 0, 1}, be(nil, 0, 0xffff, 1, 1, 0, 1)...)...)
	case unix.IPPROTO_ICMP:
		return be(nil, 0x0800, 0, sport, 1)
	case unix.IPPROTO_ICMPV6:
		return be(nil, 0x8000, 0, sport, 1)
	}
	return nil
}

func ip(k policy.Packet, payload []byte) []byte {
	if k.Src.Is6() {
		b := append(be([]byte{0x60, 0, 0, 0}, len(payload)), k.Proto, 64)
		return append(append(append(b, k.Src.AsSlice()...), k.Dst.AsSlice()...), payload...)
	}
	b := append(be([]byte{0x45, 0}, 20+len(payload), 0, 0), 64, k.Proto, 0, 0)
	b = append(append(b, k.Src.AsSlice()...), k.Dst.AsSlice()...)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, payload...)
}

// send puts a packet in, and returns its tag: the last 8 bytes of it.
func (w *wire) send(k policy.Packet, head []byte) uint64 {
	w.t.Helper()
	return w.frame(macRouter, k, head)
}

// frame is send to a device of another address.
func (w *wire) frame(mac string, k policy.Packet, head []byte) uint64 {
	w.t.Helper()
	w.tag++
	typ := unix.ETH_P_IP
	if k.Src.Is6() {
		typ = unix.ETH_P_IPV6
	}
	frame := append(be([]byte(mac+macElse), typ), ip(k, binary.BigEndian.AppendUint64(head, w.tag))...)
	if w.hops != 0 && k.Src.Is6() {
		frame[14+7] = w.hops
	}
	if _, err := unix.Write(w.in, frame); err != nil {
		w.t.Fatalf("send %+v: %v", k, err)
	}
	return w.tag
}

// arrived reads what came out, and adds the tags of it.
func (w *wire) arrived(tags map[uint64]bool) {
	buf := make([]byte, 4096)
	for {
		n, from, err := unix.Recvfrom(w.out, buf, 0)
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING && n >= 42 {
			if tag := binary.BigEndian.Uint64(buf[n-8 : n]); tag>>32 == wireTag { // not what the router says by itself
				tags[tag] = true
			}
		}
	}
}

// refused is the sum of the counters.
func (w *wire) refused() int {
	w.t.Helper()
	all, err := w.conn.Counters(w.t.Context(), Table())
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, c := range all {
		n += int(c.Packets)
	}
	return n
}

// verdicts sends packets and reports which came out. It knows that all were
// seen because each comes out or is counted.
func (w *wire) verdicts(list []policy.Packet, head func(policy.Packet) []byte) []bool {
	w.t.Helper()
	before := w.refused()
	tags := make([]uint64, len(list))
	for i, k := range list {
		tags[i] = w.send(k, head(k))
	}
	seen := map[uint64]bool{}
	nshost.Eventually(w.t, fmt.Sprintf("%d packets come out or are counted", len(list)), func() bool {
		w.arrived(seen)
		return len(seen)+w.refused()-before >= len(list)
	})
	out := make([]bool, len(list))
	for i, tag := range tags {
		out[i] = seen[tag]
	}
	return out
}

// allows is what the kernel is to do with k: what the table says, and nothing
// for the node's addresses that are no pod's.
func allows(t *policy.Table, subnets []netip.Prefix, k policy.Packet) bool {
	for _, a := range []netip.Addr{k.Src, k.Dst} {
		for _, s := range subnets {
			if s.Contains(a) && !t.Known[a] {
				return false
			}
		}
	}
	return t.Allows(k)
}
