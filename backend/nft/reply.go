// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// reply is one message from the kernel. body shares memory with the datagram.
type reply struct {
	typ, flags uint16
	seq, port  uint32
	body       []byte
}

// replies splits a datagram into its messages (struct nlmsghdr,
// linux/netlink.h).
func replies(b []byte) ([]reply, error) {
	var out []reply
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return nil, errTruncated
		}
		n := binary.NativeEndian.Uint32(b)
		if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
			return nil, errTruncated
		}
		out = append(out, reply{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			port:  binary.NativeEndian.Uint32(b[12:]),
			body:  b[unix.SizeofNlMsghdr:n],
		})
		b = b[min((int(n)+3)&^3, len(b)):]
	}
	return out, nil
}

// err returns what an acknowledgement, an error or the end of a dump says:
// nil, or the errno with the kernel's own words where it gives them.
func (r reply) err() error {
	if len(r.body) < 4 {
		if r.typ == unix.NLMSG_DONE {
			return nil
		}
		return errTruncated
	}
	code := int32(binary.NativeEndian.Uint32(r.body))
	if code >= 0 {
		return nil
	}
	errno := unix.Errno(-int64(code))
	if words := r.explanation(); words != "" {
		return fmt.Errorf("%s: %w", words, errno)
	}
	return errno
}

// explanation reads the kernel's message (NLMSGERR_ATTR_MSG,
// linux/netlink.h). It follows the header of the refused message, or all of
// that message where the kernel repeats it.
func (r reply) explanation() string {
	at := 4 + unix.SizeofNlMsghdr
	if r.typ != unix.NLMSG_ERROR || r.flags&unix.NLM_F_ACK_TLVS == 0 || len(r.body) < at {
		return ""
	}
	if r.flags&unix.NLM_F_CAPPED == 0 {
		at = 4 + int(min(binary.NativeEndian.Uint32(r.body[4:]), uint32(len(r.body))))
	}
	var words string
	_ = eachAttr(r.body[min((at+3)&^3, len(r.body)):], func(typ uint16, v []byte) error {
		if typ == unix.NLMSGERR_ATTR_MSG {
			words = text(v)
		}
		return nil
	})
	return words
}
