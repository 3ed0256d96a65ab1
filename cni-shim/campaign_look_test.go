// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend"
	"weft.dev/weft/cni-shim/ledger"
)

// lister is the kernel for a sweep, as weftd has it. What comes of the sweep
// is then looked at by iproute2.
type lister struct{ c *campaign }

// Veths implements ledger.Kernel.
func (l lister) Veths(ctx context.Context) (veths []ledger.Veth, err error) {
	l.c.do(func() {
		var all []backend.Veth
		all, err = backend.Veths(ctx, "cni0")
		for _, v := range all {
			veths = append(veths, ledger.Veth{Name: v.Host, Index: v.Index, Netns: v.Netns,
				Port: v.Port, Bare: v.Bare, Addrs: v.Addrs, Unreadable: v.Unreadable != nil})
		}
	})
	return veths, err
}

// DeleteVeth implements ledger.Kernel.
func (l lister) DeleteVeth(ctx context.Context, name string, index int) (err error) {
	l.c.do(func() { err = backend.DeleteVeth(ctx, name, index) })
	return err
}

// ipLink is a link as iproute2 prints it.
type ipLink struct {
	Ifname    string
	Ifindex   int
	LinkIndex int  `json:"link_index"`
	NetnsID   *int `json:"link_netnsid"`
	Master    string
	AddrInfo  []struct{ Local netip.Addr } `json:"addr_info"`
}

// veths lists the node's veths, without addresses.
func (c *campaign) veths(t testing.TB) []ledger.Veth {
	t.Helper()
	var veths []ledger.Veth
	for _, l := range c.links(t, c.netns, "link", "show", "type", "veth") {
		veths = append(veths, ledger.Veth{Name: l.Ifname, Index: l.Ifindex, Netns: l.NetnsID, Port: l.Master == "cni0", Bare: l.Master == ""})
	}
	return veths
}

// links runs ip in a namespace, one that has gone has none. iproute2 prints an
// empty object in place of a link that does not match.
func (c *campaign) links(t testing.TB, ns *netns, args ...string) []ipLink {
	t.Helper()
	var raw, links []ipLink
	var out []byte
	var err error
	if !ns.do(func() { out, err = exec.Command("ip", append([]string{"-j"}, args...)...).Output() }) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(out, &raw)
	}
	if err != nil {
		t.Errorf("ip %s: %v", strings.Join(args, " "), err)
	}
	for _, l := range raw {
		if l.Ifname != "" {
			links = append(links, l)
		}
	}
	return links
}

// inside returns the global addresses in every pod, by the index of the
// node's end.
func (c *campaign) inside(t testing.TB) map[int][]netip.Addr {
	t.Helper()
	all := map[int][]netip.Addr{}
	for _, v := range c.living() {
		for _, l := range c.links(t, v.ns, "addr", "show", "type", "veth") {
			for _, a := range l.AddrInfo {
				if !a.Local.IsLinkLocalUnicast() {
					all[l.LinkIndex] = append(all[l.LinkIndex], a.Local)
				}
			}
		}
	}
	return all
}

// living returns the pods whose namespace is there.
func (c *campaign) living() []*victim {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*victim
	for _, v := range c.pods {
		if !v.ended {
			all = append(all, v)
		}
	}
	return all
}

// verify compares what host-local and the node have with what is in the pods.
func (c *campaign) verify(t *testing.T) {
	t.Helper()
	veths, inside := c.veths(t), c.inside(t)
	held := map[netip.Addr]bool{}
	for _, name := range c.addresses(t) {
		held[netip.MustParseAddr(name)] = true
	}
	var leakedVeths, outside, leakedAddrs []any
	for _, v := range veths {
		if len(inside[v.Index]) != 2 {
			leakedVeths = append(leakedVeths, v)
		}
		for _, a := range inside[v.Index] {
			if !netip.MustParsePrefix("10.42.16.0/20").Contains(a) && !netip.MustParsePrefix("fd00:42:0:1::/64").Contains(a) {
				outside = append(outside, a)
			}
			if !held[a] {
				t.Errorf("%s is in a pod and not held", a)
			}
			delete(held, a)
		}
	}
	for a := range held {
		leakedAddrs = append(leakedAddrs, a)
	}
	if leakedAddrs != nil || leakedVeths != nil || outside != nil {
		t.Errorf("leaked addresses %v, leaked veths %v, pods outside the lease %v", leakedAddrs, leakedVeths, outside)
	}
	t.Logf("%d leaked addresses, %d leaked veths, %d pods outside the lease", len(leakedAddrs), len(leakedVeths), len(outside))
	c.verifyPods(t, inside)
}

