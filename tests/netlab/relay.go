// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// relay carries connections from nodes to an etcd outside the lab. On every
// node it listens at etcd's own address, so that URLs and certificates fit;
// it connects from the launcher's network namespace. No packet is routed
// between the two.
type relay struct {
	outer *Place
	etcd  []Endpoint

	mu        sync.Mutex
	nodes     []*Place
	ctx       context.Context    // of all connections; nil while stopped
	cancel    context.CancelFunc // ends ctx
	listeners []net.Listener
	conns     sync.WaitGroup
}

func newRelay(outer *os.File, etcd []Endpoint) *relay {
	return &relay{outer: &Place{name: "outside", net: outer}, etcd: etcd}
}

func (r *relay) endpoints() []string {
	var out []string
	for _, e := range r.etcd {
		out = append(out, e.URL)
	}
	return out
}

func (r *relay) hosts() string {
	var b strings.Builder
	for _, e := range r.etcd {
		b.WriteString(e.hosts())
	}
	return b.String()
}

// client dials etcd itself: it works during an outage too.
func (r *relay) client(c *clientv3.Config) {
	c.DialOptions = append(c.DialOptions, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		for _, e := range r.etcd {
			if u, err := url.Parse(e.URL); err == nil && strings.HasSuffix(addr, u.Host) {
				return r.outer.Dial(ctx, "tcp", e.Addr.String())
			}
		}
		return nil, fmt.Errorf("%s is not an etcd endpoint of the lab", addr)
	}))
}

// attach makes etcd reachable from a node.
func (r *relay) attach(ctx context.Context, n *Place) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.etcd {
		if a := e.Addr.Addr(); !a.IsLoopback() {
			err := n.Netlink(func(h *netlink.Handle) error {
				lo, err := h.LinkByName("lo")
				if err != nil {
					return err
				}
				return addAddr(h, lo, netip.PrefixFrom(a, a.BitLen()))
			})
			if err != nil {
				return fmt.Errorf("make etcd reachable from %s: %w", n.name, err)
			}
		}
	}
	r.nodes = append(r.nodes, n)
	if r.ctx == nil {
		return nil
	}
	return r.listen(ctx, n)
}

// listen opens the way from a node. The caller holds the lock.
func (r *relay) listen(ctx context.Context, n *Place) error {
	for _, e := range r.etcd {
		l, err := n.Listen(ctx, "tcp", e.Addr.String())
		if err != nil {
			return err
		}
		r.listeners = append(r.listeners, l)
		r.conns.Go(func() { r.accept(r.ctx, l, e.Addr) })
	}
	return nil
}

// detach forgets a node that goes.
func (r *relay) detach(n *Place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = slices.DeleteFunc(r.nodes, func(o *Place) bool { return o == n })
}

func (r *relay) start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx != nil {
		return errors.New("the way to etcd is open already")
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for _, n := range r.nodes {
		if err := r.listen(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (r *relay) stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil {
		return errors.New("the way to etcd is cut already")
	}
	for _, l := range r.listeners {
		l.Close()
	}
	r.cancel()
	r.conns.Wait()
	r.listeners, r.ctx = nil, nil
	return nil
}

func (r *relay) accept(ctx context.Context, l net.Listener, target netip.AddrPort) {
	for {
		in, err := l.Accept()
		if err != nil {
			return // closed by stop
		}
		r.conns.Go(func() {
			defer in.Close()
			out, err := r.outer.Dial(ctx, "tcp", target.String())
			if err != nil {
				return // the client sees the connection end and tries again
			}
			defer out.Close()
			splice(ctx, in.(*net.TCPConn), out.(*net.TCPConn))
		})
	}
}

// splice copies both ways until both are done or ctx ends.
func splice(ctx context.Context, a, b *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, c := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		wg.Go(func() {
			c[0].ReadFrom(c[1]) // the other end's trouble is the other end's
			c[0].CloseWrite()
		})
	}
	wg.Wait()
}
