// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/internal/kubeapi"
)

// client is the part of the API that the store uses.
type client struct {
	core  *rest.RESTClient
	nodes metadata.ResourceInterface // by metadata
}

func newClient(c *kubeapi.Conn) (*client, error) {
	core, err := c.Client(corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return nil, err
	}
	meta, err := c.Metadata()
	if err != nil {
		return nil, err
	}
	return &client{core: core, nodes: meta.Resource(corev1.SchemeGroupVersion.WithResource("nodes"))}, nil
}

// getNode reads a whole Node.
func (c *client) getNode(ctx context.Context, name string) (*corev1.Node, error) {
	n := &corev1.Node{}
	err := c.core.Get().Resource("nodes").Name(name).Do(ctx).Into(n)
	return n, err
}

// configMap reads the data of a ConfigMap.
func (c *client) configMap(ctx context.Context, namespace, name string) (map[string]string, error) {
	m := &corev1.ConfigMap{}
	err := c.core.Get().Namespace(namespace).Resource("configmaps").Name(name).Do(ctx).Into(m)
	return m.Data, err
}

// patch changes the metadata or the conditions of a Node. It goes to
// nodes/status, which takes annotations too, so that the agent needs no right
// on nodes that could change a spec. How conditions are merged is the server's
// knowledge (strategic), what annotations are is not needed (merge).
func (c *client) patch(ctx context.Context, kind types.PatchType, name string, doc any) error {
	data, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return c.core.Patch(kind).Resource("nodes").Name(name).SubResource("status").Body(data).Do(ctx).Error()
}

// node lists and watches the one Node called name.
func (c *client) node(name string) *cache.ListWatch {
	return cache.NewListWatchFromClient(c.core, "nodes", metav1.NamespaceAll, fields.OneTermEqualSelector("metadata.name", name))
}

// eventSink sends Events (record.EventSink).
type eventSink struct {
	ctx func() (context.Context, context.CancelFunc)
	c   *client
}

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.send(s.c.core.Post().Namespace(e.Namespace).Resource("events").Body(e))
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.send(s.c.core.Put().Namespace(e.Namespace).Resource("events").Name(e.Name).Body(e))
}

func (s eventSink) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	return s.send(s.c.core.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).Body(data))
}

func (s eventSink) send(r *rest.Request) (*corev1.Event, error) {
	ctx, cancel := s.ctx()
	defer cancel()
	out := &corev1.Event{}
	err := r.Do(ctx).Into(out)
	return out, err
}
