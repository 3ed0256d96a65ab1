// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/subnet"
)

// Limits and defaults of Options.
const (
	DefaultCallTimeout = kubeapi.DefaultCallTimeout
	DefaultPollEvery   = 5 * time.Second
)

// Options say where the API and the configuration are and who we are.
type Options struct {
	// Kubeconfig is a file in kubectl's format; empty means the credentials
	// that Kubernetes mounts into every pod.
	Kubeconfig string
	// Server is the URL of the API server; empty means that of Kubeconfig or
	// of the pod's environment.
	Server string
	// Node is the name of our Node.
	Node string
	// Prefix of the annotations; default subnet.Domain, with Flannel
	// subnet.FlannelAnnotationPrefix.
	Prefix string
	// Flannel reads and writes exactly flannel's annotations, and takes
	// flannel's defaults for the configuration.
	Flannel bool
	// NetConf is the file that holds the network's configuration. It is read
	// again and again, whole, so that a mounted ConfigMap is followed.
	NetConf string
	// PollEvery is the pause between two looks at NetConf; default
	// DefaultPollEvery.
	PollEvery time.Duration
	// CallTimeout bounds every call to the API that is no watch; default
	// DefaultCallTimeout.
	CallTimeout time.Duration
	// Version of the agent, for the API server's log.
	Version string
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
	if o.Node == "" {
		return o, errors.New("no name of our Node: want --node-name or NODE_NAME (in a pod: fieldRef spec.nodeName)")
	}
	if o.NetConf == "" {
		return o, errors.New("no file with the network configuration: want --net-conf")
	}
	o.setPrefix()
	o.PollEvery = cmp.Or(o.PollEvery, DefaultPollEvery)
	o.CallTimeout = cmp.Or(o.CallTimeout, DefaultCallTimeout)
	if o.PollEvery < 0 || o.CallTimeout < 0 {
		return o, fmt.Errorf("pause between looks at %s %s, timeout of calls %s: want more than 0", o.NetConf, o.PollEvery, o.CallTimeout)
	}
	return o, nil
}

// setPrefix fills in the prefix's default.
func (o *Options) setPrefix() {
	switch {
	case o.Prefix != "":
	case o.Flannel:
		o.Prefix = subnet.FlannelAnnotationPrefix
	default:
		o.Prefix = subnet.Domain
	}
}

// connect reads the credentials.
func (o Options) connect() (*kubeapi.Conn, error) {
	return kubeapi.Connect(kubeapi.Options{Kubeconfig: o.Kubeconfig, Server: o.Server, Node: o.Node, Version: o.Version, CallTimeout: o.CallTimeout})
}
