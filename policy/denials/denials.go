// SPDX-License-Identifier: Apache-2.0

// Package denials says in the log which packets policies have refused, and
// which policies these were.
//
// It is told of copies of some of the refused packets. Of what is refused again
// and again, as by a client that tries, one line a minute is said.
package denials

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/policy"
)

const (
	// every is how long a line is not said again.
	every = time.Minute
	// most bounds how many different lines are remembered.
	most = 1024
)

// A Log says what is refused. It is for one goroutine.
type Log struct {
	out     logrus.FieldLogger
	explain func(policy.Packet) (policy.Explanation, bool)
	since   time.Time
	said    map[line]struct{} // since then
}

// line is what is said of refused packets, but for the words.
type line struct {
	policy.Packet
	policy.Direction
}

// New returns a Log that writes to out. What a packet was refused for is told by
// explain, which answers false while nothing is in force.
func New(out logrus.FieldLogger, explain func(policy.Packet) (policy.Explanation, bool)) *Log {
	return &Log{out: out, explain: explain, said: map[line]struct{}{}}
}

// Tell says that a packet, which begins with its IP header, was refused in
// direction d.
func (l *Log) Tell(d policy.Direction, packet []byte, now time.Time) {
	k, ok := Parse(packet)
	if !ok {
		return
	}
	if now.Sub(l.since) >= every {
		clear(l.said)
		l.since = now
	}
	key := line{k, d}
	if _, known := l.said[key]; known || len(l.said) == most {
		return
	}
	l.said[key] = struct{}{}
	e, ok := l.explain(k)
	if !ok {
		return
	}
	fields := logrus.Fields{"op": "deny", "direction": d.String(), "src": k.Src.String(), "dst": k.Dst.String()}
	if p := e.Reasons[d].Pod; p != nil {
		fields["pod"] = p.String()
	}
	if list := e.Reasons[d].Isolating; len(list) > 0 {
		fields["policies"] = policy.Names(list)
	}
	l.out.WithFields(fields).Info(e.Denial(d))
}

// Numbers of protocols whose headers may come between an IPv6 header and what
// it carries (RFC 8200 section 4, RFC 4302).
const (
	hopByHop  = 0
	routing   = 43
	fragment  = 44
	authentic = 51
	noNext    = 59
	options   = 60
)

// Parse reads who a packet is from and for. The packet, which begins with its
// IP header, may be cut off behind the ports. False is for what is no packet, or
// not enough of one.
func Parse(b []byte) (k policy.Packet, ok bool) {
	if len(b) == 0 {
		return k, false
	}
	var rest []byte
	switch b[0] >> 4 {
	case 4: // RFC 791 section 3.1
		size := int(b[0]&15) * 4
		if size < 20 || len(b) < size {
			return k, false
		}
		k.Src, k.Dst, k.Proto = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
		rest = b[size:]
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment
			return k, false
		}
	case 6: // RFC 8200 section 3
		if len(b) < 40 {
			return k, false
		}
		k.Src, k.Dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if k.Proto, rest, ok = skip(b[6], b[40:]); !ok {
			return k, false
		}
	default:
		return k, false
	}
	switch k.Proto {
	case policy.TCP, policy.UDP, policy.SCTP:
		if len(rest) < 4 {
			return k, false
		}
		k.Port = binary.BigEndian.Uint16(rest[2:])
	}
	return k, true
}

// skip skips IPv6 extension headers and returns what they come before.
func skip(next byte, b []byte) (byte, []byte, bool) {
	for {
		size := 8
		switch next {
		case hopByHop, routing, options:
			if len(b) < 2 {
				return next, nil, false
			}
			size = (int(b[1]) + 1) * 8
		case authentic:
			if len(b) < 2 {
				return next, nil, false
			}
			size = (int(b[1]) + 2) * 4
		case fragment:
			if len(b) < 4 || binary.BigEndian.Uint16(b[2:])&0xfff8 != 0 { // a later fragment
				return next, nil, false
			}
		case noNext:
			return next, nil, true
		default:
			return next, b, true
		}
		if len(b) < size {
			return next, nil, false
		}
		next, b = b[0], b[size:]
	}
}
