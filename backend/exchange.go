// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// exchange sends r and hands the payloads that answer it to each. It does what
// (*nl.NetlinkRequest).Execute does, which panics where a dump fails and the
// kernel says why: such an NLMSG_DONE has no copy of the request between the
// errno and its attributes (netlink_dump_done, net/netlink/af_netlink.c).
// A dump that changes interrupted fails with nl.ErrDumpInterrupted, one that
// ctx ends with its error; the rest of the latter is read before the socket is
// used next.
func (c *conn) exchange(ctx context.Context, r *nl.NetlinkRequest, each func([]byte)) error {
	if err := c.finish(); err != nil {
		return err
	}
	c.seq++
	r.Seq = c.seq
	if err := c.send(r.Serialize()); err != nil {
		return err
	}
	c.open = r.Flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	interrupted := false
	for {
		b, err := c.receive()
		if err != nil {
			return err
		}
		if c.open && ctx.Err() != nil {
			c.open = !c.ends(b)
			return ctx.Err()
		}
		for m := range messages(b) {
			if m.Header.Seq != r.Seq || m.Header.Pid != c.pid {
				continue // the answer to a question whose asker gave up
			}
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			done := m.Header.Flags&unix.NLM_F_MULTI == 0
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done, c.open = true, false
				if err := outcome(m); err != nil {
					return err
				}
			default:
				each(m.Data)
			}
			if done && interrupted {
				return nl.ErrDumpInterrupted
			}
			if done {
				return nil
			}
		}
	}
}

// finish reads what is left of a dump that was given up: the kernel has one at
// a time for a socket, and refuses another with EBUSY.
func (c *conn) finish() error {
	for c.open {
		b, err := c.receive()
		if err != nil {
			return err
		}
		c.open = !c.ends(b)
	}
	return nil
}

// ends reports whether b has the end of the answer to the last request.
func (c *conn) ends(b []byte) bool {
	for m := range messages(b) {
		t := m.Header.Type
		if m.Header.Seq == c.seq && m.Header.Pid == c.pid && (t == unix.NLMSG_DONE || t == unix.NLMSG_ERROR) {
			return true
		}
	}
	return false
}

// send gives the kernel a datagram, which it has dealt with on return.
func (c *conn) send(b []byte) error {
	return unix.Sendto(c.sock.GetFd(), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive returns the next datagram from the kernel. It is valid until the
// next call. EAGAIN says that none came in time.
func (c *conn) receive() ([]byte, error) {
	fd := c.sock.GetFd()
	for {
		n, from, err := unix.Recvfrom(fd, c.in, unix.MSG_DONTWAIT)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case err == nil && ok && sender.Pid == nl.PidKernel:
			return c.in[:n], nil
		case err == nil: // somebody else's, who may send to any port
		case errors.Is(err, unix.EAGAIN):
			// Rare: most answers are there when send returns.
			left := time.Until(c.until)
			if left <= 0 {
				return nil, err
			}
			if err := readable(fd, left); err != nil {
				return nil, err
			}
		case !errors.Is(err, unix.EINTR):
			return nil, err
		}
	}
}

// readable waits until there may be something to read from fd.
func readable(fd int, wait time.Duration) error {
	ts := unix.NsecToTimespec(wait.Nanoseconds())
	_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &ts, nil)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// messages walks the messages in a datagram. It ends at the first malformed
// one. They share b's memory.
func messages(b []byte) iter.Seq[syscall.NetlinkMessage] {
	return func(yield func(syscall.NetlinkMessage) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			h := syscall.NlMsghdr{Len: u32(b), Type: u16(b[4:]), Flags: u16(b[6:]), Seq: u32(b[8:]), Pid: u32(b[12:])}
			if h.Len < unix.SizeofNlMsghdr || int64(h.Len) > int64(len(b)) {
				return
			}
			if !yield(syscall.NetlinkMessage{Header: h, Data: b[unix.SizeofNlMsghdr:h.Len]}) {
				return
			}
			b = b[min((int(h.Len)+3)&^3, len(b)):]
		}
	}
}

// outcome reads what NLMSG_DONE and NLMSG_ERROR say: a unix.Errno, wrapped
// with the kernel's own words where it gives some (NLMSGERR_ATTR_MSG,
// linux/netlink.h).
func outcome(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil // an old kernel's NLMSG_DONE
	}
	errno := int32(binary.NativeEndian.Uint32(m.Data))
	if errno == 0 {
		return nil
	}
	err := unix.Errno(-errno)
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return err
	}
	rest := m.Data[4:]
	if m.Header.Type == unix.NLMSG_ERROR {
		// The request's header, and all of it unless NLM_F_CAPPED says no.
		if len(rest) < unix.SizeofNlMsghdr {
			return err
		}
		skip := unix.SizeofNlMsghdr
		if m.Header.Flags&unix.NLM_F_CAPPED == 0 {
			skip = int(binary.NativeEndian.Uint32(rest)+3) &^ 3
		}
		if skip < unix.SizeofNlMsghdr || skip > len(rest) {
			return err
		}
		rest = rest[skip:]
	}
	if words, ok := attr(rest, unix.NLMSGERR_ATTR_MSG); ok {
		return fmt.Errorf("%w: %s", err, text(words))
	}
	return err
}
