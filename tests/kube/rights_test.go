// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
	"weft.dev/weft/tests/kubetest"
)

// cluster is a server to which one of the manifests is applied, with the Nodes
// a and b, and a pod of the agent on each.
type cluster struct {
	*env
	flannel  bool
	prefix   string // of the annotations that agents publish
	manifest kubetest.Manifest
	pods     map[string]*corev1.Pod // by node
	tokens   map[string]string      // of these pods
	agent    *rest.RESTClient       // the agent on a
	http     *http.Client
}

// TestManifestRights shows what the token of an agent's pod is good for, with
// each of the manifests as they are shipped, and for nothing else.
func TestManifestRights(t *testing.T) {
	for file, c := range map[string]cluster{
		"weft.yaml":                {prefix: subnet.Domain + "/"},
		"weft-flannel-compat.yaml": {prefix: subnet.FlannelAnnotationPrefix + "/", flannel: true},
	} {
		t.Run(file, func(t *testing.T) {
			c.env = newServer(t)
			c.setUp("../../dist/manifests/" + file)
			for _, part := range []struct {
				name string
				test func(*cluster)
			}{
				{"agents do their work", agentsWork},
				{"an agent that the policy refuses says so, and grants nothing", agentRefused},
				{"what is not listed is forbidden", matrix},
				{"RBAC lists no more", rules},
				{"no field but the agent's own", fields},
				{"no lie in the agent's own annotations", lies},
				{"other tokens of the account", otherTokens},
			} {
				t.Run(part.name, func(t *testing.T) {
					env := *c.env
					env.T = t
					sub := c
					sub.env = &env
					part.test(&sub)
				})
			}
		})
	}
}

// setUp applies the manifest, as an administrator does, and waits until the
// policy is in force.
func (c *cluster) setUp(file string) {
	c.Helper()
	if c.flannel { // whose second family is asked for
		c.check(writeConf(c.env, `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}`))
	}
	text, err := os.ReadFile(file)
	c.check(err)
	c.manifest, err = kubetest.ParseManifest(text)
	c.check(err)
	c.check(c.manifest.Apply(c.Context(), c.c))
	c.http, err = rest.HTTPClientFor(&rest.Config{TLSClientConfig: c.srv.Admin().TLSClientConfig})
	c.check(err)
	c.pods, c.tokens = map[string]*corev1.Pod{}, map[string]string{}
	for i, name := range []string{"a", "b"} {
		c.register(name, i+1)
		c.pods[name], c.tokens[name], err = c.srv.AgentPod(c.Context(), c.manifest, name)
		c.check(err)
	}
	c.agent, err = kubetest.Client(c.srv.Bearer(c.tokens["a"]))
	c.check(err)
	c.eventually("the policy is in force", func() bool {
		code, _ := c.status("a", "b", types.MergePatchType, `{"metadata":{"annotations":{"x":"y"}}}`)
		return code == http.StatusForbidden
	})
	c.patch("b", `{"metadata":{"annotations":{"x":null}}}`) // what it has let through before
}

// register makes a Node as its kubelet does, then gives it podCIDRs as the
// controller manager does.
func (c *cluster) register(name string, i int) {
	c.Helper()
	kubelet, err := kubetest.Client(c.srv.Kubelet(name))
	c.check(err)
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name,
			Labels:      map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: fmt.Sprintf("192.0.2.%d", i)},
				{Type: "InternalIP", Address: fmt.Sprintf("2001:db8::%d", i)}, {Type: "Hostname", Address: name}},
			Conditions: []corev1.NodeCondition{{Type: "Ready", Status: "False", Reason: "KubeletNotReady", LastHeartbeatTime: metav1.Now()}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.37.2"},
			Images:     []corev1.ContainerImage{{Names: []string{"registry.example/pause:1"}, SizeBytes: 1}},
		},
	}
	c.check(kubelet.Post().Resource("nodes").Body(n).Do(c.Context()).Error())
	cidr := fmt.Sprintf("10.244.%d.0/24", i)
	c.patch(name, fmt.Sprintf(`{"metadata":{"finalizers":["example.com/hold"]},"spec":{"podCIDR":%q,"podCIDRs":[%[1]q,"fd00:244:0:%d::/64"]}}`, cidr, i))
}

// ask sends a request as who has the token, and returns the answer's status and
// text. Of an answer that is not a refusal the text is not read: it may be a
// watch.
func (c *cluster) ask(token, method, path, kind, body string) (int, string) {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, c.srv.URL+path, strings.NewReader(body))
	c.check(err)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", kind)
	resp, err := c.http.Do(r)
	c.check(err)
	defer resp.Body.Close()
	var s metav1.Status
	if resp.StatusCode >= 300 {
		_ = json.NewDecoder(resp.Body).Decode(&s) // what is no Status has no message
	}
	return resp.StatusCode, s.Message
}

// status patches a Node's status with the token of the agent on another, or
// the same.
func (c *cluster) status(agent, node string, kind types.PatchType, doc string) (int, string) {
	c.Helper()
	return c.ask(c.tokens[agent], http.MethodPatch, "/api/v1/nodes/"+node+"/status", string(kind), doc)
}

