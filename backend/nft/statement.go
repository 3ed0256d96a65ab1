// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Between matches values from From to To, both included; of Len bytes each.
type Between struct {
	Load     Load
	From, To string
}

// Limit matches no more than PerSecond packets a second, and Burst at once.
type Limit struct {
	PerSecond uint64
	Burst     uint32
}

// Log sends a copy of the packet to who listens to a group of NFLOG. The kernel
// has to have nfnetlink_log. Prefix is at most 127 bytes.
type Log struct {
	Group  uint16
	Prefix string
}

func (b Between) encode(e *exprEncoder) {
	b.Load.encode(e, 0)
	e.add("range", func(a *attrs) {
		a.be32(unix.NFTA_RANGE_SREG, register(0))
		a.be32(unix.NFTA_RANGE_OP, unix.NFT_RANGE_EQ)
		a.data(unix.NFTA_RANGE_FROM_DATA, b.From)
		a.data(unix.NFTA_RANGE_TO_DATA, b.To)
	})
}

func (l Limit) encode(e *exprEncoder) {
	e.add("limit", func(a *attrs) {
		a.be64(unix.NFTA_LIMIT_RATE, l.PerSecond)
		a.be64(unix.NFTA_LIMIT_UNIT, 1) // seconds
		a.be32(unix.NFTA_LIMIT_BURST, l.Burst)
		a.be32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
	})
}

func (l Log) encode(e *exprEncoder) {
	e.add("log", func(a *attrs) {
		a.bytes(unix.NFTA_LOG_GROUP, binary.BigEndian.AppendUint16(nil, l.Group))
		a.text(unix.NFTA_LOG_PREFIX, l.Prefix)
	})
}

// String renders the comparison.
func (b Between) String() string {
	return fmt.Sprintf("%s %s-%s", b.Load, valueText(b.Load.Type, b.From), valueText(b.Load.Type, b.To))
}

// String renders the statement.
func (l Limit) String() string {
	return fmt.Sprintf("limit rate %d/second burst %d packets", l.PerSecond, l.Burst)
}

// String renders the statement.
func (l Log) String() string { return fmt.Sprintf("log prefix %q group %d", l.Prefix, l.Group) }
