// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/cni-shim/ledger"
)

func check(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.conf["delegate"] = map[string]any{"ipMasq": false}
	chk := call{command: "CHECK", id: "c1", ifName: "eth0", netns: pod.path}
	n.fails(t, chk, 5, "c1:eth0")
	o := n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	chk.conf = n.with(map[string]any{"prevResult": decode(t, []byte(o.stdout))})
	n.ok(t, chk)
	pod.run(t, "ip", "addr", "flush", "dev", "eth0")
	n.fails(t, chk, 999, `delegate "bridge"`)
}

// checkNotSo: CHECK says what the delegate cannot know.
func checkNotSo(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.conf["delegate"] = map[string]any{"ipMasq": false}
	o := n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	chk := call{command: "CHECK", id: "c1", ifName: "eth0", netns: pod.path,
		conf: n.with(map[string]any{"prevResult": decode(t, []byte(o.stdout))})}
	state := n.dataDir() + "/c1:eth0"
	conf, stamp, _, err := ledger.Decode(readFile(t, state))
	if err != nil {
		t.Fatal(err)
	}
	restamp := func(s ledger.Stamp) {
		data, err := ledger.Encode(conf, s)
		if err != nil {
			t.Fatal(err)
		}
		write(t, state, string(data), 0o600)
	}
	for want, change := range map[string]func(*ledger.Stamp){
		"before this machine was last started": func(s *ledger.Stamp) { s.Boot = "another" },
		"has not finished":                     func(s *ledger.Stamp) { s.Phase = ledger.Adding },
		"DEL of c1:eth0 has begun":             func(s *ledger.Stamp) { s.Phase = ledger.Deleting },
	} {
		s := stamp
		change(&s)
		restamp(s)
		n.fails(t, chk, 999, want)
	}
	restamp(stamp)
	n.ok(t, chk)
	for _, unstamped := range []bool{false, true} {
		if unstamped {
			write(t, state, string(conf), 0o600) // as an older version leaves it
		}
		write(t, n.subnetFile(), strings.ReplaceAll(string(readFile(t, "testdata/env/dual.env")), "10.42.1.1/24", "10.42.7.1/24"), 0o644)
		n.fails(t, chk, 11, "10.42.1.2", "10.42.7.1/24", "the lease has changed")
		write(t, n.subnetFile(), string(readFile(t, "testdata/env/dual.env")), 0o644)
		n.ok(t, chk)
	}
	remove(t, n.subnetFile())
	n.fails(t, chk, 11, "lease cannot be read")
}

func status(t *testing.T, p plugins) {
	n := newNode(t, p, "")
	n.conf["cniVersion"] = "1.1.0"
	n.fails(t, call{command: "STATUS"}, 50, "weftd is not running: no socket at "+n.dir+"/weftd.sock")
	write(t, n.subnetFile(), string(readFile(t, "testdata/env/v4.env")), 0o644)
	n.ok(t, call{command: "STATUS"})
	n.fails(t, call{command: "STATUS", conf: n.with(map[string]any{"delegate": map[string]any{"type": "no-such-plugin"}})}, 999, "no-such-plugin")
	n.fails(t, call{command: "STATUS", conf: n.with(map[string]any{"delegate": map[string]any{"ipam": 1}})}, 7, "delegate.ipam")
	n.fails(t, call{command: "STATUS", conf: n.with(map[string]any{"cniVersion": "1.0.0"})}, 1)
}

// statusLimited: an agent whose own data plane is down makes 51; one that cannot
// reach a peer, that is down itself, has only just started, or is something else
// does not.
func statusLimited(t *testing.T, p plugins) {
	n := newNode(t, p, "v4")
	n.conf["cniVersion"] = "1.1.0"
	const looked = `,"lastPass":"2026-08-01T00:00:00Z"`
	const down = looked + `,"down":"device weft.1 is missing"`
	peers := `,"peers":[` + strings.Repeat(`{"node":"n"},`, 200000) + `{}]` // 2.6 MB, as of a large network
	for answer, why := range map[string]string{
		`{"ready":true` + looked + peers + `}`:             "",
		`{"ready":false,"reason":"waiting for etcd"` + `}`: "",
		`{"up":1}`: "",
		`{"ready":false,"reason":"route to 10.42.2.0/24 is missing"` + looked + `}`:  "",
		`{"ready":false,"reason":"device weft.1 is missing"` + peers + down + `}`:    "weftd is not ready: device weft.1 is missing",
		`{"ready":false,"reason":"node b has it","problems":[{"kind":"LeaseLost"}]}`: "weftd is not ready: node b has it",
		`{"ready":false` + down + `}`: "weftd is not ready and gives no reason",
	} {
		n.conf["agentSocket"] = answerWith(t, "HTTP/1.0 200 OK\r\n\r\n"+answer)
		if why == "" {
			n.ok(t, call{command: "STATUS"})
			continue
		}
		n.fails(t, call{command: "STATUS"}, 51, why)
		remove(t, n.subnetFile()) // without a lease there is no ADD: 50
		n.fails(t, call{command: "STATUS"}, 50, why)
		write(t, n.subnetFile(), string(readFile(t, "testdata/env/v4.env")), 0o644)
	}
}

