// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weft.dev/weft/subnet"
)

// Everything comes late, and each is waited for by name, in Reason and Events;
// nothing that is missing ends anything. Each family is granted when it comes.
func TestWaitsForPodCIDRs(t *testing.T) {
	c := newCluster(t, dualConf)
	granted := c.hold()
	c.says(`no Node "n1"`, "NODE_NAME")
	c.told("NodeMissing", `no Node "n1"`)
	c.api.Create("n1", nil)
	c.says("waiting for a podCIDR of Node n1", "--allocate-node-cidrs")
	c.told("PodCIDRMissing", "Node n1", "--cluster-cidr")
	c.api.Assign("n1", "fd00:244:0:1::/64")
	c.granted(granted, "fd00:244:0:1::/64"+v6At)
	c.says("waiting for an IPv4 podCIDR of Node n1")
	c.told("LeasePublished", "fd00:244:0:1::/64 at 2001:db8::1")
	c.api.Assign("n1", "10.244.1.0/24", "fd00:244:0:1::/64")
	c.granted(granted, "10.244.1.0/24"+v4At+" fd00:244:0:1::/64"+v6At)
	eventually(t, "no Reason", func() bool { return c.s.Reason() == "" })
	c.annotated(dualAnnotations())
}

// rancher issues 16440 and 20570: who wiped a Node's annotations took the node
// out of the network until its flannel was restarted. Peers lose nothing
// meanwhile, and what others have written stays.
func TestWipedAnnotationsAreWrittenAgain(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", map[string]string{"other": "x"}, "10.244.1.0/24")
	granted, w := c.hold(), c.watch()
	c.granted(granted, "10.244.1.0/24"+v4At)
	w.shows("n1=10.244.1.0/24" + v4At)
	before := c.api.Node("n1").Annotations
	n := len(w.all())
	for _, edit := range []func(*corev1.Node){
		func(n *corev1.Node) { n.Annotations = map[string]string{"other": "x"} },
		func(n *corev1.Node) { n.Annotations["weft.dev/public-ip"] = "192.0.2.99" },
		func(n *corev1.Node) { delete(n.Annotations, "weft.dev/subnets") },
	} {
		c.api.Edit("n1", edit)
		c.annotated(before)
	}
	w.shows("n1=10.244.1.0/24" + v4At)
	for _, text := range w.all()[n:] {
		if !strings.Contains(text, "n1=") {
			t.Errorf("the lease was lost meanwhile: %s", text)
		}
	}
	if len(granted) != 0 {
		t.Errorf("granted again: %s", <-granted)
	}
}

// A Node that is another object by now, under the same name, is annotated anew
// without a restart: with the same podCIDR, and with another, which is told.
func TestRecreatedNode(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", nil, "10.244.1.0/24")
	granted, w := c.hold(), c.watch()
	c.granted(granted, "10.244.1.0/24"+v4At)
	before := c.api.Node("n1").Annotations
	c.api.Create("n1", nil, "10.244.1.0/24")
	c.annotated(before)
	if len(granted) != 0 {
		t.Errorf("granted again: %s", <-granted)
	}
	c.api.Create("n1", nil, "10.244.7.0/24")
	c.granted(granted, "10.244.7.0/24"+v4At)
	w.shows("n1=10.244.7.0/24" + v4At)
	if got := c.api.Node("n1").Annotations["weft.dev/subnets"]; got != "10.244.7.0/24" {
		t.Errorf("announces %q", got)
	}
	c.told("PodCIDRChanged", "10.244.1.0/24", "10.244.7.0/24", "restart")
}

