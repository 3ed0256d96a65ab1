// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Messages, attributes and commands of NFLOG (linux/netfilter/nfnetlink_log.h).
const (
	logMsgPacket  = 0 // NFULNL_MSG_PACKET
	logMsgConfig  = 1 // NFULNL_MSG_CONFIG
	logCfgCmd     = 1 // NFULA_CFG_CMD
	logCfgMode    = 2 // NFULA_CFG_MODE
	logCfgThresh  = 5 // NFULA_CFG_QTHRESH
	logCmdBind    = 1 // NFULNL_CFG_CMD_BIND
	logCopyPacket = 2 // NFULNL_COPY_PACKET
	logPayload    = 9 // NFULA_PAYLOAD
	logPrefix     = 10
)

// copyRange is how much of a packet a Copy has, in bytes: IPv6 with extension
// headers and the ports behind them.
const copyRange = 256

// A Copy is what a rule with Log has copied of a packet.
type Copy struct {
	Prefix string // of the rule
	Packet []byte // from the IP header on, shared memory
}

// Copies are the packets that come to one group of NFLOG.
type Copies struct{ conn *Conn }

// ErrNoLog is wrapped by errors of a kernel that copies no packets: rules with
// Log cannot be made there.
var ErrNoLog = errors.New("this kernel has no NFLOG: it takes CONFIG_NETFILTER_NETLINK_LOG, or the module nfnetlink_log (modprobe nfnetlink_log)")

// ErrGroupTaken is wrapped by errors about a group that another program reads.
var ErrGroupTaken = errors.New("another program reads this group of NFLOG")

// ListenCopies takes a group of the calling thread's network namespace, which
// only one program can have. The caller closes it.
func ListenCopies(ctx context.Context, group uint16) (*Copies, error) {
	c, err := Dial()
	if err != nil {
		return nil, err
	}
	mode := []byte{0, 0, copyRange >> 8, copyRange & 0xff, logCopyPacket, 0}
	for _, set := range []func(*attrs){
		func(a *attrs) { a.bytes(logCfgCmd, []byte{logCmdBind}) },
		func(a *attrs) { a.bytes(logCfgMode, mode) },
		func(a *attrs) { a.be32(logCfgThresh, 1) }, // each packet at once
	} {
		msg := body(unix.NFPROTO_UNSPEC, group)
		set(&msg)
		if err := c.ask(ctx, logMsgConfig|unix.NFNL_SUBSYS_ULOG<<8, unix.NLM_F_ACK, msg, func([]byte) error { return nil }); err != nil {
			return nil, errors.Join(fmt.Errorf("NFLOG group %d: %w", group, logReason(err)), c.Close())
		}
	}
	return &Copies{c}, nil
}

// logReason says what an errno of a well-formed configuration means. EPERM is
// the answer to who asks for another socket's group (nfulnl_recv_config,
// net/netfilter/nfnetlink_log.c), and where no module is behind the subsystem
// nfnetlink_rcv_msg says EINVAL (net/netfilter/nfnetlink.c).
func logReason(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrGroupTaken, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", ErrNoLog, err)
	}
	return err
}

// Close gives up the group.
func (c *Copies) Close() error { return c.conn.Close() }

// Watch calls f with each copy until ctx ends, and then returns ctx.Err().
// Copies that come faster than f returns may be lost.
func (c *Copies) Watch(ctx context.Context, f func(Copy)) error {
	if err := c.conn.sock.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("NFLOG: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.sock.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		got, err := c.conn.receive(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, errTruncated) {
			return fmt.Errorf("read copies of packets: %w", err)
		}
		for _, r := range got {
			if r.typ != logMsgPacket|unix.NFNL_SUBSYS_ULOG<<8 {
				continue
			}
			if a, err := split(r.body); err == nil {
				f(Copy{Prefix: text(a[logPrefix]), Packet: a[logPayload]})
			}
		}
	}
}
