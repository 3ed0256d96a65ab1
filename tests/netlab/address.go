// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// addressPort is where address servers listen.
const addressPort = 7007

// ServeAddress runs a TCP server on every address of the place that tells
// each client the address that it sees it at. It ends with ctx.
func (p *Place) ServeAddress(ctx context.Context) error {
	l, err := p.Listen(ctx, "tcp", ":"+strconv.Itoa(addressPort))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				io.WriteString(c, c.RemoteAddr().String()) // a client that has gone is no concern
			}()
		}
	}()
	return nil
}

// AskAddress connects to the address server at server, and returns the
// client's address as the server sees it and as the client itself does. The
// two differ when something translates addresses on the way.
func (p *Place) AskAddress(ctx context.Context, server netip.Addr) (seen, own netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := p.Dial(ctx, "tcp", netip.AddrPortFrom(server, addressPort).String())
	if err != nil {
		return seen, own, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetReadDeadline(deadline); err != nil {
			return seen, own, err
		}
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return seen, own, fmt.Errorf("from %s: ask %s: %w", p.name, server, err)
	}
	at, err := netip.ParseAddrPort(string(answer))
	if err != nil {
		return seen, own, fmt.Errorf("from %s: %s answers %q: %w", p.name, server, answer, err)
	}
	return at.Addr().Unmap(), c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}
