// SPDX-License-Identifier: Apache-2.0

// Package denials says in the log which packets policies have refused, and
// which policies these were.
//
// It is told of copies of some of the refused packets. Of what is refused again
// and again, as by a client that tries, one line a minute is said.
package denials

import (
	"bytes"
	"context"
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
	// pause is how long after the first of some packets all of them are
	// explained: what refused them is in the kernel a little sooner than it is
	// known to be.
	pause = 500 * time.Millisecond
	// waiting bounds how many packets are waiting to be explained.
	waiting = 256
)

// A Refusal is one packet that was refused.
type Refusal struct {
	Direction policy.Direction
	Answer    bool   // in a flow that was let pass before, and is judged as its first packet
	Packet    []byte // begins with the IP header, and may be cut off
}

// A Log says what is refused.
type Log struct {
	out     logrus.FieldLogger
	explain func(policy.Packet) (policy.Explanation, bool)
	in      chan Refusal
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
	return &Log{out: out, explain: explain, in: make(chan Refusal, waiting), said: map[line]struct{}{}}
}

// Tell hands over a refusal, which it copies. It never blocks: what is too much
// is left out.
func (l *Log) Tell(r Refusal) {
	r.Packet = bytes.Clone(r.Packet)
	select {
	case l.in <- r:
	default:
	}
}

// Run says what it is told until ctx ends, and returns ctx.Err().
func (l *Log) Run(ctx context.Context) error {
	for {
		var some []Refusal
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-l.in:
			some = append(some, r)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		for range len(l.in) {
			some = append(some, <-l.in)
		}
		for _, r := range some {
			l.say(r, time.Now())
		}
	}
}

// say says why a packet was refused, unless that was said.
func (l *Log) say(r Refusal, now time.Time) {
	k, back, ok := Parse(r.Packet)
	if !ok {
		return
	}
	if r.Answer {
		k = back
	}
	if now.Sub(l.since) >= every {
		clear(l.said)
		l.since = now
	}
	if _, known := l.said[line{k, r.Direction}]; known {
		return
	}
	e, ok := l.explain(k)
	if !ok || len(l.said) == most {
		return
	}
	l.said[line{k, r.Direction}] = struct{}{}
	fields := logrus.Fields{"op": "deny", "direction": r.Direction.String(), "src": k.Src.String(), "dst": k.Dst.String()}
	if p := e.Reasons[r.Direction].Pod; p != nil {
		fields["pod"] = p.String()
	}
	if list := e.Reasons[r.Direction].Isolating; len(list) > 0 {
		fields["policies"] = policy.Names(list)
	}
	l.out.WithFields(fields).Info(e.Denial(r.Direction))
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

// Parse reads who a packet is from and for, and what it would be the answer to.
// The packet, which begins with its IP header, may be cut off behind the ports.
// False is for what is no packet, or not enough of one.
func Parse(b []byte) (there, back policy.Packet, ok bool) {
	k, rest, ok := header(b)
	if !ok {
		return k, k, false
	}
	back = policy.Packet{Src: k.Dst, Dst: k.Src, Proto: k.Proto}
	switch k.Proto {
	case policy.TCP, policy.UDP, policy.SCTP:
		if len(rest) < 4 {
			return k, k, false
		}
		k.Port, back.Port = binary.BigEndian.Uint16(rest[2:]), binary.BigEndian.Uint16(rest)
	}
	return k, back, true
}

// header reads the IP headers of a packet and returns what is behind them.
func header(b []byte) (k policy.Packet, rest []byte, ok bool) {
	if len(b) == 0 {
		return k, nil, false
	}
	switch b[0] >> 4 {
	case 4: // RFC 791 section 3.1
		size := int(b[0]&15) * 4
		if size < 20 || len(b) < size {
			return k, nil, false
		}
		k.Src, k.Dst, k.Proto = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
		rest = b[size:]
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment
			return k, nil, false
		}
	case 6: // RFC 8200 section 3
		if len(b) < 40 {
			return k, nil, false
		}
		k.Src, k.Dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if k.Proto, rest, ok = skip(b[6], b[40:]); !ok {
			return k, nil, false
		}
	default:
		return k, nil, false
	}
	return k, rest, true
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
