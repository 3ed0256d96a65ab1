// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/subnet"
)

// What kubeadm 1.37 and kube-proxy write, and what others might.
func TestPodNetworks(t *testing.T) {
	kubeadm := func(pods string) map[string]string {
		return map[string]string{"ClusterConfiguration": "apiServer: {}\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: " + pods + "\n  serviceSubnet: 10.96.0.0/12\n"}
	}
	proxy := func(pods string) map[string]string {
		return map[string]string{"kubeconfig.conf": "apiVersion: v1\n", "config.conf": "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nclusterCIDR: " + pods + "\nkind: KubeProxyConfiguration\n"}
	}
	for _, c := range []struct {
		name string
		data map[string]string
		want string
	}{
		{kubeadmConfig, kubeadm("10.244.0.0/16"), "[10.244.0.0/16] <nil>"},
		{kubeadmConfig, kubeadm("10.244.0.0/16,fd00:244::/56"), "[10.244.0.0/16 fd00:244::/56] <nil>"},
		{kubeadmConfig, kubeadm(`"10.244.1.2/16, "`), "[10.244.0.0/16] <nil>"},
		{kubeadmConfig, kubeadm(`""`), "[] <nil>"},
		{kubeadmConfig, nil, "[] <nil>"},
		{kubeadmConfig, kubeadm("10.244.0.0"), `want a prefix of each family`},
		{kubeadmConfig, kubeadm("10.244.0.0/16,10.245.0.0/16"), "want one prefix of each family"},
		{kubeadmConfig, kubeadm("[1]"), "ClusterConfiguration: "},
		{kubeadmConfig, map[string]string{"ClusterConfiguration": "\t:"}, "ClusterConfiguration: "},
		{kubeProxyConfig, proxy("10.244.0.0/16"), "[10.244.0.0/16] <nil>"},
		{kubeProxyConfig, proxy(`""`), "[] <nil>"},
		{kubeProxyConfig, kubeadm("10.244.0.0/16"), "[] <nil>"},
	} {
		list, err := podNetworks(c.name, c.data)
		if got := fmt.Sprint(list, " ", err); !strings.Contains(got, c.want) {
			t.Errorf("%s %v: %s, want %s", c.name, c.data, got, c.want)
		}
	}
}

// Of the families that the file names no network of, those are there that the
// Node has podCIDRs of; the cluster is believed as far as it knows this Node.
func TestResolved(t *testing.T) {
	said := func(where ...string) (k cluster) {
		for _, w := range where {
			k.networks = append(k.networks, clusterNetwork{netip.MustParsePrefix(w), "kubeadm"})
		}
		k.silent = []string{"kubeadm: not there"}
		return k
	}
	for _, c := range []struct {
		name, conf string
		cidrs      string
		said       cluster
		want       string
	}{
		{"nothing known", `{}`, "10.244.1.0/24 fd00:244:0:1::/64", said(), "IPv4 as leased (kubeadm: not there), IPv6 as leased (kubeadm: not there)"},
		{"one family", `{}`, "10.244.1.0/25", said(), "IPv4 as leased (kubeadm: not there)"},
		{"the other", `{}`, "fd00:244:0:1::/64", said(), "IPv6 as leased (kubeadm: not there)"},
		{"the cluster knows", `{}`, "10.244.1.0/24 fd00:244:0:1::/64", said("10.244.0.0/16", "fd00:244::/56"), "10.244.0.0/16 (kubeadm), fd00:244::/56 (kubeadm)"},
		{"it knows one", `{}`, "10.244.1.0/24 fd00:244:0:1::/64", said("fd00:244::/56"), "IPv4 as leased (kubeadm: not there), fd00:244::/56 (kubeadm)"},
		{"it knows another", `{}`, "10.9.1.0/24", said("10.244.0.0/16"), "IPv4 as leased (kubeadm says 10.244.0.0/16, but this Node's podCIDR is 10.9.1.0/24)"},
		{"it knows a smaller one", `{}`, "10.244.0.0/16", said("10.244.0.0/24"), "IPv4 as leased (kubeadm says 10.244.0.0/24, but this Node's podCIDR is 10.244.0.0/16)"},
		{"it says too much", `{}`, "10.244.1.0/24", said("0.0.0.0/0"), "IPv4 as leased (kubeadm says Network 0.0.0.0/0 overlaps"},
		{"configured comes first", `{"Network":"10.0.0.0/8"}`, "10.244.1.0/24 fd00:244:0:1::/64", said("10.244.0.0/16"), "10.0.0.0/8 (configured), IPv6 as leased (kubeadm: not there)"},
		{"configured is waited for", `{"Network":"10.0.0.0/8"}`, "fd00:244:0:1::/64", said(), "10.0.0.0/8 (configured), IPv6 as leased (kubeadm: not there)"},
		{"switched off", `{"EnableIPv4":false}`, "10.244.1.0/24", said(), ""},
	} {
		cfg, err := subnet.ParseConfig([]byte(c.conf), "test", subnet.Defaults{Open: true})
		must(t, err)
		var cidrs []netip.Prefix
		for _, w := range strings.Fields(c.cidrs) {
			cidrs = append(cidrs, netip.MustParsePrefix(w))
		}
		got, text := resolved(cfg, cidrs, c.said)
		if !strings.HasPrefix(text, c.want) || (c.want == "") != (len(got.Networks) == 0) {
			t.Errorf("%s: %q, want %q", c.name, text, c.want)
		}
		for _, n := range got.Networks {
			for _, p := range cidrs {
				if n.Open() && subnet.FamilyOf(p.Addr()) == subnet.FamilyOf(n.Prefix.Addr()) && n.SubnetLen != p.Bits() {
					t.Errorf("%s: subnets of /%d, want those of podCIDR %v", c.name, n.SubnetLen, p)
				}
			}
		}
	}
}

