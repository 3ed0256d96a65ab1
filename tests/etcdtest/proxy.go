// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// A Proxy stands between clients and a server and fails on demand.
type Proxy struct {
	Endpoint string // plaintext client URL

	target string
	addr   string

	mu       sync.Mutex
	listener net.Listener // nil while cut
	conns    map[*link]bool
	stalled  bool
	running  sync.WaitGroup
}

// A link is one proxied connection. A stalled one swallows what it reads, for
// good: its ends see neither data nor an end, as when a firewall has lost its
// state.
type link struct {
	in, out net.Conn
	mu      sync.Mutex
	stalled bool
}

// NewProxy forwards to the server at endpoint for the length of a test.
func NewProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: u.Host, addr: "127.0.0.1:0", conns: make(map[*link]bool)}
	if err := p.Heal(); err != nil {
		t.Fatal(err)
	}
	p.Endpoint = u.Scheme + "://" + p.addr
	t.Cleanup(func() {
		p.Cut()
		p.running.Wait()
	})
	return p
}

// Cut ends all connections and refuses new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for l := range p.conns {
		l.in.Close()
		l.out.Close()
	}
}

// Stall keeps connections open and delivers nothing on them; the present ones
// stay so after Heal, too.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = true
	for l := range p.conns {
		l.mu.Lock()
		l.stalled = true
		l.mu.Unlock()
	}
}

// Heal lets new connections through.
func (p *Proxy) Heal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = false
	if p.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener, p.addr = l, l.Addr().String()
	p.running.Go(func() { p.accept(l) })
	return nil
}

func (p *Proxy) accept(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return // Cut
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		c := &link{in: in, out: out, stalled: p.stalled}
		p.conns[c] = true
		if p.listener != l { // cut meanwhile
			in.Close()
			out.Close()
		}
		p.mu.Unlock()
		p.running.Go(func() { p.carry(c) })
	}
}

// carry copies both ways until one end closes.
func (p *Proxy) carry(c *link) {
	var both sync.WaitGroup
	for _, d := range [][2]net.Conn{{c.in, c.out}, {c.out, c.in}} {
		both.Go(func() {
			io.Copy(filter{c, d[1]}, d[0]) // ends with the connection
			c.in.Close()
			c.out.Close()
		})
	}
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// filter is a writer that swallows while its link is stalled.
type filter struct {
	link *link
	to   io.Writer
}

func (f filter) Write(b []byte) (int, error) {
	f.link.mu.Lock()
	stalled := f.link.stalled
	f.link.mu.Unlock()
	if stalled {
		return len(b), nil
	}
	return f.to.Write(b)
}
