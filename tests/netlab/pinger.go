// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"weft.dev/weft/subnet"
)

// linger is how long a Pinger waits for late answers after its last request.
const linger = 2 * time.Second

// A Pinger sends echo requests from a place at a fixed rate and remembers
// which of them were answered.
type Pinger struct {
	from, to string
	family   subnet.Family
	conn     net.PacketConn
	dst      net.Addr
	nonce    [8]byte // in every request: a raw socket sees the answers to others' too
	start    time.Time
	stop     context.CancelFunc
	done     chan struct{}

	mu    sync.Mutex
	sent  []time.Duration // when each request left, since start
	got   []bool          // whether it was answered
	twice int             // answers beyond the first
	err   error
}

// PingCount is what a Pinger has seen.
type PingCount struct {
	From, To string
	Sent     int
	Lost     int
	Twice    int             // answers that came more than once
	LostAt   []time.Duration // when the lost requests were sent, since the start
	Err      error           // the first request that could not be sent; nil if all were
}

// String says what was lost and when, for a test's message.
func (c PingCount) String() string {
	s := fmt.Sprintf("%s -> %s: %d sent, %d lost", c.From, c.To, c.Sent, c.Lost)
	if c.Twice > 0 {
		s += fmt.Sprintf(", %d answered twice", c.Twice)
	}
	if c.Lost > 0 {
		s += fmt.Sprintf(", between %.2f s and %.2f s", c.LostAt[0].Seconds(), c.LostAt[c.Lost-1].Seconds())
	}
	if c.Err != nil {
		s += ", " + c.Err.Error()
	}
	return s
}

// StartPing starts to ping the address every interval, until Stop or the end
// of ctx.
func (p *Place) StartPing(ctx context.Context, to netip.Addr, interval time.Duration) (*Pinger, error) {
	network, any := "ip4:icmp", "0.0.0.0"
	if to.Is6() {
		network, any = "ip6:ipv6-icmp", "::"
	}
	g := &Pinger{
		from: p.name, to: to.String(), family: subnet.FamilyOf(to),
		dst: &net.IPAddr{IP: to.AsSlice()}, start: time.Now(), done: make(chan struct{}),
	}
	err := p.Do(func() (err error) {
		g.conn, err = new(net.ListenConfig).ListenPacket(ctx, network, any)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping from %s: %w", p.name, err)
	}
	rand.Read(g.nonce[:]) // never fails, crypto/rand
	ctx, g.stop = context.WithCancel(ctx)
	go g.receive()
	go g.send(ctx, interval)
	return g, nil
}

// Stop ends sending, waits for late answers and returns the count.
func (g *Pinger) Stop() PingCount {
	g.stop()
	<-g.done
	return g.Count()
}

// Count returns what has been seen so far. While the Pinger runs, the last
// requests count as lost.
func (g *Pinger) Count() PingCount {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := PingCount{From: g.from, To: g.to, Sent: len(g.sent), Twice: g.twice, Err: g.err}
	for i, ok := range g.got {
		if !ok {
			c.Lost++
			c.LostAt = append(c.LostAt, g.sent[i])
		}
	}
	return c
}

// PingWindow is what became of the requests of a span of time.
type PingWindow struct {
	Sent, Lost int
	Last       time.Time // when the last of the lost was sent; zero if none was
}

// Window counts the requests that were sent from from to to. One that is
// younger than its answer takes counts as lost.
func (g *Pinger) Window(from, to time.Time) PingWindow {
	g.mu.Lock()
	defer g.mu.Unlock()
	var w PingWindow
	for i := len(g.sent) - 1; i >= 0; i-- {
		at := g.start.Add(g.sent[i])
		if at.Before(from) {
			break
		}
		if at.After(to) {
			continue
		}
		w.Sent++
		if !g.got[i] {
			w.Lost++
			if w.Last.IsZero() {
				w.Last = at
			}
		}
	}
	return w
}

// send keeps the rate on average: after a pause of the machine it catches up.
func (g *Pinger) send(ctx context.Context, interval time.Duration) {
	defer close(g.done)
	defer g.conn.Close()
	for next := g.start; Pause(ctx, time.Until(next)) == nil; next = next.Add(interval) {
		g.request()
	}
	late, cancel := context.WithTimeout(context.Background(), linger)
	defer cancel()
	for g.missing() && Pause(late, 10*time.Millisecond) == nil {
	}
}

func (g *Pinger) missing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Contains(g.got, false)
}

// request sends the next echo request. Its payload is the nonce and the
// request's number, of which the ICMP sequence number has room for 16 bits.
func (g *Pinger) request() {
	g.mu.Lock()
	n := len(g.sent)
	g.sent = append(g.sent, time.Since(g.start))
	g.got = append(g.got, false)
	g.mu.Unlock()
	typ := icmp.Type(ipv4.ICMPTypeEcho)
	if g.family == subnet.IPv6 {
		typ = ipv6.ICMPTypeEchoRequest
	}
	m := icmp.Message{Type: typ, Body: &icmp.Echo{
		ID: int(g.nonce[0]), Seq: n & 0xffff, Data: binary.BigEndian.AppendUint32(g.nonce[:], uint32(n)),
	}}
	b, err := m.Marshal(nil) // the kernel fills in ICMPv6's checksum
	if err == nil {
		_, err = g.conn.WriteTo(b, g.dst)
	}
	if err != nil {
		g.mu.Lock()
		g.err = cmp.Or(g.err, err) // the first tells enough of an outage's thousands
		g.mu.Unlock()
	}
}

// receive counts the answers until the socket is closed.
func (g *Pinger) receive() {
	proto, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply) // protocol numbers of IANA
	if g.family == subnet.IPv6 {
		proto, want = 58, ipv6.ICMPTypeEchoReply
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := g.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != want {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok {
			continue
		}
		if number, ours := bytes.CutPrefix(echo.Data, g.nonce[:]); ours && len(number) == 4 {
			g.answered(int(binary.BigEndian.Uint32(number)))
		}
	}
}

func (g *Pinger) answered(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case n >= len(g.got):
	case g.got[n]:
		g.twice++
	default:
		g.got[n] = true
	}
}
