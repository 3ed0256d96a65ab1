// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/netlab"
)

const (
	pluginStarts  = 500
	openStarts    = 20  // without a policy, which are to be heard
	addPairs      = 200 // starts with the agent's word and without, by turns
	ghostPort     = 7777
	ghostSends    = time.Millisecond
	ghostStays    = 100 * time.Millisecond
	ghostPatience = 2 * time.Second // of who is to be heard

)

// ghost is a pod that the API has and no kubelet runs: this test starts it.
func ghost(namespace string) string {
	return `apiVersion: v1
kind: Namespace
metadata: {name: ` + namespace + `}
---
apiVersion: v1
kind: Pod
metadata: {name: ghost, namespace: ` + namespace + `}
spec:
  schedulerName: nobody
  containers: [{name: ghost, image: none}]
---
`
}

// A runtime calls a node's CNI plugin as kubelet's does, for a pod of the API.
type runtime struct {
	node      *cluster.Node
	conf      map[string]any // of the plugin
	namespace string
	uid       string
}

// newRuntime reads the plugin's configuration on a node, and the pod's UID.
func newRuntime(ctx context.Context, c *cluster.Cluster, node *cluster.Node, namespace string) (*runtime, error) {
	files, err := os.ReadDir(node.Path("/etc/cni/net.d"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("CNI configuration of %s: %d files, %w", node.Name(), len(files), err)
	}
	b, err := os.ReadFile(node.Path("/etc/cni/net.d/" + files[0].Name()))
	if err != nil {
		return nil, err
	}
	var list struct {
		Name    string
		Plugins []map[string]any
	}
	if err := json.Unmarshal(b, &list); err != nil || len(list.Plugins) == 0 {
		return nil, fmt.Errorf("CNI configuration of %s: %d plugins, %w", node.Name(), len(list.Plugins), err)
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, "1.0.0"
	var pod struct{ Metadata struct{ UID string } }
	if err := c.GetJSON(ctx, "/api/v1/namespaces/"+namespace+"/pods/ghost", &pod); err != nil {
		return nil, err
	}
	return &runtime{node: node, conf: conf, namespace: namespace, uid: pod.Metadata.UID}, nil
}

// call calls the plugin and returns the addresses in its answer.
func (r *runtime) call(ctx context.Context, command, container, netns string) ([]netip.Addr, error) {
	stdin, err := json.Marshal(r.conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/opt/cni/bin/weft")
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+container, "CNI_NETNS="+netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=ghost;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=%s", r.namespace, r.uid, container))
	out, err := r.node.RunCmd(ctx, cmd)
	if err != nil || command != "ADD" {
		return nil, err
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return nil, fmt.Errorf("answer of the plugin: %w: %s", err, out)
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	return addrs, nil
}

// A sandbox is the network of a pod that is not there yet.
type sandbox struct {
	*netlab.Place
	cmd *exec.Cmd
}

func newSandbox(name string) (*sandbox, error) {
	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil { // it ends with us
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	place, err := netlab.PlaceOf(name, cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return &sandbox{place, cmd}, nil
}

func (s *sandbox) netns() string { return fmt.Sprintf("/proc/%d/ns/net", s.cmd.Process.Pid) }

func (s *sandbox) end() {
	s.Close()
	_ = s.cmd.Process.Kill() // it does nothing, and has nothing
	_ = s.cmd.Wait()
}

// A chatter sends to all of its targets, all the time, and counts who sends to
// it.
type chatter struct {
	conns   []net.PacketConn
	targets atomic.Pointer[[]netip.Addr]
	mu      sync.Mutex
	heard   map[netip.Addr]bool
	said    map[netip.Addr]bool // what left for these
	done    sync.WaitGroup
	stop    context.CancelFunc
}

// chat starts a chatter at a place whose devices may come later.
func chat(ctx context.Context, at *netlab.Place, targets []netip.Addr, every time.Duration) (*chatter, error) {
	c := &chatter{heard: map[netip.Addr]bool{}, said: map[netip.Addr]bool{}}
	c.targets.Store(&targets)
	for _, network := range []string{"udp4", "udp6"} {
		err := at.Do(func() error {
			conn, err := new(net.ListenConfig).ListenPacket(ctx, network, fmt.Sprint(":", ghostPort))
			if err == nil {
				c.conns = append(c.conns, conn)
			}
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("on %s: %w", at, err), c.close())
		}
	}
	ctx, c.stop = context.WithCancel(ctx)
	for _, conn := range c.conns {
		c.done.Go(func() { c.listen(conn) })
	}
	c.done.Go(func() { c.speak(ctx, every) })
	return c, nil
}

func (c *chatter) speak(ctx context.Context, every time.Duration) {
	for netlab.Pause(ctx, every) == nil {
		for _, to := range *c.targets.Load() {
			conn := c.conns[0]
			if to.Is6() {
				conn = c.conns[1]
			}
			// There may be no route yet, or nobody there.
			if _, err := conn.WriteTo([]byte("boo"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, ghostPort))); err == nil {
				c.mu.Lock()
				c.said[to] = true
				c.mu.Unlock()
			}
		}
	}
}

func (c *chatter) listen(conn net.PacketConn) {
	buf := make([]byte, 64)
	for {
		_, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if udp, ok := from.(*net.UDPAddr); ok && err == nil {
			a := udp.AddrPort().Addr().Unmap().WithZone("")
			c.mu.Lock()
			c.heard[a] = true
			c.mu.Unlock()
		}
	}
}

// hears returns how many of the addresses were heard since forget.
func (c *chatter) hears(addrs []netip.Addr) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addrs {
		if c.heard[a] {
			n++
		}
	}
	return n
}

// calls reports whether something left for a since forget.
func (c *chatter) calls(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said[a]
}

func (c *chatter) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.heard)
	clear(c.said)
}

func (c *chatter) close() error {
	var err error
	for _, conn := range c.conns {
		err = errors.Join(err, conn.Close())
	}
	return err
}

func (c *chatter) end() {
	c.stop()
	_ = c.close()
	c.done.Wait()
}

// A haunt is where ghosts are started, among pods that talk to them.
type haunt struct {
	c      *cluster.Cluster
	sites  []site
	voices []*chatter // of the sites
	all    []netip.Addr
	number int
}

// count is what ghosts and sites have heard of each other.
type count struct{ starts, out, in int }

// throughPlugin starts pods that may neither send nor receive through the
// plugin, while they and the pods of all nodes try to. Pods without a policy are
// heard in every start.
func throughPlugin(ctx context.Context, c *cluster.Cluster) (err error) {
	h, end, err := newHaunt(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx))) }()
	open, err := h.starts(ctx, "ajar", openStarts, true)
	if err != nil {
		return err
	}
	// Each address of a ghost is heard at each site, and hears each of theirs.
	if ends := len(h.all); open.out < open.starts*ends || open.in < open.starts*ends {
		return fmt.Errorf("without a policy %d starts were heard %d times and heard others %d times, want %d: it proves nothing", open.starts, open.out, open.in, open.starts*ends)
	}
	shut, err := h.starts(ctx, "shut", pluginStarts, false)
	if err != nil {
		return err
	}
	c.Progress("  %d starts under a policy that denies all: heard %d times, heard others %d times; %d without: %d and %d", shut.starts, shut.out, shut.in, open.starts, open.out, open.in)
	if shut.out+shut.in > 0 {
		return fmt.Errorf("%d starts under a policy that denies all were heard %d times, and heard others %d times", shut.starts, shut.out, shut.in)
	}
	return nil
}

