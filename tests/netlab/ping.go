// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"weft.dev/weft/subnet"
)

// headers is what ping's payload size does not count: the IP header (20 or
// 40 bytes, RFC 791 and RFC 8200) and the ICMP echo header (8, RFC 792).
func headers(f subnet.Family) int {
	if f == subnet.IPv4 {
		return 20 + 8
	}
	return 40 + 8
}

// Ping sends count echo requests, 50 ms apart, with ping(8). It is an error
// if one of them stays without an answer.
func (p *Place) Ping(ctx context.Context, to netip.Addr, count int) error {
	_, err := p.Run(ctx, "ping", "-n", "-q", "-i", "0.05", "-c", strconv.Itoa(count), "-W", "2", to.String())
	return err
}

// PingSize sends one echo request whose IP packet has exactly size bytes and
// must not be fragmented (ping -M do), and expects an answer.
func (p *Place) PingSize(ctx context.Context, to netip.Addr, size int) error {
	return p.pingSize(ctx, to, size, "2")
}

// PingTooLong expects that the place refuses to send an echo request of size
// bytes unfragmented. It is an error if the request leaves.
func (p *Place) PingTooLong(ctx context.Context, to netip.Addr, size int) error {
	err := p.pingSize(ctx, to, size, "0.2") // the refusal is local: no need to wait long
	if err == nil {
		return fmt.Errorf("from %s to %s: a packet of %d bytes passes", p.name, to, size)
	}
	if strings.Contains(strings.ToLower(err.Error()), "message too long") { // EMSGSIZE, as ping words it
		return nil
	}
	return err
}

func (p *Place) pingSize(ctx context.Context, to netip.Addr, size int, wait string) error {
	payload := size - headers(subnet.FamilyOf(to))
	if payload < 0 {
		return fmt.Errorf("a ping of %d bytes has no room for its headers", size)
	}
	_, err := p.Run(ctx, "ping", "-n", "-M", "do", "-c", "1", "-W", wait, "-s", strconv.Itoa(payload), to.String())
	return err
}
