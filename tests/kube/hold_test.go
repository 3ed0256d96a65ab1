// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/subnet/kube"
	"weft.dev/weft/tests/etcdtest"
)

// TestStore is one server for all that does not stop it.
func TestStore(t *testing.T) {
	e := newEnv(t)
	for _, c := range []struct {
		name string
		test func(*env)
	}{
		{"waits for the Node and its podCIDRs", waits},
		{"publishes flannel's annotations", publishesFlannels},
		{"grants what is published", grantsWhatIsPublished},
		{"mends what is wiped", mends},
		{"follows a Node that is re-created", recreated},
		{"honours overwrites", overwrites},
		{"names a podCIDR outside the network", outside},
		{"sees peers and no heartbeats", peers},
		{"reads flannel's nodes", flannels},
		{"keeps conditions", conditions},
		{"goes on after an outage", outage},
		{"says who contests the annotations", contested},
		{"waits for its rights", rights},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := *e
			sub.T = t
			c.test(&sub)
			var all corev1.NodeList
			sub.check(e.c.Get().Resource("nodes").Do(t.Context()).Into(&all))
			for _, n := range all.Items {
				sub.delete(n.Name)
			}
		})
	}
}

// ours are the annotations of a Node that begin with prefix, which is cut off.
func ours(n *corev1.Node, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range n.Annotations {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			out[name] = v
		}
	}
	return out
}

// Everything comes late, one after the other, and each is asked for by name.
func waits(e *env) {
	s := e.store("late")
	h := e.hold(s, "late", 1)
	e.reason(s, `no Node "late"`)
	e.node("late", nil)
	e.reason(s, "waiting for a podCIDR of Node late", "--allocate-node-cidrs")
	e.patch("late", `{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]}}`)
	h.granted("10.244.1.0/24")
	e.reason(s, "waiting for an IPv6 podCIDR of Node late")
	want := map[string]string{
		"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.0.2.1",
		"backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:04:01"}`, "subnets": "10.244.1.0/24", "instance": "id-late",
	}
	if got := ours(e.get("late"), "weft.dev/"); !maps.Equal(got, want) {
		e.Errorf("published %v, want %v", got, want)
	}
	// podCIDRs never change; a Node gets its second family by being another.
	e.delete("late")
	e.reason(s, `no Node "late"`)
	e.node("late", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	e.eventually("no Reason", func() bool { return s.Reason() == "" })

	var events corev1.EventList
	e.eventually("Events say all of it", func() bool {
		e.check(e.c.Get().Namespace("default").Resource("events").Do(e.Context()).Into(&events))
		var reasons []string
		for _, ev := range events.Items {
			if ev.InvolvedObject.Name == "late" && ev.InvolvedObject.Kind == "Node" {
				reasons = append(reasons, ev.Reason)
			}
		}
		return slices.Contains(reasons, "NodeMissing") && slices.Contains(reasons, "PodCIDRMissing") && slices.Contains(reasons, "LeasePublished")
	})
}

// The vectors of flannel v0.28.
func publishesFlannels(e *env) {
	s := e.store("f1", func(o *kube.Options) { o.Flannel = true })
	e.node("f1", map[string]string{"other": "x"}, "10.244.1.0/24")
	e.check(writeConf(e, `{"Network":"10.244.0.0/16"}`))
	defer func() { e.check(writeConf(e, dualConf)) }()
	e.hold(s, "f1", 1).granted("10.244.1.0/24")
	n := e.get("f1")
	want := map[string]string{
		"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.0.2.1", "backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:04:01"}`,
	}
	if got := ours(n, "flannel.alpha.coreos.com/"); !maps.Equal(got, want) || n.Annotations["other"] != "x" || len(n.Annotations) != len(want)+1 {
		e.Errorf("annotations %v, want %v under flannel's prefix", n.Annotations, want)
	}
}

