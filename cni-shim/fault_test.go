// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"weft.dev/weft/cni-shim/ledger"
)

func delTwice(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	for range 2 {
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
		n.clean(t)
	}
}

// delWithLess takes away what DEL could use: addresses are freed all the same,
// where flannel's plugin answers success and leaks them.
func delWithLess(t *testing.T, p plugins) {
	for _, c := range []struct {
		name   string
		take   func(t *testing.T, n *node)
		podset func(path string) string
	}{
		{"the state is gone", func(t *testing.T, n *node) {
			remove(t, n.dataDir()+"/c1:eth0")
		}, nil},
		{"the state is torn", func(t *testing.T, n *node) {
			write(t, n.dataDir()+"/c1:eth0", `{"cniVersion":"1.0.0","na`, 0o600)
		}, nil},
		{"the lease is gone", func(t *testing.T, n *node) {
			remove(t, n.subnetFile())
		}, nil},
		{"the lease is another", func(t *testing.T, n *node) {
			write(t, n.subnetFile(), string(readFile(t, "testdata/env/multi.env")), 0o644)
		}, nil},
		{"the namespace is gone", func(*testing.T, *node) {}, func(string) string { return "/proc/1/task/0/ns/net" }},
		{"no namespace is given", func(*testing.T, *node) {}, func(string) string { return "" }},
		{"the configuration is broken", func(t *testing.T, n *node) {
			n.conf["args"] = "K=V"
		}, nil},
		{"the delegate is broken and the state is gone", func(t *testing.T, n *node) {
			n.conf["delegate"] = map[string]any{"type": 5}
			remove(t, n.dataDir()+"/c1:eth0")
		}, nil},
		{"state and lease are gone", func(t *testing.T, n *node) {
			remove(t, n.dataDir()+"/c1:eth0")
			remove(t, n.subnetFile())
		}, nil},
		{"the state is gone, the lease is torn", func(t *testing.T, n *node) {
			remove(t, n.dataDir()+"/c1:eth0")
			write(t, n.subnetFile(), "FLANNEL_MTU\n", 0o644)
		}, nil},
		{"state, lease and namespace are gone", func(t *testing.T, n *node) {
			remove(t, n.dataDir()+"/c1:eth0")
			remove(t, n.subnetFile())
		}, func(string) string { return "" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, pod, second := newNode(t, p, "dual"), newNetns(t), newNetns(t)
			n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
			n.ok(t, call{command: "ADD", id: "c2", ifName: "eth0", netns: second.path})
			c.take(t, n)
			path := pod.path
			if c.podset != nil {
				path = c.podset(path)
			}
			n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: path})
			if got := n.addresses(t); strings.Join(got, " ") != "10.42.1.3 fd00:42:0:1::3" {
				t.Errorf("addresses %v, want those of the other container alone", got)
			}
		})
	}
}

// delOfNothing: a runtime may delete what never was.
func delOfNothing(t *testing.T, p plugins) {
	for _, lease := range []string{"dual", ""} {
		n, pod := newNode(t, p, lease), newNetns(t)
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0"})
		n.ok(t, call{command: "DEL", id: strings.Repeat("c", ledger.MaxContainerID+1), ifName: "eth0", netns: pod.path})
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path, conf: n.with(map[string]any{"delegate": []int{}})})
		n.fails(t, call{command: "DEL", id: "../c1", ifName: "eth0", netns: pod.path}, 4)
		n.fails(t, call{command: "DEL", id: "c1", ifName: "../eth0", netns: pod.path}, 4)
		n.clean(t)
	}
}

func delAfterFailedAdd(t *testing.T, p plugins) {
	n := newNode(t, p, "dual")
	n.fails(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: n.dir + "/no-such-netns"}, 999, `delegate "bridge"`, "no-such-netns")
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: n.dir + "/no-such-netns"})
	n.clean(t)
}

// addWithoutAgent: until there is a lease the runtime may try again, and reads
// why; once there is one, the agent may be down.
func addWithoutAgent(t *testing.T, p plugins) {
	n, pod := newNode(t, p, ""), newNetns(t)
	socket := n.dir + "/weftd.sock"
	add := call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}
	n.fails(t, add, 11, "weftd is not running: no socket at "+socket+" (is the agent started?)", n.subnetFile())

	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	n.fails(t, add, 11, "weftd is not running: nobody listens on "+socket)

	n.conf["agentSocket"] = answerWith(t, "HTTP/1.0 200 OK\r\n\r\n"+
		`{"ready":false,"reason":"waiting for etcd http://10.0.0.1:2379: connection refused"}`)
	n.fails(t, add, 11, "weftd is not ready: waiting for etcd http://10.0.0.1:2379: connection refused")

	if err := os.Mkdir(n.subnetFile(), 0o755); err != nil {
		t.Fatal(err)
	}
	n.fails(t, add, 11, "weftd is not ready: waiting for etcd", "is a directory")
	n.clean(t)

	remove(t, n.subnetFile())
	write(t, n.subnetFile(), string(readFile(t, "testdata/env/dual.env")), 0o644)
	for _, silent := range []string{n.dir + "/none.sock", socket} {
		n.conf["agentSocket"] = silent
		n.ok(t, add)
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	}
	n.clean(t)
}

