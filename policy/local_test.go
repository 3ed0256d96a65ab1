// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func at(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// podsText renders pods as "namespace/name#uid@node=addresses{labels}".
func podsText(pods []*Pod) string {
	var out []string
	for _, p := range pods {
		text := fmt.Sprintf("%v#%s@%s=%v{%s}", p, p.UID, p.Node, p.Addrs, strings.TrimRight(p.Labels.Key(), "\x00"))
		if p.Ended {
			text += "ended"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestWithWhatANodeKnows(t *testing.T) {
	web := NewLabels(map[string]string{"app": "web"})
	pod := func(name, uid string, addrs ...string) *Pod {
		return &Pod{Namespace: "ns", Name: name, UID: uid, Node: "n1", Labels: web, Addrs: at(addrs...)}
	}
	reg := func(name, uid, container string, addrs ...string) Registered {
		return Registered{Namespace: "ns", Name: name, UID: uid, Container: container, Addrs: at(addrs...)}
	}
	ended := pod("job", "j", "10.0.0.1")
	ended.Ended = true
	host := pod("host", "h", "192.0.2.1")
	host.HostNetwork = true
	known := reg("a", "1", "c1", "10.0.0.1")
	known.Pod = pod("a", "1")
	stranger := reg("a", "1", "c1", "10.0.0.1")
	stranger.Pod = pod("a", "2")
	unbound := pod("a", "1")
	unbound.Node = ""
	for _, c := range []struct {
		name  string
		pods  []*Pod
		local []Registered
		want  string
	}{
		// What is watched may lag behind what kubelet was told.
		{"its node is not known yet", []*Pod{unbound}, []Registered{reg("a", "1", "c1", "10.0.0.1")}, "ns/a#1@n1=[10.0.0.1]{app=web}"},
		{"nothing registered", []*Pod{pod("a", "1", "10.0.0.1")}, nil, "ns/a#1@n1=[10.0.0.1]{app=web}"},
		{"before the API has the address", []*Pod{pod("a", "1")}, []Registered{reg("a", "1", "c1", "10.0.0.1", "fd00::1")}, "ns/a#1@n1=[10.0.0.1 fd00::1]{app=web}"},
		{"against the API", []*Pod{pod("a", "1", "10.0.0.9")}, []Registered{reg("a", "1", "c1", "10.0.0.1")}, "ns/a#1@n1=[10.0.0.1]{app=web}"},
		{"a runtime that tells no UID", []*Pod{pod("a", "1")}, []Registered{reg("a", "", "c1", "10.0.0.1")}, "ns/a#1@n1=[10.0.0.1]{app=web}"},
		{"before the API has the pod", nil, []Registered{known}, "ns/a#1@n1=[10.0.0.1]{app=web}"},
		{"a pod of which only the name is known", nil, []Registered{reg("a", "1", "c1", "10.0.0.1")}, "ns/a#1@n1=[10.0.0.1]{}"},
		{"known as another", nil, []Registered{stranger}, "ns/a#1@n1=[10.0.0.1]{}"},
		{"its successor is there, it still runs", []*Pod{pod("a", "2")}, []Registered{known}, "ns/a#1@n1=[10.0.0.1]{app=web} ns/a#2@n1=[]{app=web}"},
		{"both run", []*Pod{pod("a", "2")}, []Registered{known, reg("a", "2", "c2", "10.0.0.2")}, "ns/a#1@n1=[10.0.0.1]{app=web} ns/a#2@n1=[10.0.0.2]{app=web}"},
		{"another sandbox of the same pod", []*Pod{pod("a", "1", "10.0.0.1")}, []Registered{known, reg("a", "1", "c2", "10.0.0.2")}, "ns/a#1@n1=[10.0.0.2]{app=web}"},
		{"a completed pod's address", []*Pod{ended, pod("a", "1")}, []Registered{known}, "ns/a#1@n1=[10.0.0.1]{app=web} ns/job#j@n1=[]{app=web}ended"},
		{"an address that another still has in the API", []*Pod{pod("old", "9", "10.0.0.1", "fd00::9"), pod("a", "1")}, []Registered{known}, "ns/a#1@n1=[10.0.0.1]{app=web} ns/old#9@n1=[fd00::9]{app=web}"},
		{"an address that was registered before", nil, []Registered{reg("old", "9", "c0", "10.0.0.1"), known}, "ns/a#1@n1=[10.0.0.1]{app=web} ns/old#9@n1=[]{}"},
		{"none of Kubernetes", []*Pod{host}, []Registered{{Container: "lab", Addrs: at("10.0.0.7")}, {Container: "lab2", Addrs: at("10.0.0.8")}}, "/lab#@n1=[10.0.0.7]{} /lab2#@n1=[10.0.0.8]{} ns/host#h@n1=[192.0.2.1]{app=web}"},
	} {
		before := podsText(c.pods)
		got := Cluster{Pods: c.pods}.With("n1", c.local)
		if text := podsText(got.Pods); text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
		if podsText(c.pods) != before {
			t.Errorf("%s: the pods that were handed in are changed: %s", c.name, podsText(c.pods))
		}
	}
}

// Who caches by pointer goes on to do so once the API says what is registered.
func TestWithKeepsPods(t *testing.T) {
	a, b := &Pod{Namespace: "ns", Name: "a", UID: "1", Node: "n1", Addrs: at("10.0.0.1")}, &Pod{Namespace: "ns", Name: "b", UID: "2", Addrs: at("10.0.0.2")}
	got := Cluster{Pods: []*Pod{a, b}}.With("n1", []Registered{{Namespace: "ns", Name: "a", UID: "1", Addrs: at("10.0.0.1")}})
	if len(got.Pods) != 2 || got.Pods[0] != a || got.Pods[1] != b {
		t.Errorf("pods %v are others", got.Pods)
	}
}

// What is none of Kubernetes is selected by nothing, not even by what selects
// all, and is a peer by its address alone.
func TestWithoutIdentity(t *testing.T) {
	all, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{})
	if err != nil {
		t.Fatal(err)
	}
	deny := &Policy{Namespace: "ns", Name: "deny", Subject: all, Isolates: [2]bool{true, true}}
	within := &Policy{Namespace: "ns", Name: "pods", Subject: all, Isolates: [2]bool{Ingress: true},
		Rules: [2][]Rule{Ingress: {{Peers: []Peer{{Namespaces: labels.Everything(), Pods: labels.Everything()}}}}}}
	c := Cluster{Namespaces: map[string]*Labels{"ns": NewLabels(nil)}, Policies: []*Policy{deny, within},
		Pods: []*Pod{{Namespace: "ns", Name: "a", UID: "1", Node: "n1", Addrs: at("10.0.0.1")}, {Namespace: "ns", Name: "b", UID: "2", Node: "n2", Addrs: at("10.0.0.2")}}}
	c = c.With("n1", []Registered{{Container: "lab", Addrs: at("10.0.0.7")}, {Container: "lab2", Addrs: at("10.0.0.8")}})
	for _, k := range []struct {
		src, dst string
		want     bool
	}{{"10.0.0.7", "10.0.0.8", true}, {"10.0.0.7", "10.0.0.1", false}} {
		ok, why := c.Allows(Packet{Src: netip.MustParseAddr(k.src), Dst: netip.MustParseAddr(k.dst), Proto: TCP, Port: 80})
		if ok != k.want {
			t.Errorf("%s to %s: %v, %+v", k.src, k.dst, ok, why)
		}
		if src := why[Egress].Pod; src == nil || src.Name != "lab" {
			t.Errorf("%s is pod %v, want lab", k.src, src)
		}
	}
}