// etcd is compacted while a watch is away: it is told 410 Gone, and what was
// missed comes by a listing. That is no outage and nobody is told of one.
func TestExpiredResourceVersion(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", nil, "10.244.1.0/24")
	c.api.Create("n2", peerAnnotations(2))
	granted, w := c.hold(), c.watch()
	c.granted(granted, "10.244.1.0/24"+v4At)
	w.shows("n1=10.244.1.0/24" + v4At + "; n2=10.244.2.0/24@192.0.2.2")
	c.api.Create("n3", peerAnnotations(3))
	c.api.Forget()
	c.api.Delete("n2")
	c.api.Edit("n1", func(n *corev1.Node) { n.Annotations = nil })
	w.shows("n1=10.244.1.0/24" + v4At + "; n3=10.244.3.0/24@192.0.2.3")
	eventually(t, "our annotations", func() bool { return c.api.Node("n1").Annotations["weft.dev/public-ip"] == "192.0.2.1" })
	if r := c.s.Reason(); r != "" {
		t.Errorf("reason %q", r)
	}
	for _, e := range c.api.Events() {
		if e.Type == corev1.EventTypeWarning {
			t.Errorf("Event %s: %s", e.Reason, e.Message)
		}
	}
}

// peerAnnotations are those of node i's agent.
func peerAnnotations(i int) map[string]string {
	return map[string]string{
		"weft.dev/kube-subnet-manager": "true", "weft.dev/backend-type": "vxlan", "weft.dev/subnets": fmt.Sprintf("10.244.%d.0/24", i),
		"weft.dev/backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, i), "weft.dev/public-ip": fmt.Sprintf("192.0.2.%d", i),
	}
}

// Junk in one peer's annotations is a Problem of that peer, which keeps its
// last good lease; the others and we ourselves go on changing.
func TestJunkOfAPeer(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", nil, "10.244.1.0/24")
	c.api.Create("n2", peerAnnotations(2))
	granted, w := c.hold(), c.watch()
	c.granted(granted, "10.244.1.0/24"+v4At)
	w.shows("n1=10.244.1.0/24" + v4At + "; n2=10.244.2.0/24@192.0.2.2")
	c.api.Edit("n2", func(n *corev1.Node) { n.Annotations["weft.dev/backend-data"] = "{" })
	w.shows("JunkLease:n2; n1=10.244.1.0/24" + v4At + "; n2=10.244.2.0/24@192.0.2.2")
	c.api.Create("n3", peerAnnotations(3))
	w.shows("JunkLease:n2; n1=10.244.1.0/24" + v4At + "; n2=10.244.2.0/24@192.0.2.2; n3=10.244.3.0/24@192.0.2.3")
	c.api.Edit("n2", func(n *corev1.Node) { maps.Copy(n.Annotations, peerAnnotations(2)) })
	w.shows("n1=10.244.1.0/24" + v4At + "; n2=10.244.2.0/24@192.0.2.2; n3=10.244.3.0/24@192.0.2.3")
}

// The operator's overwrite is announced at once, in either dialect, and its
// removal too; a bad one is a Problem and the node's own address stays.
func TestOverwriteOfOurAddress(t *testing.T) {
	for _, prefix := range []string{subnet.Domain, subnet.FlannelAnnotationPrefix} {
		t.Run(prefix, func(t *testing.T) {
			c := newCluster(t, v4Conf)
			c.api.Create("n1", nil, "10.244.1.0/24")
			granted, w := c.hold(), c.watch()
			c.granted(granted, "10.244.1.0/24"+v4At)
			name := prefix + "/public-ip-overwrite"
			c.api.Edit("n1", func(n *corev1.Node) { n.Annotations[name] = "203.0.113.1" })
			c.granted(granted, "10.244.1.0/24@203.0.113.1")
			w.shows("n1=10.244.1.0/24@203.0.113.1")
			eventually(t, "the own address is a source", func() bool { return c.api.Node("n1").Annotations["weft.dev/sources"] == "192.0.2.1" })
			c.api.Edit("n1", func(n *corev1.Node) { n.Annotations[name] = "host" })
			c.granted(granted, "10.244.1.0/24"+v4At)
			eventually(t, "a Problem", func() bool {
				all := w.all()
				return strings.Contains(all[len(all)-1], "OverwriteInvalid:n1")
			})
			c.api.Edit("n1", func(n *corev1.Node) { delete(n.Annotations, name) })
			w.shows("n1=10.244.1.0/24" + v4At)
			if _, left := c.api.Node("n1").Annotations["weft.dev/sources"]; left {
				t.Error("weft.dev/sources is left over")
			}
		})
	}
}

