// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// A single member elects itself; short times make it start quickly and let
// etcd grant leases as short as one second.
const (
	heartbeat = 10 * time.Millisecond
	election  = 100 * time.Millisecond
)

// embed runs the server in this process.
func (s *Server) embed() (func() error, error) {
	client, err := url.Parse(s.Endpoint)
	if err != nil {
		return nil, err
	}
	peer, err := url.Parse(s.peer)
	if err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name, c.Dir = "test", s.data()
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = uint(heartbeat.Milliseconds()), uint(election.Milliseconds())
	c.LogLevel, c.LogOutputs = "error", []string{filepath.Join(s.dir, "etcd.log")}
	if s.o.Certs != nil {
		c.ClientTLSInfo = transport.TLSInfo{CertFile: s.o.Certs.ServerCert, KeyFile: s.o.Certs.ServerKey}
		if s.o.ClientCerts { // a CA alone makes etcd ask, too
			c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = s.o.Certs.CA, true
		}
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	return func() error {
		e.Close()
		return nil
	}, nil
}

// spawn runs the distribution's server. The child dies with this process.
func (s *Server) spawn() (func() error, error) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		return nil, fmt.Errorf("the stock etcd server is not installed; run `make deps`: %w", os.ErrNotExist)
	}
	args := []string{
		"--name=test", "--data-dir=" + s.data(),
		"--listen-client-urls=" + s.Endpoint, "--advertise-client-urls=" + s.Endpoint,
		"--listen-peer-urls=" + s.peer, "--initial-advertise-peer-urls=" + s.peer,
		"--initial-cluster=test=" + s.peer,
		fmt.Sprintf("--heartbeat-interval=%d", heartbeat.Milliseconds()),
		fmt.Sprintf("--election-timeout=%d", election.Milliseconds()),
	}
	if s.o.Certs != nil {
		args = append(args, "--cert-file="+s.o.Certs.ServerCert, "--key-file="+s.o.Certs.ServerKey)
		if s.o.ClientCerts {
			args = append(args, "--trusted-ca-file="+s.o.Certs.CA, "--client-cert-auth")
		}
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "etcd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return func() error {
		err := cmd.Process.Kill()
		cmd.Wait() // reports the kill
		return err
	}, nil
}
