// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// errTruncated is what every malformed message from the kernel comes to.
var errTruncated = errors.New("malformed netlink message")

// attrs builds netlink attributes (struct nlattr, linux/netlink.h). Integers
// of nf_tables are big endian.
type attrs []byte

func (a *attrs) bytes(typ uint16, v []byte) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(unix.SizeofNlAttr+len(v)))
	*a = binary.NativeEndian.AppendUint16(*a, typ)
	*a = append(*a, v...)
	*a = append(*a, make([]byte, -len(v)&3)...)
}

func (a *attrs) text(typ uint16, s string) { a.bytes(typ, append([]byte(s), 0)) }

func (a *attrs) be32(typ uint16, v uint32) {
	a.bytes(typ, binary.BigEndian.AppendUint32(nil, v))
}

func (a *attrs) be64(typ uint16, v uint64) {
	a.bytes(typ, binary.BigEndian.AppendUint64(nil, v))
}

// nest adds the attributes that f builds inside one of type typ. It leaves
// out NLA_F_NESTED as the kernel does in its dumps, so that what is sent and
// what is dumped are the same bytes; nf_tables does not look for the flag.
func (a *attrs) nest(typ uint16, f func(*attrs)) {
	var in attrs
	f(&in)
	a.bytes(typ, in)
}

// eachAttr calls f with the type, without its flag bits, and the value of
// each attribute in b. It fails on one that does not fit.
func eachAttr(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlAttr {
			return errTruncated
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return errTruncated
		}
		typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := f(typ, b[unix.SizeofNlAttr:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// be32 reads a number; one of another length is malformed.
func be32(v []byte) (uint32, error) {
	if len(v) != 4 {
		return 0, errTruncated
	}
	return binary.BigEndian.Uint32(v), nil
}

func be64(v []byte) (uint64, error) {
	if len(v) != 8 {
		return 0, errTruncated
	}
	return binary.BigEndian.Uint64(v), nil
}
