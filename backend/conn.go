// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/offload"
)

const (
	// callTimeout bounds one request and its answer when ctx has no earlier
	// deadline. The kernel answers in microseconds, or after as long as
	// somebody else holds the RTNL mutex.
	callTimeout = 30 * time.Second
	// receiveBuffer is asked for, bytes: acknowledgements of a large batch
	// and a dump's messages wait here.
	receiveBuffer = 4 << 20
	// dumpAttempts bounds how often a dump that the kernel marked as
	// interrupted by a change (NLM_F_DUMP_INTR) is repeated.
	dumpAttempts = 8
	// datagram is how much is read at once, bytes. The kernel fills what the
	// reader has room for, up to 32 KiB (netlink_recvmsg), more only for a
	// single message that is larger.
	datagram = 64 << 10
)

// conn is one persistent rtnetlink socket. It serialises its callers.
type conn struct {
	mu    sync.Mutex
	sock  *nl.NetlinkSocket
	pid   uint32    // the socket's port, which answers carry
	seq   uint32    // of the last request
	open  bool      // that was a dump which has not been read to its end
	until time.Time // when the caller's patience ends
	in    []byte    // the datagram that is being read
	out   []byte    // the one that is being written
}

// dial opens a socket in the calling thread's network namespace.
func dial() (*conn, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	pid, err := s.GetPid()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("address of the rtnetlink socket: %w", err)
	}
	// All three are improvements only: messages that explain an error,
	// filters on dumps (Linux 4.20; the decoders filter again), and room.
	_ = s.SetExtAck(true)
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	if s.SetReceiveBufferSize(receiveBuffer, true) != nil { // needs CAP_NET_ADMIN
		_ = s.SetReceiveBufferSize(receiveBuffer, false)
	}
	return &conn{sock: s, pid: pid, in: make([]byte, datagram)}, nil
}

// close waits for whoever uses the socket.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sock.Close()
}

// gro reports whether dev merges what it receives. Of rtnetlink's messages
// none says so. A device that has just gone does, and so does one of which this
// process may not know, as it has been given to us.
func (c *conn) gro(dev string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	on, err := offload.Get(c.sock.GetFd(), dev, offload.GRO)
	if gone(err) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return true, nil
	}
	return on, err
}

// setGRO has dev merge what it receives, or not.
func (c *conn) setGRO(dev string, on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return offload.Set(c.sock.GetFd(), dev, offload.GRO, on)
}

// request starts a message of the given type; parts follow its header.
func request(msgType uint16, flags int, parts ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	r := &nl.NetlinkRequest{NlMsghdr: unix.NlMsghdr{
		Len:   unix.SizeofNlMsghdr,
		Type:  msgType,
		Flags: uint16(unix.NLM_F_REQUEST | flags),
	}}
	for _, p := range parts {
		r.AddData(p)
	}
	return r
}

// do sends one request and returns the messages that answer it, without
// their netlink headers. Kernel errors come back as a unix.Errno, wrapped
// with the kernel's own explanation where it gives one.
func (c *conn) do(ctx context.Context, r *nl.NetlinkRequest) ([][]byte, error) {
	var msgs [][]byte
	err := c.read(ctx, r, func(m []byte) { msgs = append(msgs, bytes.Clone(m)) })
	return msgs, err
}

// read does the same and hands each message to each, which must neither keep
// it nor use c.
func (c *conn) read(ctx context.Context, r *nl.NetlinkRequest, each func(msg []byte)) error {
	_, err := c.turn(ctx, func() (int, error) { return 0, c.exchange(ctx, r, each) })
	return err
}

// turn runs talk, which sends something and reads the answer, when nobody else
// uses the socket, and bounds how long it waits.
func (c *conn) turn(ctx context.Context, talk func() (int, error)) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := callTimeout
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(d))
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	wait = max(wait, time.Millisecond)
	c.until = time.Now().Add(wait)
	n, err := talk()
	if errors.Is(err, unix.EAGAIN) { // how receive reports the timeout
		return n, fmt.Errorf("no answer from the kernel in %v: %w", wait.Round(time.Millisecond), context.DeadlineExceeded)
	}
	return n, err
}

// change sends a request that alters something and waits for the kernel's
// acknowledgement.
func (c *conn) change(ctx context.Context, r *nl.NetlinkRequest) error {
	r.Flags |= unix.NLM_F_ACK
	_, err := c.do(ctx, r)
	return err
}

// dump sends a dump request, again when the kernel says that the table
// changed under it. make builds the request anew for each attempt.
func (c *conn) dump(ctx context.Context, build func() *nl.NetlinkRequest) ([][]byte, error) {
	return gather(ctx, c, build, func(out [][]byte, m []byte) [][]byte { return append(out, bytes.Clone(m)) })
}

// gather does the same, and returns what collect makes of the messages as
// they come: it appends to out, and must neither keep m nor use c. A large
// table is thus never in memory as messages.
func gather[E any](ctx context.Context, c *conn, build func() *nl.NetlinkRequest, collect func(out []E, m []byte) []E) ([]E, error) {
	var out []E
	err := c.stream(ctx, build, func() { out = out[:0] }, func(m []byte) { out = collect(out, m) })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// stream does the same, and hands each message to each, which must neither
// keep it nor use c. begin is called before each attempt.
func (c *conn) stream(ctx context.Context, build func() *nl.NetlinkRequest, begin func(), each func(m []byte)) error {
	for range dumpAttempts {
		r := build()
		r.Flags |= unix.NLM_F_DUMP
		begin()
		if err := c.read(ctx, r, each); !errors.Is(err, nl.ErrDumpInterrupted) {
			return err
		}
	}
	return fmt.Errorf("interrupted %d times by changes to the table: %w", dumpAttempts, unix.EINTR)
}

// attrs walks the attributes (struct rtattr, linux/rtnetlink.h) in b: type
// without its flag bits, and value. It ends at the first malformed one.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^flagBits, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// flagBits are NLA_F_NESTED and NLA_F_NET_BYTEORDER (linux/netlink.h).
const flagBits = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER

// attr returns the value of the first attribute of type t in b.
func attr(b []byte, t uint16) ([]byte, bool) {
	for typ, v := range attrs(b) {
		if typ == t {
			return v, true
		}
	}
	return nil, false
}

// The value readers return 0 for a value that is too short, which the kernel
// does not send.

func u8(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}

func u16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// be16 and be32 read values in network byte order.
func be16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// text reads a string that may end in a NUL.
func text(b []byte) string { return unix.ByteSliceToString(b) }

// gone reports whether err says that what should be deleted, or the device
// it was on, or that device's IPv6 half (ENXIO), is not there.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}
