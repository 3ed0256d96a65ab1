// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
)

// Which store it is follows from what is given, and from where this runs.
func TestWhichStore(t *testing.T) {
	pod := []string{"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "NODE_NAME=worker-1"}
	for _, c := range []struct {
		name string
		env  []string
		args string
		want storeKind
		node string
		conf string
	}{
		{"anywhere", nil, "", storeEtcd, "host-1", "/etc/weft/net-conf.json"},
		{"a pod", pod, "", storeKube, "worker-1", "/etc/weft/net-conf.json"},
		{"a pod that is told of an etcd", pod, "--etcd-endpoints=http://127.0.0.1:1", storeEtcd, "host-1", ""},
		{"a pod that is told", pod, "--store=etcd", storeEtcd, "host-1", ""},
		{"told", nil, "--store=kube --net-conf=/x.json", storeKube, "host-1", "/x.json"},
		{"a kubeconfig", nil, "--kubeconfig=/x", storeKube, "host-1", ""},
		{"flannel in a pod", pod, "--flannel-compat", storeEtcd, "host-1", ""},
		{"flannel's flag", pod, "--flannel-compat -kube-subnet-mgr", storeKube, "worker-1", "/etc/kube-flannel/net-conf.json"},
		{"flannel's variable", append(pod, "FLANNELD_KUBE_SUBNET_MGR=true"), "--flannel-compat", storeKube, "worker-1", ""},
		{"flannel's kubeconfig", nil, "--flannel-compat -kubeconfig-file=/x -net-config-path=/y", storeKube, "host-1", "/y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := append([]string{}, c.env...)
			o, err := parseOptions(strings.Fields(c.args), env)
			if err != nil {
				t.Fatal(err)
			}
			if c.node == "host-1" {
				if o.origin["node-name"] != "default" {
					t.Errorf("node name %s from %s", o.NodeName, o.origin["node-name"])
				}
			} else if o.NodeName != c.node {
				t.Errorf("node name %s, want %s", o.NodeName, c.node)
			}
			if o.Store != c.want || c.conf != "" && o.NetConf != c.conf {
				t.Errorf("store %s (%s), configuration %s; want %s, %s", o.Store, o.origin["store"], o.NetConf, c.want, c.conf)
			}
		})
	}
	if o := parse(t, pod); o.NodeName != "n1" {
		t.Errorf("NODE_NAME wins over the flag: %s", o.NodeName)
	}
}

func TestFlannelsKubeFlags(t *testing.T) {
	o := parse(t, nil, "--flannel-compat", "-kube-subnet-mgr", "-kube-api-url=https://192.0.2.1:6443", "-kubeconfig-file=/k",
		"-kube-annotation-prefix=net.example/blue", "-set-node-network-unavailable=false")
	k := kubeStoreOptions(o, nil)
	if k.Server != "https://192.0.2.1:6443" || k.Kubeconfig != "/k" || k.Prefix != "net.example/blue" || !k.Flannel || o.Conditions || len(o.notes) != 0 {
		t.Errorf("%+v, conditions %t, notes %v", k, o.Conditions, o.notes)
	}
	if k := kubeStoreOptions(parse(t, nil, "--store=kube"), nil); k.Prefix != "" || k.Flannel {
		t.Errorf("without the preset: %+v", k)
	}
}

// The Node says that it has no network only when our own part is missing.
func TestWhatIsTheDataPlane(t *testing.T) {
	base := overlay.Status{LastPass: time.Now(), InSync: true, Lease: subnet.Lease{Paths: []subnet.Path{{}}}}
	pending := func(e overlay.Entry) func(*overlay.Status) {
		return func(st *overlay.Status) {
			st.InSync, st.Reason, st.Pending = false, "why", overlay.Changes{{Entry: e}}
		}
	}
	for _, c := range []struct {
		name string
		edit func(*overlay.Status)
		want kube.DataPlane
	}{
		{"in sync", func(*overlay.Status) {}, kube.Up},
		{"before the first pass", func(st *overlay.Status) { st.LastPass = time.Time{} }, kube.Unknown},
		{"without a lease", func(st *overlay.Status) { st.Lease = subnet.Lease{} }, kube.Unknown},
		{"kernel not read", func(st *overlay.Status) { st.InSync = false }, kube.Unknown},
		{"a device missing", pending(overlay.Link{}), kube.Down},
		{"its address missing", pending(overlay.Addr{}), kube.Down},
		{"the table missing", pending(overlay.Filter{}), kube.Down},
		{"a peer's route missing", pending(overlay.Route{}), kube.Up},
		{"a peer's neighbour missing", pending(overlay.Neigh{}), kube.Up},
	} {
		st := base
		c.edit(&st)
		got, why := dataPlane(st)
		if got != c.want || (why != "") != (got == kube.Down) {
			t.Errorf("%s: %v, %q; want %v", c.name, got, why, c.want)
		}
	}
}

// The runtime is told of this node's own data plane only, and when it has been
// down for a while.
func TestDown(t *testing.T) {
	a, _ := bare(t)
	st := overlay.Status{LastPass: time.Now(), Lease: subnet.Lease{Paths: []subnet.Path{{}}}, Reason: "why", Pending: overlay.Changes{{Entry: overlay.Route{}}}}
	says := func(want string) {
		t.Helper()
		var s api.Status
		a.watchDown(st)
		if a.fill(&s, st); s.Down != want {
			t.Errorf("down: %q, want %q", s.Down, want)
		}
	}
	long := time.Now().Add(-kube.DownFor)
	a.downSince.Store(&long)
	says("") // a peer's route
	st.Pending = overlay.Changes{{Entry: overlay.Link{}}}
	says("")
	a.downSince.Store(&long)
	says("why")
	st.Pending, st.InSync, st.Reason = nil, true, ""
	says("")
	st.Pending, st.InSync, st.Reason = overlay.Changes{{Entry: overlay.Link{}}}, false, "why"
	says("")
}

// A condition's message is the same while the same things are wrong.
func TestDegraded(t *testing.T) {
	s := api.Status{}
	if got := degraded(s); got != "" {
		t.Errorf("nothing is wrong: %q", got)
	}
	for _, kind := range []string{"E", "B", "A", "B", "D", "C"} {
		s.Problems = append(s.Problems, subnet.Problem{Kind: kind, Object: "o", Detail: time.Now().String()})
	}
	if got, want := degraded(s), "A o, B o, C o and 2 more; `weft status` on this node says more"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
