// SPDX-License-Identifier: Apache-2.0

// Package kubetest runs a real kube-apiserver for tests, on an etcd of its own
// and without the rest of Kubernetes: Nodes are what a test creates.
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
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"weft.dev/weft/tests/etcdtest"
)

// PathEnv is the environment variable that names the kube-apiserver to run.
const PathEnv = "WEFT_KUBE_APISERVER"

// startTimeout bounds how long a server may take to be ready.
const startTimeout = 2 * time.Minute

// A Server is one kube-apiserver with RBAC on.
type Server struct {
	URL  string
	Etcd *etcdtest.Server

	path  string // of the program
	dir   string
	certs *etcdtest.Certs
	admin string // token
	agent string // token of user "weft", who may what a test allows him
	cmd   *exec.Cmd
}

// New starts a server for the length of a test. The program takes minutes to
// build, so that is nothing that a test does.
func New(t testing.TB, kind etcdtest.Kind) *Server {
	t.Helper()
	path := os.Getenv(PathEnv)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s=%q is no kube-apiserver: `make test-kube` builds one and says where it is", PathEnv, path)
	}
	s := &Server{path: path, dir: t.TempDir(), certs: etcdtest.NewCerts(t), Etcd: etcdtest.New(t, kind, etcdtest.Options{}), admin: token(t), agent: token(t)}
	s.prepare(t)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func token(t testing.TB) string {
	t.Helper()
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// prepare picks a port and writes the files that the server wants.
func (s *Server) prepare(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.URL = "https://" + l.Addr().String()
	l.Close()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	tokens := fmt.Sprintf("%s,admin,admin,system:masters\n%s,weft,weft\n", s.admin, s.agent)
	for name, data := range map[string][]byte{"sa.key": der, "tokens.csv": []byte(tokens)} {
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Start runs the server, again where it was, and returns when it is ready. The
// child dies with this process.
func (s *Server) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(s.dir, "apiserver.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	file := func(name string) string { return filepath.Join(s.dir, name) }
	_, port, err := net.SplitHostPort(s.URL[len("https://"):])
	if err != nil {
		return err
	}
	s.cmd = exec.Command(s.path,
		"--etcd-servers="+s.Etcd.Endpoint, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port,
		"--tls-cert-file="+s.certs.ServerCert, "--tls-private-key-file="+s.certs.ServerKey, "--cert-dir="+s.dir,
		"--token-auth-file="+file("tokens.csv"), "--authorization-mode=RBAC", "--anonymous-auth=true",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+file("sa.key"), "--service-account-signing-key-file="+file("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount", "--etcd-compaction-interval=0",
		"--endpoint-reconciler-type=none", "--v=1")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.path, err)
	}
	return s.await(ctx)
}

// await returns once the server is ready.
func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	exited := make(chan error, 1)
	cmd := s.cmd
	go func() { exited <- cmd.Wait() }()
	c, err := Client(s.config("", s.admin))
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
		case err := <-exited:
			s.cmd = nil
			return errors.Join(fmt.Errorf("kube-apiserver ended: %w", err), s.tail())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("kube-apiserver is not ready: %w: %s", err, out), s.tail())
		case <-t.C:
		}
	}
}

// tail is the end of the server's log, as an error.
func (s *Server) tail() error {
	data, err := os.ReadFile(filepath.Join(s.dir, "apiserver.log"))
	if err != nil {
		return err
	}
	return errors.New(string(data[max(0, len(data)-3000):]))
}

// Stop ends the server as a crash would. Its data stay.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill() // it may have ended by itself
		s.cmd = nil
	}
}

// Admin may everything.
func (s *Server) Admin() *rest.Config { return s.config("", s.admin) }

// Kubeconfig writes a file with which user weft reaches the server at url, its
// own when that is empty.
func (s *Server) Kubeconfig(t testing.TB, url string) string {
	t.Helper()
	if url == "" {
		url = s.URL
	}
	c := api.NewConfig()
	c.Clusters["c"] = &api.Cluster{Server: url, CertificateAuthority: s.certs.CA}
	c.AuthInfos["u"] = &api.AuthInfo{Token: s.agent}
	c.Contexts["x"] = &api.Context{Cluster: "c", AuthInfo: "u"}
	c.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *Server) config(url, token string) *rest.Config {
	if url == "" {
		url = s.URL
	}
	return &rest.Config{Host: url, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: s.certs.CA}, QPS: -1, Timeout: time.Minute}
}
