// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// aField is one of a Node that an agent has no business with, and a value to
// try there.
type aField struct{ path, value string }

// refusedFields are those that a patch of nodes/status could change, and whose
// change the policy refuses.
func refusedFields() []aField {
	return []aField{
		{"metadata.generateName", `"x"`}, {"metadata.selfLink", `"/x"`},
		{"metadata.labels", `{"kubernetes.io/hostname":"x"}`}, {"metadata.labels", `{"node-role.kubernetes.io/control-plane":""}`},
		{"metadata.annotations", `{"x":"y"}`}, {"metadata.annotations", `{"volumes.kubernetes.io/controller-managed-attach-detach":"false"}`},
		{"metadata.finalizers", `["example.com/hold","example.com/more"]`},
		{"metadata.ownerReferences", `[{"apiVersion":"v1","kind":"Node","name":"b","uid":"1"}]`},
		{"status.capacity", `{"cpu":"99"}`}, {"status.allocatable", `{"cpu":"99"}`}, {"status.phase", `"Running"`},
		{"status.conditions", `[{"type":"Ready","status":"True"}]`}, {"status.conditions", `[{"type":"MemoryPressure","status":"True"}]`},
		{"status.addresses", `[{"type":"InternalIP","address":"192.0.2.99"}]`}, {"status.daemonEndpoints", `{"kubeletEndpoint":{"Port":1}}`},
		{"status.nodeInfo", `{"kubeletVersion":"v9"}`}, {"status.images", `[{"names":["registry.example/x:1"],"sizeBytes":1}]`},
		{"status.volumesInUse", `["x/y"]`}, {"status.volumesAttached", `[{"name":"x/y","devicePath":"z"}]`},
		{"status.runtimeHandlers", `[{"name":"x"}]`}, {"status.features", `{"supplementalGroupsPolicy":true}`},
		{"status.declaredFeatures", `["MyFeature"]`},
	}
}

// serversFields are all others: in a patch of nodes/status the server itself
// leaves them as they are, or says that they cannot be changed, before it asks
// a policy.
func serversFields() []aField {
	return []aField{
		{"metadata.name", `"x"`}, {"metadata.namespace", `"default"`}, {"metadata.uid", `"00000000-0000-0000-0000-000000000000"`},
		{"metadata.resourceVersion", `"1"`}, {"metadata.generation", `99`}, {"metadata.creationTimestamp", `"2001-01-01T00:00:00Z"`},
		{"metadata.deletionTimestamp", `"2001-01-01T00:00:00Z"`}, {"metadata.deletionGracePeriodSeconds", `1`}, {"metadata.managedFields", `[{}]`},
		{"spec.podCIDR", `"10.244.99.0/24"`}, {"spec.podCIDRs", `["10.244.99.0/24"]`}, {"spec.providerID", `"x://y"`}, {"spec.unschedulable", `true`},
		{"spec.taints", `[{"key":"x","effect":"NoExecute"}]`}, {"spec.configSource", `{"configMap":{"name":"x","namespace":"default","kubeletConfigKey":"x"}}`},
		{"spec.externalID", `"x"`}, {"spec.podPreemptionPolicy", `{"disableResizePreemption":["x.example/y"]}`}, {"status.config", `{"error":"x"}`},
	}
}

