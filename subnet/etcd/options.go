// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/subnet"
)

// Limits and defaults of Options.
const (
	DefaultPrefix      = "/weft/network"
	DefaultLeaseTTL    = 24 * time.Hour // flannel v0.28, pkg/subnet/etcd: subnetTTL
	DefaultRenewMargin = 60 * time.Minute
	DefaultCallTimeout = 5 * time.Second
	DefaultAuditEvery  = 10 * time.Minute

	minLeaseTTL = time.Second // etcd counts in whole seconds
	maxLeaseTTL = 365 * 24 * time.Hour
)

// Options say where etcd is and how leases are held.
type Options struct {
	// Endpoints are URLs of etcd members: http://HOST:PORT, https://HOST:PORT,
	// unix:///PATH, or HOST:PORT (TLS if a file is given, else plaintext).
	// All of them are plaintext or none is.
	Endpoints []string
	// Prefix of all keys, without trailing slash; default DefaultPrefix.
	Prefix string
	// CertFile and KeyFile (PEM) authenticate the client and are given
	// together or not at all. CAFile alone is enough for TLS; without it the
	// system's roots verify the server. They are read again for every
	// connection, so that rotated files need no restart.
	CertFile, KeyFile, CAFile string
	// Username and Password are given together or not at all.
	Username, Password string
	// Insecure allows plaintext to an endpoint beyond loopback.
	Insecure bool
	// LeaseTTL is how long a lease outlives its holder's last renewal, in
	// whole seconds, 1s to 8760h; default DefaultLeaseTTL.
	LeaseTTL time.Duration
	// RenewMargin is what is left of LeaseTTL when a lease is renewed at the
	// latest; it is renewed every LeaseTTL/3 if that is sooner. Less than
	// LeaseTTL; default DefaultRenewMargin, or LeaseTTL/2 if that is less.
	RenewMargin time.Duration
	// CallTimeout bounds every call to etcd; default DefaultCallTimeout.
	CallTimeout time.Duration
	// AuditEvery is how often a watch is checked by a new listing, which finds
	// events that were lost, up to 10% sooner; default DefaultAuditEvery.
	AuditEvery time.Duration
	// Defaults fill in the configuration. With Flannel set, the store is
	// shared with flannel and a network without IPv4 is refused.
	Defaults subnet.Defaults
	// Log receives edges only; nil discards them.
	Log logrus.FieldLogger
}

// complete returns o with defaults filled in, or an error that names the
// first bad value and what is allowed.
func (o Options) complete() (Options, error) {
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = silent
	}
	o.Prefix = strings.TrimRight(o.Prefix, "/")
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.LeaseTTL == 0 {
		o.LeaseTTL = DefaultLeaseTTL
	}
	if o.LeaseTTL < minLeaseTTL || o.LeaseTTL > maxLeaseTTL || o.LeaseTTL%time.Second != 0 {
		return o, fmt.Errorf("lease time to live %s: want whole seconds from %s to %s", o.LeaseTTL, minLeaseTTL, maxLeaseTTL)
	}
	if o.RenewMargin == 0 {
		o.RenewMargin = min(DefaultRenewMargin, o.LeaseTTL/2)
	}
	if o.RenewMargin < 0 || o.RenewMargin >= o.LeaseTTL {
		return o, fmt.Errorf("lease renew margin %s: want more than 0 and less than the time to live %s", o.RenewMargin, o.LeaseTTL)
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = DefaultCallTimeout
	}
	if o.CallTimeout < 0 {
		return o, fmt.Errorf("etcd call timeout %s: want more than 0", o.CallTimeout)
	}
	if o.AuditEvery == 0 {
		o.AuditEvery = DefaultAuditEvery
	}
	if o.AuditEvery < 0 {
		return o, fmt.Errorf("pause between audits of the watch %s: want more than 0", o.AuditEvery)
	}
	return o, o.checkCredentials()
}

// checkCredentials finds half-given pairs.
func (o Options) checkCredentials() error {
	switch {
	case o.CertFile != "" && o.KeyFile == "":
		return fmt.Errorf("etcd client certificate %s has no key: --etcd-keyfile is missing", o.CertFile)
	case o.CertFile == "" && o.KeyFile != "":
		return fmt.Errorf("etcd client key %s has no certificate: --etcd-certfile is missing", o.KeyFile)
	case o.Username != "" && o.Password == "":
		return fmt.Errorf("etcd user %q has no password: --etcd-password is missing", o.Username)
	case o.Username == "" && o.Password != "":
		return errors.New("an etcd password is given without a user: --etcd-username is missing")
	}
	return nil
}

// hasTLSFiles reports whether any TLS file is given.
func (o Options) hasTLSFiles() bool {
	return o.CertFile != "" || o.KeyFile != "" || o.CAFile != ""
}

// An endpoint is one etcd member's address as the client wants it.
type endpoint struct {
	url     string // SCHEME://HOST:PORT or unix:///PATH
	secure  bool   // TLS
	exposed bool   // plaintext that leaves this machine
}

// endpoints parses o.Endpoints and decides between TLS and plaintext.
func (o Options) endpoints() ([]endpoint, error) {
	if len(o.Endpoints) == 0 {
		return nil, errors.New("no etcd endpoint: --etcd-endpoints is empty, want e.g. https://192.0.2.1:2379")
	}
	var list []endpoint
	for _, text := range o.Endpoints {
		e, err := parseEndpoint(strings.TrimSpace(text), o.hasTLSFiles())
		if err != nil {
			return nil, err
		}
		if e.exposed && !o.Insecure {
			return nil, fmt.Errorf("etcd endpoint %s is plaintext and not on loopback: use https:// (with --etcd-cafile for a private CA), or allow it with --etcd-insecure", e.url)
		}
		if len(list) > 0 && list[0].secure != e.secure {
			return nil, fmt.Errorf("etcd endpoints %s and %s: one is TLS and one plaintext, want all the same", list[0].url, e.url)
		}
		list = append(list, e)
	}
	return list, nil
}

// parseEndpoint reads one endpoint; secure decides for one without scheme.
func parseEndpoint(text string, secure bool) (endpoint, error) {
	if !strings.Contains(text, "://") {
		scheme := "http://"
		if secure {
			scheme = "https://"
		}
		text = scheme + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, errors.New("etcd endpoint: not a URL, want e.g. https://192.0.2.1:2379") // may hold a password
	}
	if u.User != nil {
		return endpoint{}, fmt.Errorf("etcd endpoint %s: want no user in it, use --etcd-username and --etcd-password", u.Redacted())
	}
	switch u.Scheme {
	case "unix":
		if u.Path == "" {
			return endpoint{}, fmt.Errorf("etcd endpoint %s: want unix:///PATH", text)
		}
		return endpoint{url: "unix://" + u.Host + u.Path}, nil
	case "http", "https":
	default:
		return endpoint{}, fmt.Errorf("etcd endpoint %s: scheme %q, want http, https or unix", text, u.Scheme)
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil || strings.Trim(u.Path, "/") != "" {
		return endpoint{}, fmt.Errorf("etcd endpoint %s: want %s://HOST:PORT", text, u.Scheme)
	}
	e := endpoint{url: u.Scheme + "://" + u.Host, secure: u.Scheme == "https"}
	if !e.secure && secure {
		return endpoint{}, fmt.Errorf("etcd endpoint %s is plaintext but TLS files are given: write https://%s", e.url, u.Host)
	}
	e.exposed = !e.secure && !isLoopback(u.Hostname())
	return e, nil
}

// isLoopback reports whether host certainly is this machine.
func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