// addTornLease: flannel's plugin panics on the first of these.
func addTornLease(t *testing.T, p plugins) {
	n, pod := newNode(t, p, ""), newNetns(t)
	for content, want := range map[string]string{
		"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU": `line 3 "FLANNEL_MTU"`,
		"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1":                   `line 2: FLANNEL_SUBNET=10.42.1`,
		"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n":            "FLANNEL_MTU",
		"":                 "FLANNEL_SUBNET",
		"\x00\x00\x00\x00": `line 1 "\x00`,
	} {
		write(t, n.subnetFile(), content, 0o644)
		n.fails(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}, 11, n.subnetFile(), want)
	}
	n.clean(t)
}

func addBadConf(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	add := call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}
	for _, c := range []struct {
		fields map[string]any
		code   uint
		texts  []string
	}{
		{map[string]any{"delegate": map[string]any{"name": "x"}}, 7, []string{`delegate.name is "x"`}},
		{map[string]any{"dataDir": "state"}, 7, []string{`dataDir is "state"`, "absolute"}},
		{map[string]any{"name": nil}, 7, []string{"missing network name"}},
		{map[string]any{"delegate": map[string]any{"type": "no-such-plugin"}}, 999, []string{`delegate "no-such-plugin"`, "failed to find plugin"}},
		{map[string]any{"dataDir": "/proc/1/weft"}, 5, []string{"dataDir", "/proc/1/weft"}},
	} {
		add.conf = n.with(c.fields)
		n.fails(t, add, c.code, c.texts...)
	}
	add.conf, add.raw = nil, []byte("{")
	n.fails(t, add, 6)
	add.raw, add.id = nil, "../c1"
	n.fails(t, add, 4)
	add.id = strings.Repeat("c", ledger.MaxContainerID+1)
	n.fails(t, add, 4, "206 bytes", "at most 200")
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	n.clean(t)
}

// stateBeforeDelegate uses a delegate that looks for its own state and then
// fails with a code of its own.
func stateBeforeDelegate(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "witness"), "#!/bin/sh\ncat > "+dir+"/stdin\ncp -p "+n.dataDir()+"/c1:eth0 "+dir+"/state\n"+
		`echo '{"code": 117, "msg": "out of order", "details": "for the test"}'; exit 1`+"\n", 0o755)
	n.conf["delegate"] = map[string]any{"type": "witness"}
	n.fails(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, path: []string{dir}},
		117, `delegate "witness": out of order; for the test`)
	seen, stamp, stamped, err := ledger.Decode(readFile(t, dir+"/state"))
	if got := readFile(t, dir+"/stdin"); err != nil || !reflect.DeepEqual(decode(t, seen), decode(t, got)) {
		t.Errorf("state %s (%v), but the delegate gets %s", seen, err, got)
	}
	if !stamped || stamp.Phase != ledger.Adding || stamp.Netns != pod.path || stamp.NetnsInode == 0 || stamp.NetnsID == nil {
		t.Errorf("stamp %+v", stamp)
	}
	if st, err := os.Stat(dir + "/state"); err != nil || st.Mode() != 0o600 {
		t.Errorf("state has mode %v, %v", st.Mode(), err)
	}
}

// masqueradingGoes: with no state and no lease, rules that the bridge plugin
// made for the container are removed too.
func masqueradingGoes(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t) // this lease leaves masquerading to the bridge plugin
	rules := func() (out string) {
		n.do(func() {
			b, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
			if err != nil {
				t.Errorf("nft: %v: %s", err, b)
			}
			out = string(b)
		})
		return out
	}
	n.conf["delegate"] = map[string]any{"ipMasqBackend": "nftables"}
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	if !strings.Contains(rules(), "10.42.1.2") {
		t.Fatalf("no masquerading rule:\n%s", rules())
	}
	remove(t, n.dataDir()+"/c1:eth0")
	remove(t, n.subnetFile())
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	if strings.Contains(rules(), "10.42.1.2") {
		t.Errorf("the rule is left:\n%s", rules())
	}
	n.clean(t)
}
