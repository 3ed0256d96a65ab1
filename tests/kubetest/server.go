// SPDX-License-Identifier: Apache-2.0

// Package kubetest runs a real kube-apiserver, on an etcd that the caller has
// and without the rest of Kubernetes: Nodes are what a test creates, and what
// a kubelet would do a test does under its name.
package kubetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"weft.dev/weft/tests/etcdtest"
)

// ProgramEnv is the environment variable that names the kube-apiserver to run.
const ProgramEnv = "WEFT_KUBE_APISERVER"

// startTimeout bounds how long a server may take to be ready.
const startTimeout = 2 * time.Minute

// Program returns the kube-apiserver to run. It takes minutes to build, so
// that is nothing that a test does.
func Program() (string, error) {
	path := os.Getenv(ProgramEnv)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s=%q is no kube-apiserver: `make test-kube` and `make bench-kube` build one and say where it is", ProgramEnv, path)
	}
	return path, nil
}

// Config says what server to run.
type Config struct {
	Program string     // see the function of that name
	Dir     string     // for its files
	Etcd    string     // URL
	Addr    netip.Addr // to listen at
	Args    []string   // more
}

// A Server is one kube-apiserver. It authorizes and admits as kubeadm's does:
// by node and RBAC, with NodeRestriction.
type Server struct {
	URL  string
	Etcd *etcdtest.Server // of New, else nil

	c     Config
	certs *etcdtest.Certs
	admin string // token
	agent string // token of user "weft", who may what a test allows him
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// New starts a server on loopback for the length of a test.
func New(t testing.TB, kind etcdtest.Kind) *Server {
	t.Helper()
	program, err := Program()
	if err != nil {
		t.Fatal(err)
	}
	etcd := etcdtest.New(t, kind, etcdtest.Options{})
	s, err := Start(t.Context(), Config{Program: program, Dir: t.TempDir(), Etcd: etcd.Endpoint, Addr: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	s.Etcd = etcd
	t.Cleanup(s.Stop)
	return s
}

// Start starts a server and returns when it is ready. It dies with this
// process.
func Start(ctx context.Context, c Config) (*Server, error) {
	s := &Server{c: c, admin: token(), agent: token()}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("prepare kube-apiserver: %w", err)
	}
	if err := s.Start(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func token() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, crypto/rand
	return hex.EncodeToString(b[:])
}

// prepare picks a port and writes the files that the server wants.
func (s *Server) prepare() error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(s.c.Addr, 0).String())
	if err != nil {
		return err
	}
	s.URL = "https://" + l.Addr().String()
	l.Close()
	if s.certs, err = etcdtest.MakeCerts(s.c.Dir, s.c.Addr); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	der := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	tokens := fmt.Sprintf("%s,admin,admin,system:masters\n%s,weft,weft\n", s.admin, s.agent)
	return errors.Join(os.WriteFile(s.file("sa.key"), der, 0o600), os.WriteFile(s.file("tokens.csv"), []byte(tokens), 0o600))
}

func (s *Server) file(name string) string { return filepath.Join(s.c.Dir, name) }

// Start runs the server, again where it was, and returns when it is ready.
func (s *Server) Start(ctx context.Context) error {
	log, err := os.OpenFile(s.file("apiserver.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	host, port, err := net.SplitHostPort(s.URL[len("https://"):])
	if err != nil {
		return err
	}
	s.cmd = exec.Command(s.c.Program, append([]string{
		"--etcd-servers=" + s.c.Etcd, "--bind-address=" + host, "--advertise-address=" + host, "--secure-port=" + port,
		"--tls-cert-file=" + s.certs.ServerCert, "--tls-private-key-file=" + s.certs.ServerKey, "--cert-dir=" + s.c.Dir,
		"--token-auth-file=" + s.file("tokens.csv"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + s.file("sa.key"), "--service-account-signing-key-file=" + s.file("sa.key"),
		"--allow-privileged=true", "--service-cluster-ip-range=10.96.0.0/16", "--etcd-compaction-interval=0", "--endpoint-reconciler-type=none", "--v=1"}, s.c.Args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.c.Program, err)
	}
	cmd, ended := s.cmd, make(chan struct{})
	s.ended = ended
	go func() {
		cmd.Wait() // its status is in ProcessState
		close(ended)
	}()
	return s.await(ctx)
}

// await returns once the server is ready.
func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := Client(s.Admin())
	if err != nil {
		return err
	}
	for {
		out, err := c.Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		t := time.NewTimer(200 * time.Millisecond)
		select {
		case <-s.ended:
			return errors.Join(fmt.Errorf("kube-apiserver ended: %s", s.cmd.ProcessState), s.tail())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("kube-apiserver is not ready: %w: %s", err, out), s.tail())
		case <-t.C:
		}
	}
}

// tail is the end of the server's log, as an error.
func (s *Server) tail() error {
	data, err := os.ReadFile(s.file("apiserver.log"))
	if err != nil {
		return err
	}
	return errors.New(string(data[max(0, len(data)-3000):]))
}

// Stop ends the server as a crash would. Its data stay.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended by itself
	<-s.ended
	s.cmd = nil
}