// gcConf is the node's configuration for GC.
func (n *node) gcConf(valid ...string) map[string]any {
	list := []any{}
	for _, v := range valid {
		id, ifName, _ := strings.Cut(v, ":")
		list = append(list, map[string]any{"containerID": id, "ifname": ifName})
	}
	return n.with(map[string]any{"cniVersion": "1.1.0", "cni.dev/valid-attachments": list})
}

// gc frees all but what is listed, whatever is left of it: a living pod, one
// whose namespace is gone, addresses without a state, a killed reservation. A
// second call finds nothing.
func gc(t *testing.T, p plugins) {
	n, keep := newNode(t, p, "dual"), newNetns(t)
	n.ok(t, call{command: "ADD", id: "keep", ifName: "eth0", netns: keep.path})
	stale := newNetns(t)
	for _, ifName := range []string{"eth0", "net1"} {
		conf := n.with(map[string]any{"ipam": map[string]any{"dataDir": n.dir + "/ipam", "routes": []any{
			map[string]any{"dst": "10.42.0.0/16", "priority": len(ifName) + int(ifName[0])}, map[string]any{"dst": "fd00:42::/48", "priority": len(ifName) + int(ifName[0])},
		}}})
		n.ok(t, call{command: "ADD", id: "stale", ifName: ifName, netns: stale.path, conf: conf})
	}
	gone := newNetns(t)
	n.ok(t, call{command: "ADD", id: "gone", ifName: "eth0", netns: gone.path})
	gone.end()
	n.ok(t, call{command: "ADD", id: "stateless", ifName: "eth0", netns: newNetns(t).path})
	remove(t, n.dataDir()+"/stateless:eth0")
	write(t, n.dir+"/ipam/weft/10.42.1.99", "", 0o600)
	write(t, n.dir+"/ipam/weft/10.42.1.98", "ancient", 0o600)
	write(t, n.dir+"/ipam/weft/10.42.1.97", "keep", 0o600)
	for range 2 {
		n.ok(t, call{command: "GC", conf: n.gcConf("keep:eth0", "unknown:eth0")})
		if got := n.addresses(t); !slices.Equal(got, []string{"10.42.1.2", "10.42.1.97", "fd00:42:0:1::2"}) {
			t.Errorf("addresses %v", got)
		}
		if got := n.states(t); !slices.Equal(got, []string{"keep:eth0"}) {
			t.Errorf("states %v", got)
		}
		checkPod(t, keep, "eth0", 1430, "10.42.1.2/24", "fd00:42:0:1::2/64")
	}
	var left []struct{ Ifname string }
	stale.ip(t, &left, "link", "show", "type", "veth")
	if len(left) != 0 {
		t.Errorf("the stale pod still has %v", left)
	}
	n.fails(t, call{command: "GC"}, 1) // 1.0.0 knows no GC
	// A runtime in Go without any pod says null.
	n.ok(t, call{command: "GC", conf: n.with(map[string]any{"cniVersion": "1.1.0", "cni.dev/valid-attachments": rawNull{}})})
	if got := n.addresses(t); got != nil {
		t.Errorf("addresses %v with an empty list", got)
	}
}

// rawNull is null in JSON, where nil would remove the field.
type rawNull struct{}

