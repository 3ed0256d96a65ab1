// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	kubernetesDir    = "/run/kubernetes" // on a node: its credentials and configurations
	// staticPods is where kubelet looks for pods that it starts without an
	// API server.
	staticPods = kubernetesDir + "/static"
)

// containerdConfig is for a node that has no registry. The sandbox image is
// ours, whatever version the kubelet would ask for.
const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "` + parts.PauseImage + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
`

// kubeletConfig returns the node's KubeletConfiguration.
func (n *Node) kubeletConfig() ([]byte, error) {
	type object map[string]any
	c := n.cluster
	first := c.cfg.Families()[0]
	return json.Marshal(object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs",
		"cgroupRoot": "/" + c.cgroup + "/" + n.Name(), "enforceNodeAllocatable": []string{},
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": kubernetesDir + "/ca.crt"},
		},
		"authorization":               object{"mode": "Webhook"},
		"tlsCertFile":                 kubernetesDir + "/kubelet.crt",
		"tlsPrivateKeyFile":           kubernetesDir + "/kubelet.key",
		"clusterDNS":                  []string{serviceAddr(first, 10).String()},
		"clusterDomain":               "cluster.local",
		"staticPodPath":               staticPods,
		"resolvConf":                  kubernetesDir + "/resolv.conf",
		"failSwapOn":                  false,
		"containerRuntimeEndpoint":    "unix://" + containerdSocket,
		"imageGCHighThresholdPercent": 100, // what it removes it cannot fetch again
		"evictionHard": object{
			"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%",
		},
		// A node says that it is Ready soon after it is; by default it may
		// take 10 s to.
		"nodeStatusUpdateFrequency": "4s", "syncFrequency": "10s",
	})
}

// prepareDaemons writes what the node's daemons read.
func (n *Node) prepareDaemons() error {
	c := n.cluster
	dir := filepath.Join(n.dir, "run/kubernetes")
	if err := os.MkdirAll(filepath.Join(dir, "static"), 0o755); err != nil {
		return fmt.Errorf("prepare node %s: %w", n.Name(), err)
	}
	cert, err := c.pki.issue(subject{
		user: "system:node:" + n.Name(), groups: []string{"system:nodes"}, names: []string{n.Name()}, addrs: n.Addrs(),
	})
	if err != nil {
		return err
	}
	if err := cert.save(dir, "kubelet"); err != nil {
		return err
	}
	if err := c.pki.kubeconfig(filepath.Join(dir, "kubelet.conf"), c.cfg.endpoint(), cert); err != nil {
		return err
	}
	proxy, err := c.pki.issue(subject{user: "system:kube-proxy"})
	if err != nil {
		return err
	}
	if err := c.pki.kubeconfig(filepath.Join(dir, "proxy.conf"), c.cfg.endpoint(), proxy); err != nil {
		return err
	}
	kubelet, err := n.kubeletConfig()
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"ca.crt": c.pki.cert, "kubelet.json": kubelet, "containerd.toml": []byte(containerdConfig),
		// Nobody answers there: the cluster has no way out.
		"resolv.conf": fmt.Appendf(nil, "nameserver %s\n", fabricAddr(c.cfg.Families()[0], fabricHost)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return fmt.Errorf("prepare node %s: %w", n.Name(), err)
		}
	}
	n.defineDaemons()
	return nil
}

// defineDaemons says how the node's daemons are started.
func (n *Node) defineDaemons() {
	c := n.cluster
	daemon := func(name string, args ...string) *Daemon {
		return &Daemon{
			name: n.Name() + "-" + name, place: func() *netlab.Place { return n.Place },
			argv: append([]string{c.cfg.Parts.Programs[name]}, args...), env: c.env(),
			log: filepath.Join(c.cfg.LogDir, n.Name()+"-"+name+".log"),
		}
	}
	n.Containerd = daemon("containerd", "--config="+kubernetesDir+"/containerd.toml")
	ips := ""
	for i, a := range n.Addrs() {
		if i > 0 {
			ips += ","
		}
		ips += a.String()
	}
	n.Kubelet = daemon("kubelet", "--config="+kubernetesDir+"/kubelet.json", "--kubeconfig="+kubernetesDir+"/kubelet.conf",
		"--hostname-override="+n.Name(), "--node-ip="+ips, "--root-dir=/var/lib/kubelet", "--v=2")
	bind := "0.0.0.0"
	if c.cfg.Families()[0] == subnet.IPv6 {
		bind = "::"
	}
	n.Proxy = daemon("kube-proxy", "--kubeconfig="+kubernetesDir+"/proxy.conf", "--hostname-override="+n.Name(),
		"--proxy-mode="+c.cfg.Proxy, "--cluster-cidr="+each(c.cfg.Families(), podNetwork), "--bind-address="+bind,
		// These are the machine's.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--v=2")
}

// ctr runs containerd's command line on the node.
func (n *Node) ctr(ctx context.Context, args ...string) (string, error) {
	return n.Run(ctx, append([]string{n.cluster.cfg.Parts.Programs["ctr"], "-a", containerdSocket, "-n", "k8s.io"}, args...)...)
}

// StaticPod has kubelet run a pod that the API server need not know of, or,
// with an empty manifest, no longer.
func (n *Node) StaticPod(name, manifest string) error {
	path := n.Path(staticPods + "/" + name + ".yaml")
	if manifest == "" {
		return os.Remove(path)
	}
	return os.WriteFile(path, []byte(manifest), 0o600)
}

// startContainerd starts containerd and gives it the images.
func (n *Node) startContainerd(ctx context.Context) error {
	if err := n.containerdUp(ctx); err != nil {
		return err
	}
	for _, archive := range append(append([]string{}, n.cluster.cfg.Parts.Images...), n.cluster.cfg.Images...) {
		if err := n.Import(ctx, archive); err != nil {
			return err
		}
	}
	return nil
}

// containerdUp starts containerd and waits until it answers.
func (n *Node) containerdUp(ctx context.Context) error {
	if err := n.Containerd.Start(ctx); err != nil {
		return err
	}
	return n.Containerd.wait(ctx, time.Minute, func(ctx context.Context) error {
		_, err := n.ctr(ctx, "version")
		return err
	})
}

// RestartDaemons ends kubelet and containerd and starts them again, as an
// upgrade of them does, and waits until both answer.
func (n *Node) RestartDaemons(ctx context.Context) error {
	for _, d := range []*Daemon{n.Kubelet, n.Containerd} {
		if err := d.Stop(ctx, syscall.SIGTERM); err != nil {
			return err
		}
	}
	if err := n.containerdUp(ctx); err != nil {
		return err
	}
	if err := n.Kubelet.Start(ctx); err != nil {
		return err
	}
	return n.Kubelet.wait(ctx, time.Minute, n.kubeletHealthy)
}

// kubeletHealthy asks the kubelet on the port that it serves to its own node
// (--healthz-port, by default 10248).
func (n *Node) kubeletHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10248/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return fmt.Errorf("ask kubelet of %s: %w", n.Name(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("kubelet of %s is not healthy: %s", n.Name(), resp.Status)
	}
	return nil
}

// Import gives the node the images of an OCI archive.
func (n *Node) Import(ctx context.Context, archive string) error {
	_, err := n.ctr(ctx, "images", "import", "--local", "--discard-unpacked-layers", archive)
	return err
}

// startKubelet starts kubelet and kube-proxy, and waits until the node has
// registered itself.
func (n *Node) startKubelet(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.Proxy.Start(gctx) })
	g.Go(func() error {
		if err := n.Kubelet.Start(gctx); err != nil {
			return err
		}
		return n.Kubelet.wait(gctx, time.Minute, func(ctx context.Context) error {
			_, err := n.cluster.Node(ctx, n.Name())
			return err
		})
	})
	return g.Wait()
}
