// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"weft.dev/weft/subnet"
)

const chartDir = "../chart/weft"

func rendered(t *testing.T, values map[string]any) string {
	t.Helper()
	b, err := render(chartDir, values)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// object returns one object of a manifest; a field that Kubernetes does not
// know is an error.
func object[T any](t *testing.T, manifest, kind, name string) T {
	t.Helper()
	var out T
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		var head struct {
			metav1.TypeMeta
			Metadata metav1.ObjectMeta
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if head.Kind == kind && head.Metadata.Name == name {
			if err := yaml.UnmarshalStrict([]byte(doc), &out); err != nil {
				t.Fatalf("%s %s: %v", kind, name, err)
			}
			return out
		}
	}
	t.Fatalf("no %s %s in the manifest", kind, name)
	return out
}

// What is committed is what the chart renders.
func TestCommittedManifests(t *testing.T) {
	if err := run([]string{"--check"}, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	if err := run([]string{"--out", dir}, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "weft.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("NET_ADMIN"), []byte("SYS_ADMIN"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"--check", "--out", dir}, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "make manifests") {
		t.Errorf("an edited manifest: %v", err)
	}
}

func TestPrivileges(t *testing.T) {
	for _, v := range variants() {
		manifest := rendered(t, v.values)
		ds := object[appsv1.DaemonSet](t, manifest, "DaemonSet", "weft")
		pod := ds.Spec.Template.Spec
		if ds.Namespace != "kube-system" || ds.Spec.Selector.MatchLabels["app.kubernetes.io/name"] != "weft" || len(ds.Spec.Selector.MatchLabels) != 1 {
			t.Errorf("%s: namespace %s, selector %v", v.file, ds.Namespace, ds.Spec.Selector)
		}
		if !pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.PriorityClassName != "system-node-critical" ||
			pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
			len(pod.Tolerations) != 1 || pod.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
			t.Errorf("%s: pod %+v", v.file, pod)
		}
		for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
			var add []corev1.Capability
			if c.Name == "weft" {
				add = []corev1.Capability{"NET_ADMIN"}
			}
			s := c.SecurityContext
			if s.Privileged != nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
				!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, add) {
				t.Errorf("%s: container %s: %+v", v.file, c.Name, s)
			}
			if !c.Resources.Limits.Cpu().IsZero() || c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
				t.Errorf("%s: container %s: %+v", v.file, c.Name, c.Resources)
			}
			for _, m := range c.VolumeMounts {
				if (m.Name == "cni-bin") != (c.Name == "install-cni") {
					t.Errorf("%s: container %s mounts %s", v.file, c.Name, m.Name)
				}
			}
		}
		for _, p := range []*corev1.Probe{pod.Containers[0].StartupProbe, pod.Containers[0].LivenessProbe, pod.Containers[0].ReadinessProbe} {
			if p.HTTPGet.Host != "127.0.0.1" || p.HTTPGet.Port.IntValue() != 9469 {
				t.Errorf("%s: probe %+v", v.file, p.HTTPGet)
			}
		}
		for name, want := range map[string]rbacv1.PolicyRule{
			"weft-events":          {APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
			"weft-cluster-network": {APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"kubeadm-config", "kube-proxy"}, Verbs: []string{"get"}},
		} {
			role, binding := object[rbacv1.Role](t, manifest, "Role", name), object[rbacv1.RoleBinding](t, manifest, "RoleBinding", name)
			if len(role.Rules) != 1 || !reflect.DeepEqual(role.Rules[0], want) || binding.Namespace != role.Namespace || binding.RoleRef.Name != name {
				t.Errorf("%s: role %s has %+v, bound by %+v", v.file, name, role.Rules, binding)
			}
		}
		role := object[rbacv1.ClusterRole](t, manifest, "ClusterRole", "weft")
		for _, r := range role.Rules {
			reads := slices.Equal(r.Resources, []string{"nodes"}) && slices.Equal(r.Verbs, []string{"get", "list", "watch"})
			patches := slices.Equal(r.Resources, []string{"nodes/status"}) && slices.Equal(r.Verbs, []string{"patch"})
			policies := reflect.DeepEqual(r, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list", "watch"}}) ||
				reflect.DeepEqual(r, rbacv1.PolicyRule{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}, Verbs: []string{"list", "watch"}})
			starting := reflect.DeepEqual(r, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}})
			if !reads && !patches && !policies && !starting {
				t.Errorf("%s: the agents' role has %+v", v.file, r)
			}
		}
	}
}

// Without policies agents read nothing but Nodes.
func TestRightsWithoutPolicies(t *testing.T) {
	role := object[rbacv1.ClusterRole](t, rendered(t, map[string]any{"networkPolicy": map[string]any{"enabled": false}}), "ClusterRole", "weft")
	for _, r := range role.Rules {
		if !slices.Equal(r.APIGroups, []string{""}) || len(r.Resources) != 1 || !strings.HasPrefix(r.Resources[0], "nodes") {
			t.Errorf("the agents' role has %+v", r)
		}
	}
}

