// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"weft.dev/weft/cni-shim/ledger"
)

// TestOnNode runs the real plugin with the real bridge and host-local, each
// time on a node that is a network namespace of its own.
func TestOnNode(t *testing.T) {
	p := buildPlugins(t)
	for name, test := range map[string]func(*testing.T, plugins){
		"add dual-stack":            addDualStack,
		"add one family":            addOneFamily,
		"add for a pod":             addForAPod,
		"add where policies are":    addAdmitted,
		"own route to the network":  addOwnRoute,
		"dns and args":              addDNSAndArgs,
		"two interfaces":            twoInterfaces,
		"chain through libcni":      chain,
		"versions":                  versions,
		"version command":           versionCommand,
		"del twice":                 delTwice,
		"del with less and less":    delWithLess,
		"del of nothing":            delOfNothing,
		"del after a failed add":    delAfterFailedAdd,
		"add without an agent":      addWithoutAgent,
		"add with a torn lease":     addTornLease,
		"add of a bad conf":         addBadConf,
		"state before the delegate": stateBeforeDelegate,
		"masquerading goes":         masqueradingGoes,
		"check":                     check,
		"status":                    status,
		"check of what is not so":   checkNotSo,
		"status of a limited node":  statusLimited,
		"gc":                        gc,
		"gc of others":              gcOthers,
		"gc goes on":                gcGoesOn,
		"gc of a bad list":          gcBadList,
		"add twice":                 addTwice,
		"add undone":                addUndone,
		"add where another is":      addWhereAnotherIs,
		"add to the node itself":    addToTheNode,
		"add while the lease moves": addLeaseMoves,
		"del waits for an add":      delWaits,
		"older and newer states":    otherVersions,
	} {
		t.Run(name, func(t *testing.T) { test(t, p) })
	}
}

func addDualStack(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.conf["delegate"] = map[string]any{"isDefaultGateway": true, "ipMasq": false}
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	checkPod(t, pod, "eth0", 1430, "10.42.1.2/24", "fd00:42:0:1::2/64")
	checkRoutes(t, pod, []string{
		"default via 10.42.1.1", "10.42.0.0/16 via 10.42.1.1", "10.42.1.0/24 via ",
		"default via fd00:42:0:1::1", "fd00:42::/48 via fd00:42:0:1::1", "fd00:42:0:1::/64 via ",
	})
	checkPod(t, n.netns, "cni0", 1430, "10.42.1.1/24", "fd00:42:0:1::1/64")
	if got := n.states(t); !slices.Equal(got, []string{"c1:eth0"}) {
		t.Errorf("states %v", got)
	}
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	n.clean(t)
}

func addOneFamily(t *testing.T, p plugins) {
	for _, c := range []struct {
		lease, addr, route string
		mtu                int
	}{
		{"v4", "10.42.1.2/24", "10.42.0.0/16 via 10.42.1.1", 1450},
		{"v6", "fd00:42:0:1::2/64", "fd00:42::/48 via fd00:42:0:1::1", 1430},
	} {
		n, pod := newNode(t, p, c.lease), newNetns(t)
		n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
		checkPod(t, pod, "eth0", c.mtu, c.addr)
		if !slices.Contains(routes(t, pod), c.route) {
			t.Errorf("%s: no route %s in %v", c.lease, c.route, routes(t, pod))
		}
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
		n.clean(t)
	}
}