// fakeAPI serves one Node and ConfigMaps.
type fakeAPI struct {
	mu    sync.Mutex
	node  *corev1.Node
	maps  map[string]map[string]string
	codes map[string]int // instead, by the last word of the path
	asked map[string]int
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	f.asked[name]++
	w.Header().Set("Content-Type", "application/json")
	code, body := http.StatusNotFound, any(nil)
	switch data, ok := f.maps[name]; {
	case f.codes[name] != 0:
		code = f.codes[name]
	case ok:
		code, body = http.StatusOK, corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, Data: data}
	case f.node != nil && f.node.Name == name:
		code, body = http.StatusOK, f.node
	}
	if body == nil {
		body = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code),
			Reason: map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound}[code]}
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func (f *fakeAPI) edit(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// serve returns a store whose API is f.
func (f *fakeAPI) serve(t *testing.T, netConf string) *Store {
	t.Helper()
	f.asked, f.codes = map[string]int{}, map[string]int{}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	s, err := New(Options{Server: srv.URL, Node: "n1", NetConf: netConf, PollEvery: time.Millisecond})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// cidrNode is Node n1 with podCIDRs.
func cidrNode(cidrs ...string) *corev1.Node {
	n := ownNodeWith(nil, cidrs...)
	n.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	return n
}

func text(c subnet.Config) string {
	var out []string
	for _, n := range c.Networks {
		out = append(out, n.Prefix.String())
	}
	return strings.Join(out, " ")
}

// asked asks for the configuration, and returns what waits for these networks.
func asked(s *Store) (answer func(t *testing.T, networks string)) {
	got := make(chan subnet.Config, 1)
	go func() {
		cfg, err := s.Config(context.Background())
		if err == nil {
			got <- cfg
		}
	}()
	return func(t *testing.T, networks string) {
		t.Helper()
		select {
		case cfg := <-got:
			if text(cfg) != networks {
				t.Errorf("networks %s, want %s", text(cfg), networks)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Config does not return: " + s.Reason())
		}
	}
}

// A configuration without networks waits for our Node and its podCIDRs, and
// takes what the cluster says, or what is leased where that is not to be read.
func TestConfigWithoutNetworks(t *testing.T) {
	conf := &configMap{TB: t, dir: t.TempDir()}
	conf.write(`{}`)
	f := &fakeAPI{maps: map[string]map[string]string{}}
	s := f.serve(t, conf.path())
	answer := asked(s)
	eventually(t, "the Node is missing", func() bool { return strings.Contains(s.Reason(), `there is no Node "n1"`) })
	f.edit(func() { f.node = cidrNode() })
	eventually(t, "its podCIDR is missing", func() bool { return strings.Contains(s.Reason(), "waiting for a podCIDR of Node n1") })
	f.edit(func() { f.codes["kubeadm-config"] = 500 })
	f.edit(func() { f.node = cidrNode("10.244.1.0/24", "fd00:244:0:1::/64") })
	eventually(t, "the API does not answer", func() bool { return strings.Contains(s.Reason(), "waiting for the Kubernetes API") })
	f.edit(func() {
		f.codes["kubeadm-config"] = 403
		f.maps["kube-proxy"] = map[string]string{"config.conf": "clusterCIDR: fd00:244::/56"}
	})
	answer(t, "0.0.0.0/0 fd00:244::/56")
	const want = "IPv4 as leased (ConfigMap kube-system/kubeadm-config: not ours to read; ConfigMap kube-system/kube-proxy: names [fd00:244::/56] alone), fd00:244::/56 (ConfigMap kube-system/kube-proxy)"
	if got := s.Networks(); got != want {
		t.Errorf("says %q, want %q", got, want)
	}
}

// A Node that is made anew with a family that the file does not switch off is
// seen before there is any watch on it.
func TestFamilyThatComes(t *testing.T) {
	conf := &configMap{TB: t, dir: t.TempDir()}
	conf.write(`{"EnableIPv4":false}`)
	f := &fakeAPI{node: cidrNode("10.244.1.0/24"), maps: map[string]map[string]string{}}
	s := f.serve(t, conf.path())
	answer := asked(s)
	eventually(t, "the file is wrong", func() bool {
		return strings.Contains(s.Reason(), "EnableIPv4") && strings.Contains(s.Reason(), "[10.244.1.0/24]")
	})
	f.edit(func() { f.node = cidrNode("10.244.1.0/24", "fd00:244:0:1::/64") })
	answer(t, "::/0")
}

// A cluster that refuses at first is asked again soon, then ever more seldom; one
// that has answered is asked seldom, whatever it says later.
func TestRefusalsAreNotBelievedForLong(t *testing.T) {
	conf := &configMap{TB: t, dir: t.TempDir()}
	conf.write(`{}`)
	f := &fakeAPI{node: cidrNode("10.244.1.0/24"), maps: map[string]map[string]string{}}
	s := f.serve(t, conf.path())
	ask := func(code int, least time.Duration) {
		t.Helper()
		f.edit(func() { f.codes["kubeadm-config"] = code })
		s.resolver.mu.Lock()
		s.resolver.due = time.Time{}
		s.resolver.mu.Unlock()
		start := time.Now()
		if _, err := s.Config(t.Context()); err != nil {
			t.Fatal(err)
		}
		if pause := s.resolver.due.Sub(start); pause < least || pause > least*3/2+10*time.Second {
			t.Errorf("after %d it is asked again in %s, want %s and up to half as much", code, pause, least)
		}
	}
	for _, pause := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, clusterLook, clusterLook} {
		ask(403, pause)
	}
	f.edit(func() {
		f.maps["kubeadm-config"] = map[string]string{"ClusterConfiguration": "networking: {podSubnet: 10.244.0.0/16}"}
	})
	ask(0, clusterLook)
	ask(403, clusterLook)
	if cfg, err := s.Config(t.Context()); err != nil || text(cfg) != "10.244.0.0/16" {
		t.Errorf("networks %s, %v", text(cfg), err)
	}
}

// Who names the networks asks nobody.
func TestConfigWithNetworksAsksNobody(t *testing.T) {
	conf := &configMap{TB: t, dir: t.TempDir()}
	conf.write(dualConf)
	f := &fakeAPI{}
	s := f.serve(t, conf.path())
	if cfg, err := s.Config(t.Context()); err != nil || text(cfg) != "10.244.0.0/16 fd00:244::/48" || len(f.asked) != 0 {
		t.Errorf("%s, %v, asked for %v", text(cfg), err, f.asked)
	}
}

// A network that comes into the file or goes from it is followed, and so is
// what the cluster says when it is asked again; a cluster that was heard once is
// not unheard because the API refuses.
func TestNetworksAreFollowed(t *testing.T) {
	conf := &configMap{TB: t, dir: t.TempDir()}
	conf.write(`{}`)
	kubeadm := func(p string) map[string]map[string]string {
		return map[string]map[string]string{"kubeadm-config": {"ClusterConfiguration": "networking: {podSubnet: " + p + "}"}}
	}
	f := &fakeAPI{node: cidrNode("10.244.1.0/24"), maps: kubeadm("10.244.0.0/16")}
	s := f.serve(t, conf.path())
	cfg, err := s.Config(t.Context())
	must(t, err)
	told := make(chan string, 10)
	go func() {
		_ = s.WatchConfig(t.Context(), cfg, func(c subnet.Config, err error) {
			if err != nil {
				told <- "wrong"
				return
			}
			told <- text(c)
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told %s, want %s", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("not told %s", want)
		}
	}
	askAgain := func() {
		s.resolver.mu.Lock()
		s.resolver.due = time.Unix(1, 0)
		s.resolver.mu.Unlock()
	}
	conf.write(`{"Network":"10.0.0.0/8","EnableIPv6":false}`)
	next("10.0.0.0/8")
	conf.write(`{"Network":"10.0.0.0/99"}`)
	next("wrong")
	conf.write(`{"EnableIPv4":false}`) // and there is no other
	next("wrong")
	conf.write(`{}`)
	next("10.244.0.0/16")
	f.edit(func() { f.maps = kubeadm("10.240.0.0/12") })
	askAgain()
	next("10.240.0.0/12")
	for _, code := range []int{403, 500} {
		f.edit(func() { f.codes["kubeadm-config"], f.asked = code, map[string]int{} })
		askAgain()
		eventually(t, "it is asked again", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.asked["kubeadm-config"] > 0 })
	}
	f.edit(func() { f.codes, f.maps = map[string]int{}, nil })
	askAgain()
	next("0.0.0.0/0")
	select {
	case got := <-told:
		t.Errorf("told %s in the end", got)
	default:
	}
}
