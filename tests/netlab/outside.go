// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Outside is an etcd outside of the lab and how it is entered: PEM files and
// a user, empty where not needed. The zero value is none.
type Outside struct {
	Endpoints []Endpoint
	CAFile    string `json:",omitempty"`
	CertFile  string `json:",omitempty"`
	KeyFile   string `json:",omitempty"`
	Username  string `json:",omitempty"`
	Password  string `json:"-"` // never written down
}

// outsidePrefix is below which a lab keeps its keys in an etcd that is not
// its own, so that labs and real networks there do not meet.
func outsidePrefix(id string) string { return "/weft-lab/" + id + "/" }

// Clean removes the keys of a lab that has ended. Call it from where the
// endpoints can be reached.
func (o Outside) Clean(ctx context.Context, id string) error {
	if len(o.Endpoints) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var urls []string
	for _, e := range o.Endpoints {
		urls = append(urls, e.URL)
	}
	c, err := o.config(urls)
	if err != nil {
		return err
	}
	client, err := clientv3.New(c)
	if err != nil {
		return fmt.Errorf("make an etcd client: %w", err)
	}
	defer client.Close()
	if _, err := client.Delete(ctx, outsidePrefix(id), clientv3.WithPrefix()); err != nil {
		return fmt.Errorf("delete etcd keys %s: %w", outsidePrefix(id), err)
	}
	return nil
}

// config returns the configuration of a client for endpoints.
func (o Outside) config(endpoints []string) (clientv3.Config, error) {
	c := clientv3.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second,
		Username: o.Username, Password: o.Password,
		Logger: zap.NewNop(), // failures come back as errors
		// etcd comes and goes here, and every second of waiting is a test's.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	}
	if !slices.ContainsFunc(endpoints, isTLS) {
		return c, nil
	}
	tls, err := transport.TLSInfo{TrustedCAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile}.ClientConfig()
	if err != nil {
		return c, fmt.Errorf("etcd credentials: %w", err)
	}
	c.TLS = tls
	return c, nil
}

func isTLS(url string) bool { return strings.HasPrefix(url, "https:") }

// agentArgs returns what tells weftd where etcd is, and the additions to its
// environment: a password does not belong on a command line.
func (l *Lab) agentArgs() (args, env []string) {
	endpoints, o := l.store.endpoints(), l.cfg.Etcd
	args = []string{"--etcd-endpoints=" + strings.Join(endpoints, ","), "--etcd-prefix=" + l.cfg.Prefix}
	if !slices.ContainsFunc(endpoints, isTLS) {
		args = append(args, "--etcd-insecure")
	}
	for _, f := range [][2]string{
		{"cafile", o.CAFile}, {"certfile", o.CertFile}, {"keyfile", o.KeyFile}, {"username", o.Username},
	} {
		if f[1] != "" {
			args = append(args, "--etcd-"+f[0]+"="+f[1])
		}
	}
	if o.Password != "" {
		env = []string{"WEFTD_ETCD_PASSWORD=" + o.Password}
	}
	return args, env
}

// An Endpoint is a URL of an etcd outside the lab, and where it is.
type Endpoint struct {
	URL  string
	Addr netip.AddrPort
}

// ResolveEndpoints finds out where URLs lead, since a lab has no resolver.
func ResolveEndpoints(ctx context.Context, urls []string) ([]Endpoint, error) {
	var out []Endpoint
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("etcd endpoint %q: want a URL like http://10.0.0.1:2379 or https://etcd.example:2379", s)
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), fmt.Sprint(etcdPort))
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		if err != nil {
			return nil, fmt.Errorf("etcd endpoint %q: %w", s, err)
		}
		slices.SortFunc(ips, func(a, b netip.Addr) int { return a.Unmap().BitLen() - b.Unmap().BitLen() }) // IPv4 first
		addr, err := netip.ParseAddrPort(net.JoinHostPort(ips[0].Unmap().String(), u.Port()))
		if err != nil {
			return nil, fmt.Errorf("etcd endpoint %q: %w", s, err)
		}
		out = append(out, Endpoint{URL: u.String(), Addr: addr})
	}
	return out, nil
}

// hosts returns the line of /etc/hosts that makes the URL's name lead to Addr
// on a node, or "" if it does anyhow.
func (e Endpoint) hosts() string {
	u, err := url.Parse(e.URL)
	if err != nil || u.Hostname() == "localhost" {
		return ""
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return ""
	}
	return e.Addr.Addr().String() + " " + u.Hostname() + "\n"
}
