// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft.dev/weft/backend"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// installed is a node on which an agent has run, in the calling thread's
// network namespace: devices, entries, table, files. before and dump render
// what there is to see.
type installed struct {
	o      *options
	l      locks
	before string
	out    bytes.Buffer
}

func dumpHost(t *testing.T) string {
	t.Helper()
	links := sh(t, "ip -o -d link show\nip -o addr show")
	// Counters of allocation are no part of it.
	return links + sh(t, "ip route show table all\nip -6 route show table all\nip neigh show\nip -6 neigh show\nbridge fdb show\nnft list ruleset")
}

// install makes what an agent makes, with a peer reached through VXLAN, one
// routed to directly, a device of a former VNI, and others' things beside.
func install(t *testing.T, args ...string) *installed {
	t.Helper()
	dir := t.TempDir()
	n := &installed{l: locks{dir: dir, netns: 7, holder: "test"}}
	n.o = parse(t, nil, append([]string{"--socket=" + dir + "/run/weftd.sock", "--subnet-file=" + dir + "/run/subnet.env",
		"--cni-conf=" + dir + "/net.d/05-weft.conflist", "--cni-data-dir=" + dir + "/cni", "--state-dir=" + dir + "/state"}, args...)...)
	sh(t, `ip link add eth0 type veth peer name wire0
		ip link set eth0 addrgenmode none
		ip link set wire0 addrgenmode none
		ip link set eth0 up
		ip link set wire0 up
		ip addr add 10.0.0.1/24 dev eth0
		ip route add 10.99.0.0/16 via 10.0.0.2 dev eth0 proto 4
		ip link add vxlan9 type vxlan id 9 dstport 4790 local 10.0.0.1
		ip link add weft.x type bridge
		ip route add 10.98.0.0/16 dev eth0 proto 88
		nft add table inet other
		nft add chain inet other c
		nft add rule inet other c counter accept`)
	// A cable's other end hears a moment later that there is one.
	eventually(t, "no carrier", func() bool { return !strings.Contains(sh(t, "ip -o link show"), "NO-CARRIER") })
	n.before = dumpHost(t)

	cfg := config(t, `{"Network":"10.42.0.0/16","Backend":{"DirectRouting":true}}`)
	names := presetFor(n.o.FlannelCompat).names
	u := overlay.Underlay{Dev: "eth0", Addr: netip.MustParseAddr("10.0.0.1"), Net: netip.MustParsePrefix("10.0.0.0/24"), MTU: 1500}
	own := leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24")
	own.Paths[0].MAC = subnet.DeriveMAC(macNetwork, 1, subnet.IPv4, "n1")
	self := overlay.Self{Lease: own, Underlays: []overlay.Underlay{u}, Names: names, Guard: n.o.selfGuard(), Masquerade: n.o.IPMasq}
	direct, far := leaseOf("n2", "x", "10.0.0.2", "10.42.2.0/24"), leaseOf("n3", "y", "192.0.2.3", "10.42.3.0/24")
	direct.Paths[0].MAC[5], far.Paths[0].MAC[5] = 2, 3
	want, problems := overlay.Desired(self, cfg, []subnet.Lease{own, direct, far}, overlay.NewState())
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	k, err := backend.New(backend.Options{Devices: deviceNames(names, 1), Filter: true})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Apply(context.Background(), overlay.Diff(want, overlay.NewState())); err != nil {
		t.Fatal(err)
	}
	sh(t, fmt.Sprintf("ip link add %s77 type vxlan id 77 dstport 8472 local 10.0.0.1", names[subnet.IPv4]))
	n.write(t)
	return n
}

// write makes the files of an agent that was killed.
func (n *installed) write(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.o.SubnetFile), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := listenUnix(context.Background(), n.o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	l.Close()
	if _, err := writeConflist(n.o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.o.SubnetFile, []byte("FLANNEL_MTU=1450\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"1", "77", tableLock} {
		unlock, _, err := n.l.take(what)
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	}
}

func (n *installed) cleanup() error {
	return (&cleaner{o: n.o, out: &n.out, l: n.l, addresses: filepath.Join(n.l.dir, "networks", "weft")}).run(context.Background())
}

// leftFiles lists what is left of the files that write made.
func (n *installed) leftFiles() []string {
	var left []string
	for _, path := range []string{n.o.SubnetFile, n.o.Socket, n.o.CNIConf, n.l.path("1"), n.l.path("77"), n.l.path(tableLock)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			left = append(left, path)
		}
	}
	return left
}

