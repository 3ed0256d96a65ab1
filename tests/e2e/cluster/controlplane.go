// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

const etcdURL = "http://127.0.0.1:2379" // in the network of the first node

// pkiDir holds what the control plane's daemons are and trust.
const pkiDir = stateDir + "/pki"

// prepareControlPlane makes credentials and says how the daemons are started.
func (c *Cluster) prepareControlPlane() error {
	if err := os.MkdirAll(pkiDir, 0o700); err != nil {
		return fmt.Errorf("prepare the control plane: %w", err)
	}
	var err error
	if c.pki, err = newAuthority(); err != nil {
		return err
	}
	if err := c.pki.keyPair.save(pkiDir, "ca"); err != nil {
		return err
	}
	server := subject{user: "kube-apiserver", addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, names: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}}
	for _, f := range c.cfg.Families() {
		server.addrs = append(server.addrs, fabricAddr(f, controlNode), serviceAddr(f, 1))
	}
	for name, s := range map[string]subject{
		"apiserver": server,
		"kubelets":  {user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		"sa":        {user: "service-accounts"}, // only its key is used
	} {
		pair, err := c.pki.issue(s)
		if err != nil {
			return err
		}
		if err := pair.save(pkiDir, name); err != nil {
			return err
		}
	}
	for file, s := range map[string]subject{
		AdminConfig:                    {user: "admin", groups: []string{"system:masters"}},
		stateDir + "/controllers.conf": {user: "system:kube-controller-manager"},
		stateDir + "/scheduler.conf":   {user: "system:kube-scheduler"},
	} {
		pair, err := c.pki.issue(s)
		if err != nil {
			return err
		}
		if err := c.pki.kubeconfig(file, c.cfg.endpoint(), pair); err != nil {
			return err
		}
		if file == AdminConfig {
			if err := c.dialAs(pair); err != nil {
				return err
			}
		}
	}
	c.defineControlPlane()
	return nil
}

// controlPlace is where the control plane's daemons run: with kubeadm's they
// are on a node, use its network, and reach pods as it does. Their files are
// the lab's.
func (c *Cluster) controlPlace() *netlab.Place { return c.nodes[controlNode-1].Network() }

// dialAs makes the client with which this process, in the fabric, talks to the
// API server.
func (c *Cluster) dialAs(pair keyPair) error {
	conf, err := c.pki.clientTLS(pair)
	if err != nil {
		return err
	}
	c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: conf}, Timeout: 20 * time.Second}
	return nil
}

// defineControlPlane says how the control plane's daemons are started.
func (c *Cluster) defineControlPlane() {
	daemon := func(name string, args ...string) *Daemon {
		return &Daemon{
			name: name, place: c.controlPlace,
			argv: append([]string{c.cfg.Parts.Programs[name]}, args...), env: c.env(),
			log: filepath.Join(c.cfg.LogDir, name+".log"),
		}
	}
	families := c.cfg.Families()
	services := "--service-cluster-ip-range=" + each(families, serviceNetwork)
	pods := "--cluster-cidr=" + each(families, podNetwork)
	c.Etcd = daemon("etcd", "--data-dir="+stateDir+"/etcd", "--unsafe-no-fsync", "--logger=zap", "--log-level=warn",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls=http://127.0.0.1:2380")
	c.APIServer = daemon("kube-apiserver",
		"--etcd-servers="+etcdURL, "--advertise-address="+fabricAddr(families[0], controlNode).String(),
		fmt.Sprintf("--secure-port=%d", apiPort), "--bind-address="+c.any(), services,
		"--tls-cert-file="+pkiDir+"/apiserver.crt", "--tls-private-key-file="+pkiDir+"/apiserver.key",
		"--client-ca-file="+pkiDir+"/ca.crt", "--authorization-mode=Node,RBAC", "--allow-privileged=true",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-key-file="+pkiDir+"/sa.key", "--service-account-signing-key-file="+pkiDir+"/sa.key",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--kubelet-certificate-authority="+pkiDir+"/ca.crt", "--kubelet-client-certificate="+pkiDir+"/kubelets.crt",
		"--kubelet-client-key="+pkiDir+"/kubelets.key", "--kubelet-preferred-address-types=InternalIP")
	c.Controllers = daemon("kube-controller-manager", "--kubeconfig="+stateDir+"/controllers.conf", "--leader-elect=false",
		"--allocate-node-cidrs=true", pods, services, "--use-service-account-credentials=true",
		"--root-ca-file="+pkiDir+"/ca.crt", "--service-account-private-key-file="+pkiDir+"/sa.key",
		"--cluster-signing-cert-file="+pkiDir+"/ca.crt", "--cluster-signing-key-file="+pkiDir+"/ca.key")
	c.Scheduler = daemon("kube-scheduler", "--kubeconfig="+stateDir+"/scheduler.conf", "--leader-elect=false")
}

// any returns the address that stands for all of the cluster's families.
func (c *Cluster) any() string {
	if families := c.cfg.Families(); len(families) == 1 && families[0] == subnet.IPv4 {
		return "0.0.0.0"
	}
	return "::"
}

// startControlPlane starts the control plane and waits until it answers.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.Etcd.Start(ctx); err != nil {
		return err
	}
	if err := c.APIServer.Start(ctx); err != nil {
		return err
	}
	if err := c.WaitAPI(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Controllers.Start(gctx) })
	g.Go(func() error { return c.Scheduler.Start(gctx) })
	return g.Wait()
}

// WaitAPI waits until the API server is ready.
func (c *Cluster) WaitAPI(ctx context.Context) error {
	return c.APIServer.wait(ctx, 2*time.Minute, func(ctx context.Context) error {
		_, err := c.Get(ctx, "/readyz")
		return err
	})
}
