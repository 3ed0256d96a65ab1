// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/connrotation"
)

// DefaultCallTimeout is Options' CallTimeout unless that is set.
const DefaultCallTimeout = 10 * time.Second

// Options say where the API is and who asks.
type Options struct {
	// Kubeconfig is a file in kubectl's format; empty means the credentials
	// that Kubernetes mounts into every pod.
	Kubeconfig string
	// Server is the URL of the API server; empty means that of Kubeconfig or
	// of the pod's environment.
	Server string
	// Node is the name of our Node, Version that of the agent, both for the
	// API server's log.
	Node, Version string
	// CallTimeout bounds every call to the API that is no watch; default
	// DefaultCallTimeout.
	CallTimeout time.Duration
	// MaxPause bounds the pause between attempts of Reflect; default that of
	// Backoff.
	MaxPause time.Duration
}

// ErrNoCredentials says that nobody has named any, and that this is no pod or
// one without a ServiceAccount's token.
var ErrNoCredentials = errors.New("no credentials for the Kubernetes API: outside a pod want --kubeconfig")

// A Conn is how one API server is reached. Its methods may run at the same
// time.
type Conn struct {
	config  *rest.Config
	http    *http.Client
	dialer  *connrotation.Dialer
	timeout time.Duration
	pause   time.Duration
}

// Connect reads the credentials and connects to nothing yet.
func Connect(o Options) (*Conn, error) {
	config, err := o.restConfig()
	if err != nil {
		return nil, err
	}
	c := &Conn{config: config, timeout: cmp.Or(o.CallTimeout, DefaultCallTimeout), pause: cmp.Or(o.MaxPause, maxPause)}
	c.dialer = connrotation.NewDialer((&net.Dialer{Timeout: c.timeout, KeepAlive: 30 * time.Second}).DialContext)
	config.Dial = c.dialer.DialContext
	// The server's own priority and fairness decides; what we ask is bounded by
	// how we ask.
	config.QPS = -1
	config.UserAgent = fmt.Sprintf("weftd/%s (%s)", cmp.Or(o.Version, "unknown"), o.Node)
	config.WarningHandler = rest.NoWarnings{}
	if c.http, err = rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("credentials for the Kubernetes API: %w", err)
	}
	return c, nil
}

func (o Options) restConfig() (*rest.Config, error) {
	if o.Kubeconfig == "" && o.Server == "" {
		c, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, ErrNoCredentials
		}
		if errors.Is(err, fs.ErrNotExist) { // automountServiceAccountToken: false
			return nil, fmt.Errorf("%w, and this one has no token: %w", ErrNoCredentials, err)
		}
		if err != nil {
			return nil, fmt.Errorf("credentials of this pod for the Kubernetes API: %w", err)
		}
		return c, nil
	}
	over := &clientcmd.ConfigOverrides{ClusterInfo: api.Cluster{Server: o.Server}}
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: o.Kubeconfig}, over).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %q: %w", o.Kubeconfig, err)
	}
	return c, nil
}

// Server returns the URL of the API server.
func (c *Conn) Server() string { return c.config.Host }

// Drop closes all connections; what needs one makes a new one. Calls under way
// fail.
func (c *Conn) Drop() { c.dialer.CloseAll() }

// Call gives one call its deadline, and keeps client-go from logging it.
func (c *Conn) Call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(Quiet(ctx), c.timeout)
}

// Client returns a client of one API group, which knows the types that add
// adds, and speaks protobuf.
func (c *Conn) Client(gv schema.GroupVersion, add func(*runtime.Scheme) error) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: types of %s: %w", gv, err)
	}
	config := rest.CopyConfig(c.config)
	config.APIPath, config.GroupVersion = "/apis", &gv
	if gv.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	r, err := rest.RESTClientForConfigAndClient(config, c.http)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	return r, nil
}

// Metadata returns a client that knows objects of any kind by their metadata.
func (c *Conn) Metadata() (metadata.Interface, error) {
	m, err := metadata.NewForConfigAndClient(c.config, c.http)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	return m, nil
}