// addForAPod: what the agent has to know of a pod before it lets anything pass
// is in the ledger when ADD returns, and a runtime without Kubernetes is none.
func addForAPod(t *testing.T, p plugins) {
	n := newNode(t, p, "dual")
	const args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=app;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=7f"
	for id, c := range map[string]struct {
		args string
		want *ledger.Pod
	}{"c1": {args, &ledger.Pod{Namespace: "app", Name: "web-0", UID: "7f"}}, "c2": {"IgnoreUnknown=1;LABEL=x", nil}, "c3": {}} {
		pod := newNetns(t)
		n.ok(t, call{command: "ADD", id: id, ifName: "eth0", netns: pod.path, args: c.args})
		a, err := attachmentOf(n.dataDir(), id, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		_, stamp, _, err := a.load()
		if err != nil {
			t.Fatal(err)
		}
		var links []struct{ Address string }
		pod.ip(t, &links, "link", "show", "eth0")
		if !reflect.DeepEqual(stamp.Pod, c.want) || stamp.MAC != links[0].Address || len(stamp.Addrs) != 2 || len(stamp.Ports) != 1 {
			t.Errorf("CNI_ARGS %q: stamp %+v, want pod %+v and MAC %s", c.args, stamp, c.want, links[0].Address)
		}
	}
	n.fails(t, call{command: "ADD", id: "c4", ifName: "eth0", netns: newNetns(t).path, args: "K8S_POD_NAME"}, types.ErrInvalidEnvironmentVariables, `CNI_ARGS "K8S_POD_NAME"`)
}

// addOwnRoute: bridge refuses the same route twice, so a user's route to the
// pod network takes the place of ours.
func addOwnRoute(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.conf["ipam"] = map[string]any{"dataDir": n.dir + "/ipam", "routes": []any{
		map[string]any{"dst": "10.42.0.0/16"}, map[string]any{"dst": "fd00:42::/48"},
	}}
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	for _, want := range []string{"10.42.0.0/16 via 10.42.1.1", "fd00:42::/48 via fd00:42:0:1::1"} {
		if !slices.Contains(routes(t, pod), want) {
			t.Errorf("no route %s in %v", want, routes(t, pod))
		}
	}
}

// addDNSAndArgs: what flannel's plugin drops on the way.
func addDNSAndArgs(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "v4"), newNetns(t)
	conf := n.with(map[string]any{
		"dns":           map[string]any{"nameservers": []string{"10.43.0.10"}},
		"args":          map[string]any{"cni": map[string]any{"ips": []string{"10.42.1.77"}}},
		"runtimeConfig": map[string]any{"mac": "02:00:00:00:00:77"},
	})
	o := n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: conf})
	checkPod(t, pod, "eth0", 1450, "10.42.1.77/24")
	var r current.Result
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.DNS.Nameservers, []string{"10.43.0.10"}) {
		t.Errorf("dns %v", r.DNS)
	}
	var links []struct{ Address string }
	pod.ip(t, &links, "link", "show", "eth0")
	if links[0].Address != "02:00:00:00:00:77" {
		t.Errorf("MAC %s", links[0].Address)
	}
}

// twoInterfaces is what Multus does: flannel's states collide there, and the
// first DEL takes the other's. Both attachments are on one bridge, so the
// second one's routes need a metric of their own.
func twoInterfaces(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	second := n.with(map[string]any{"delegate": map[string]any{"ipMasq": false}, "ipam": map[string]any{
		"dataDir": n.dir + "/ipam", "routes": []any{
			map[string]any{"dst": "10.42.0.0/16", "priority": 9}, map[string]any{"dst": "fd00:42::/48", "priority": 9},
		}}})
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	n.ok(t, call{command: "ADD", id: "c1", ifName: "net1", netns: pod.path, conf: second})
	if got := n.states(t); !slices.Equal(got, []string{"c1:eth0", "c1:net1"}) {
		t.Errorf("states %v", got)
	}
	if got := n.addresses(t); len(got) != 4 {
		t.Errorf("addresses %v, want 4", got)
	}
	checkPod(t, pod, "net1", 1430, "10.42.1.3/24", "fd00:42:0:1::3/64")
	n.ok(t, call{command: "DEL", id: "c1", ifName: "net1", netns: pod.path, conf: second})
	checkPod(t, pod, "eth0", 1430, "10.42.1.2/24", "fd00:42:0:1::2/64")
	if got := n.addresses(t); !slices.Equal(got, []string{"10.42.1.2", "fd00:42:0:1::2"}) {
		t.Errorf("addresses %v after the first DEL", got)
	}
	if got := n.states(t); !slices.Equal(got, []string{"c1:eth0"}) {
		t.Errorf("states %v after the first DEL", got)
	}
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	n.clean(t)
}