// doc is f as a patch of a Node.
func (f aField) doc(kind types.PatchType, node string) string {
	part, field, _ := strings.Cut(f.path, ".")
	switch kind {
	case types.JSONPatchType:
		return fmt.Sprintf(`[{"op":"add","path":"/%s/%s","value":%s}]`, part, field, f.value)
	case types.ApplyPatchType:
		if part == "metadata" {
			if field == "name" {
				return fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%s}}`, f.value)
			}
			return fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,%q:%s}}`, node, field, f.value)
		}
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q},%q:{%q:%s}}`, node, part, field, f.value)
	}
	return fmt.Sprintf(`{%q:{%q:%s}}`, part, field, f.value)
}

// fields: each field, on the agent's Node and on another's, through both
// resources and in every kind of patch, and whole updates and deletions. The
// right on nodes is missing, and the policy guards the one on nodes/status.
func fields(c *cluster) {
	c.everyFieldIsTried()
	for _, node := range []string{"a", "b"} {
		for _, f := range refusedFields() {
			c.tryField(f, node, "", http.StatusForbidden)
			c.tryField(f, node, "/status", http.StatusForbidden)
		}
		for _, f := range serversFields() {
			c.tryField(f, node, "", http.StatusForbidden)
			if node == "a" {
				c.tryField(f, node, "/status", http.StatusOK, http.StatusBadRequest, http.StatusConflict, http.StatusUnprocessableEntity)
			} else {
				c.tryField(f, node, "/status", http.StatusForbidden, http.StatusBadRequest, http.StatusConflict, http.StatusUnprocessableEntity)
			}
		}
		for _, method := range []string{http.MethodPut, http.MethodDelete} {
			if code, message := c.ask(c.tokens["a"], method, "/api/v1/nodes/"+node, "application/json", "{}"); code != http.StatusForbidden {
				c.Errorf("%s of Node %s: %d %s", method, node, code, message)
			}
		}
		if code, message := c.ask(c.tokens["a"], http.MethodPut, "/api/v1/nodes/"+node+"/status", "application/json", "{}"); code != http.StatusForbidden {
			c.Errorf("update of Node %s/status: %d %s", node, code, message)
		}
	}
}

// tryField patches f in every way. The answer must be one of those wanted, and
// the Node as it was, whatever the answer.
func (c *cluster) tryField(f aField, node, sub string, want ...int) {
	c.Helper()
	before := content(c.get(node))
	for _, kind := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType, types.JSONPatchType, types.ApplyPatchType} {
		code, message := c.ask(c.tokens["a"], http.MethodPatch, "/api/v1/nodes/"+node+sub+options(kind), string(kind), f.doc(kind, node))
		if !slices.Contains(want, code) {
			c.Errorf("%s of Node %s%s by %s: %d %s, want %v", f.path, node, sub, kind, code, message, want)
		}
		if after := content(c.get(node)); !equality.Semantic.DeepEqual(before, after) {
			c.Fatalf("%s of Node %s%s by %s: %d %s, and it has changed", f.path, node, sub, kind, code, message)
		}
	}
}

func options(kind types.PatchType) string {
	if kind == types.ApplyPatchType {
		return "?fieldManager=weftd&force=true"
	}
	return ""
}

// content is n without what every write changes.
func content(n *corev1.Node) *corev1.Node {
	n = n.DeepCopy()
	n.ManagedFields, n.ResourceVersion = nil, ""
	return n
}

// everyFieldIsTried compares the list with the types.
func (c *cluster) everyFieldIsTried() {
	c.Helper()
	tried := map[string]bool{}
	for _, f := range append(refusedFields(), serversFields()...) {
		tried[f.path] = true
		if !json.Valid([]byte(f.value)) {
			c.Errorf("%s: %s is not JSON", f.path, f.value)
		}
	}
	for part, t := range map[string]reflect.Type{
		"metadata": reflect.TypeFor[metav1.ObjectMeta](), "spec": reflect.TypeFor[corev1.NodeSpec](), "status": reflect.TypeFor[corev1.NodeStatus](),
	} {
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			if !tried[part+"."+name] {
				c.Errorf("%s.%s of a Node is not tried", part, name)
			}
		}
	}
}

// lies: what an agent says of its own Node must be the Node's.
func lies(c *cluster) {
	before := c.get("a")
	for _, l := range []struct {
		name, value string
		fits        bool // in the dialect that has no such claim
	}{
		{"subnets", "10.244.2.0/24", c.flannel}, {"subnets", "10.244.1.0/24,10.244.2.0/24", c.flannel}, {"subnets", "10.244.0.0/16", c.flannel},
		{"subnets", "0.0.0.0/0", c.flannel}, {"subnets", "", c.flannel}, {"subnets", "fd00:244:0:2::/64", c.flannel},
		{"public-ip", "192.0.2.2", false}, {"public-ip", "203.0.113.9", false}, {"public-ip", "192.0.2.1 ", false}, {"public-ipv6", "2001:db8::2", false},
		{"public-ip-overwrite", "203.0.113.9", false}, {"public-ipv6-overwrite", "2001:db8::2", false},
	} {
		doc := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, c.prefix+l.name, l.value)
		code, message := c.status("a", "a", types.MergePatchType, doc)
		if fits := code < 300; fits != l.fits || !fits && code != http.StatusForbidden {
			c.Errorf("%s=%q: %d %s", l.name, l.value, code, message)
		}
	}
	for _, doc := range []string{
		// Others' annotations and conditions cannot be taken away, either.
		`{"metadata":{"annotations":null}}`, `{"metadata":{"annotations":{"volumes.kubernetes.io/controller-managed-attach-detach":null}}}`,
		`{"status":{"conditions":null}}`, `{"status":null}`, `{"metadata":{"labels":null}}`, `{"metadata":{"finalizers":null}}`,
	} {
		if code, message := c.status("a", "a", types.MergePatchType, doc); code != http.StatusForbidden {
			c.Errorf("%s: %d %s", doc, code, message)
		}
	}
	if !c.flannel && !equality.Semantic.DeepEqual(content(before), content(c.get("a"))) {
		c.Errorf("Node a has changed:\n%+v\n%+v", before, c.get("a"))
	}
}
