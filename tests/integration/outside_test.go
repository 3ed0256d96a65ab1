// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"weft.dev/weft/tests/etcdtest"
	"weft.dev/weft/tests/netlab"
)

// A lab uses an etcd outside of it, through connections from the launcher's
// network namespace, at the URL that it has there and with its certificates;
// it leaves other keys alone and removes its own.
func TestEtcdOutside(t *testing.T) {
	if err := netlab.Preflight("etcd"); err != nil {
		t.Fatal(err)
	}
	certs := etcdtest.NewCerts(t)
	t.Run("plaintext at an address", func(t *testing.T) {
		t.Parallel()
		outsideEtcd(t, "http://10.9.9.9:2379", nil, nil)
	})
	t.Run("TLS with client certificates on loopback", func(t *testing.T) {
		t.Parallel()
		outsideEtcd(t, "https://localhost:2379",
			[]string{"--cert-file", certs.ServerCert, "--key-file", certs.ServerKey, "--trusted-ca-file", certs.CA, "--client-cert-auth"},
			[]string{"--etcd-cafile", certs.CA, "--etcd-certfile", certs.ClientCert, "--etcd-keyfile", certs.ClientKey})
	})
}

// outsideEtcd runs Debian's etcd with serverArgs and labs with labArgs in a
// namespace of their own.
func outsideEtcd(t *testing.T, url string, serverArgs, labArgs []string) {
	outside := elsewhere(t, "10.9.9.9/32")
	listen := strings.Replace(url, "localhost", "127.0.0.1", 1)
	server := exec.CommandContext(t.Context(), "etcd", append([]string{"--data-dir", t.TempDir(), "--listen-client-urls", listen,
		"--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"}, serverArgs...)...)
	must(t, outside.Start(server))
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait() // reports the kill
	})
	client := outsideClient(t, outside, url, labArgs)
	eventually(t.Context(), t, "etcd takes a key", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Put(ctx, otherKey, otherValue)
		return err
	})
	run := func(args ...string) *program {
		p := lab(t, append(append(args, "--etcd", url), labArgs...)...)
		must(t, outside.Start(p.Cmd))
		return p
	}

	p := run("run", "--iperf-seconds", "0", "-o", "json")
	r := worked(t, p, url)
	onlyOther(t, client)
	gone(t, r.Lab, nil)

	p = run("run", "--iperf-seconds", "0")
	p.says(t, "pods attached")
	must(t, p.Process.Signal(os.Interrupt))
	p.Wait() // its status is the subject of another test
	onlyOther(t, client)

	id := netlab.NewID()
	p = run("up", "--nodes", "1", "--pods-per-node", "0", "--name", id)
	if err := p.Wait(); err != nil {
		t.Fatalf("%v: %s", err, p.said())
	}
	down := lab(t, "down", id)
	must(t, outside.Start(down.Cmd))
	if err := down.Wait(); err != nil {
		t.Errorf("%v: %s", err, down.said())
	}
	onlyOther(t, client)
	gone(t, id, nil)
}

// worked returns the report of a run that has to succeed with the etcd at url.
func worked(t *testing.T, p *program, url string) labReport {
	t.Helper()
	if err := p.Wait(); err != nil {
		t.Fatalf("%v: %s", err, p.said())
	}
	var r labReport
	must(t, json.Unmarshal(p.stdout.Bytes(), &r))
	if !r.OK || !slices.Equal(r.Etcd, []string{url}) {
		t.Errorf("report: %+v", r)
	}
	return r
}

// A key that a lab must not touch, although weft would look for it.
const otherKey, otherValue = "/weft/network/config", "of another network"

// onlyOther fails the test if etcd holds anything but the other key, or never
// did.
func onlyOther(t *testing.T, client *clientv3.Client) {
	t.Helper()
	left, err := client.Get(t.Context(), "/", clientv3.WithPrefix())
	must(t, err)
	for _, kv := range left.Kvs {
		if string(kv.Key) != otherKey || string(kv.Value) != otherValue {
			t.Errorf("left in etcd: %s = %s", kv.Key, kv.Value)
		}
	}
	if len(left.Kvs) != 1 || left.Header.Revision < 5 { // ours, the lab's configuration, a lease, their removal
		t.Errorf("etcd has %d keys at revision %d, want the one that was there, and a lab that has written others", len(left.Kvs), left.Header.Revision)
	}
}

// outsideClient returns a client of that etcd, with the credentials in labArgs.
func outsideClient(t *testing.T, outside *netlab.Place, url string, labArgs []string) *clientv3.Client {
	t.Helper()
	c := clientv3.Config{
		Endpoints: []string{url}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return outside.Dial(ctx, "tcp", strings.Replace(addr, "localhost", "127.0.0.1", 1))
		})},
	}
	if len(labArgs) > 0 {
		var err error
		c.TLS, err = transport.TLSInfo{TrustedCAFile: labArgs[1], CertFile: labArgs[3], KeyFile: labArgs[5]}.ClientConfig()
		must(t, err)
	}
	client, err := clientv3.New(c)
	must(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// elsewhere returns a new network namespace with loopback up, and another
// address on it.
func elsewhere(t *testing.T, address string) *netlab.Place {
	t.Helper()
	type result struct {
		place *netlab.Place
		err   error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			r.place, r.err = netlab.Here("outside")
		}
		made <- r
	}()
	r := <-made
	must(t, r.err)
	addr, err := netlink.ParseAddr(address)
	must(t, err)
	must(t, r.place.Netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := h.AddrAdd(lo, addr); err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	}))
	return r.place
}
