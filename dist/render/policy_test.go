// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	plugin "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

// budget is what all expressions of a policy together may cost at one request
// (RuntimeCELCostBudget of the API server).
const budget = 10_000_000

// expression is a text to compile, as the API server's plugin has it.
type expression struct {
	name, text string
	types      []*cel.Type
}

func (e expression) GetName() string          { return e.name }
func (e expression) GetExpression() string    { return e.text }
func (e expression) ReturnTypes() []*cel.Type { return e.types }

// policy is a ValidatingAdmissionPolicy as the API server compiles it.
type policy struct {
	spec                         admissionregistration.ValidatingAdmissionPolicySpec
	match, validations, messages plugin.ConditionEvaluator
}

// compile compiles the chart's policy with what a new object may use at an API
// server 1.30: what 1.29 has, for it must be possible to go back.
func compile(t *testing.T, values map[string]any) *policy {
	t.Helper()
	p := &policy{spec: object[admissionregistration.ValidatingAdmissionPolicy](t, rendered(t, values), "ValidatingAdmissionPolicy", "weft-agents").Spec}
	env := environment.MustBaseEnvSet(version.MajorMinor(1, 29))
	c, err := plugin.NewCompositedCompiler(env)
	if err != nil {
		t.Fatal(err)
	}
	with := plugin.OptionalVariableDeclarations{HasAuthorizer: true}
	for _, v := range p.spec.Variables {
		r := c.CompileAndStoreVariable(expression{v.Name, v.Expression, []*cel.Type{cel.AnyType, cel.DynType}}, with, environment.NewExpressions)
		if r.Error != nil {
			t.Fatalf("variable %s: %v", v.Name, r.Error)
		}
	}
	var match, validations, messages []plugin.ExpressionAccessor
	for _, m := range p.spec.MatchConditions {
		match = append(match, expression{text: m.Expression, types: []*cel.Type{cel.BoolType}})
	}
	for _, v := range p.spec.Validations {
		validations = append(validations, expression{text: v.Expression, types: []*cel.Type{cel.BoolType}})
		text := v.MessageExpression
		if text == "" {
			text = fmt.Sprintf("%q", v.Message)
		}
		messages = append(messages, expression{text: text, types: []*cel.Type{cel.StringType}})
	}
	p.match = c.CompileCondition(match, with, environment.NewExpressions)
	p.validations = c.CompileCondition(validations, with, environment.NewExpressions)
	p.messages = c.CompileCondition(messages, plugin.OptionalVariableDeclarations{}, environment.NewExpressions)
	for _, e := range []plugin.ConditionEvaluator{p.match, p.validations, p.messages} {
		for _, err := range e.CompilationErrors() {
			t.Fatal(err)
		}
	}
	return p
}

// request is one update of a Node.
type request struct {
	user     user.DefaultInfo
	was, is  *corev1.Node
	resource string // below the Node: "status" or ""
}

// ask returns the messages of the validations that refuse r; none if it is
// let through.
func (p *policy) ask(t *testing.T, r request) []string {
	t.Helper()
	gvk, gvr := schema.GroupVersionKind{Version: "v1", Kind: "Node"}, schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	attr := admission.NewAttributesRecord(r.is, r.was, gvk, "", r.was.Name, gvr, r.resource, admission.Update, &metav1.PatchOptions{}, false, &r.user)
	versioned := &admission.VersionedAttributes{Attributes: attr, VersionedKind: gvk}
	versioned.VersionedObject.Set(r.is)
	versioned.VersionedOldObject.Set(r.was)
	req := plugin.CreateAdmissionRequest(attr, metav1.GroupVersionResource(gvr), metav1.GroupVersionKind(gvk))
	left := int64(budget)
	eval := func(e plugin.ConditionEvaluator) []plugin.EvaluationResult {
		out, rest, err := e.ForInput(context.Background(), versioned, req, plugin.OptionalVariableBindings{}, nil, left)
		if err != nil {
			t.Fatal(err)
		}
		left = rest
		for _, o := range out {
			if o.Error != nil {
				t.Fatalf("%s: %v", o.ExpressionAccessor.GetExpression(), o.Error)
			}
		}
		return out
	}
	for _, m := range eval(p.match) {
		if m.EvalResult.Value() != true {
			return nil
		}
	}
	var refused []string
	var messages []plugin.EvaluationResult
	for i, v := range eval(p.validations) {
		if v.EvalResult.Value() == true {
			continue
		}
		if messages == nil {
			messages = eval(p.messages)
		}
		refused = append(refused, strings.TrimSpace(fmt.Sprint(messages[i].EvalResult.Value())))
	}
	if used := budget - left; used > budget/10 {
		t.Errorf("one request cost %d of %d", used, budget)
	}
	return refused
}