func (rawNull) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// gcOthers: another network's pods, and calls at work, are not concerned; and
// a namespace's path that now leads to another namespace is not entered.
func gcOthers(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	other := n.with(map[string]any{"name": "other", "delegate": map[string]any{"bridge": "cni1", "ipMasq": false}})
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, conf: other})
	busy := newNetns(t)
	n.ok(t, call{command: "ADD", id: "busy", ifName: "eth0", netns: busy.path})
	lock, err := ledger.LockAttachment(t.Context(), n.dataDir(), ledger.Key{ContainerID: "busy", IfName: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	write(t, n.dataDir()+"/flannels-own", `{"name":"weft","type":"bridge"}`, 0o600)

	reused := n.dir + "/netns"
	old := newNetns(t)
	bind(t, old.path, reused)
	n.ok(t, call{command: "ADD", id: "old", ifName: "eth0", netns: reused})
	unbind(t, reused)
	young := newNetns(t)
	bind(t, young.path, reused)
	defer unbind(t, reused)
	young.run(t, "ip", "link", "add", "eth0", "type", "bridge")

	n.ok(t, call{command: "GC", conf: n.gcConf()})
	if got := n.states(t); !slices.Equal(got, []string{"busy:eth0", "c1:eth0", "flannels-own", "busy:eth0.lock"}) {
		t.Errorf("states %v", got)
	}
	if got := n.addresses(t); len(got) != 2 {
		t.Errorf("addresses %v, want those of busy", got)
	}
	if got := names(t, n.dir+"/ipam/other"); !slices.Contains(got, "10.42.1.2") {
		t.Errorf("the other network has %v", got)
	}
	young.run(t, "ip", "link", "show", "eth0")
	lock.Unlock()
	n.ok(t, call{command: "GC", conf: n.gcConf()})
	if got := n.addresses(t); got != nil {
		t.Errorf("addresses %v", got)
	}
}

// gcGoesOn: an attachment whose delegate fails is named, keeps its state and
// does not stop the others; so does a delegate that refuses GC itself.
func gcGoesOn(t *testing.T, p plugins) {
	n := newNode(t, p, "dual")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "stubborn"), "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\":\"1.0.0\"}' && exit\n"+
		`echo '{"code": 117, "msg": "no '$CNI_COMMAND' today"}'; exit 1`+"\n", 0o755)
	conf := n.with(map[string]any{"delegate": map[string]any{"type": "stubborn"}})
	path := []string{dir}
	for i := range 3 {
		n.ok(t, call{command: "ADD", id: fmt.Sprintf("a%d", i), ifName: "eth0", netns: newNetns(t).path})
		n.ok(t, call{command: "ADD", id: fmt.Sprintf("s%d", i), ifName: "eth0", netns: newNetns(t).path, conf: conf, path: path})
	}
	n.fails(t, call{command: "GC", conf: n.gcConf(), path: path}, 999, "GC of network weft", "s0:eth0", "s1:eth0", "s2:eth0", "no DEL today")
	if got := n.states(t); !slices.Equal(got, []string{"s0:eth0", "s1:eth0", "s2:eth0"}) || n.addresses(t) != nil {
		t.Errorf("states %v, addresses %v", got, n.addresses(t))
	}
	n.conf = conf
	n.fails(t, call{command: "GC", conf: n.gcConf("s0:eth0", "s1:eth0", "s2:eth0"), path: path}, 999, "no GC today")
}

// gcBadList: a list that cannot be read frees nothing.
func gcBadList(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	n.fails(t, call{command: "GC", conf: n.with(map[string]any{"cniVersion": "1.1.0"})}, 7, "cni.dev/valid-attachments is missing")
	for _, list := range []any{"all", 5, map[string]any{}, []any{5}, []any{map[string]any{"containerID": 5}}} {
		n.fails(t, call{command: "GC", conf: n.with(map[string]any{"cniVersion": "1.1.0", "cni.dev/valid-attachments": list})}, 7, "cni.dev/valid-attachments is")
	}
	checkPod(t, pod, "eth0", 1430, "10.42.1.2/24", "fd00:42:0:1::2/64")
	if got := n.states(t); !slices.Equal(got, []string{"c1:eth0"}) {
		t.Errorf("states %v", got)
	}
}

// addTwice: a second ADD of an attachment is refused by the delegate, and the
// first one is as it was: neither undone nor marked as half done.
func addTwice(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	add := call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}
	n.ok(t, add)
	before := readFile(t, n.dataDir()+"/c1:eth0")
	n.fails(t, add, 999, `delegate "bridge"`)
	if after := readFile(t, n.dataDir()+"/c1:eth0"); string(after) != string(before) {
		t.Errorf("the state was %s, is %s", before, after)
	}
	checkPod(t, pod, "eth0", 1430, "10.42.1.2/24", "fd00:42:0:1::2/64")
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	n.clean(t)
}

// addWhereAnotherIs: an interface that somebody else has attached stays, and is
// named.
func addWhereAnotherIs(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	n.fails(t, call{command: "ADD", id: "c2", ifName: "eth0", netns: pod.path}, 4, "eth0", pod.path, "c2")
	checkPod(t, pod, "eth0", 1430, "10.42.1.2/24", "fd00:42:0:1::2/64")
	if got := n.states(t); !slices.Equal(got, []string{"c1:eth0"}) {
		t.Errorf("states %v", got)
	}
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	n.clean(t)
}

// addToTheNode: the namespace of the plugin itself is no pod's. Neither ADD nor
// DEL touches what is in it.
func addToTheNode(t *testing.T, p plugins) {
	n := newNode(t, p, "dual")
	n.netns.run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	for _, command := range []string{"ADD", "DEL"} {
		for _, name := range []string{"up0", "new0"} {
			c := call{command: command, id: "c1", ifName: name, netns: n.netns.path}
			if command == "ADD" {
				n.fails(t, c, 4, "CNI_NETNS", n.netns.path)
				continue
			}
			n.fails(t, c, 8, "CNI_NETNS") // skel's own word, after the plugin's DEL
		}
		n.netns.run(t, "ip", "link", "show", "dev", "up0") // an error if it is gone
	}
}

