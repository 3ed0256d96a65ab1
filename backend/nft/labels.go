// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages and attributes of conntrack (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctMsgNew      = 0 // IPCTNL_MSG_CT_NEW
	ctMsgGet      = 1 // IPCTNL_MSG_CT_GET
	ctaTupleOrig  = 1
	ctaZone       = 18
	ctaLabels     = 22
	ctaLabelsMask = 23
)

// ClearLabels takes all labels but keep from the namespace's flows; with keep
// below zero all. Other flows that get labels meanwhile may have them after.
func (c *Conn) ClearLabels(ctx context.Context, keep int) error {
	mask := make([]byte, labelBytes)
	for n := range Labels {
		if n != keep {
			mask[n/8] |= 1 << (n % 8)
		}
	}
	var flows []attrs
	begin := func() { flows = nil }
	err := c.flows(ctx, begin, func(msg []byte) error {
		f, ok, err := labelled(msg, mask)
		if ok {
			flows = append(flows, f)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("conntrack: list flows: %w", explain(err))
	}
	for i := range flows {
		flows[i].bytes(ctaLabels, make([]byte, labelBytes))
		flows[i].bytes(ctaLabelsMask, mask)
	}
	for some := range slices.Chunk(flows, flowsAtOnce) {
		if err := c.changeFlows(ctx, some); err != nil {
			return fmt.Errorf("conntrack: clear labels: %w", err)
		}
	}
	return nil
}

// flowsAtOnce is how many flows are changed by one datagram: so many that calls
// do not count, so few that answers about all of them fit into the buffer.
const flowsAtOnce = 128

// changeFlows sends one request for each flow. Only the last is acknowledged, and
// those that fail; flows that have ended meanwhile do not count.
func (c *Conn) changeFlows(ctx context.Context, flows []attrs) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(ctx); err != nil {
		return err
	}
	out := make([]netlink.Message, len(flows))
	for i, f := range flows {
		out[i] = netlink.Message{Header: netlink.Header{Type: typeOf(ctMsgNew | unix.NFNL_SUBSYS_CTNETLINK<<8), Flags: unix.NLM_F_REQUEST}, Data: f}
	}
	out[len(out)-1].Header.Flags |= unix.NLM_F_ACK
	sent, err := c.sock.SendMessages(out)
	if err != nil {
		return ctxError(ctx, err)
	}
	var failed error
	err = c.answers(ctx, sent[0].Header.Sequence, len(flows), func(at int, err error) bool {
		if failed == nil && !errors.Is(err, unix.ENOENT) {
			failed = err
		}
		return at == len(flows)-1
	})
	return errors.Join(failed, err)
}

// flows reads all of conntrack.
func (c *Conn) flows(ctx context.Context, reset func(), read func([]byte) error) error {
	var err error
	for range partAttempts {
		reset()
		err = c.ask(ctx, ctMsgGet|unix.NFNL_SUBSYS_CTNETLINK<<8, unix.NLM_F_DUMP, body(unix.NFPROTO_UNSPEC, 0), read)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return err
}

// labelled reports whether a flow has any label of mask, and returns the start
// of a message that changes it: what tells it from others.
func labelled(msg, mask []byte) (attrs, bool, error) {
	f, err := split(msg)
	if err != nil {
		return nil, false, err
	}
	has := false
	for i, b := range f[ctaLabels] {
		has = has || i < len(mask) && b&mask[i] != 0
	}
	if !has {
		return nil, false, nil
	}
	out := body(Family(msg[0]), 0)
	out.bytes(ctaTupleOrig|unix.NLA_F_NESTED, f[ctaTupleOrig])
	if zone, ok := f[ctaZone]; ok {
		out.bytes(ctaZone, zone)
	}
	return out, true, nil
}

// typeOf is a message's type: of nftables, unless another subsystem is named.
func typeOf(typ uint16) netlink.HeaderType {
	if typ>>8 != 0 {
		return netlink.HeaderType(typ)
	}
	return subsystem | netlink.HeaderType(typ)
}

// CountLabelled returns how many of the namespace's flows have label n.
func (c *Conn) CountLabelled(ctx context.Context, n int) (count int, err error) {
	err = c.flows(ctx, func() { count = 0 }, func(msg []byte) error {
		_, has, err := labelled(msg, []byte(label(n)))
		if has {
			count++
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("conntrack: list flows: %w", explain(err))
	}
	return count, nil
}