// rancher issues 16440 and 20570: who wipes a Node's annotations takes the
// node out of the network until its flannel is restarted.
func mends(e *env) {
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	s := e.store("n1")
	h := e.hold(s, "n1", 1)
	h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	w := e.watch(e.store("n2"))
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1")
	before, n := e.get("n1").Annotations, w.count()
	for range 3 {
		e.patch("n1", `{"metadata":{"annotations":null}}`)
		e.eventually("the annotations are back", func() bool { return maps.Equal(e.get("n1").Annotations, before) })
	}
	e.patch("n1", `{"metadata":{"annotations":{"weft.dev/public-ip":"192.0.2.99","weft.dev/sources":"192.0.2.98"}}}`)
	e.eventually("what was altered is mended", func() bool { return maps.Equal(e.get("n1").Annotations, before) })
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1")
	if w.lacked("n1", n) {
		e.Error("a peer has lost the lease meanwhile")
	}
	select {
	case l := <-h.leases:
		e.Errorf("granted again: %+v", l)
	default:
	}
}

func recreated(e *env) {
	first := e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	h := e.hold(e.store("n1"), "n1", 1)
	h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	w := e.watch(e.store("n2"))
	for _, i := range []string{"1", "7"} { // the same podCIDRs, then others
		e.delete("n1")
		if n := e.node("n1", nil, "10.244."+i+".0/24", "fd00:244:0:"+i+"::/64"); n.UID == first.UID {
			e.Fatal("the same UID")
		}
		w.shows("n1=10.244." + i + ".0/24@192.0.2.1+fd00:244:0:" + i + "::/64@2001:db8::1")
	}
	h.granted("10.244.7.0/24", "fd00:244:0:7::/64")
}

func overwrites(e *env) {
	e.node("n1", map[string]string{"flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.1"}, "10.244.1.0/24", "fd00:244:0:1::/64")
	h := e.hold(e.store("n1"), "n1", 1)
	l := h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	if l.Paths[0].Underlay.String() != "203.0.113.1" || len(l.Sources) != 1 || l.Sources[0].String() != "192.0.2.1" {
		e.Errorf("granted %+v", l)
	}
	w := e.watch(e.store("n2"))
	w.shows("n1=10.244.1.0/24@203.0.113.1+fd00:244:0:1::/64@2001:db8::1")
	e.patch("n1", `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip-overwrite":null}}}`)
	if l := h.granted("10.244.1.0/24", "fd00:244:0:1::/64"); len(l.Sources) != 0 {
		e.Errorf("granted %+v", l)
	}
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1")
	if _, left := e.get("n1").Annotations["weft.dev/sources"]; left {
		e.Error("weft.dev/sources is left over")
	}
}

func outside(e *env) {
	e.node("n1", nil, "10.9.1.0/24", "fd00:244:0:1::/64")
	s := e.store("n1")
	w := e.watch(s)
	w.shows()
	e.hold(s, "n1", 1).granted("fd00:244:0:1::/64")
	w.shows("PodCIDROutsideNetwork:n1", "n1=fd00:244:0:1::/64@2001:db8::1")
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.snaps[len(w.snaps)-1].Problems[0].Detail; !strings.Contains(d, "10.9.1.0/24") || !strings.Contains(d, "10.244.0.0/16") {
		e.Errorf("%q does not name both", d)
	}
}