// chain runs ADD, CHECK, STATUS, DEL the way containerd does: a list with the
// versions that weft offers, through libcni, portmap last.
func chain(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.conf["delegate"] = map[string]any{"isDefaultGateway": true, "ipMasq": false}
	cni, list := n.runtime(t, map[string]any{
		"cniVersion": "1.0.0", "cniVersions": []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, "name": "weft",
		"plugins": []any{n.with(map[string]any{"cniVersion": nil, "name": nil}),
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}}},
	})
	if list.CNIVersion != "1.1.0" {
		t.Errorf("libcni picks version %s, want 1.1.0", list.CNIVersion)
	}
	rt := &libcni.RuntimeConf{ContainerID: "c1", IfName: "eth0", NetNS: pod.path}
	n.do(func() {
		if err := cni.GetStatusNetworkList(t.Context(), list); err != nil {
			t.Errorf("STATUS: %v", err)
		}
		got, err := cni.AddNetworkList(t.Context(), list, rt)
		if err != nil {
			t.Errorf("ADD: %v", err)
			return
		}
		r, err := current.NewResultFromResult(got)
		if err != nil || len(r.IPs) != 2 || len(r.Interfaces) != 3 {
			t.Errorf("result %+v, %v", got, err)
		}
		if err := cni.CheckNetworkList(t.Context(), list, rt); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		for range 2 {
			if err := cni.DelNetworkList(t.Context(), list, rt); err != nil {
				t.Errorf("DEL: %v", err)
			}
		}
	})
	n.clean(t)
}

// versions: the result is in the version of the configuration; others are
// refused with code 1.
func versions(t *testing.T, p plugins) {
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		n, pod := newNode(t, p, "dual"), newNetns(t)
		conf := n.with(map[string]any{"cniVersion": v})
		o := n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: conf})
		var r struct {
			CNIVersion string
			IPs        []struct {
				Version string // until 0.4.0
				Address string
			}
		}
		if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
			t.Fatal(err)
		}
		if r.CNIVersion != v || len(r.IPs) != 2 || r.IPs[0].Address != "10.42.1.2/24" || r.IPs[1].Address != "fd00:42:0:1::2/64" {
			t.Errorf("%s: result %s", v, o.stdout)
		}
		if old := v < "1"; old != (r.IPs[0].Version == "4") {
			t.Errorf("%s: result in another version's form: %s", v, o.stdout)
		}
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path, conf: conf})
		n.clean(t)
	}
	n, pod := newNode(t, p, "dual"), newNetns(t)
	for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0"} {
		n.fails(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: n.with(map[string]any{"cniVersion": v})}, 1, v)
	}
	n.clean(t)
}

func versionCommand(t *testing.T, p plugins) {
	o := newNode(t, p, "").ok(t, call{command: "VERSION"})
	want := `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`
	if strings.TrimSpace(o.stdout) != want {
		t.Errorf("got %s, want %s", o.stdout, want)
	}
}

// checkPod compares an interface's MTU and global addresses.
func checkPod(t *testing.T, ns *netns, dev string, mtu int, want ...string) {
	t.Helper()
	var links []struct {
		MTU      int
		AddrInfo []struct {
			Local     netip.Addr
			PrefixLen int
			Scope     string
		} `json:"addr_info"`
	}
	ns.ip(t, &links, "addr", "show", "dev", dev)
	var got []string
	for _, a := range links[0].AddrInfo {
		if a.Scope == "global" {
			got = append(got, fmt.Sprintf("%s/%d", a.Local, a.PrefixLen))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if links[0].MTU != mtu || !slices.Equal(got, want) {
		t.Errorf("%s has MTU %d and %v, want %d and %v", dev, links[0].MTU, got, mtu, want)
	}
}

// routes lists a namespace's routes in both families as "DST via GATEWAY".
func routes(t *testing.T, ns *netns) []string {
	t.Helper()
	var all []string
	for _, family := range []string{"-4", "-6"} {
		var table []struct{ Dst, Gateway string }
		ns.ip(t, &table, family, "route", "show")
		for _, r := range table {
			if r.Dst != "fe80::/64" { // every interface has it
				all = append(all, r.Dst+" via "+r.Gateway)
			}
		}
	}
	return all
}

func checkRoutes(t *testing.T, ns *netns, want []string) {
	t.Helper()
	got := routes(t, ns)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("routes %q, want %q", got, want)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}
