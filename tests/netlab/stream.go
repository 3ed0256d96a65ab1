// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// streamSilence is how long a Stream waits for an answer before it counts as
// broken; TCP retransmits well within it.
const streamSilence = 20 * time.Second

// A Stream is a TCP connection that numbered messages go out on at a fixed
// rate and come back on. It tells whether a connection outlives what happens
// to the network below it.
type Stream struct {
	name string
	conn net.Conn
	l    net.Listener
	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	answered uint64
	longest  time.Duration // the longest that an answer took
	err      error         // what broke it
}

// StreamCount is what became of a Stream.
type StreamCount struct {
	Name     string
	Answered uint64
	Longest  time.Duration // the longest that an answer took
	Err      error         // what broke it, such as a reset; nil when nothing did
}

// String says what became of the stream, for a test's message.
func (c StreamCount) String() string {
	s := fmt.Sprintf("stream %s: %d messages answered, the slowest after %.0f ms", c.Name, c.Answered, c.Longest.Seconds()*1000)
	if c.Err != nil {
		s += ", broken: " + c.Err.Error()
	}
	return s
}

// StartStream connects to an echo server that it starts at the address to of
// the place server, and sends a message every interval until Stop or the end
// of ctx.
func (p *Place) StartStream(ctx context.Context, server *Place, to netip.Addr, interval time.Duration) (*Stream, error) {
	l, err := server.Listen(ctx, "tcp", netip.AddrPortFrom(to, 0).String())
	if err != nil {
		return nil, err
	}
	go echo(l)
	conn, err := p.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &Stream{name: p.name + " -> " + to.String(), conn: conn, l: l, done: make(chan struct{})}
	ctx, s.stop = context.WithCancel(ctx)
	go s.talk(ctx, interval)
	return s, nil
}

// echo answers one client.
func echo(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return // closed before anybody came
	}
	defer c.Close()
	io.Copy(c, c) // what breaks it the client sees too
}

// talk sends and reads until ctx ends or the connection breaks.
func (s *Stream) talk(ctx context.Context, interval time.Duration) {
	defer close(s.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		took, err := s.message(n)
		s.mu.Lock()
		s.err, s.longest = err, max(s.longest, took)
		if err == nil {
			s.answered = n
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// message sends one and waits for it to come back.
func (s *Stream) message(n uint64) (time.Duration, error) {
	start := time.Now()
	if err := s.conn.SetDeadline(start.Add(streamSilence)); err != nil {
		return 0, err
	}
	var out, in [8]byte
	binary.BigEndian.PutUint64(out[:], n)
	if _, err := s.conn.Write(out[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(s.conn, in[:]); err != nil {
		return 0, err
	}
	if in != out {
		return 0, fmt.Errorf("message %d came back as %x", n, in)
	}
	return time.Since(start), nil
}

// Stop ends the stream and returns what became of it.
func (s *Stream) Stop() StreamCount {
	s.stop()
	<-s.done
	s.conn.Close()
	s.l.Close()
	return s.Count()
}

// Count returns what has been seen so far.
func (s *Stream) Count() StreamCount {
	s.mu.Lock()
	defer s.mu.Unlock()
	return StreamCount{Name: s.name, Answered: s.answered, Longest: s.longest, Err: s.err}
}