// After cleanup the host is as it was before weft: not a device, route, table
// or file more, and none of anybody else's less.
func TestCleanupLeavesNothingOfWeftAndAllOfOthers(t *testing.T) {
	inNetns(t, func() {
		n := install(t)
		policed(t)
		if now := dumpHost(t); !strings.Contains(now, "table inet weft") || !strings.Contains(now, "proto 87") || !strings.Contains(now, "weft.77") {
			t.Fatalf("nothing to clean up:\n%s", now)
		}
		if err := n.cleanup(); err != nil {
			t.Errorf("%v\n%s", err, n.out.String())
		}
		if after := dumpHost(t); after != n.before {
			t.Errorf("before:\n%s\nafter:\n%s", n.before, after)
		}
		if left := n.leftFiles(); left != nil {
			t.Errorf("left %q", left)
		}
		for _, want := range []string{"removed device weft.1", "removed device weft.77", "removed nftables table inet weft", "removed nftables table inet weft_policy", "removed nftables table bridge weft_guard", "removed route 10.42.2.0/24 via 10.0.0.2 dev eth0", "removed subnet file", "removed CNI configuration", "removed socket", "removed lock", "kept: " + n.o.StateDir} {
			if !strings.Contains(n.out.String(), want) {
				t.Errorf("does not say %q:\n%s", want, n.out.String())
			}
		}
		n.out.Reset()
		if err := n.cleanup(); err != nil || strings.Contains(n.out.String(), "removed") {
			t.Errorf("again: %v\n%s", err, n.out.String())
		}
	})
}

