// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

const (
	receivePort = 9000
	burst       = 25 // packets without a pause: a device's backlog holds 1,000
)

// A receiver counts numbered datagrams that arrive at a place.
type receiver struct {
	conn net.PacketConn
	mu   sync.Mutex
	got  map[uint64]bool
}

// listen opens a receiver on all addresses of the place.
func listen(ctx context.Context, p *netlab.Place) (*receiver, error) {
	room := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		}), err)
	}}
	r := &receiver{got: map[uint64]bool{}}
	err := p.Do(func() (err error) {
		r.conn, err = room.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", receivePort))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("receive at %s: %w", p, err)
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := r.conn.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			if n == 8 {
				r.mu.Lock()
				r.got[binary.BigEndian.Uint64(buf)] = true
				r.mu.Unlock()
			}
		}
	}()
	return r, nil
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

// rawSocket opens a packet socket (packet(7)) on the place's eth0.
func rawSocket(p *netlab.Place) (fd int, err error) {
	err = p.Do(func() error {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	})
	if err != nil {
		return -1, fmt.Errorf("packet socket on %s: %w", p, err)
	}
	return fd, nil
}

// hardware returns the MAC of a device at a place.
func hardware(p *netlab.Place, dev string) (net.HardwareAddr, error) {
	var mac net.HardwareAddr
	err := p.Do(func() error {
		d, err := net.InterfaceByName(dev)
		if err == nil {
			mac = d.HardwareAddr
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("MAC of %s on %s: %w", dev, p, err)
	}
	return mac, nil
}

// pace pauses after every burst.
func pace(ctx context.Context, i int) error {
	if i%burst == burst-1 {
		return netlab.Pause(ctx, 2*time.Millisecond)
	}
	return nil
}

// refused adds up what the node's guard has refused, by nft(8), reason by
// reason.
func refused(ctx context.Context, n *netlab.Node) (total int, reasons string, err error) {
	text, err := n.Run(ctx, "nft", "list", "counters", "table", "inet", "weft")
	if err != nil {
		return 0, "", err
	}
	name := ""
	var all []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "counter" {
			name = strings.TrimPrefix(f[1], "refused_")
		}
		var packets, bytes int
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "packets %d bytes %d", &packets, &bytes); err == nil && packets > 0 {
			total += packets
			all = append(all, fmt.Sprintf("%s %d", name, packets))
		}
	}
	return total, strings.Join(all, ", "), nil
}

// underlayOf returns the node's underlay address of the family of like.
func underlayOf(n *netlab.Node, like netip.Addr) netip.Addr {
	for _, a := range n.Underlay() {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}
