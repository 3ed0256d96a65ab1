// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
)

// What happens to a patch on its way to the server.
const (
	passes int32 = iota
	refused
	unanswered // it arrives, and the answer to it does not
)

// gate is a way to the API server that does to patches what it is told.
type gate struct {
	url     string
	patches atomic.Int32 // what happens to them
	tried   atomic.Int32 // how many there were
}

func (e *env) gate() *gate {
	e.Helper()
	transport, err := rest.TransportFor(&rest.Config{TLSClientConfig: e.srv.Admin().TLSClientConfig})
	e.check(err)
	target, err := url.Parse(e.srv.URL)
	e.check(err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport, proxy.FlushInterval = transport, -1 // a watch's events at once
	proxy.ErrorLog = log.New(io.Discard, "", 0)          // of watches that the test ends
	g := &gate{}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPatch {
			proxy.ServeHTTP(w, r)
			return
		}
		g.tried.Add(1)
		switch g.patches.Load() {
		case refused:
			http.Error(w, "the store is busy", http.StatusServiceUnavailable)
		case unanswered:
			proxy.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler) // the connection ends without a word
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	cert, err := e.srv.Certificate()
	e.check(err)
	front.TLS, front.EnableHTTP2 = &tls.Config{Certificates: []tls.Certificate{cert}}, true
	front.StartTLS()
	e.Cleanup(func() {
		front.CloseClientConnections() // watches
		front.Close()
	})
	g.url = front.URL
	return g
}

// What is granted is what others can read of us already: an agent that gave its
// pods a subnet which no peer knows of would send what nobody answers.
func grantsWhatIsPublished(e *env) {
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	g := e.gate()
	g.patches.Store(refused)
	s := e.store("n1", func(o *kube.Options) { o.Kubeconfig = e.kubeconfig(g.url, "") })
	granted := e.holdAndCompare(s, "n1")
	none := func(while string) {
		e.Helper()
		n := g.tried.Load()
		e.eventually("patches are tried "+while, func() bool { return g.tried.Load() >= n+3 })
		select {
		case l := <-granted:
			e.Errorf("granted %s: %+v", while, l)
		default:
		}
	}
	one := func(underlay string) {
		e.Helper()
		select {
		case l := <-granted:
			if got := l.Paths[0].Underlay.String(); got != underlay {
				e.Errorf("granted at %s, want %s", got, underlay)
			}
		case <-time.After(patience):
			e.Fatalf("nothing granted; want %s", underlay)
		}
	}
	none("while the API refuses to store")
	e.reason(s, "waiting for the Kubernetes API", "annotate Node n1")
	if left := ours(e.get("n1"), "weft.dev/"); len(left) != 0 {
		e.Errorf("annotated with %v", left)
	}
	// The watch says what the lost answer would have.
	g.patches.Store(unanswered)
	one("192.0.2.1")
	e.eventually("no Reason", func() bool { return s.Reason() == "" })

	g.patches.Store(refused)
	e.patch("n1", `{"metadata":{"annotations":{"weft.dev/public-ip-overwrite":"203.0.113.1"}}}`)
	none("another lease, while the API refuses to store")
	if got := e.get("n1").Annotations["weft.dev/public-ip"]; got != "192.0.2.1" {
		e.Errorf("peers read %s", got)
	}
	g.patches.Store(passes)
	one("203.0.113.1")
	e.eventually("no Reason", func() bool { return s.Reason() == "" })
}

// holdAndCompare holds the lease, and compares it with the Node whenever it is
// granted, before Hold goes on.
func (e *env) holdAndCompare(s *kube.Store, name string) <-chan subnet.Lease {
	e.Helper()
	cfg, err := s.Config(e.Context())
	e.check(err)
	out, ended := make(chan subnet.Lease, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(e.Context())
	go func() {
		ended <- s.Hold(ctx, cfg, request(cfg, name, 1), func(l subnet.Lease) {
			n := &corev1.Node{}
			if err := e.c.Get().Resource("nodes").Name(name).Do(ctx).Into(n); err != nil {
				e.Errorf("read what is published: %v", err)
			}
			ann := ours(n, "weft.dev/")
			var subnets []string
			for _, p := range l.Paths {
				subnets = append(subnets, p.Subnet.String())
			}
			if ann["public-ip"] != l.Paths[0].Underlay.String() || ann["subnets"] != strings.Join(subnets, ",") {
				e.Errorf("granted %+v, published %v", l, ann)
			}
			out <- l
		})
	}()
	e.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			e.Errorf("Hold ended with %v", err)
		}
	})
	return out
}
