// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// policiesIn returns the policies of a file of testdata, in namespace "app".
func policiesIn(t *testing.T, file string) map[string]*Policy {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*Policy{}
	for _, doc := range strings.Split(string(b), "\n---\n") {
		var np networkingv1.NetworkPolicy
		if err := yaml.UnmarshalStrict([]byte(doc), &np); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		np.Namespace = "app"
		p, err := FromAPI(&np)
		if err != nil {
			t.Fatalf("%s: %v", np.Name, err)
		}
		out[np.Name] = p
	}
	return out
}

// town is a small cluster that the seed's policies are tried in.
func town() (*Cluster, map[string]netip.Addr) {
	c := &Cluster{Namespaces: map[string]*Labels{
		"app": NewLabels(map[string]string{"name": "app"}), "kube-system": NewLabels(map[string]string{"name": "kube-system"}),
		"frontend": NewLabels(map[string]string{"name": "frontend"}), "database": NewLabels(map[string]string{"name": "database"}),
	}}
	at := map[string]netip.Addr{"outside": netip.MustParseAddr("172.17.5.5"), "barred": netip.MustParseAddr("172.17.1.5"), "elsewhere": netip.MustParseAddr("198.51.100.1")}
	for i, p := range []struct {
		namespace, name string
		labels          map[string]string
	}{
		{"app", "web", map[string]string{"app": "web"}},
		{"app", "frontend", map[string]string{"app": "frontend"}},
		{"app", "backend", map[string]string{"app": "backend"}},
		{"app", "api", map[string]string{"app": "api"}},
		{"app", "client", map[string]string{"role": "api-client"}},
		{"kube-system", "dns", nil},
		{"frontend", "shop", nil},
		{"frontend", "stranger", map[string]string{"app": "frontend", "role": "api-client"}},
		{"database", "db", nil},
	} {
		at[p.name] = netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 2)})
		c.Pods = append(c.Pods, &Pod{Namespace: p.namespace, Name: p.name, UID: p.name, Node: "here", Labels: NewLabels(p.labels), Addrs: []netip.Addr{at[p.name]}})
	}
	return c, at
}

// The five policies that docs/policy.md shows do what it says of them.
func TestExamples(t *testing.T) {
	policies := policiesIn(t, "examples.yaml")
	for _, tt := range []struct {
		policy, src, dst string
		proto            uint8
		port             uint16
		want             bool
	}{
		{"default-deny-all", "frontend", "backend", TCP, 80, false},
		{"default-deny-all", "frontend", "dns", UDP, 53, false},
		{"default-deny-all", "shop", "web", TCP, 80, false},
		{"default-deny-all", "shop", "db", TCP, 5432, true}, // not its namespace
		{"default-deny-all", "web", "web", TCP, 80, true},   // itself
		{"allow-frontend-to-backend", "frontend", "backend", TCP, 80, true},
		{"allow-frontend-to-backend", "frontend", "backend", TCP, 81, false},
		{"allow-frontend-to-backend", "frontend", "backend", UDP, 80, false},
		{"allow-frontend-to-backend", "frontend", "backend", 1, 0, false},
		{"allow-frontend-to-backend", "web", "backend", TCP, 80, false},
		{"allow-frontend-to-backend", "stranger", "backend", TCP, 80, false}, // the label, in another namespace
		{"allow-frontend-to-backend", "backend", "frontend", TCP, 80, true},
		{"allow-external", "outside", "web", TCP, 80, true},
		{"allow-external", "outside", "web", TCP, 443, false},
		{"allow-external", "barred", "web", TCP, 80, false},
		{"allow-external", "elsewhere", "web", TCP, 80, false},
		{"allow-external", "frontend", "web", TCP, 80, false},
		{"allow-dns-egress", "web", "dns", UDP, 53, true},
		{"allow-dns-egress", "web", "dns", TCP, 53, true},
		{"allow-dns-egress", "web", "dns", TCP, 54, false},
		{"allow-dns-egress", "web", "elsewhere", UDP, 53, false},
		{"allow-dns-egress", "frontend", "web", TCP, 80, true}, // Ingress is open
		{"layered-policy", "shop", "api", TCP, 8080, true},
		{"layered-policy", "client", "api", TCP, 8080, true},
		{"layered-policy", "stranger", "api", TCP, 8080, true}, // by its namespace
		{"layered-policy", "web", "api", TCP, 8080, false},
		{"layered-policy", "shop", "api", TCP, 8081, false},
		{"layered-policy", "api", "db", TCP, 5432, true},
		{"layered-policy", "api", "db", TCP, 5433, false},
		{"layered-policy", "api", "dns", UDP, 53, false},
	} {
		c, at := town()
		c.Policies = []*Policy{policies[tt.policy]}
		k := Packet{Src: at[tt.src], Dst: at[tt.dst], Proto: tt.proto, Port: tt.port}
		oracle, reasons := c.Allows(k)
		if table := Compile(c, "here").Allows(k); oracle != tt.want || table != tt.want {
			t.Errorf("%s: %s to %s, protocol %d port %d: the oracle says %t, the table %t, want %t\n%+v", tt.policy, tt.src, tt.dst, tt.proto, tt.port, oracle, table, tt.want, reasons)
		}
	}
}

