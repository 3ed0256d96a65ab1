// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// bigPolicy lets the pods of one application be reached by those of another,
// and these reach DNS, as many do.
func bigPolicy(namespace string, i int) *networkingv1.NetworkPolicy {
	udp, http, dns := corev1.ProtocolUDP, intstr.FromString("http"), intstr.FromInt32(53)
	pods := func(app int) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": fmt.Sprintf("application-%d", app%10), "app.kubernetes.io/part-of": "shop"}}
	}
	return &networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("allow-application-%d", i), UID: types.UID(fmt.Sprintf("b0000000-0000-4000-8000-%012d", i)),
			Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: strings.Repeat("x", 900)}, ManagedFields: managed(600)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *pods(i),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{PodSelector: pods(i + 1)},
					{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "monitoring"}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &http}}}},
			Egress: []networkingv1.NetworkPolicyEgressRule{{
				To:    []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "kube-system"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &dns}, {Port: &dns}}}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		}}
}

func managed(size int) []metav1.ManagedFieldsEntry {
	return []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(`{"f:metadata":"` + strings.Repeat("x", size) + `"}`)}}
}

// bigPod is one of ten of a Deployment, with a sidecar. Of another generation
// the first has other addresses.
func bigPod(i, gen int) *corev1.Pod {
	deployment := i / 10
	name := fmt.Sprintf("application-%d-6d4cf56db6-%05d", deployment%10, i)
	started := metav1.NewTime(time.Unix(1_700_000_000+int64(i), 0))
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i/100), Name: name, GenerateName: name[:len(name)-5], UID: types.UID(fmt.Sprintf("a0000000-0000-4000-8000-%012d", i)),
			CreationTimestamp: started, ManagedFields: managed(2000), Annotations: map[string]string{"prometheus.io/scrape": "true", "checksum/config": strings.Repeat("0", 64)},
			Labels: map[string]string{"app.kubernetes.io/name": fmt.Sprintf("application-%d", deployment%10), "app.kubernetes.io/part-of": "shop",
				"app.kubernetes.io/version": "1.2.3", "pod-template-hash": fmt.Sprintf("6d4cf56d%d", deployment)},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name[:len(name)-6], UID: "c0000000-0000-4000-8000-000000000000"}}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("node-%d.example.com", i%1000), ServiceAccountName: "default",
			Volumes: []corev1.Volume{{Name: "kube-api-access", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}}}}}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "192.0.2.1", StartTime: &started,
			PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)}, {IP: fmt.Sprintf("fd00::%x", i+1)}}},
	}
	if gen > 0 && i == 0 {
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.255.0.%d", gen)}}
	}
	for _, c := range []string{"application", "sidecar"} {
		box := corev1.Container{Name: c, Image: "registry.example.com/shop/" + c + ":1.2.3", Command: []string{"/bin/" + c, "--config=/etc/config.yaml"},
			Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}}}
		for n := range 19 {
			box.Env = append(box.Env, corev1.EnvVar{Name: fmt.Sprint("SETTING_", n), Value: strings.Repeat("v", 40)})
		}
		p.Spec.Containers = append(p.Spec.Containers, box)
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: c, Ready: true, Image: box.Image,
			ImageID: box.Image + "@sha256:" + strings.Repeat("0", 64), ContainerID: "containerd://" + strings.Repeat("0", 64), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}}})
	}
	for _, c := range []corev1.PodConditionType{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: started})
	}
	return p
}