// addUndone: an ADD that fails half way leaves nothing, where the bridge plugin
// alone leaves its veth.
func addUndone(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	add := call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}
	add.conf = n.with(map[string]any{"ipam": map[string]any{"dataDir": n.dir + "/ipam", "type": "no-such-ipam"}})
	n.fails(t, add, 999, "no-such-ipam")
	add.conf = n.with(map[string]any{"args": map[string]any{"cni": map[string]any{"ips": []string{"10.99.0.1"}}}})
	n.fails(t, add, 999, "10.99.0.1")
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	n.clean(t)
	n.fails(t, add, 999, "10.99.0.1")
	n.clean(t) // even without the runtime's DEL
}

// addLeaseMoves: a lease that changes while the delegate works makes ADD fail
// as one to try again, and its address is free.
func addLeaseMoves(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "v4"), newNetns(t)
	dir := t.TempDir()
	bridge := slices.IndexFunc(n.plugins, func(d string) bool { _, err := os.Stat(d + "/bridge"); return err == nil })
	write(t, dir+"/slow", "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && sed -i s,10.42.1.1/24,10.42.7.1/24, "+n.subnetFile()+
		"\nsed 's/\"slow\"/\"bridge\"/' | exec "+n.plugins[bridge]+"/bridge\n", 0o755)
	add := call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, path: []string{dir},
		conf: n.with(map[string]any{"delegate": map[string]any{"type": "slow", "isGateway": true, "forceAddress": true}})}
	n.fails(t, add, 11, "10.42.1.2", "10.42.7.1/24")
	n.clean(t)
	n.ok(t, add)
	checkPod(t, pod, "eth0", 1450, "10.42.7.2/24")
}

// delWaits: a runtime that gives up on an ADD kills the plugin, not the
// delegate. DEL waits for that, so that it does not miss what is still to come.
func delWaits(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "v4"), newNetns(t)
	dir := t.TempDir()
	bridge := slices.IndexFunc(n.plugins, func(d string) bool { _, err := os.Stat(d + "/bridge"); return err == nil })
	write(t, dir+"/late", "#!/bin/sh\nif [ $CNI_COMMAND = ADD ]; then echo > "+dir+"/begun; read x < "+dir+"/go; fi\n"+
		"sed 's/\"late\"/\"bridge\"/' | exec "+n.plugins[bridge]+"/bridge\n", 0o755)
	for _, fifo := range []string{"begun", "go"} {
		if out, err := exec.Command("mkfifo", dir+"/"+fifo).CombinedOutput(); err != nil {
			t.Fatalf("mkfifo: %v: %s", err, out)
		}
	}
	conf := n.with(map[string]any{"delegate": map[string]any{"type": "late", "isGateway": true}})
	cmd := n.command(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path, path: []string{dir}, conf: conf})
	n.do(func() {
		if err := cmd.Start(); err != nil {
			t.Error(err)
		}
	})
	readFile(t, dir+"/begun")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	go func() {    // the delegate goes on when DEL has had its chance not to wait
		time.Sleep(300 * time.Millisecond)
		_ = os.WriteFile(dir+"/go", []byte("go\n"), 0o600) // if it fails, DEL does
	}()
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path, path: []string{dir}, conf: conf})
	n.clean(t)
}

// otherVersions: states travel between versions. Without stamps they are
// replayed as they are; a stamp with more in it, or in another form, is no
// obstacle, and never reaches the delegate.
func otherVersions(t *testing.T, p plugins) {
	for name, edit := range map[string]func(map[string]any){
		"older": func(s map[string]any) { delete(s, ledger.StampKey) },
		"newer": func(s map[string]any) { s[ledger.StampKey].(map[string]any)["more"] = []int{1} },
		"other": func(s map[string]any) { s[ledger.StampKey] = "v2" },
	} {
		t.Log(name + " version's state")
		n, pod := newNode(t, p, "dual"), newNetns(t)
		n.conf["delegate"] = map[string]any{"ipMasq": false}
		o := n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
		state := decode(t, readFile(t, n.dataDir()+"/c1:eth0")).(map[string]any)
		edit(state)
		write(t, n.dataDir()+"/c1:eth0", string(encode(t, state)), 0o600)
		n.ok(t, call{command: "CHECK", id: "c1", ifName: "eth0", netns: pod.path,
			conf: n.with(map[string]any{"prevResult": decode(t, []byte(o.stdout))})})
		n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
		n.clean(t)
	}
}