// agentStore is the agent's store on a node, with its token.
func (c *cluster) agentStore(node string) *kube.Store {
	c.Helper()
	return c.store(node, func(o *kube.Options) { o.Kubeconfig, o.Flannel = c.kubeconfig("", c.tokens[node]), c.flannel })
}

// agentsWork: leases, peers, conditions and Events, all with the pods' tokens.
func agentsWork(c *cluster) {
	var shows []string
	for i, name := range []string{"a", "b"} {
		s := c.agentStore(name)
		c.hold(s, name, byte(i+1)).granted(fmt.Sprintf("10.244.%d.0/24", i+1), fmt.Sprintf("fd00:244:0:%d::/64", i+1))
		shows = append(shows, fmt.Sprintf("%s=10.244.%d.0/24@192.0.2.%[2]d+fd00:244:0:%[2]d::/64@2001:db8::%[2]d", name, i+1))
		ctx, cancel := context.WithCancel(c.Context())
		defer cancel()
		go s.Report(ctx, nil, func() kube.Health { return kube.Health{DataPlane: kube.Up} }) //nolint:errcheck // ends with the test
		c.eventually("conditions are there", func() bool {
			found := 0
			for _, cond := range c.get(name).Status.Conditions {
				if cond.Type == corev1.NodeNetworkUnavailable || cond.Type == kube.OverlayDegraded {
					found++
				}
			}
			return found == 2
		})
	}
	c.watch(c.agentStore("a")).shows(shows...)
	c.eventually("Events say so", func() bool {
		var events corev1.EventList
		c.check(c.c.Get().Namespace("default").Resource("events").Do(c.Context()).Into(&events))
		found := map[string]bool{}
		for _, ev := range events.Items {
			if ev.Reason == "LeasePublished" {
				found[ev.InvolvedObject.Name] = true
			}
		}
		return found["a"] && found["b"]
	})
}

// agentRefused: its underlay address is none that the kubelet reports.
func agentRefused(c *cluster) {
	before := c.get("a")
	s := c.agentStore("a")
	h := c.hold(s, "a", 77)
	c.reason(s, "refuses this agent", "weft-agents", "192.0.2.1", "public-ip-overwrite")
	select {
	case l := <-h.leases:
		c.Errorf("granted %+v", l)
	default:
	}
	if after := c.get("a"); !maps.Equal(after.Annotations, before.Annotations) {
		c.Errorf("annotated %v", after.Annotations)
	}
	c.patch("a", fmt.Sprintf(`{"metadata":{"annotations":{"%spublic-ip-overwrite":"192.0.2.77","%[1]spublic-ipv6-overwrite":"2001:db8::4d"}}}`, c.prefix))
	h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	c.patch("a", fmt.Sprintf(`{"metadata":{"annotations":{"%spublic-ip-overwrite":null,"%[1]spublic-ipv6-overwrite":null}}}`, c.prefix))
}

// otherTokens are of the same ServiceAccount, and good for no Node, or for
// another one.
func otherTokens(c *cluster) {
	doc := fmt.Sprintf(`{"metadata":{"annotations":{"%sbackend-type":"x"}}}`, c.prefix)
	try := func(what, token, node string, want int, words string) {
		c.Helper()
		if code, message := c.ask(token, http.MethodPatch, "/api/v1/nodes/"+node+"/status", string(types.MergePatchType), doc); code != want || !strings.Contains(message, words) {
			c.Errorf("%s on Node %s: %d %s, want %d %q", what, node, code, message, want, words)
		}
	}
	admin, err := kubetest.Client(c.srv.Admin())
	c.check(err)
	unbound, err := kubetest.RequestToken(c.Context(), admin, nil)
	c.check(err)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: kubetest.Namespace}}
	c.check(admin.Post().Namespace(secret.Namespace).Resource("secrets").Body(secret).Do(c.Context()).Into(secret))
	bound, err := kubetest.RequestToken(c.Context(), admin, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: secret.Name, UID: secret.UID})
	c.check(err)
	try("a token bound to nothing", unbound, "a", http.StatusForbidden, "names no node")
	try("a token bound to a Secret", bound, "a", http.StatusForbidden, "names no node")
	try("the token of a's pod", c.tokens["a"], "b", http.StatusForbidden, "its token is of node a")
	try("the token of a's pod", c.tokens["a"], "c", http.StatusNotFound, "")
	try("the token of a's pod", c.tokens["a"], "a", http.StatusOK, "")

	grace := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
	c.check(admin.Delete().Namespace(kubetest.Namespace).Resource("pods").Name(c.pods["a"].Name).Body(&grace).Do(c.Context()).Error())
	c.eventually("the token ends with its pod", func() bool {
		code, _ := c.ask(c.tokens["a"], http.MethodGet, "/api/v1/nodes", "", "")
		return code == http.StatusUnauthorized
	})
}