// What of a policy cannot be understood lets nothing pass; the rest of it does.
func TestWhatCannotBeUnderstoodLetsNothingPass(t *testing.T) {
	end, sctpx := int32(80), corev1.Protocol("ICMP")
	eighty, name := intstr.FromInt32(80), intstr.FromString("web")
	bad := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}
	good := networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.42.0.0/16"}}
	for name, tt := range map[string]struct {
		from  []networkingv1.NetworkPolicyPeer
		ports []networkingv1.NetworkPolicyPort
		err   string
		open  bool
	}{
		"nothing wrong":        {[]networkingv1.NetworkPolicyPeer{good}, nil, "", true},
		"a block":              {[]networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.42/16"}}}, nil, "spec.ingress[0]: peer 0: ipBlock.cidr", false},
		"a block beside one":   {[]networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "x"}}, good}, nil, "peer 0", true},
		"an exception":         {[]networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.42.0.0/16", Except: []string{"10.42.0.3/33"}}}}, nil, "ipBlock.except[0]", false},
		"a selector of pods":   {[]networkingv1.NetworkPolicyPeer{{PodSelector: &bad}}, nil, "podSelector", false},
		"a selector of spaces": {[]networkingv1.NetworkPolicyPeer{{NamespaceSelector: &bad}}, nil, "namespaceSelector", false},
		"an empty peer":        {[]networkingv1.NetworkPolicyPeer{{}}, nil, "neither", false},
		"a protocol":           {nil, []networkingv1.NetworkPolicyPort{{Protocol: &sctpx}}, `protocol "ICMP"`, false},
		"an end without port":  {nil, []networkingv1.NetworkPolicyPort{{EndPort: &end}}, "endPort 80 without port", false},
		"an end of a name":     {nil, []networkingv1.NetworkPolicyPort{{Port: &name, EndPort: &end}}, `named port "web"`, false},
		"a descending range":   {nil, []networkingv1.NetworkPolicyPort{{Port: &eighty, EndPort: new(int32)}}, "80 to 0", false},
		"port 0":               {nil, []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{}}}, "0 to 0", false},
		"a port beside one":    {nil, []networkingv1.NetworkPolicyPort{{Protocol: &sctpx}, {Port: &eighty}}, "port 0", true},
	} {
		t.Run(name, func(t *testing.T) {
			np := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: tt.from, Ports: tt.ports}}}}
			np.Namespace = "app"
			p, err := FromAPI(np)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			c, at := town()
			c.Policies = []*Policy{p}
			k := Packet{Src: at["frontend"], Dst: at["web"], Proto: TCP, Port: 80}
			if got, _ := c.Allows(k); got != tt.open || Compile(c, "here").Allows(k) != tt.open {
				t.Errorf("may pass: %t, want %t", got, tt.open)
			}
		})
	}
	np := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{PodSelector: bad}}
	np.Namespace = "app"
	p, err := FromAPI(np)
	c, at := town()
	c.Policies = []*Policy{p}
	if got, _ := c.Allows(Packet{Src: at["frontend"], Dst: at["web"], Proto: TCP, Port: 80}); got || err == nil {
		t.Errorf("a subject that cannot be understood isolates nobody; error %v", err)
	}
}

func TestPodFromAPI(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(name string, n int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: n, Protocol: corev1.ProtocolUDP}, {ContainerPort: 9}}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "web", UID: "u", CreationTimestamp: metav1.Unix(7, 0)},
		Spec: corev1.PodSpec{NodeName: "here",
			InitContainers: []corev1.Container{{Ports: port("gone", 1)}, {Ports: port("sidecar", 2), RestartPolicy: &always}},
			Containers:     []corev1.Container{{Ports: port("web", 3)}}},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.42.0.2"}, {IP: "junk"}, {IP: "fd42::2"}}},
	}
	p := PodFromAPI(pod, NewLabels(nil))
	if p.String() != "app/web" || p.UID != "u" || p.Created != 7 || p.Node != "here" || len(p.Addrs) != 2 || p.Addrs[1] != netip.MustParseAddr("fd42::2") || p.HostNetwork || p.Ended {
		t.Errorf("%+v", p)
	}
	if want := []NamedPort{{"sidecar", UDP, 2}, {"web", UDP, 3}}; len(p.Ports) != 2 || p.Ports[0] != want[0] || p.Ports[1] != want[1] {
		t.Errorf("ports %v, want %v", p.Ports, want)
	}
	for phase, ended := range map[corev1.PodPhase]bool{corev1.PodSucceeded: true, corev1.PodFailed: true, corev1.PodRunning: false, "": false} {
		pod.Status.Phase = phase
		if p := PodFromAPI(pod, nil); p.Ended != ended {
			t.Errorf("phase %q: ended %t", phase, p.Ended)
		}
	}
}