// An operator's own CNI configuration stays, and is named.
func TestCleanupKeepsEditedConflist(t *testing.T) {
	inNetns(t, func() {
		n := install(t)
		if err := os.WriteFile(n.o.CNIConf, []byte(`{"name":"mine"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.cleanup(); err != nil || !strings.Contains(n.out.String(), "left: "+n.o.CNIConf) {
			t.Errorf("%v\n%s", err, n.out.String())
		}
		if left := n.leftFiles(); len(left) != 1 || left[0] != n.o.CNIConf {
			t.Errorf("left %q", left)
		}
	})
}

// While an agent runs, whatever its VNI, nothing is touched.
func TestCleanupRefusesWhileAnAgentRuns(t *testing.T) {
	inNetns(t, func() {
		n := install(t)
		running := n.l
		running.holder = "pid 17, node n1"
		for _, what := range []string{"1", "77", tableLock} {
			unlock, _, err := running.take(what)
			if err != nil {
				t.Fatal(err)
			}
			before := dumpHost(t)
			if err := n.cleanup(); err == nil || !strings.Contains(err.Error(), "pid 17, node n1") || !strings.Contains(err.Error(), "stop it first") {
				t.Errorf("lock %s: %v", what, err)
			}
			if after := dumpHost(t); after != before || len(n.leftFiles()) != 6 {
				t.Errorf("lock %s: something was removed; left %q", what, n.leftFiles())
			}
			unlock()
		}
	})
}

// A flanneld takes no lock of ours and has devices with the same names; only
// what bears weft's mark goes.
func TestCleanupSparesFlannelsDevices(t *testing.T) {
	inNetns(t, func() {
		n := install(t, "--flannel-compat")
		if err := n.cleanup(); err != nil {
			t.Errorf("%v\n%s", err, n.out.String())
		}
		links := sh(t, "ip -o link show")
		if strings.Contains(links, "flannel.1:") || !strings.Contains(links, "flannel.77:") || !strings.Contains(n.out.String(), "left: flannel.77") {
			t.Errorf("%s\n%s", n.out.String(), links)
		}
	})
}

// attach makes what the CNI plugins make for a pod, on cni0 and on disk.
func (n *installed) attach(t *testing.T) {
	t.Helper()
	pid := podNamespace(t)
	sh(t, fmt.Sprintf(`ip link add cni0 type bridge
		ip addr add 10.42.1.1/24 dev cni0
		ip link set cni0 up
		ip link add veth0a1b2c3d type veth peer name pod0
		ip link set veth0a1b2c3d master cni0 up
		ip link set pod0 netns %d
		nsenter --net=/proc/%[1]d/ns/net ip addr add 10.42.1.5/24 dev pod0`, pid))
	for _, f := range []string{"networks/weft/10.42.1.5", "networks/weft/last_reserved_ip.0", "networks/weft/lock", "networks/weft/mine.txt",
		"networks/other/10.9.0.1", "cni/0123abc:eth0", "cni/.flight/0123abc:eth0.lock", "cni/README"} {
		path := filepath.Join(n.l.dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// there lists what is left of the files that attach made.
func (n *installed) there(t *testing.T) string {
	t.Helper()
	var out []string
	for _, dir := range []string{"networks", "cni"} {
		err := filepath.WalkDir(filepath.Join(n.l.dir, dir), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				out = append(out, strings.TrimPrefix(path, n.l.dir+"/"))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return strings.Join(out, " ")
}

// What running pods use stays and is named, or goes with --force: their
// interfaces, the bridge, their addresses, and nothing else in those places.
func TestCleanupOfPods(t *testing.T) {
	inNetns(t, func() {
		n := install(t)
		n.attach(t)
		files := n.there(t)
		if err := n.cleanup(); err != nil {
			t.Errorf("%v\n%s", err, n.out.String())
		}
		for _, want := range []string{"left: bridge cni0 and the interfaces of 1 pods", "--force", "veth0a1b2c3d 10.42.1.5"} {
			if !strings.Contains(n.out.String(), want) {
				t.Errorf("does not say %q:\n%s", want, n.out.String())
			}
		}
		if links := sh(t, "ip -o link show"); !strings.Contains(links, "cni0:") || !strings.Contains(links, "veth0a1b2c3d") || strings.Contains(links, "weft.1:") || n.there(t) != files {
			t.Errorf("without --force:\n%s%s", links, n.there(t))
		}
		n.o.Force = true
		n.out.Reset()
		if err := n.cleanup(); err != nil {
			t.Errorf("%v\n%s", err, n.out.String())
		}
		if after := dumpHost(t); after != n.before {
			t.Errorf("before:\n%s\nafter:\n%s", n.before, after)
		}
		if left := n.there(t); left != "networks/other/10.9.0.1 networks/weft/mine.txt cni/README" {
			t.Errorf("left %s\n%s", left, n.out.String())
		}
	})
}

// A node whose pods are gone needs no --force to be as it was.
func TestCleanupAfterPods(t *testing.T) {
	inNetns(t, func() {
		n := install(t)
		n.attach(t)
		sh(t, "ip link del veth0a1b2c3d")
		if err := n.cleanup(); err != nil {
			t.Errorf("%v\n%s", err, n.out.String())
		}
		if after := dumpHost(t); after != n.before {
			t.Errorf("before:\n%s\nafter:\n%s", n.before, after)
		}
		if left := n.there(t); left != "networks/other/10.9.0.1 networks/weft/mine.txt cni/README" {
			t.Errorf("left %s\n%s", left, n.out.String())
		}
	})
}

// What an agent of other settings left behind goes when the next one starts,
// but not what another agent serves.
func TestClaimRemovesWhatFormerSettingsLeft(t *testing.T) {
	inNetns(t, func() {
		n := install(t, "--ingress-guard=off")
		n.o.IPMasq = false
		a := newAgent(n.o, newLogger(n.o, testWriter{t}))
		sh(t, "ip link add weft.88 type vxlan id 88 dstport 8472 local 10.0.0.1")
		other := n.l
		other.holder = "pid 17, node n1"
		unlockDevice, err := other.vni(88)
		if err != nil {
			t.Fatal(err)
		}
		unlockTable, err := other.table()
		if err != nil {
			t.Fatal(err)
		}
		unlock, err := a.claimWith(context.Background(), n.l, 1)
		if err != nil {
			t.Fatal(err)
		}
		now := dumpHost(t)
		for text, want := range map[string]bool{"weft.1:": true, "weft.77:": false, "weft.88:": true, "table inet weft": true, "10.42.2.0/24": true} {
			if strings.Contains(now, text) != want {
				t.Errorf("beside another agent: %q is there: %t, want %t:\n%s", text, !want, want, now)
			}
		}
		unlock()
		unlockDevice()
		unlockTable()
		if unlock, err = a.claimWith(context.Background(), n.l, 1); err != nil {
			t.Fatal(err)
		}
		defer unlock()
		now = dumpHost(t)
		for text, want := range map[string]bool{"weft.1:": true, "weft.88:": false, "table inet weft": false, "table inet other": true, "10.42.2.0/24": true} {
			if strings.Contains(now, text) != want {
				t.Errorf("alone: %q is there: %t, want %t:\n%s", text, !want, want, now)
			}
		}
	})
}

func TestClaimOfATakenTableNamesItsOwner(t *testing.T) {
	l := locks{dir: t.TempDir(), netns: 7, holder: "pid 17, node n1"}
	unlock, err := l.table()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	a, _ := bare(t)
	if _, err := a.claimWith(context.Background(), l, 2); err == nil || !strings.Contains(err.Error(), "pid 17, node n1") {
		t.Errorf("%v", err)
	}
	again, err := l.vni(2)
	if err != nil {
		t.Fatalf("the VNI stays locked: %v", err)
	}
	again()
}
