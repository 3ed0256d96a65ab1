// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
)

// verdict is a request and what the policy must say; "" lets it through.
type verdict struct {
	name    string
	user    user.DefaultInfo
	was, is *corev1.Node
	want    string
}

func judge(t *testing.T, values map[string]any, cases []verdict) {
	t.Helper()
	p := compile(t, values)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, resource := range []string{"", "status"} {
				got := p.ask(t, request{c.user, c.was, c.is, resource})
				switch {
				case c.want == "" && len(got) > 0:
					t.Errorf("nodes/%s: refused: %q", resource, got)
				case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
					t.Errorf("nodes/%s: %q, want one refusal with %q", resource, got, c.want)
				}
			}
		})
	}
}

func TestPolicyAllows(t *testing.T) {
	me, n := agentOn("n1"), node("n1")
	moved := with(lease(n), func(n *corev1.Node) { n.Status.Addresses[0].Address = "192.0.2.77" })
	nat := annotated(n, "weft.dev/public-ip-overwrite", "203.0.113.5")
	bare := with(n, func(n *corev1.Node) { n.Annotations = nil })
	single := with(n, func(n *corev1.Node) {
		n.Spec.PodCIDRs, n.Status.Addresses = n.Spec.PodCIDRs[:1], n.Status.Addresses[:1]
	})
	judge(t, nil, []verdict{
		{"nothing changes", me, n, n, ""},
		{"the first lease", me, n, lease(n), ""},
		{"the first annotations of all", me, bare, with(bare, func(n *corev1.Node) { n.Annotations = map[string]string{"weft.dev/subnets": "10.244.1.0/24"} }), ""},
		{"one family of a dual-stack Node", me, n, annotated(n, "weft.dev/subnets", "10.244.1.0/24", "weft.dev/public-ip", "192.0.2.1"), ""},
		{"the other family first", me, n, annotated(n, "weft.dev/subnets", "fd00:10:244:1::/64,10.244.1.0/24"), ""},
		{"a single-stack Node", me, single, annotated(single, "weft.dev/subnets", "10.244.1.0/24", "weft.dev/public-ip", "192.0.2.1"), ""},
		{"a lease is taken back", me, lease(n), n, ""},
		{"a lease is published again after it was wiped", me, with(lease(n), func(n *corev1.Node) { delete(n.Annotations, "weft.dev/subnets") }), lease(n), ""},
		{"NetworkUnavailable appears", me, n, with(n, condition("NetworkUnavailable", "False")), ""},
		{"NetworkUnavailable changes", me, with(n, condition("NetworkUnavailable", "False")), with(n, condition("NetworkUnavailable", "True")), ""},
		{"OverlayDegraded appears", me, n, with(n, condition("OverlayDegraded", "True")), ""},
		{"the operator's address", me, nat, annotated(nat, "weft.dev/public-ip", "203.0.113.5"), ""},
		{"its own address beside the operator's", me, nat, annotated(nat, "weft.dev/public-ip", "192.0.2.1"), ""},
		{"the operator's address in flannel's annotation", me, annotated(n, "flannel.alpha.coreos.com/public-ip-overwrite", "203.0.113.5"),
			annotated(n, "flannel.alpha.coreos.com/public-ip-overwrite", "203.0.113.5", "weft.dev/public-ip", "203.0.113.5"), ""},
		{"no address in flannel's way", me, n, annotated(n, "weft.dev/public-ip", "0.0.0.0", "weft.dev/backend-data", "null"), ""},
		{"a condition while the Node's address has changed", me, moved, with(moved, condition("NetworkUnavailable", "False")), ""},
		{"a condition beside subnets that somebody else wrote", me, annotated(n, "weft.dev/subnets", "10.0.0.0/8"), with(annotated(n, "weft.dev/subnets", "10.0.0.0/8"), condition("OverlayDegraded", "True")), ""},
		{"managed fields and resource version", me, n, with(lease(n), func(n *corev1.Node) {
			n.ResourceVersion, n.ManagedFields = "8", append(n.ManagedFields, metav1.ManagedFieldsEntry{Manager: "weftd"})
		}), ""},
		{"kubelet's heartbeat is none of its business", user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}, n, with(n, condition("Ready", "True")), ""},
		{"nor is an administrator", user.DefaultInfo{Name: "admin"}, n, with(n, func(n *corev1.Node) { n.Spec.Unschedulable = true }), ""},
		{"nor is a ServiceAccount weft elsewhere", user.DefaultInfo{Name: "system:serviceaccount:other:weft"}, n, with(n, func(n *corev1.Node) { n.Spec.Unschedulable = true }), ""},
	})
}