// agentOn is the agent of a node, as the API server knows it by its token.
func agentOn(node string) user.DefaultInfo {
	u := user.DefaultInfo{
		Name:   "system:serviceaccount:kube-system:weft",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
		Extra:  map[string][]string{"authentication.kubernetes.io/pod-name": {"weft-x"}},
	}
	if node != "" {
		u.Extra["authentication.kubernetes.io/node-name"] = []string{node}
	}
	return u
}

// node is one as kubelet registers it, with what agents find there.
func node(name string) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: "4711", ResourceVersion: "7", Labels: map[string]string{"kubernetes.io/os": "linux"},
			Annotations:   map[string]string{"node.alpha.kubernetes.io/ttl": "0"},
			Finalizers:    []string{"example.com/hold"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: "Update", FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte("{}")}}},
		},
		Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:10:244:1::/64"},
			Taints: []corev1.Taint{{Key: "node.kubernetes.io/not-ready", Effect: "NoSchedule"}}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "192.0.2.1"}, {Type: "InternalIP", Address: "2001:db8::1"}, {Type: "Hostname", Address: name}},
			Conditions: []corev1.NodeCondition{
				{Type: "MemoryPressure", Status: "False"}, {Type: "DiskPressure", Status: "False"}, {Type: "PIDPressure", Status: "False"},
				{Type: "Ready", Status: "False", Message: "network plugin is not ready"},
			},
		},
	}
	for i := range 50 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprint("registry.example/image:", i), fmt.Sprint("registry.example/image@sha256:", i)}, SizeBytes: 1})
	}
	return n
}

func annotated(n *corev1.Node, pairs ...string) *corev1.Node {
	n = n.DeepCopy()
	for i := 0; i < len(pairs); i += 2 {
		n.Annotations[pairs[i]] = pairs[i+1]
	}
	return n
}

// lease is what the agent of node() publishes.
func lease(n *corev1.Node) *corev1.Node {
	return annotated(n, "weft.dev/kube-subnet-manager", "true", "weft.dev/backend-type", "vxlan",
		"weft.dev/backend-data", `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`, "weft.dev/public-ip", "192.0.2.1",
		"weft.dev/backend-v6-data", `{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`, "weft.dev/public-ipv6", "2001:db8::1",
		"weft.dev/subnets", "10.244.1.0/24,fd00:10:244:1::/64", "weft.dev/instance", "0123456789abcdef0123456789abcdef",
		"weft.dev/sources", "198.51.100.1")
}

func with(n *corev1.Node, change func(*corev1.Node)) *corev1.Node {
	n = n.DeepCopy()
	change(n)
	return n
}

func condition(kind, status string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		c := corev1.NodeCondition{Type: corev1.NodeConditionType(kind), Status: corev1.ConditionStatus(status), LastHeartbeatTime: metav1.Now()}
		for i := range n.Status.Conditions {
			if string(n.Status.Conditions[i].Type) == kind {
				n.Status.Conditions[i] = c
				return
			}
		}
		n.Status.Conditions = append(n.Status.Conditions, c)
	}
}
