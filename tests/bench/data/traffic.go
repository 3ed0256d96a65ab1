// SPDX-License-Identifier: Apache-2.0

package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/bench/measure"
)

const (
	request = 64                    // bytes there and back
	warm    = 50 * time.Millisecond // of a stream, before its window opens
	chunk   = 250                   // packets that are timed together
)

// goodbye ends a server that has no connection to see the end of.
const goodbye = 'q'

// serve listens, tells the port and sees one client through.
func (o order) serve(out *json.Encoder) (s seen, err error) {
	kind := unix.SOCK_STREAM
	if o.Kind == packets {
		kind = unix.SOCK_DGRAM
	}
	fd, port, err := bind(o.At, kind)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	if err := out.Encode(seen{Port: port}); err != nil {
		return s, err
	}
	switch o.Kind {
	case packets:
		return count(fd)
	case connect:
		return s, answer(fd)
	}
	c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return s, fmt.Errorf("accept: %w", err)
	}
	defer unix.Close(c)
	if o.Kind == stream {
		return drain(c, o.For)
	}
	return s, echo(c)
}

// drain reads a stream and measures a window of it, after whose end it is not
// interested any more.
func drain(fd int, span time.Duration) (s seen, err error) {
	buf := make([]byte, 256<<10)
	read := func(until time.Time) (total int, err error) {
		for time.Now().Before(until) {
			n, err := unix.Read(fd, buf)
			if err == nil && n == 0 {
				err = errors.New("it ended too early")
			}
			if err != nil {
				return total, fmt.Errorf("read a stream: %w", err)
			}
			total += n
		}
		return total, nil
	}
	if _, err := read(time.Now().Add(warm)); err != nil {
		return s, err
	}
	before, err := busy()
	if err != nil {
		return s, err
	}
	opened := time.Now()
	total, err := read(opened.Add(span))
	if err != nil {
		return s, err
	}
	took := time.Since(opened).Seconds()
	after, err := busy()
	return seen{Rate: float64(total) / took, CPU: (after - before) / float64(total)}, err
}

// echo sends back what comes, to the end of the connection.
func echo(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	var b [request]byte
	for {
		n, err := full(fd, b[:])
		if errors.Is(err, unix.ECONNRESET) || err == nil && n == 0 {
			return nil
		}
		if err == nil {
			_, err = unix.Write(fd, b[:n])
		}
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
	}
}

// answer takes connections, one request in each, until one says goodbye.
func answer(fd int) error {
	var b [request]byte
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		n, err := full(c, b[:])
		if err == nil && n == request {
			_, err = unix.Write(c, b[:])
		}
		if err == nil {
			_, _ = unix.Read(c, b[:1]) // until the client has reset it
		}
		unix.Close(c)
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if b[0] == goodbye {
			return nil
		}
	}
}

// count takes packets until one says goodbye. It never sleeps, so that the
// sender has nobody to wake.
func count(fd int) (s seen, err error) {
	var b [request]byte
	for begin := time.Now(); ; {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT)
		switch {
		case err == nil && n > 0 && b[0] == goodbye:
			return s, nil
		case err == nil:
			s.Count++
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return s, fmt.Errorf("receive: %w", err)
		case time.Since(begin) > 5*time.Second:
			return s, fmt.Errorf("nobody said goodbye after %d packets", s.Count)
		}
	}
}

// client makes the traffic.
func (o order) client() (seen, error) {
	switch o.Kind {
	case stream:
		return o.push()
	case pingers:
		return o.pingPong()
	case connect:
		return o.connections()
	case packets:
		return o.flood()
	}
	return seen{}, fmt.Errorf("traffic %q", o.Kind)
}

// push writes until the receiver has closed.
func (o order) push() (s seen, err error) {
	fd, err := dial(o.At, unix.SOCK_STREAM)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 128<<10)
	for {
		_, err := unix.Write(fd, buf)
		switch {
		case errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE):
			return s, nil
		case err != nil:
			return s, fmt.Errorf("write a stream: %w", err)
		}
	}
}

func (o order) pingPong() (s seen, err error) {
	fd, err := dial(o.At, unix.SOCK_STREAM)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	var b [request]byte
	var took []float64
	for begin := time.Now(); time.Since(begin) < o.For; {
		at := time.Now()
		if _, err := unix.Write(fd, b[:]); err != nil {
			return s, fmt.Errorf("ask: %w", err)
		}
		if _, err := full(fd, b[:]); err != nil {
			return s, fmt.Errorf("hear: %w", err)
		}
		took = append(took, time.Since(at).Seconds())
	}
	return seen{Min: measure.Quantile(took, 0), P25: measure.Quantile(took, 0.25), Count: len(took)}, nil
}

func (o order) connections() (s seen, err error) {
	begin := time.Now()
	for time.Since(begin) < o.For {
		if err := o.one(0); err != nil {
			return s, err
		}
		s.Count++
	}
	s.Rate = float64(s.Count) / time.Since(begin).Seconds()
	return s, o.one(goodbye)
}

// one is a connection with one request.
func (o order) one(first byte) error {
	fd, err := dial(o.At, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	b := [request]byte{first}
	_, err = unix.Write(fd, b[:])
	if err == nil {
		_, err = full(fd, b[:])
	}
	return errors.Join(err, reset(fd))
}

// flood sends packets. What a packet costs is all on the sender's CPU: the
// devices between it and the receiver's socket have no queue of their own.
func (o order) flood() (s seen, err error) {
	fd, err := dial(o.At, unix.SOCK_DGRAM)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	var b [request]byte
	var took []float64
	for begin := time.Now(); time.Since(begin) < o.For; {
		at := time.Now()
		for range chunk {
			if _, err := unix.Write(fd, b[:]); err != nil {
				return s, fmt.Errorf("send: %w", err)
			}
		}
		took = append(took, time.Since(at).Seconds()/chunk)
		s.Count += chunk
	}
	s.Min, s.P25 = measure.Quantile(took, 0), measure.Quantile(took, 0.25)
	return s, part(fd)
}

// part says goodbye until the server's socket is gone, which the kernel tells
// by an error: the server's buffer may be full.
func part(fd int) error {
	b := [request]byte{goodbye}
	for range 2000 { // of 1 ms
		if _, err := unix.Write(fd, b[:]); errors.Is(err, unix.ECONNREFUSED) {
			return nil
		} else if err != nil {
			return fmt.Errorf("say goodbye: %w", err)
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("say goodbye: %w", err)
		}
	}
	return errors.New("the server does not hear goodbyes")
}
