// SPDX-License-Identifier: Apache-2.0

// Package etcdtest starts etcd servers for tests: the current release line
// embedded in the test process, or the distribution's stock server as a
// child process. Both listen on loopback and can be stopped, started again
// on the same address, and wiped.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Kind says which etcd to run.
type Kind string

// The kinds. Stock is the binary of the distribution's package etcd-server.
const (
	Embedded Kind = "embedded"
	Stock    Kind = "stock"
)

// Kinds returns all kinds.
func Kinds() []Kind { return []Kind{Embedded, Stock} }

// startTimeout bounds how long a server may take to answer.
const startTimeout = 30 * time.Second

// Options vary a server. The zero value is plaintext without users.
type Options struct {
	Certs       *Certs // serve TLS with these
	ClientCerts bool   // and ask clients for a certificate
}

// A Server is one etcd with a single member.
type Server struct {
	Endpoint string // client URL

	kind Kind
	o    Options
	dir  string
	peer string // peer URL

	mu   sync.Mutex
	stop func() error // nil while stopped
}

// New starts a server for the length of a test.
func New(t testing.TB, kind Kind, o Options) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := Start(kind, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Start runs a server that keeps everything below dir.
func Start(kind Kind, dir string, o Options) (*Server, error) {
	var err error
	// A port found free may be taken by the time the server binds it.
	for range 3 {
		s := &Server{kind: kind, o: o, dir: dir}
		if err = s.pickPorts(); err != nil {
			return nil, err
		}
		if err = s.Start(); err == nil || errors.Is(err, os.ErrNotExist) {
			return s, err
		}
	}
	return nil, err
}

// Start starts the server again where it was.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		return errors.New("etcd runs already")
	}
	start := s.embed
	if s.kind == Stock {
		start = s.spawn
	}
	stop, err := start()
	if err != nil {
		return err
	}
	if err := s.await(); err != nil {
		return errors.Join(err, stop())
	}
	s.stop = stop
	return nil
}

// Stop ends the server and keeps its data. A stopped server is left so.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return nil
	}
	err := s.stop()
	s.stop = nil
	return err
}

// Wipe removes the data of a stopped server.
func (s *Server) Wipe() error { return os.RemoveAll(s.data()) }

// Backup copies the data of a stopped server to dir, which must not exist.
func (s *Server) Backup(dir string) error { return os.CopyFS(dir, os.DirFS(s.data())) }

// Restore gives a stopped server the data that Backup has left in dir: what
// it held then, at the revision of then.
func (s *Server) Restore(dir string) error {
	if err := s.Wipe(); err != nil {
		return err
	}
	return os.CopyFS(s.data(), os.DirFS(dir))
}

// Client connects to the server, with a client certificate where it asks for
// one.
func (s *Server) Client() (*clientv3.Client, error) {
	c := clientv3.Config{Endpoints: []string{s.Endpoint}, DialTimeout: startTimeout, Logger: zap.NewNop()}
	if s.o.Certs != nil {
		info := transport.TLSInfo{TrustedCAFile: s.o.Certs.CA, CertFile: s.o.Certs.ClientCert, KeyFile: s.o.Certs.ClientKey}
		var err error
		if c.TLS, err = info.ClientConfig(); err != nil {
			return nil, err
		}
	}
	return clientv3.New(c)
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// await returns once the server answers a linearizable read, or refuses it
// for want of a user, which takes a working server too.
func (s *Server) await() error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if _, err := c.Get(ctx, "x"); err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s etcd at %s does not answer: %w", s.kind, s.Endpoint, err)
	}
	return nil
}

func (s *Server) pickPorts() error {
	var hosts [2]string
	for i := range hosts {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		hosts[i] = l.Addr().String()
		defer l.Close()
	}
	scheme := "http://"
	if s.o.Certs != nil {
		scheme = "https://"
	}
	s.Endpoint, s.peer = scheme+hosts[0], "http://"+hosts[1]
	return nil
}
