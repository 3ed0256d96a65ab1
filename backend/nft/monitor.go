// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Monitor is a subscription to changes of nftables.
type Monitor struct {
	sock   *netlink.Conn
	raw    syscall.RawConn
	tables []Table
	own    uint32 // port of the socket whose changes are not news
}

// Listen subscribes, in the calling thread's network namespace, to changes of
// the given tables (family and name count) that come from anyone but c; with
// c nil also from c. Listen before the first Dump: what changes after it is
// not missed.
func Listen(c *Conn, tables ...Table) (*Monitor, error) {
	sock, raw, err := open()
	if err != nil {
		return nil, err
	}
	if err := sock.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to nftables events: %w", err), sock.Close())
	}
	m := &Monitor{sock: sock, raw: raw, tables: tables}
	if c != nil {
		m.own = c.sock.PID()
	}
	return m, nil
}

// Watch calls poke at least once after each change until ctx ends, and then
// returns ctx.Err(). poke must not block. Events that were lost, because the
// socket's buffer overran or one could not be read, count as a change. Watch
// closes the subscription.
func (m *Monitor) Watch(ctx context.Context, poke func()) error {
	stop := context.AfterFunc(ctx, func() { _ = m.sock.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() { _ = m.sock.Close() }() // nothing was written to it
	buf := make([]byte, readBuffer)
	for {
		n, err := read(m.raw, buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, errTruncated):
			poke()
		case err != nil:
			return fmt.Errorf("read nftables events: %w", err)
		case m.news(buf[:n]):
			poke()
		}
	}
}

// news reports whether a datagram says that one of the tables may have
// changed.
func (m *Monitor) news(b []byte) bool {
	events, err := replies(b)
	if err != nil {
		return true
	}
	for _, e := range events {
		if m.own != 0 && e.port == m.own {
			continue
		}
		if e.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || e.typ&0xff == unix.NFT_MSG_NEWGEN {
			continue // the end of a transaction, whose parts came before
		}
		for _, t := range m.tables {
			if _, ok, err := fields(t, e.body); ok || err != nil {
				return true
			}
		}
	}
	return false
}