// The conditions are put where somebody else wrote his, and are patched when
// they differ and at no other time.
func TestReportKeepsConditions(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", nil, "10.244.1.0/24")
	c.api.Edit("n1", func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
			{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"}}
	})
	c.granted(c.hold(), "10.244.1.0/24"+v4At)
	changed := make(chan struct{})
	c.run(func(ctx context.Context) error {
		return c.s.Report(ctx, changed, func() Health { return Health{DataPlane: Up} })
	})
	has := func() string { return say(c.api.Node("n1").Status.Conditions) }
	const want = "Ready=True NetworkUnavailable=False OverlayDegraded=False"
	eventually(t, want, func() bool { return has() == want })
	c.told("WeftIsUp")
	n := len(c.api.Patches())
	for range 10 {
		changed <- struct{}{}
	}
	if now := len(c.api.Patches()); now != n {
		t.Errorf("%d patches of what is as it should be", now-n)
	}
	for _, p := range c.api.Patches() {
		if p.Subresource != "status" {
			t.Errorf("patched %q of %s, want nodes/status", p.Subresource, p.Node)
		}
	}
}

// An API that refuses what an agent writes is waited for, and is not asked at
// full speed; what it says is in the Reason.
func TestRefusedPatches(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", nil, "10.244.1.0/24")
	c.api.Refuse("ValidatingAdmissionPolicy 'weft-agents' denied request")
	granted := c.hold()
	c.says("refuses this agent", "weft-agents", "ClusterRole")
	c.told("APIRefuses", "weft-agents")
	c.api.Refuse("")
	c.granted(granted, "10.244.1.0/24"+v4At)
}

// However often what is waited for changes, the API gets a bounded number of
// Events about our Node, and what repeats is counted in one.
func TestEventsAreRateLimited(t *testing.T) {
	c := newCluster(t, v4Conf)
	for i := range 200 {
		c.s.leaseWait.Set(fmt.Sprint("Kind", i%50), fmt.Sprint("text ", i))
	}
	eventually(t, "some Events", func() bool { return len(c.api.Events()) >= eventBurst })
	last := 0
	eventually(t, "no more Events", func() bool {
		n := len(c.api.Events())
		time.Sleep(100 * time.Millisecond) // is the subject: nothing comes
		still := n == last
		last = n
		return still
	})
	if n := len(c.api.Events()); n > eventBurst+1 {
		t.Errorf("%d Events, want at most %d", n, eventBurst+1)
	}
}

// A Node that two agents write is not fought over at full speed.
func TestContestedAnnotations(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", nil, "10.244.1.0/24")
	granted, w := c.hold(), c.watch()
	c.granted(granted, "10.244.1.0/24"+v4At)
	mended := 0
	eventually(t, "a Problem", func() bool {
		if len(c.api.Patches()) > mended { // it is right again
			mended = len(c.api.Patches())
			c.api.Edit("n1", func(n *corev1.Node) { n.Annotations["weft.dev/public-ip"] = "192.0.2.99" })
		}
		return slices.ContainsFunc(w.all(), func(text string) bool { return strings.Contains(text, "AnnotationsContested:n1") })
	})
	if n := len(c.api.Patches()); n > contested+5 {
		t.Errorf("%d patches before it was told", n)
	}
}

