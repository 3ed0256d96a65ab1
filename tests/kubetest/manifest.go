// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
)

// Where weft's manifest puts the agent.
const (
	Namespace = "kube-system"
	Account   = "weft"
)

// tokenLife is for how long a token is asked for: longer than any test.
const tokenLife = 24 * time.Hour

// A Manifest is the objects of a file, in its order.
type Manifest []*unstructured.Unstructured

// ParseManifest reads YAML documents.
func ParseManifest(text []byte) (Manifest, error) {
	var m Manifest
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		obj := &unstructured.Unstructured{}
		switch err := d.Decode(obj); {
		case errors.Is(err, io.EOF):
			return m, nil
		case err != nil:
			return nil, fmt.Errorf("manifest: %w", err)
		case len(obj.Object) > 0:
			m = append(m, obj)
		}
	}
}

// Apply makes the objects, or makes them like that.
func (m Manifest) Apply(ctx context.Context, c *rest.RESTClient) error {
	for _, obj := range m {
		path, err := pathOf(ctx, c, obj)
		if err != nil {
			return err
		}
		body, err := obj.MarshalJSON()
		if err != nil {
			return err
		}
		err = c.Patch(types.ApplyPatchType).AbsPath(path).Param("fieldManager", "kubectl").Body(body).Do(ctx).Error()
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", obj.GetKind(), obj.GetName(), err)
		}
	}
	return nil
}

// pathOf asks the server under which path an object of that kind is.
func pathOf(ctx context.Context, c *rest.RESTClient, obj *unstructured.Unstructured) (string, error) {
	root := "/apis/" + obj.GetAPIVersion()
	if obj.GetAPIVersion() == "v1" {
		root = "/api/v1"
	}
	var list metav1.APIResourceList
	raw, err := c.Get().AbsPath(root).DoRaw(ctx)
	if err == nil {
		err = yaml.Unmarshal(raw, &list)
	}
	if err != nil {
		return "", fmt.Errorf("resources of %s: %w", obj.GetAPIVersion(), err)
	}
	for _, r := range list.APIResources {
		switch {
		case r.Kind != obj.GetKind() || bytes.ContainsRune([]byte(r.Name), '/'):
		case r.Namespaced:
			return root + "/namespaces/" + obj.GetNamespace() + "/" + r.Name + "/" + obj.GetName(), nil
		default:
			return root + "/" + r.Name + "/" + obj.GetName(), nil
		}
	}
	return "", fmt.Errorf("the server has no kind %s in %s", obj.GetKind(), obj.GetAPIVersion())
}

// AgentPod makes the pod that the manifest's DaemonSet has on a node, as the
// controller would, and returns a token like that which the node's kubelet asks
// for it.
func (s *Server) AgentPod(ctx context.Context, m Manifest, node string) (*corev1.Pod, string, error) {
	pod, err := m.pod(node)
	if err != nil {
		return nil, "", err
	}
	admin, err := Client(s.Admin())
	if err != nil {
		return nil, "", err
	}
	if err := admin.Post().Namespace(Namespace).Resource("pods").Body(pod).Do(ctx).Into(pod); err != nil {
		return nil, "", fmt.Errorf("make the agent's pod on %s: %w", node, err)
	}
	kubelet, err := Client(s.Kubelet(node))
	if err != nil {
		return nil, "", err
	}
	token, err := RequestToken(ctx, kubelet, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID})
	if err != nil {
		return nil, "", fmt.Errorf("for the agent's pod on %s: %w", node, err)
	}
	return pod, token, nil
}

// pod is that of the DaemonSet on a node.
func (m Manifest) pod(node string) (*corev1.Pod, error) {
	for _, obj := range m {
		if obj.GetKind() != "DaemonSet" {
			continue
		}
		var set appsv1.DaemonSet
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj.Object, &set); err != nil {
			return nil, fmt.Errorf("DaemonSet %s: %w", obj.GetName(), err)
		}
		pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
		pod.Name, pod.Namespace, pod.Spec.NodeName = "weft-"+node, set.Namespace, node
		return pod, nil
	}
	return nil, errors.New("the manifest has no DaemonSet")
}

// RequestToken asks for a token of the agent's ServiceAccount, bound to an
// object unless that is nil. A node's authorizer learns of its pods by a watch,
// so who asks at once is asked to wait.
func RequestToken(ctx context.Context, c *rest.RESTClient, bound *authenticationv1.BoundObjectReference) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	seconds := int64(tokenLife / time.Second)
	for {
		r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: bound}}
		err := c.Post().Namespace(Namespace).Resource("serviceaccounts").Name(Account).SubResource("token").Body(r).Do(ctx).Into(r)
		if err == nil {
			return r.Status.Token, nil
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return "", fmt.Errorf("token of ServiceAccount %s: %w", Account, err)
		case <-t.C:
		}
	}
}
