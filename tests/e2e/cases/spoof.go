// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/netlab"
)

const (
	liesEach = 1000
	// The liar's claims: an address of nobody, of both families, and a MAC.
	lieIPv4, lieIPv6 = "192.0.2.66", "2001:db8::66"
	lieMAC           = "02:de:ad:be:ef:01"
	lieTarget        = "0x20010db8000000000000000000000066" // lieIPv6, for an nft that knows no taddr
)

// liesTable counts what arrives at a pod's device of each kind of lie. Frames
// are counted where they enter, whatever the pod would make of them.
const liesTable = `table netdev lies {
  counter lie_ipv4 { }
  counter lie_ipv6 { }
  counter lie_mac { }
  counter lie_arp { }
  counter lie_neighbour { }
  counter lie_router { }
  counter lie_redirect { }
  counter lie_dhcp { }
  chain arrivals {
    type filter hook ingress device "eth0" priority 0;
    udp sport 67 udp dport 7778 counter name lie_dhcp
    ether saddr ` + lieMAC + ` counter name lie_mac
    ip saddr ` + lieIPv4 + ` counter name lie_ipv4
    ip6 saddr ` + lieIPv6 + ` udp dport 7778 counter name lie_ipv6
    arp operation reply arp saddr ip ` + lieIPv4 + ` counter name lie_arp
    icmpv6 type nd-neighbor-advert @th,64,128 ` + lieTarget + ` counter name lie_neighbour
    icmpv6 type nd-router-advert counter name lie_router
    icmpv6 type nd-redirect counter name lie_redirect
  }
}
`

// A lie is a frame that a pod may not send, and the counter that it would be in.
type lie struct {
	name  string
	frame []byte
}

// datagram is IPv4 with UDP from a port; checksums of zero and one that is right.
func datagram(src, dst netip.Addr, sport, dport uint16) []byte {
	b := make([]byte, 28)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], 28)
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum&0xffff+sum>>16))
	binary.BigEndian.PutUint16(b[20:], sport)
	binary.BigEndian.PutUint16(b[22:], dport)
	binary.BigEndian.PutUint16(b[24:], 8)
	return b
}

// message is IPv6 with a hop limit of 255. The checksum of ICMPv6 is right
// (RFC 8200, section 8.1): conntrack takes others for invalid, which kube-proxy
// drops with iptables. body has an even length.
func message(src, dst netip.Addr, proto byte, body []byte) []byte {
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, proto, 255
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	b = append(b, body...)
	if proto == unix.IPPROTO_ICMPV6 {
		sum := uint32(len(body)) + unix.IPPROTO_ICMPV6
		for i := 8; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(b[42:], ^uint16(sum&0xffff+sum>>16))
	}
	return b
}

// lies are eight kinds of them, from a device with address own to a pod at dst.
func lies(own, dst net.HardwareAddr, at map[bool]netip.Addr, mine map[bool]netip.Addr) []lie {
	frame := func(src net.HardwareAddr, typ uint16, body []byte) []byte {
		return append(binary.BigEndian.AppendUint16(append(bytes.Clone(dst), src...), typ), body...)
	}
	strange, _ := net.ParseMAC(lieMAC) // it is one
	a4, a6 := netip.MustParseAddr(lieIPv4), netip.MustParseAddr(lieIPv6)
	out := []lie{}
	if v4 := at[false]; v4.IsValid() {
		arp := []byte{0, 1, 8, 0, 6, 4, 0, 2}
		arp = append(append(append(append(arp, own...), a4.AsSlice()...), dst...), v4.AsSlice()...)
		out = append(out,
			lie{"ipv4", frame(own, unix.ETH_P_IP, datagram(a4, v4, 7, 7778))},
			lie{"mac", frame(strange, unix.ETH_P_IP, datagram(mine[false], v4, 7, 7778))},
			lie{"dhcp", frame(own, unix.ETH_P_IP, datagram(mine[false], v4, 67, 7778))},
			lie{"arp", frame(own, unix.ETH_P_ARP, arp)})
	}
	if v6 := at[true]; v6.IsValid() {
		advert := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, a6.AsSlice()...)
		redirect := append(append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, a6.AsSlice()...), a6.AsSlice()...)
		out = append(out,
			lie{"ipv6", frame(own, unix.ETH_P_IPV6, message(a6, v6, 17, []byte{0, 7, 0x1e, 0x62, 0, 8, 0, 0}))},
			lie{"neighbour", frame(own, unix.ETH_P_IPV6, message(mine[true], v6, 58, advert))},
			lie{"router", frame(own, unix.ETH_P_IPV6, message(mine[true], v6, 58, []byte{134, 0, 0, 0, 64, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0}))},
			lie{"redirect", frame(own, unix.ETH_P_IPV6, message(mine[true], v6, 58, redirect))})
	}
	return out
}