// An external VTEP (a load balancer, a gateway) is a Node object that no
// kubelet stands behind: podCIDR and annotations are written by hand. With
// weft's annotations its subnets are one of these, and it needs no podCIDR.
func TestExternalVTEP(t *testing.T) {
	const at = "10.244.200.0/24@192.0.2.200"
	byHand := func(prefix string) map[string]string {
		return map[string]string{prefix + "/kube-subnet-manager": "true", prefix + "/backend-type": "vxlan",
			prefix + "/backend-data": `{"VtepMAC":"02:00:00:00:00:aa"}`, prefix + "/public-ip": "192.0.2.200"}
	}
	wefts := byHand(subnet.Domain)
	wefts["weft.dev/subnets"] = "10.244.200.0/24"
	for _, x := range []struct {
		name    string
		flannel bool
		ann     map[string]string
		cidrs   []string
		want    string
	}{
		{"weft", false, wefts, nil, "vtep=" + at},
		{"flannel", true, byHand(subnet.FlannelAnnotationPrefix), []string{"10.244.200.0/24"}, "vtep=" + at},
		{"flannel, without a podCIDR", true, byHand(subnet.FlannelAnnotationPrefix), nil, "JunkLease:vtep"},
		{"flannel's read by weft", false, byHand(subnet.FlannelAnnotationPrefix), []string{"10.244.200.0/24"}, "OneWayPeers:flannel; vtep=" + at},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCluster(t, v4Conf, func(o *Options) { o.Flannel = x.flannel })
			c.api.Create("vtep", x.ann, x.cidrs...)
			w := c.watch()
			w.shows(x.want)
			c.api.Edit("vtep", func(n *corev1.Node) {
				for name := range n.Annotations {
					if strings.HasSuffix(name, "/public-ip") {
						n.Annotations[name] = "192.0.2.201"
					}
				}
			})
			w.shows(strings.Replace(x.want, ".200.0/24@192.0.2.200", ".200.0/24@192.0.2.201", 1))
			c.api.Delete("vtep")
			w.shows("")
		})
	}
}

// A node that only flannel runs on is a peer of weft's in one direction: it is
// read, and on our own Node nothing is written that flannel would read.
func TestFlannelsNodesAreReadAndNotWrittenFor(t *testing.T) {
	c := newCluster(t, v4Conf)
	c.api.Create("n1", map[string]string{"flannel.alpha.coreos.com/public-ip": "192.0.2.9"}, "10.244.1.0/24")
	flannel := map[string]string{}
	for name, v := range peerAnnotations(2) {
		if name != "weft.dev/subnets" {
			flannel[strings.Replace(name, subnet.Domain, subnet.FlannelAnnotationPrefix, 1)] = v
		}
	}
	c.api.Create("n2", flannel, "10.244.2.0/24")
	granted, w := c.hold(), c.watch()
	c.granted(granted, "10.244.1.0/24"+v4At)
	w.shows("OneWayPeers:flannel; n1=10.244.1.0/24" + v4At + "; n2=10.244.2.0/24@192.0.2.2")
	for name, v := range c.api.Node("n1").Annotations {
		if strings.HasPrefix(name, subnet.FlannelAnnotationPrefix) && v != "192.0.2.9" {
			t.Errorf("writes %s: %s", name, v)
		}
	}
}

// The addresses of our Node are those that its status has, internal ones first,
// whether somebody watches it yet or not; names are none of them, and a Node
// that is missing is waited for by name.
func TestNodeAddresses(t *testing.T) {
	c := newCluster(t, dualConf)
	if _, err := c.s.NodeAddresses(t.Context()); err == nil || !strings.Contains(err.Error(), `no Node "n1"`) {
		t.Errorf("without a Node: %v", err)
	}
	c.api.Create("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	if got, err := c.s.NodeAddresses(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("of a Node without a status: %v, %v", got, err)
	}
	report := func(list ...string) {
		c.api.Edit("n1", func(n *corev1.Node) {
			n.Status.Addresses = nil
			for _, a := range list {
				kind, address, _ := strings.Cut(a, " ")
				n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeAddressType(kind), Address: address})
			}
		})
	}
	report("Hostname n1", "ExternalIP 203.0.113.7", "InternalIP 192.0.2.1", "InternalIP 2001:db8::1", "InternalDNS n1.internal", "ExternalIP 192.0.2.1")
	if got, err := c.s.NodeAddresses(t.Context()); err != nil || fmt.Sprint(got) != "[192.0.2.1 2001:db8::1 203.0.113.7]" {
		t.Errorf("read: %v, %v", got, err)
	}
	c.granted(c.hold(), "10.244.1.0/24@192.0.2.1 fd00:244:0:1::/64@2001:db8::1")
	report("InternalIP 192.0.2.2")
	eventually(t, "Hold sees another address", func() bool {
		got, err := c.s.NodeAddresses(t.Context())
		return err == nil && fmt.Sprint(got) == "[192.0.2.2]"
	})
}
