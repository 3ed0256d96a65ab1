// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// exchange sends r and returns the payloads that answer it, or of them those
// that keep says, if it is not nil. It does what
// (*nl.NetlinkRequest).Execute does, which panics where a dump fails and the
// kernel says why: such an NLMSG_DONE has no copy of the request between the
// errno and its attributes (netlink_dump_done, net/netlink/af_netlink.c).
// A dump that changes interrupted fails with nl.ErrDumpInterrupted.
func (c *conn) exchange(r *nl.NetlinkRequest, keep func([]byte) bool) ([][]byte, error) {
	c.seq++
	r.Seq = c.seq
	if err := c.sock.Send(r); err != nil {
		return nil, err
	}
	pid, err := c.sock.GetPid()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	interrupted := false
	for {
		msgs, from, err := c.sock.Receive()
		if err != nil {
			return nil, err
		}
		if from.Pid != nl.PidKernel {
			continue // somebody else's, who may send to any port
		}
		for _, m := range msgs {
			if m.Header.Seq != r.Seq || m.Header.Pid != pid {
				continue // the answer to a question whose asker gave up
			}
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			done := m.Header.Flags&unix.NLM_F_MULTI == 0
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if err := outcome(m); err != nil {
					return nil, err
				}
			default:
				if keep == nil || keep(m.Data) {
					out = append(out, m.Data)
				}
			}
			if done && interrupted {
				return nil, nl.ErrDumpInterrupted
			}
			if done {
				return out, nil
			}
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