// verifyPods: a pod that was answered and not deleted is whole. Of the others
// those that still have a network were killed after the plugin had done its
// work or before it had begun to undo it, which nobody but the runtime can
// know; their states say so.
func (c *campaign) verifyPods(t *testing.T, inside map[int][]netip.Addr) {
	t.Helper()
	states := c.states(t)
	for _, v := range c.living() {
		eth := c.links(t, v.ns, "addr", "show", "type", "veth")
		i := slices.Index(states, v.id+":eth0")
		if len(eth) == 1 && i >= 0 && len(inside[eth[0].LinkIndex]) == 2 {
			states = slices.Delete(states, i, i+1)
			_, stamp, _, err := ledger.Decode(readFile(t, c.dataDir()+"/"+v.id+":eth0"))
			if err != nil || stamp.Phase != ledger.Added {
				t.Errorf("%s has its network, but its state is %+v, %v", v.id, stamp, err)
			}
			if !v.answered || v.deleted {
				c.afterDone.Add(1)
			}
			continue
		}
		if v.answered && !v.deleted {
			t.Errorf("%s lost its network: %v", v.id, eth)
		}
		if len(eth) != 0 {
			t.Errorf("%s has half a network: %v", v.id, eth)
		}
	}
	for _, s := range states {
		// What a call that was killed between two states of a living
		// pod left is taken away by the next call.
		id, file, _ := strings.Cut(s, ":")
		whole := slices.ContainsFunc(c.living(), func(v *victim) bool { return v.id == id }) && slices.Contains(c.states(t), id+":eth0")
		if !whole || file != "eth0.lock" && file != "eth0.new" {
			t.Errorf("state %s is left", s)
		}
	}
}

// stalePorts counts the rules of portmap for addresses that no pod has. Its
// own DEL and GC are the only ones to know them.
func (c *campaign) stalePorts(t *testing.T) int {
	t.Helper()
	held := c.addresses(t)
	n := 0
	c.do(func() {
		out, err := exec.Command("nft", "-j", "list", "ruleset").Output()
		if err != nil {
			t.Errorf("nft: %v", err)
		}
		var rules struct {
			Nftables []struct {
				Rule *struct{ Expr []json.RawMessage }
			}
		}
		if err := json.Unmarshal(out, &rules); err != nil {
			t.Errorf("nft: %v", err)
		}
		for _, r := range rules.Nftables {
			if r.Rule == nil {
				continue
			}
			text := string(encode(t, r.Rule.Expr))
			_, rest, dnat := strings.Cut(text, `"dnat":{"addr":"`)
			addr, _, _ := strings.Cut(rest, `"`)
			if dnat && !slices.Contains(held, addr) {
				n++
			}
		}
	})
	return n
}

// touched counts changes to the ledger's files.
type touched struct {
	n     atomic.Int64
	more  chan struct{}
	close func()
}

// watch begins to count.
func (c *campaign) watch(t *testing.T) *touched {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{c.dataDir(), c.dataDir() + "/.flight", c.dir + "/ipam/weft"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE|syscall.IN_MODIFY|syscall.IN_MOVED_TO|syscall.IN_DELETE); err != nil {
			t.Fatal(err)
		}
	}
	w := &touched{more: make(chan struct{}, 1)}
	f := os.NewFile(uintptr(fd), "inotify") // polled by the runtime
	w.read(f)
	return w
}

// read counts until the file is closed.
func (w *touched) read(f *os.File) {
	go func() {
		buf := make([]byte, 16*(syscall.SizeofInotifyEvent+syscall.NAME_MAX+1))
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) >= syscall.SizeofInotifyEvent; {
				size := int(b[12]) | int(b[13])<<8 // struct inotify_event: len
				b = b[syscall.SizeofInotifyEvent+size:]
				w.n.Add(1)
			}
			select {
			case w.more <- struct{}{}:
			default:
			}
		}
	}()
	w.close = func() { f.Close() }
}

func (w *touched) count() int {
	time.Sleep(20 * time.Millisecond) // the last ones may be on their way
	return int(w.n.Load())
}

// wait calls f at the n-th change, unless done comes first.
func (w *touched) wait(n int, done chan struct{}, f func()) {
	for {
		select {
		case <-done:
			return
		case <-w.more:
			if int(w.n.Load()) >= n {
				f()
				return
			}
		}
	}
}

// enter returns a thread of its own in the namespace at path.
func enter(t *testing.T, path string) *netns {
	t.Helper()
	n, err := startThread(func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
	})
	if err != nil {
		t.Fatalf("enter %s: %v", path, err)
	}
	t.Cleanup(n.end)
	return n
}