// The conditions are there after at most a second or two, are patched only
// when they change, and come back when somebody removes them.
func conditions(e *env) {
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	s := e.store("n1")
	e.hold(s, "n1", 1).granted("10.244.1.0/24", "fd00:244:0:1::/64")
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	changed := make(chan struct{}, 1)
	go s.Report(ctx, changed, func() kube.Health { return kube.Health{DataPlane: kube.Up} }) //nolint:errcheck // ends with the test
	is := func() bool {
		n, found := e.get("n1"), 0
		for _, c := range n.Status.Conditions {
			if c.Status == corev1.ConditionFalse && (c.Type == corev1.NodeNetworkUnavailable && c.Reason == "WeftIsUp" || c.Type == kube.OverlayDegraded) {
				found++
			}
		}
		return found == 2
	}
	e.eventually("the conditions are there", is)
	version := e.get("n1").ResourceVersion
	for range 20 {
		select {
		case changed <- struct{}{}:
		default:
		}
		time.Sleep(50 * time.Millisecond) // is the subject: nothing happens
	}
	if now := e.get("n1").ResourceVersion; now != version {
		e.Errorf("the Node was written to without a change: %s, then %s", version, now)
	}
	e.patch("n1", `{"status":{"conditions":null}}`, "status")
	e.eventually("they come back", is)
	e.check(e.c.Patch(types.StrategicMergePatchType).Resource("nodes").Name("n1").SubResource("status").Body(
		[]byte(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"}]}}`)).Do(e.Context()).Error())
	e.eventually("a cloud's word is not the last", is)
}

// Two agents under one name undo each other's annotations: slower and slower,
// and not silently.
func contested(e *env) {
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	first, second := e.store("n1"), e.store("n1")
	w := e.watch(first)
	e.hold(first, "n1", 1).granted("10.244.1.0/24", "fd00:244:0:1::/64")
	e.hold(second, "n1", 2).granted("10.244.1.0/24", "fd00:244:0:1::/64")
	e.eventually("a Problem", func() bool { return strings.Contains(w.text(), "AnnotationsContested:n1") })
}

// A manifest whose ClusterRole is applied late, or is of another version.
func rights(e *env) {
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	e.check(e.c.Delete().AbsPath("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/weft").Do(e.Context()).Error())
	e.check(e.c.Delete().AbsPath("/apis/rbac.authorization.k8s.io/v1/clusterroles/weft").Do(e.Context()).Error())
	s := e.store("n1")
	h := e.hold(s, "n1", 1)
	w := e.watch(s)
	e.reason(s, "refuses this agent", "nodes", "ClusterRole")
	e.allow()
	h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1")
	e.eventually("no Reason", func() bool { return s.Reason() == "" })
}

// An API that is away for a while, then refuses: all goes on by itself after.
func outage(e *env) {
	proxy := etcdtest.NewProxy(e.T, e.srv.URL)
	via := func(o *kube.Options) { o.Kubeconfig = e.kubeconfig(proxy.Endpoint, "") }
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	s := e.store("n1", via)
	h := e.hold(s, "n1", 1)
	h.granted("10.244.1.0/24", "fd00:244:0:1::/64")
	w := e.watch(s)
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1")
	n := w.count()
	proxy.Cut()
	e.reason(s, "waiting for the Kubernetes API at "+proxy.Endpoint, "connection refused")
	e.patch("n1", `{"metadata":{"annotations":null}}`)
	e.node("n2", map[string]string{"weft.dev/kube-subnet-manager": "true", "weft.dev/backend-type": "vxlan", "weft.dev/subnets": "10.244.2.0/24",
		"weft.dev/backend-data": `{"VtepMAC":"02:00:00:00:04:02"}`, "weft.dev/public-ip": "192.0.2.2"})
	time.Sleep(time.Second) // is the subject: nothing is lost meanwhile
	if w.count() != n {
		e.Errorf("a snapshot during the outage: %s", w.text())
	}
	e.check(proxy.Heal())
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1", "n2=10.244.2.0/24@192.0.2.2")
	e.eventually("our annotations are back", func() bool { return e.get("n1").Annotations["weft.dev/public-ip"] == "192.0.2.1" })
	e.eventually("no Reason", func() bool { return s.Reason() == "" })
	if w.lacked("n1", n) {
		e.Error("our own lease was lost meanwhile")
	}
	e.check(s.Reconnect(e.Context()))
	e.delete("n2")
	w.shows("n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1")
}