// The configuration is one that the agent takes, and no family is forced on a
// cluster that has not got it.
func TestNetConf(t *testing.T) {
	network := func(four, six string) map[string]any {
		return map[string]any{"network": map[string]any{"ipv4": four, "ipv6": six}}
	}
	for name, c := range map[string]struct {
		values map[string]any
		want   []string
		compat []string // with flannelCompat, if it differs
		asks   string   // who needs the right to ask the cluster: "both", "weft" or ""
	}{
		"default":     {nil, []string{"0.0.0.0/0", "::/0"}, []string{"0.0.0.0/0"}, "both"},
		"dual":        {network("10.244.0.0/16", "fd00:10:244::/56"), []string{"10.244.0.0/16", "fd00:10:244::/56"}, nil, ""},
		"IPv4 given":  {network("10.244.0.0/16", ""), []string{"10.244.0.0/16", "::/0"}, []string{"10.244.0.0/16"}, "weft"},
		"IPv4 only":   {network("10.244.0.0/16", "none"), []string{"10.244.0.0/16"}, nil, ""},
		"IPv6 given":  {network("", "fd00:10:244::/56"), []string{"0.0.0.0/0", "fd00:10:244::/56"}, nil, "both"},
		"IPv6 only":   {network("none", "fd00:10:244::/56"), []string{"fd00:10:244::/56"}, nil, ""},
		"asks nobody": {map[string]any{"network": map[string]any{"fromCluster": false}}, []string{"0.0.0.0/0", "::/0"}, []string{"0.0.0.0/0"}, ""},
	} {
		for _, compat := range []bool{false, true} {
			values := map[string]any{"flannelCompat": compat}
			for k, v := range c.values {
				values[k] = v
			}
			manifest, want := rendered(t, values), c.want
			if compat && c.compat != nil {
				want = c.compat
			}
			conf := object[corev1.ConfigMap](t, manifest, "ConfigMap", "weft").Data["net-conf.json"]
			got, err := subnet.ParseConfig([]byte(conf), name, subnet.Defaults{Flannel: compat, Open: true})
			if err != nil {
				t.Errorf("%s, flannel %v: %v in %s", name, compat, err, conf)
				continue
			}
			var have []string
			for _, n := range got.Networks {
				have = append(have, n.Prefix.String())
				if _, err := netip.ParsePrefix(n.Prefix.String()); err != nil {
					t.Error(err)
				}
			}
			if !slices.Equal(have, want) {
				t.Errorf("%s, flannel %v: networks %v, want %v, of %s", name, compat, have, want, conf)
			}
			asks := c.asks == "both" || c.asks == "weft" && !compat
			if strings.Contains(string(manifest), "weft-cluster-network") != asks {
				t.Errorf("%s, flannel %v: may ask the cluster: %v, want %v", name, compat, !asks, asks)
			}
		}
	}
}

func TestWrongValues(t *testing.T) {
	for want, values := range map[string]map[string]any{
		"ipv5":                            {"network": map[string]any{"ipv5": "x"}},
		"/network/ipv":                    {"network": map[string]any{"ipv4": "10.244.0.0"}},
		"both switched off":               {"network": map[string]any{"ipv4": "none", "ipv6": "none"}},
		"are both switched":               {"flannelCompat": true, "network": map[string]any{"ipv4": "none"}},
		"logLevel":                        {"agent": map[string]any{"logLevel": "loud"}},
		"VNI":                             {"network": map[string]any{"backend": map[string]any{"VNI": 1 << 24}}},
		"/network/backend/MTU":            {"network": map[string]any{"backend": map[string]any{"MTU": 575}}},
		"'0%' does not match":             {"maxUnavailable": "0%"},
		"'101%' does not match":           {"maxUnavailable": "101%"},
		"/networkPolicy/allowAddresses/0": {"networkPolicy": map[string]any{"allowAddresses": []any{"10.9.0.1"}}},
		"app.kubernetes.io/name":          {"podLabels": map[string]any{"app.kubernetes.io/name": "x"}},
	} {
		if _, err := render(chartDir, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want an error with %q", values, err, want)
		}
	}
}

// Every value is described and has a default in values.yaml, and the schema
// knows no other but global, which is Helm's.
func TestSchemaDescribesValues(t *testing.T) {
	var values map[string]any
	var schema map[string]any
	for file, into := range map[string]*map[string]any{"values.yaml": &values, "values.schema.json": &schema} {
		b, err := os.ReadFile(filepath.Join(chartDir, file))
		if err == nil {
			err = yaml.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	compareSchema(t, "", values, schema)
}

func compareSchema(t *testing.T, path string, values, schema map[string]any) {
	t.Helper()
	props, _ := schema["properties"].(map[string]any)
	for name, v := range values {
		p, _ := props[name].(map[string]any)
		if d, _ := p["description"].(string); d == "" {
			t.Errorf("value %s.%s is not described", path, name)
		}
		if sub, ok := v.(map[string]any); ok && p["properties"] != nil && name != "backend" {
			compareSchema(t, path+"."+name, sub, p)
		}
	}
	for name := range props {
		if _, ok := values[name]; !ok && name != "requests" && name != "limits" && path+name != "global" {
			t.Errorf("value %s.%s is in the schema only", path, name)
		}
	}
}