func TestPolicyRefuses(t *testing.T) {
	me, n := agentOn("n1"), node("n1")
	const spec, metadata, annotations, status, conditions = "the spec", "no metadata", "no annotations but weft.dev/kube-subnet-manager", "nothing in the status", "no conditions but"
	change := func(f func(*corev1.Node)) *corev1.Node { return with(n, f) }
	judge(t, nil, []verdict{
		{"another Node", agentOn("n2"), n, lease(n), "its own Node, not n1: its token is of node n2"},
		{"another Node's condition", agentOn("n2"), n, with(n, condition("NetworkUnavailable", "True")), "its token is of node n2"},
		{"a token of no node", agentOn(""), n, lease(n), "its token names no node"},
		{"a token without anything", user.DefaultInfo{Name: me.Name}, n, lease(n), "its token names no node"},
		{"unschedulable", me, n, change(func(n *corev1.Node) { n.Spec.Unschedulable = true }), spec},
		{"a taint taken away", me, n, change(func(n *corev1.Node) { n.Spec.Taints = nil }), spec},
		{"a provider id", me, n, change(func(n *corev1.Node) { n.Spec.ProviderID = "x://y" }), spec},
		{"a label", me, n, change(func(n *corev1.Node) { n.Labels["node-role.kubernetes.io/control-plane"] = "" }), metadata},
		{"all labels taken away", me, n, change(func(n *corev1.Node) { n.Labels = nil }), metadata},
		{"a finalizer taken away", me, n, change(func(n *corev1.Node) { n.Finalizers = nil }), metadata},
		{"an owner", me, n, change(func(n *corev1.Node) {
			n.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: "x"}}
		}), metadata},
		{"somebody's annotation changed", me, n, annotated(n, "node.alpha.kubernetes.io/ttl", "9"), annotations},
		{"somebody's annotation taken away", me, n, change(func(n *corev1.Node) { n.Annotations = nil }), annotations},
		{"an annotation of nobody's", me, n, annotated(n, "example.com/x", "y"), annotations},
		{"the operator's annotation", me, n, annotated(n, "weft.dev/public-ip-overwrite", "203.0.113.5"), annotations},
		{"the operator's annotation, and the address in it", me, n, annotated(n, "weft.dev/public-ip-overwrite", "203.0.113.5", "weft.dev/public-ip", "203.0.113.5"), annotations},
		{"flannel's annotation", me, n, annotated(n, "flannel.alpha.coreos.com/public-ip", "192.0.2.1"), annotations},
		{"capacity", me, n, change(func(n *corev1.Node) { n.Status.Phase = "Running" }), status},
		{"images", me, n, change(func(n *corev1.Node) { n.Status.Images = n.Status.Images[1:] }), status},
		{"an address, to announce it", me, n, with(annotated(n, "weft.dev/public-ip", "203.0.113.5"), func(n *corev1.Node) { n.Status.Addresses[0].Address = "203.0.113.5" }), status},
		{"Ready", me, n, with(n, condition("Ready", "True")), conditions},
		{"a condition taken away", me, n, change(func(n *corev1.Node) { n.Status.Conditions = n.Status.Conditions[1:] }), conditions},
		{"a condition of nobody's", me, n, with(n, condition("Example", "True")), conditions},
		{"a foreign subnet", me, n, annotated(n, "weft.dev/subnets", "10.244.2.0/24"), "is 10.244.2.0/24, want only podCIDRs of it: 10.244.1.0/24, fd00:10:244:1::/64"},
		{"a foreign subnet beside its own", me, n, annotated(n, "weft.dev/subnets", "10.244.1.0/24,fd00:10:244:2::/64"), "want only podCIDRs"},
		{"a wider subnet", me, n, annotated(n, "weft.dev/subnets", "10.244.0.0/16"), "want only podCIDRs"},
		{"a foreign subnet instead of its own", me, lease(n), annotated(lease(n), "weft.dev/subnets", "10.244.2.0/24"), "want only podCIDRs"},
		{"no subnet", me, n, annotated(n, "weft.dev/subnets", ""), "want only podCIDRs"},
		{"a subnet before there is a podCIDR", me, change(func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "", nil }),
			with(annotated(n, "weft.dev/subnets", "10.244.1.0/24"), func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "", nil }), "want only podCIDRs"},
		{"a foreign underlay address", me, n, annotated(n, "weft.dev/public-ip", "192.0.2.2"), "must be one of its own, 192.0.2.1, 2001:db8::1, n1, or that of its annotation weft.dev/public-ip-overwrite"},
		{"a foreign IPv6 underlay address", me, lease(n), annotated(lease(n), "weft.dev/public-ipv6", "2001:db8::2"), "must be one of its own"},
		{"another address than the operator's", me, annotated(n, "weft.dev/public-ip-overwrite", "203.0.113.5"),
			annotated(n, "weft.dev/public-ip-overwrite", "203.0.113.5", "weft.dev/public-ip", "203.0.113.6"), "must be one of its own"},
	})
}

