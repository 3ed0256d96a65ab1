// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// callTimeout bounds one transaction or dump when ctx has no earlier
	// deadline.
	callTimeout = 30 * time.Second
	// socketBuffer is asked for in both directions, bytes. A transaction is
	// one datagram: the send buffer grows with it.
	socketBuffer = 4 << 20
	// readBuffer is the size of one read, bytes. The kernel makes datagrams of a
	// dump as large as the reader's buffer, up to 32 KiB, and restarts its
	// walk over a set for each: small reads are quadratic.
	readBuffer = 64 << 10
	// dumpAttempts bounds how often a dump is repeated because what it read is
	// gone, and partAttempts how often a list in it because a transaction of
	// anybody, about whatever table, interrupted it.
	dumpAttempts = 8
	partAttempts = 32
)

// Conn is one persistent nfnetlink socket. It serialises its callers.
type Conn struct {
	mu   sync.Mutex
	sock *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
	room int // send buffer, bytes

	open bool   // a dump has not been read to its end
	seq  uint32 // of that one
}

// Dial opens a socket in the calling thread's network namespace.
func Dial() (*Conn, error) {
	sock, raw, err := open()
	if err != nil {
		return nil, err
	}
	c := &Conn{sock: sock, raw: raw, buf: make([]byte, readBuffer), room: socketBuffer}
	_ = sock.SetWriteBuffer(c.room) // Apply fails with EMSGSIZE if it was needed
	return c, nil
}

func open() (*netlink.Conn, syscall.RawConn, error) {
	sock, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("open nfnetlink socket: %w", err)
	}
	// Improvements only: the kernel's own words for an error, answers that
	// do not repeat the question, and room for them.
	_ = sock.SetOption(netlink.ExtendedAcknowledge, true)
	_ = sock.SetOption(netlink.CapAcknowledge, true)
	_ = sock.SetReadBuffer(socketBuffer)
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open nfnetlink socket: %w", err), sock.Close())
	}
	return sock, raw, nil
}

// Close closes the socket. Calls that wait return an error.
func (c *Conn) Close() error { return c.sock.Close() }

// Apply sends p as one transaction: the kernel takes all of it or nothing,
// and no packet sees a part. An empty plan sends nothing. An error wraps the
// kernel's errno and names the first object that was refused; ENOENT and
// EEXIST mean that the table changed since the dump that p came from, so dump
// again.
func (c *Conn) Apply(ctx context.Context, p Plan) error {
	msgs := p.batch()
	if len(msgs) == 0 {
		return nil
	}
	err := c.transaction(ctx, msgs, p.Since)
	if p.Replace {
		err = lacking(err)
	}
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// transaction encloses msgs in a batch and waits for the last one's
// acknowledgement. The others are acknowledged only when they fail, so that
// no number of them overruns the receive buffer.
// With since it is refused where the generation is another by then.
func (c *Conn) transaction(ctx context.Context, msgs []message, since uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(ctx); err != nil {
		return err
	}
	sub := body(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	begin := slices.Clone(sub)
	if since != 0 {
		begin.be32(unix.NFNL_BATCH_GENID, since)
	}
	out := make([]netlink.Message, 0, len(msgs)+2)
	out = append(out, netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: unix.NLM_F_REQUEST}, Data: begin})
	size := 0
	for _, m := range msgs {
		out = append(out, netlink.Message{Header: netlink.Header{Type: subsystem | netlink.HeaderType(m.typ), Flags: unix.NLM_F_REQUEST | netlink.HeaderFlags(m.flags)}, Data: m.body})
		size += unix.SizeofNlMsghdr + len(m.body)
	}
	out[len(msgs)].Header.Flags |= unix.NLM_F_ACK
	out = append(out, netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: unix.NLM_F_REQUEST}, Data: sub})
	if need := 2 * size; need > c.room {
		if c.sock.SetWriteBuffer(need) == nil {
			c.room = need
		}
	}
	sent, err := c.sock.SendMessages(out)
	if err != nil {
		return fmt.Errorf("send %d messages, %d bytes: %w", len(out), size, ctxError(ctx, err))
	}
	return c.outcome(ctx, msgs, sent[0].Header.Sequence)
}

// subsystem is the high byte of a message type.
const subsystem = netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES << 8)