func newHaunt(ctx context.Context, c *cluster.Cluster) (*haunt, func(context.Context) error, error) {
	sites, err := web(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	h := &haunt{c: c, sites: sites}
	end := func(ctx context.Context) error {
		for _, v := range h.voices {
			v.end()
		}
		closeAll(sites)
		_, err := c.Kubectl(ctx, "delete", "namespace", "shut", "ajar", "--ignore-not-found", "--wait=true")
		return err
	}
	for _, s := range sites {
		v, err := chat(ctx, s.Place, nil, ghostSends)
		if err != nil {
			return nil, nil, errors.Join(err, end(ctx))
		}
		h.voices, h.all = append(h.voices, v), append(h.all, s.IPs...)
	}
	if err := c.Apply(ctx, ghost("ajar")+ghost("shut")+denyAll); err != nil {
		return nil, nil, errors.Join(err, end(ctx))
	}
	return h, end, nil
}

// starts starts the ghost of a namespace n times. Those that are to be heard are
// waited for.
func (h *haunt) starts(ctx context.Context, namespace string, n int, heard bool) (count, error) {
	var sum count
	r, err := newRuntime(ctx, h.c, h.c.Nodes()[0], namespace)
	if err != nil {
		return sum, err
	}
	for range n {
		one, err := h.start(ctx, r, heard)
		if err != nil {
			return sum, fmt.Errorf("start %d in %s: %w", sum.starts+1, namespace, err)
		}
		sum.starts, sum.out, sum.in = sum.starts+1, sum.out+one.out, sum.in+one.in
	}
	return sum, nil
}

// start starts a ghost and ends it, and returns how often one of its addresses
// was heard by a site, and how many addresses of sites it has heard.
func (h *haunt) start(ctx context.Context, r *runtime, heard bool) (sum count, err error) {
	h.number++
	id := fmt.Sprintf("ghost-%s-%d", r.namespace, h.number)
	box, err := newSandbox(id)
	if err != nil {
		return sum, err
	}
	defer box.end()
	for _, v := range h.voices { // the address may have been another's
		v.forget()
	}
	voice, err := chat(ctx, box.Place, h.all, ghostSends)
	if err != nil {
		return sum, err
	}
	defer voice.end()
	addrs, err := r.call(ctx, "ADD", id, box.netns())
	defer func() {
		_, e := r.call(context.WithoutCancel(ctx), "DEL", id, box.netns())
		err = errors.Join(err, e)
	}()
	if err != nil {
		return sum, err
	}
	next := slices.Clone(addrs) // and who comes next: it is sent to before it is there
	for _, a := range addrs {
		next = append(next, a.Next())
	}
	for _, v := range h.voices {
		v.targets.Store(&next)
	}
	until := time.Now().Add(ghostStays)
	for time.Now().Before(until) || heard && (sum.out < len(h.all) || sum.in < len(h.all)) && time.Now().Before(until.Add(ghostPatience)) {
		if err := netlab.Pause(ctx, 5*time.Millisecond); err != nil {
			return sum, err
		}
		sum.out, sum.in = 0, voice.hears(h.all)
		for _, v := range h.voices {
			sum.out += v.hears(addrs)
		}
	}
	return sum, nil
}

// costOfADD starts pods with the agent's word and without, by turns, and compares
// how long the plugin takes.
func costOfADD(ctx context.Context, c *cluster.Cluster) (err error) {
	if err := c.Apply(ctx, ghost("shut")+denyAll); err != nil {
		return err
	}
	defer func() {
		_, e := c.Kubectl(context.WithoutCancel(ctx), "delete", "namespace", "shut", "--ignore-not-found", "--wait=true")
		err = errors.Join(err, e)
	}()
	asks, err := newRuntime(ctx, c, c.Nodes()[0], "shut")
	if err != nil {
		return err
	}
	if asks.conf["onAgentDown"] == nil {
		return errors.New("the plugin's configuration does not ask the agent")
	}
	silent := *asks
	silent.conf = map[string]any{}
	for k, v := range asks.conf {
		if k != "onAgentDown" {
			silent.conf[k] = v
		}
	}
	var took [2][]time.Duration
	for n := range addPairs {
		for i, r := range []*runtime{asks, &silent} {
			d, err := timeADD(ctx, r, fmt.Sprintf("cost-%d-%d", n, i))
			if err != nil {
				return err
			}
			took[i] = append(took[i], d)
		}
	}
	var lines []string
	for i, name := range []string{"with the agent's word", "without"} {
		slices.Sort(took[i])
		lines = append(lines, fmt.Sprintf("%s p50 %s p99 %s", name, ranked(took[i], 50).Round(100*time.Microsecond), ranked(took[i], 99).Round(100*time.Microsecond)))
	}
	gain := func(percent int) time.Duration {
		return (ranked(took[0], percent) - ranked(took[1], percent)).Round(100 * time.Microsecond)
	}
	c.Progress("  ADD %s; the word adds %s at p99, %s at p50", strings.Join(lines, ", "), gain(99), gain(50))
	return nil
}

func timeADD(ctx context.Context, r *runtime, id string) (took time.Duration, err error) {
	box, err := newSandbox(id)
	if err != nil {
		return 0, err
	}
	defer box.end()
	begin := time.Now()
	_, err = r.call(ctx, "ADD", id, box.netns())
	took = time.Since(begin)
	_, e := r.call(context.WithoutCancel(ctx), "DEL", id, box.netns())
	return took, errors.Join(err, e)
}