// With flannel's names, the policy is about flannel's annotations. They hold no
// subnets: those are read from the Node.
func TestPolicyOfFlannel(t *testing.T) {
	me, n := agentOn("n1"), node("n1")
	const f = "flannel.alpha.coreos.com/"
	judge(t, map[string]any{"flannelCompat": true}, []verdict{
		{"flannel's lease", me, n, annotated(n, f+"kube-subnet-manager", "true", f+"backend-type", "vxlan", f+"backend-data", "{}", f+"public-ip", "192.0.2.1",
			f+"backend-v6-data", "{}", f+"public-ipv6", "2001:db8::1", "weft.dev/sources", "198.51.100.1"), ""},
		{"a condition", me, n, with(n, condition("NetworkUnavailable", "False")), ""},
		{"flannel's overwritten address", me, annotated(n, f+"public-ip-overwrite", "203.0.113.5"), annotated(n, f+"public-ip-overwrite", "203.0.113.5", f+"public-ip", "203.0.113.5"), ""},
		{"a foreign address", me, n, annotated(n, f+"public-ip", "192.0.2.2"), "must be one of its own"},
		{"another Node", agentOn("n2"), n, annotated(n, f+"public-ip", "192.0.2.1"), "its own Node"},
		{"the operator's annotation", me, n, annotated(n, f+"public-ip-overwrite", "203.0.113.5"), "no annotations but"},
		{"weft's annotation", me, n, annotated(n, "weft.dev/public-ip", "192.0.2.1"), "no annotations but " + f},
	})
}

func TestPolicyWithoutUnderlay(t *testing.T) {
	me, n := agentOn("n1"), node("n1")
	judge(t, map[string]any{"admissionPolicy": map[string]any{"underlay": false}}, []verdict{
		{"an address that kubelet does not report", me, n, annotated(n, "weft.dev/public-ip", "198.51.100.7"), ""},
		{"a foreign subnet", me, n, annotated(n, "weft.dev/subnets", "10.244.2.0/24"), "want only podCIDRs"},
	})
}