// outcome reads the answers to a batch whose first message had the sequence
// number first.
func (c *Conn) outcome(ctx context.Context, msgs []message, first uint32) error {
	var failed error
	err := c.answers(ctx, first, len(msgs)+1, func(at int, err error) bool {
		switch {
		case err == nil || failed != nil:
		case at == 0: // about the whole
			failed = fmt.Errorf("commit: %w", explain(err))
		default:
			failed = fmt.Errorf("%s: %w", msgs[at-1].what, err)
		}
		return at == 0 || at == len(msgs)
	})
	if err != nil {
		return errors.Join(failed, fmt.Errorf("read the outcome of a transaction: %w", err))
	}
	return failed
}

// answers reads what the kernel says of n messages, the first of which had the
// sequence number first, until f reports that no more is to come. f is told
// which message it is about, from 0, and its error, nil for an acknowledgement.
func (c *Conn) answers(ctx context.Context, first uint32, n int, f func(at int, err error) (last bool)) error {
	for {
		replies, err := c.receive(ctx)
		if err != nil {
			return err
		}
		for _, r := range replies {
			at := r.seq - first // unsigned, so older numbers are large
			if r.typ == unix.NLMSG_ERROR && at < uint32(n) && f(int(at), r.err()) {
				return nil
			}
		}
	}
}

// deadline bounds the calls that follow by ctx.
func (c *Conn) deadline(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := time.Now().Add(callTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(t) {
		t = d
	}
	return c.sock.SetDeadline(t)
}

// ready bounds the calls that follow by ctx, and reads what is left of a dump
// that was given up: the kernel has one at a time for a socket, and refuses
// another with EBUSY.
func (c *Conn) ready(ctx context.Context) error {
	if err := c.deadline(ctx); err != nil {
		return err
	}
	for c.open {
		got, err := c.receive(ctx)
		if err != nil {
			return err
		}
		c.open = !c.ends(got)
	}
	return nil
}

// ends reports whether got has the end of the dump that is open.
func (c *Conn) ends(got []reply) bool {
	return slices.ContainsFunc(got, func(r reply) bool {
		return r.seq == c.seq && (r.typ == unix.NLMSG_DONE || r.typ == unix.NLMSG_ERROR)
	})
}

// receive reads one datagram.
func (c *Conn) receive(ctx context.Context) ([]reply, error) {
	n, err := read(c.raw, c.buf)
	if err != nil {
		return nil, ctxError(ctx, err)
	}
	return replies(c.buf[:n])
}

// read reads one datagram, waiting until the socket's deadline.
func read(raw syscall.RawConn, buf []byte) (n int, err error) {
	werr := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	switch {
	case werr != nil:
		return 0, werr
	case err != nil:
		return 0, err
	case n > len(buf):
		return 0, fmt.Errorf("datagram of %d bytes: %w", n, errTruncated)
	}
	return n, nil
}

// ctxError prefers the context's reason over what the socket says.
func ctxError(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}

// ask sends one request and calls f with the payload of each message that
// answers it. It returns EINTR when a change interrupted the dump.
func (c *Conn) ask(ctx context.Context, typ, flags uint16, req []byte, f func([]byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(ctx); err != nil {
		return err
	}
	sent, err := c.sock.Send(netlink.Message{
		Header: netlink.Header{Type: typeOf(typ), Flags: unix.NLM_F_REQUEST | netlink.HeaderFlags(flags)},
		Data:   req,
	})
	if err != nil {
		return ctxError(ctx, err)
	}
	c.open, c.seq = flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP, sent.Header.Sequence
	var failed error
	for {
		got, err := c.receive(ctx)
		if err != nil {
			return errors.Join(failed, err)
		}
		if c.open && ctx.Err() != nil {
			c.open = !c.ends(got)
			return ctx.Err()
		}
		for _, r := range got {
			switch {
			case r.seq != sent.Header.Sequence:
				continue // the answer to a question whose asker gave up
			case r.flags&unix.NLM_F_DUMP_INTR != 0 && failed == nil:
				failed = unix.EINTR
			}
			switch r.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				c.open = false
				return errors.Join(failed, r.err())
			default:
				if failed == nil {
					failed = f(r.body)
				}
			}
		}
	}
}
