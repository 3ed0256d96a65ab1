// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
)

// batchMost is how many requests go to the kernel in one message. The kernel
// takes RTNL for each of them, so that others (a CNI ADD) get their turn in
// between (BenchmarkVethMeanwhile: no wait that can be told from noise); twice
// as many measure no faster.
const batchMost = 128

// batch sends requests that alter something, many at a time and in order, and
// returns what became of each, in their order. Only the last of a message asks
// for an acknowledgement: the kernel answers what it refuses in any case
// (netlink_rcv_skb, net/netlink/af_netlink.c), by its sequence number. An error
// of one says nothing of the others, except when the socket itself failed: then
// all that had no answer yet have that error.
func (c *conn) batch(ctx context.Context, requests []*nl.NetlinkRequest) []error {
	out := make([]error, 0, len(requests))
	for len(out) < len(requests) {
		n := min(len(requests)-len(out), batchMost)
		out = append(out, c.message(ctx, requests[len(out):len(out)+n])...)
	}
	return out
}

// message sends all requests at once.
func (c *conn) message(ctx context.Context, requests []*nl.NetlinkRequest) []error {
	out := make([]error, len(requests))
	answered, err := c.turn(ctx, func() (int, error) { return c.deliver(requests, out) })
	for i := answered; err != nil && i < len(out); i++ {
		if out[i] == nil {
			out[i] = err
		}
	}
	return out
}

// deliver sends requests in one message and notes refusals in out. It returns
// how many were carried out or refused for certain.
func (c *conn) deliver(requests []*nl.NetlinkRequest, out []error) (int, error) {
	// Or the end of a dump that was given up is read here, and waited for ever after.
	if err := c.finish(); err != nil {
		return 0, err
	}
	c.out = c.out[:0]
	first := c.seq + 1
	for i, r := range requests {
		c.seq++
		r.Seq = c.seq
		r.Flags &^= unix.NLM_F_ACK
		if i == len(requests)-1 {
			r.Flags |= unix.NLM_F_ACK
		}
		c.out = append(c.out, r.Serialize()...)
	}
	if err := c.send(c.out); err != nil {
		return 0, err
	}
	for {
		b, err := c.receive()
		if err != nil {
			return 0, err
		}
		for m := range messages(b) {
			i := int(int32(m.Header.Seq - first)) // also right where the numbers wrap
			if i < 0 || i >= len(requests) || m.Header.Pid != c.pid || m.Header.Type != unix.NLMSG_ERROR {
				continue // the answer to a question whose asker gave up
			}
			if out[i] = outcome(m); i == len(requests)-1 {
				return len(requests), nil
			}
		}
	}
}

// pending is a change whose request waits to be sent with others.
type pending struct {
	change  overlay.Change
	dev     device
	request *nl.NetlinkRequest
}

// collect adds c to those that wait. ok is false for a change that needs the
// kernel's state as it is when its turn has come.
func (a *applier) collect(ctx context.Context, c overlay.Change) (ok bool, err error) {
	if _, link := c.Entry.(overlay.Link); link || a.looksFirst(c) {
		return false, nil
	}
	dev, err := a.device(ctx, deviceOf(c.Entry), mayHold(c))
	if err != nil {
		return true, err
	}
	if dev.index == 0 {
		if c.Op == overlay.Delete {
			return true, nil
		}
		return true, unix.ENODEV
	}
	if r, route := c.Entry.(overlay.Route); route && c.Op == overlay.Replace {
		if err := a.notHeld(ctx, r, c.Was); err != nil {
			return true, err
		}
	}
	r := message(c, dev.index)
	if r == nil {
		return true, fmt.Errorf("unknown kind of entry %T", c.Entry)
	}
	a.waiting = append(a.waiting, pending{c, dev, r})
	return true, nil
}

// looksFirst reports whether a change is one of entries that Dump marked as
// more than overlay's types can say: see special.
func (a *applier) looksFirst(c overlay.Change) bool {
	switch e := c.Entry.(type) {
	case overlay.FDB:
		was, known := c.Was.(overlay.FDB)
		return c.Op == overlay.Delete && !e.Dst.IsValid() || c.Op == overlay.Replace && known && !was.Dst.IsValid()
	case overlay.Route:
		return c.Op == overlay.Delete && !e.Onlink && !a.k.leftByFlannel(e)
	}
	return false
}

// flush sends what waits and returns what failed. When ctx has ended it goes
// on waiting.
func (a *applier) flush(ctx context.Context) []error {
	if len(a.waiting) == 0 || ctx.Err() != nil {
		return nil
	}
	requests := make([]*nl.NetlinkRequest, len(a.waiting))
	for i, p := range a.waiting {
		requests[i] = p.request
		if _, route := p.change.Entry.(overlay.Route); route && p.change.Op != overlay.Delete {
			clear(a.odd) // it may stand where an odd one stood, and match its deletion
		}
		if e, ok := echoOf(p.change, p.dev.index); ok {
			a.k.echoes.expect(e)
		}
	}
	var errs []error
	for i, err := range a.k.conn.batch(ctx, requests) {
		p := a.waiting[i]
		if e, ok := echoOf(p.change, p.dev.index); ok && err != nil {
			a.k.echoes.hear(e) // it will not come
		}
		if err := a.settle(ctx, p.change, p.dev, err); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", title(p.change), err))
		}
	}
	a.waiting = a.waiting[:0]
	return errs
}

// settle deals with the kernel's answer to a plain change.
func (a *applier) settle(ctx context.Context, c overlay.Change, dev device, err error) error {
	switch {
	case err == nil, c.Op == overlay.Delete && gone(err):
		return nil
	case errors.Is(err, unix.EEXIST):
		return a.exists(ctx, c, dev, err)
	case errors.Is(err, unix.EINVAL):
		return a.besideGateway(ctx, c, dev, err)
	}
	return err
}