// spoof lets a pod lie to one beside it: nothing of it arrives. It does where the
// guard's table is away, while its agent is stopped.
func spoof(ctx context.Context, c *cluster.Cluster) (err error) {
	people := []person{{name: "liar", namespace: "app", node: 0}, {name: "victim", namespace: "app", node: 0}}
	f, err := settle(ctx, c, pairNamespaces(), people)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.leave(context.WithoutCancel(ctx), pairNamespaces())) }()
	victim, node := f.at["victim"], c.Nodes()[0]
	cmd := c.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(liesTable)
	if _, err := victim.Network().RunCmd(ctx, cmd); err != nil {
		return err
	}
	arrived, err := f.lie(ctx, liesEach)
	if err != nil {
		return err
	}
	for name, n := range arrived {
		if n > 0 {
			err = errors.Join(err, fmt.Errorf("%d of %d frames of kind %s arrived", n, liesEach, name))
		}
	}
	if err != nil {
		return err
	}
	agent, err := agentOn(ctx, c, node.Name())
	if err != nil {
		return err
	}
	if err := signal(agent, agentProgram, syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, signal(agent, agentProgram, syscall.SIGCONT)) }()
	if _, err := node.Network().Run(ctx, "nft", "delete", "table", "bridge", "weft_guard"); err != nil {
		return err
	}
	const few = 10
	open, err := f.lie(ctx, few)
	if err != nil {
		return err
	}
	for name, n := range open {
		// Conntrack reads a packet behind a redirect's first 8 octets, where there is
		// none, and takes it for invalid (nf_conntrack_icmpv6_error).
		dropped := name == "redirect" && c.Config().Proxy == "iptables"
		if n < few && !dropped {
			err = errors.Join(err, fmt.Errorf("without the guard %d of %d frames of kind %s arrived: it proves nothing", n, few, name))
		}
	}
	c.Progress("  %d kinds of lies, %d each: none arrived; without the guard those that kube-proxy lets pass did", len(arrived), liesEach)
	return err
}

func agentOn(ctx context.Context, c *cluster.Cluster, node string) (cluster.Pod, error) {
	pods, err := agents(ctx, c)
	for _, p := range pods {
		if p.Node == node {
			return p, err
		}
	}
	return cluster.Pod{}, errors.Join(err, fmt.Errorf("no agent on %s", node))
}

// lie sends n frames of each kind from the liar to the victim, and returns how
// many of each have arrived.
func (f *folk) lie(ctx context.Context, n int) (map[string]int, error) {
	liar, victim := f.at["liar"], f.at["victim"]
	var macs [2]net.HardwareAddr
	var index int
	for i, p := range []*settled{liar, victim} {
		err := p.Netlink(func(h *netlink.Handle) error {
			l, err := h.LinkByName("eth0")
			if err == nil {
				macs[i] = l.Attrs().HardwareAddr
				if p == liar {
					index = l.Attrs().Index
				}
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("eth0 of %s: %w", p.Name(), err)
		}
	}
	by := func(p *settled) map[bool]netip.Addr {
		out := map[bool]netip.Addr{}
		for _, a := range p.IPs {
			out[a.Is6()] = a
		}
		return out
	}
	if _, err := victim.Network().Run(ctx, "nft", "reset", "counters", "table", "netdev", "lies"); err != nil {
		return nil, err
	}
	all := lies(macs[0], macs[1], by(victim), by(liar))
	err := liar.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, l := range all {
			for range n {
				if err := unix.Sendto(fd, l.frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
					return fmt.Errorf("send a frame of kind %s: %w", l.name, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := netlab.Pause(ctx, 500*time.Millisecond); err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, l := range all {
		text, err := victim.Network().Run(ctx, "nft", "list", "counter", "netdev", "lies", "lie_"+l.name)
		if err != nil {
			return nil, err
		}
		var packets int
		i := strings.Index(text, "packets ")
		if i < 0 {
			return nil, fmt.Errorf("counter %s of the victim: %q", l.name, text)
		}
		if _, err := fmt.Sscanf(text[i:], "packets %d", &packets); err != nil {
			return nil, fmt.Errorf("counter %s of the victim: %w", l.name, err)
		}
		out[l.name] = packets
	}
	return out, nil
}
