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
	"sync"
)

// relay carries connections from the fabric to an etcd outside the lab. It
// listens in the fabric and connects from the launcher's network namespace;
// no packet is routed between the two.
type relay struct {
	fabric, outer *Place
	addr          netip.Addr
	targets       []string // host:port, literal

	mu        sync.Mutex
	cancel    context.CancelFunc // nil while stopped
	listeners []net.Listener
	conns     sync.WaitGroup
}

// newRelay checks the endpoints, which must be literal addresses: the
// launcher resolves names (see ResolveEndpoints).
func newRelay(fabric *Place, outer *os.File, addr netip.Addr, endpoints []string) (*relay, error) {
	r := &relay{fabric: fabric, outer: &Place{name: "outside", net: outer}, addr: addr}
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return nil, fmt.Errorf("etcd endpoint %q: %w", e, err)
		}
		if u.Scheme != "http" {
			return nil, fmt.Errorf("etcd endpoint %q: want http:// (a certificate would not fit the address that nodes see)", e)
		}
		if _, err := netip.ParseAddrPort(u.Host); err != nil {
			return nil, fmt.Errorf("etcd endpoint %q: want a literal address and port: %w", e, err)
		}
		r.targets = append(r.targets, u.Host)
	}
	return r, nil
}

// ResolveEndpoints replaces host names in the URLs by addresses, since a lab
// has no resolver.
func ResolveEndpoints(ctx context.Context, endpoints []string) ([]string, error) {
	out := make([]string, 0, len(endpoints))
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("etcd endpoint %q: want a URL like http://10.0.0.1:2379", e)
		}
		host, port := u.Hostname(), u.Port()
		if port == "" {
			port = "2379"
		}
		addrs, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return nil, fmt.Errorf("etcd endpoint %q: %w", e, err)
		}
		u.Host = net.JoinHostPort(addrs[0], port)
		out = append(out, u.String())
	}
	return out, nil
}

func (r *relay) endpoints() []string {
	var out []string
	for i := range r.targets {
		out = append(out, "http://"+netip.AddrPortFrom(r.addr, uint16(etcdPort+i)).String())
	}
	return out
}

func (r *relay) start(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		return errors.New("the way to etcd is open already")
	}
	ctx, cancel := context.WithCancel(context.Background())
	for i, target := range r.targets {
		l, err := r.fabric.Listen(ctx, "tcp", netip.AddrPortFrom(r.addr, uint16(etcdPort+i)).String())
		if err != nil {
			cancel()
			return err
		}
		r.listeners = append(r.listeners, l)
		r.conns.Go(func() { r.accept(ctx, l, target) })
	}
	r.cancel = cancel
	return nil
}

func (r *relay) stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel == nil {
		return errors.New("the way to etcd is cut already")
	}
	for _, l := range r.listeners {
		l.Close()
	}
	r.cancel()
	r.conns.Wait()
	r.listeners, r.cancel = nil, nil
	return nil
}

func (r *relay) accept(ctx context.Context, l net.Listener, target string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return // closed by stop
		}
		r.conns.Go(func() {
			defer in.Close()
			out, err := r.outer.Dial(ctx, "tcp", target)
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
