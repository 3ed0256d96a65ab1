// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/subnet/kube"
)

// store is what the agent needs of where leases are. See overlay.Store for
// Config, Hold and Watch, and etcd.Store and kube.Store for the rest.
type store interface {
	overlay.Store
	WatchConfig(ctx context.Context, running subnet.Config, set func(subnet.Config, error)) error
	Reconnect(ctx context.Context) error
	Reason() string
	Close() error
}

var (
	_ store = (*etcd.Store)(nil)
	_ store = (*kube.Store)(nil)
)

// storeKind says where leases are.
type storeKind string

const (
	storeEtcd storeKind = "etcd"
	storeKube storeKind = "kube"
)

// kubeOptions is what the agent's configuration says of the Kubernetes store.
type kubeOptions struct {
	Store      storeKind
	Kubeconfig string // empty: the pod's own credentials
	KubeAPI    string // URL, flannel's -kube-api-url
	Prefix     string // of annotations, flannel's -kube-annotation-prefix; empty is the usual one
	NetConf    string // file with the network configuration
	Conditions bool   // whether our Node's conditions are ours to keep
}

// chooseStore decides between the stores where nobody has: for Kubernetes when
// its credentials are named or, unless etcd is, when this runs in a pod.
// flanneld goes to etcd in a pod, too, and so does its preset.
func (o *options) chooseStore(env map[string]string) error {
	given := func(flag string) bool { return o.origin[flag] != "default" }
	_, inPod := env["KUBERNETES_SERVICE_HOST"]
	switch {
	case given("store"):
	case o.Kubeconfig != "" || o.KubeAPI != "":
		o.Store = storeKube
	case inPod && !o.FlannelCompat && !given("etcd-endpoints") && !given("etcd-prefix"):
		o.Store = storeKube
		o.origin["store"] = "this is a pod"
	}
	if o.Store != storeEtcd && o.Store != storeKube {
		return fmt.Errorf("store (%s): value %q: want %s or %s", o.origin["store"], string(o.Store), storeEtcd, storeKube)
	}
	if name := env["NODE_NAME"]; o.Store == storeKube && name != "" && !given("node-name") {
		o.NodeName, o.origin["node-name"] = name, "environment NODE_NAME"
	}
	if !filepath.IsAbs(o.NetConf) {
		return fmt.Errorf("net-conf (%s): value %q: want an absolute path", o.origin["net-conf"], o.NetConf)
	}
	return nil
}

// newStore connects to nothing yet.
func newStore(o *options, log logrus.FieldLogger) (store, error) {
	if o.Store == storeKube {
		return kube.New(kubeStoreOptions(o, log))
	}
	return etcd.New(storeOptions(o, log))
}

func storeOptions(o *options, log logrus.FieldLogger) etcd.Options {
	return etcd.Options{
		Endpoints: o.EtcdEndpoints, Prefix: o.EtcdPrefix,
		CAFile: o.EtcdCAFile, CertFile: o.EtcdCertFile, KeyFile: o.EtcdKeyFile,
		Username: o.EtcdUsername, Password: o.EtcdPassword, Insecure: o.EtcdInsecure,
		LeaseTTL: o.LeaseTTL, RenewMargin: o.RenewMargin,
		Defaults: subnet.Defaults{Flannel: o.FlannelCompat}, Log: log,
	}
}

func kubeStoreOptions(o *options, log logrus.FieldLogger) kube.Options {
	return kube.Options{
		Kubeconfig: o.Kubeconfig, Server: o.KubeAPI, Node: o.NodeName, Prefix: o.Prefix,
		Flannel: o.FlannelCompat, NetConf: o.NetConf, Version: api.Version(), Log: log,
	}
}

// storeText names the store for people.
func (a *agent) storeText() string {
	if s, ok := a.store.(interface{ Server() string }); ok {
		return "Kubernetes " + s.Server()
	}
	return "etcd " + strings.Join(a.o.EtcdEndpoints, ",") + " " + a.o.EtcdPrefix
}

// networks names the pod networks for people, once they are known.
func (a *agent) networks() string {
	if s, ok := a.store.(interface{ Networks() string }); ok {
		return s.Networks()
	}
	if cfg := a.network.Load(); cfg != nil {
		return networksText(*cfg)
	}
	return ""
}

// configText is where the network's configuration stands.
func (o *options) configText() string {
	if o.Store == storeKube {
		return o.NetConf
	}
	return o.EtcdPrefix + "/config"
}
