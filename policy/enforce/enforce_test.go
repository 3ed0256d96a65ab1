// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/guard"
	"weft.dev/weft/policy/kube"
	"weft.dev/weft/policy/rules"
)

// bench is an Enforcer between a source, a ledger and a kernel that only
// remembers. Time is fake.
type bench struct {
	*Enforcer
	t    *testing.T
	stop func()

	mu     sync.Mutex
	set    func(kube.Snapshot)
	api    []*policy.Pod // what Pod answers with
	ledger []policy.Registered
	failed error // what the kernel says
	table  *policy.Table
	passes int
	takes  time.Duration // a pass, of the clock and of a CPU
	worked time.Duration // what passes have had of the CPU

	unbridged error // what Bridge says
	unguarded error // what the guard says
	guarded   []nft.SpoofPod
	closed    []string
}

func start(t *testing.T) *bench {
	b := &bench{t: t}
	bridge := func(context.Context) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.unbridged
	}
	b.Enforcer = New(Options{Node: "here", Source: b, Kernel: b, Guard: (*guardBench)(b), Bridge: bridge, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}, Pods: func(context.Context) ([]policy.Registered, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Clone(b.ledger), nil
	}})
	b.cpu = func() time.Duration {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.worked
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
	return b
}

func (b *bench) Watch(ctx context.Context, set func(kube.Snapshot)) error {
	b.mu.Lock()
	b.set = set
	b.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (b *bench) Pod(_ context.Context, namespace, name, _ string) (*policy.Pod, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.api {
		if p.Namespace == namespace && p.Name == name {
			return p, nil
		}
	}
	return nil, kube.ErrNoPod
}

func (b *bench) Reason() string { return "" }

func (b *bench) Sync(ctx context.Context, t *policy.Table, s []netip.Prefix) (rules.Report, error) {
	return b.Update(ctx, t, s)
}

func (b *bench) Update(_ context.Context, t *policy.Table, _ []netip.Prefix) (rules.Report, error) {
	b.mu.Lock()
	takes := b.takes
	b.mu.Unlock()
	time.Sleep(takes)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.worked += takes
	if b.failed != nil {
		return rules.Report{}, b.failed
	}
	b.passes++
	b.table = t
	return rules.Report{}, nil
}

// guardBench is the bench as a Guard.
type guardBench bench

func (b *guardBench) Update(_ context.Context, pods []nft.SpoofPod, closed []string, _ bool) ([]error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unguarded != nil {
		return nil, b.unguarded
	}
	b.guarded, b.closed = pods, closed
	return nil, nil
}

// do changes the bench's world while nothing looks at it.
func (b *bench) do(f func()) {
	b.mu.Lock()
	f()
	b.mu.Unlock()
}

// count is how many passes have been made.
func (b *bench) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.passes
}

func (b *bench) deliver(c policy.Cluster) {
	b.set(kube.Snapshot{Cluster: c})
	b.sleep(time.Second)
}

func (b *bench) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// allows is the kernel's word on TCP to port 80.
func (b *bench) allows(src, dst netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.table.Allows(policy.Packet{Src: src, Dst: dst, Proto: policy.TCP, Port: 80})
}

func (b *bench) admit(container string) error {
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	return b.Admit(ctx, container)
}

func addr(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, n}) }

func denyAll() *policy.Policy {
	return &policy.Policy{Namespace: "app", Name: "deny", Subject: labels.Everything(), Isolates: [2]bool{true, true}}
}

func apiPod(name string, addrs ...netip.Addr) *policy.Pod {
	return &policy.Pod{Namespace: "app", Name: name, UID: name, Node: "here", Labels: policy.NewLabels(nil), Addrs: addrs}
}

func registered4(name string, n byte) policy.Registered {
	r := policy.Registered{Container: "sandbox-" + name, Addrs: []netip.Addr{addr(n)}}
	if name != "" {
		r.Namespace, r.Name, r.UID = "app", name, name
	}
	return r
}

func node() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")} }

// Nothing is written, and no pod admitted, before policies, pods and the
// node's subnets are known.
func TestNothingBeforeAllIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.do(func() { b.ledger, b.api = []policy.Registered{registered4("web", 2)}, []*policy.Pod{apiPod("web")} })
		if err := b.admit("sandbox-web"); err == nil || !strings.Contains(err.Error(), "waiting for the first list") {
			t.Errorf("admitted before policies are known: %v", err)
		}
		b.deliver(policy.Cluster{})
		if err := b.admit("sandbox-web"); err == nil || !strings.Contains(err.Error(), "waiting for a subnet lease") {
			t.Errorf("admitted before the lease: %v", err)
		}
		if b.passes != 0 || b.Status().InForce {
			t.Errorf("%d writes, status %+v", b.passes, b.Status())
		}
		b.SetSubnets(node(), nil)
		b.sleep(time.Second)
		if err := b.admit("sandbox-web"); err != nil || !b.Status().InForce {
			t.Errorf("%v, status %+v", err, b.Status())
		}
		b.stop()
	})
}

// Policies that come to too much isolate all the same, and are a Problem.
func TestPoliciesTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.do(func() { b.ledger, b.api = []policy.Registered{registered4("web", 2)}, []*policy.Pod{apiPod("web")} })
		b.SetSubnets(node(), nil)
		rule := policy.Rule{}
		for i := range 2000 {
			rule.Peers = append(rule.Peers, policy.Peer{Block: &policy.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 32)}})
			rule.Ports = append(rule.Ports, policy.Port{Proto: policy.TCP, From: uint16(1 + i), To: uint16(1 + i)})
		}
		rule.Ports = append(rule.Ports, policy.Port{Proto: policy.TCP, From: 5000, To: 9000})
		b.deliver(policy.Cluster{Policies: []*policy.Policy{{Namespace: "app", Name: "all", Subject: labels.Everything(), Isolates: [2]bool{policy.Ingress: true}, Rules: [2][]policy.Rule{policy.Ingress: {rule}}}}})
		if err := b.admit("sandbox-web"); err != nil {
			t.Fatal(err)
		}
		st := b.Status()
		if !st.InForce || st.Isolated[policy.Ingress] != 1 || st.Rows != 0 || len(st.Problems) != 1 || st.Problems[0].Kind != "PolicyTooLarge" || st.Problems[0].Object != "app" {
			t.Errorf("%+v", st)
		}
		e := st.Explain(policy.Packet{Src: netip.MustParseAddr("11.0.0.1"), Dst: addr(2), Proto: policy.TCP, Port: 1})
		if e.Allowed || !strings.Contains(e.String(), "more than the node's table has room for") {
			t.Errorf("explained as\n%s", e)
		}
		b.stop()
	})
}

// A pod is isolated when Admit returns, although the API does not tell its
// address, nor even the pod in what is watched.
func TestAdmittedPodsAreIsolated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSubnets(node(), nil)
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}})
		b.do(func() {
			b.ledger = []policy.Registered{registered4("web", 2), registered4("", 3)}
			b.api = []*policy.Pod{apiPod("web")}
		})
		for _, container := range []string{"sandbox-web", "sandbox-"} {
			if err := b.admit(container); err != nil {
				t.Fatal(err)
			}
		}
		check := func(when string) {
			t.Helper()
			if b.allows(addr(3), addr(2)) || b.allows(addr(2), addr(3)) {
				t.Errorf("%s: the pod is not isolated", when)
			}
			if !b.allows(addr(3), addr(9)) || !b.table.Known[addr(3)] {
				t.Errorf("%s: a pod without Kubernetes is isolated, or unknown", when)
			}
		}
		check("admitted")
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}, Pods: []*policy.Pod{apiPod("web")}})
		check("seen")
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}, Pods: []*policy.Pod{apiPod("web", addr(2))}})
		check("with its address")
		b.do(func() { b.ledger = b.ledger[1:] })
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}})
		if b.table.Known[addr(2)] {
			t.Error("a pod that is gone is known")
		}
		b.stop()
	})
}

func TestWhoIsNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSubnets(node(), nil)
		b.deliver(policy.Cluster{})
		b.do(func() { b.ledger = []policy.Registered{registered4("gone", 2), registered4("", 3)} })
		for container, want := range map[string]string{"sandbox-gone": "there is no such pod", "other": "not in the ledger"} {
			if err := b.admit(container); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", container, err, want)
			}
		}
		b.do(func() { b.failed = errors.New("no memory") })
		if err := b.admit("sandbox-"); err == nil || !strings.Contains(err.Error(), "no memory") {
			t.Errorf("error %v", err)
		}
		if st := b.Status(); st.InForce || st.Table == nil {
			t.Errorf("status %+v", st)
		}
		b.do(func() { b.failed = nil })
		b.sleep(6 * time.Second) // without a word from anybody
		if err := b.admit("sandbox-"); err != nil || !b.Status().InForce {
			t.Errorf("%v, status %+v", err, b.Status())
		}
		b.stop()
	})
}

// Pods whose plugin did not write down who they are, as those of weft before
// it had policies, are who the API says they are.
func TestPodsOfAnOlderPlugin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSubnets(node(), nil)
		b.do(func() { b.ledger = []policy.Registered{registered4("", 2)} })
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}, Pods: []*policy.Pod{apiPod("web", addr(2))}})
		if b.allows(addr(3), addr(2)) {
			t.Error("the pod is not isolated")
		}
		b.stop()
	})
}

// A storm of changes costs few passes, at most a quarter of a core; a pod that
// starts does not wait for it.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 20 * time.Millisecond
		b := start(t)
		b.SetSubnets(node(), nil)
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}, Pods: []*policy.Pod{apiPod("web", addr(2))}})
		b.do(func() {
			b.ledger, b.api, b.takes = []policy.Registered{registered4("web", 2)}, []*policy.Pod{apiPod("web")}, takes
		})

		before := b.count()
		for range 1000 { // within one pass: the clock stands still
			b.Poke()
		}
		b.sleep(time.Second)
		if n := b.count() - before; n < 1 || n > 2 {
			t.Errorf("%d passes for 1000 pokes at once", n)
		}

		before = b.count()
		for range 1000 {
			b.Poke()
			b.sleep(time.Millisecond)
		}
		every := takes + rest(takes, takes)
		if n, most := b.count()-before, int(time.Second/every)+1; n < most-2 || n > most {
			t.Errorf("%d passes for 1000 pokes in a second, want %d", n, most)
		}

		b.sleep(time.Second)
		b.Poke()
		b.sleep(takes + time.Millisecond) // a pass is made and the rest begins
		b.Poke()
		asked := time.Now()
		if err := b.admit("sandbox-web"); err != nil {
			t.Error(err)
		}
		if took := time.Since(asked); took > 2*takes {
			t.Errorf("a pod waited %s for a pass that takes %s", took, takes)
		}
		before = b.count()
		b.sleep(rest(takes, takes) - 2*time.Millisecond)
		if n := b.count() - before; n != 0 {
			t.Errorf("%d passes in the rest after a pod's", n)
		}
		b.sleep(takes + 5*time.Millisecond)
		if n := b.count() - before; n != 1 {
			t.Errorf("%d passes after that rest, want that of the poke before it", n)
		}
		b.stop()
	})
}

// linked is a pod with its link to the node.
func linked(name string, n byte) policy.Registered {
	r := registered4(name, n)
	r.Links = []policy.Link{{Port: "veth-" + name, MAC: net.HardwareAddr{2, 0, 0, 0, 0, n}}}
	return r
}

// A pod that is admitted is bound to its addresses, and to what its annotation
// allows it but for what is others'.
func TestAdmittedPodsAreGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSubnets(node(), []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")})
		web := apiPod("web")
		web.Allowed = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("10.42.3.3/32")}
		b.deliver(policy.Cluster{})
		b.do(func() {
			b.ledger, b.api = []policy.Registered{linked("web", 2), registered4("", 3)}, []*policy.Pod{web}
		})
		if err := b.admit("sandbox-web"); err != nil {
			t.Fatal(err)
		}
		if len(b.guarded) != 1 || b.guarded[0].Port != "veth-web" || !slices.Equal(b.guarded[0].Addrs, []netip.Addr{addr(2), web.Allowed[0].Addr()}) || len(b.closed) > 0 {
			t.Errorf("guarded %+v, closed %v", b.guarded, b.closed)
		}
		st := b.Status()
		if st.Guarded != 1 || len(st.Problems) != 1 || st.Problems[0].Kind != "AddressNotAllowed" || !strings.Contains(st.Problems[0].Detail, "10.42.3.3") {
			t.Errorf("%+v", st)
		}
		b.do(func() { b.ledger = nil })
		b.Poke()
		b.sleep(time.Second)
		if len(b.guarded) > 0 {
			t.Errorf("gone, and guarded: %+v", b.guarded)
		}
		b.stop()
	})
}

// Without the guard no pod starts, unless this kernel cannot have one.
func TestGuardThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSubnets(node(), nil)
		b.do(func() { b.ledger, b.unguarded = []policy.Registered{linked("", 2)}, errors.New("no memory") })
		b.deliver(policy.Cluster{})
		if err := b.admit("sandbox-"); err == nil || !strings.Contains(err.Error(), "no memory") {
			t.Errorf("error %v", err)
		}
		if st := b.Status(); st.InForce || st.Reason != "no memory" || st.Table == nil { // the policies are
			t.Errorf("%+v", st)
		}
		b.do(func() { b.unguarded = guard.ErrUnsupported })
		if err := b.admit("sandbox-"); err != nil {
			t.Error(err)
		}
		if st := b.Status(); len(st.Problems) != 1 || st.Problems[0].Kind != "PodsNotGuarded" || !st.InForce {
			t.Errorf("%+v", st)
		}
		b.stop()
	})
}

// Where frames between pods of the node do not pass the policies, pods that are
// selected get none.
func TestWithoutBridgeFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.SetSubnets(node(), nil)
		b.do(func() {
			b.unbridged = errors.New("br_netfilter is not loaded")
			b.ledger, b.api = []policy.Registered{linked("web", 2), linked("", 3)}, []*policy.Pod{apiPod("web")}
		})
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}, Pods: b.api})
		if !slices.Equal(b.closed, []string{"veth-web"}) {
			t.Errorf("closed %v", b.closed)
		}
		if st := b.Status(); len(st.Problems) != 1 || st.Problems[0].Kind != "PolicyNotOnBridge" {
			t.Errorf("%+v", st.Problems)
		}
		b.do(func() { b.unbridged = nil })
		b.Poke()
		b.sleep(time.Second)
		if len(b.closed) > 0 || len(b.Status().Problems) > 0 {
			t.Errorf("closed %v, problems %v", b.closed, b.Status().Problems)
		}
		b.stop()
	})
}

// Without the guard's bounds pods are kept apart all the same where they have
// to be.
func TestUnboundPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.o.Unbound = true
		b.do(func() {
			b.unbridged = errors.New("br_netfilter is not loaded")
			b.ledger, b.api = []policy.Registered{linked("web", 2)}, []*policy.Pod{apiPod("web")}
		})
		b.SetSubnets(node(), nil)
		b.deliver(policy.Cluster{Policies: []*policy.Policy{denyAll()}, Pods: b.api})
		if len(b.guarded) > 0 || !slices.Equal(b.closed, []string{"veth-web"}) || b.Status().Guarded != 0 {
			t.Errorf("guarded %+v, closed %v", b.guarded, b.closed)
		}
		b.stop()
	})
}

func TestRegistered(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	stamp := func(when int, pod string, phase ledger.Phase, boot string, n byte) ledger.Stamp {
		return ledger.Stamp{Ports: []string{"veth-" + pod}, MAC: "02:00:00:00:00:01", Phase: phase, Boot: boot, Time: at(when), Addrs: []netip.Addr{addr(n)}, Pod: &ledger.Pod{Namespace: "app", Name: pod}}
	}
	record := func(id, ifName string, s ledger.Stamp) ledger.Record {
		return ledger.Record{Key: ledger.Key{ContainerID: id, IfName: ifName}, Stamp: s, Stamped: true}
	}
	got := registered([]ledger.Record{
		record("a", "eth0", stamp(9, "late", ledger.Added, "now", 2)),
		record("a", "net1", stamp(9, "late", ledger.Added, "now", 3)),
		record("b", "eth0", stamp(5, "early", ledger.Added, "now", 4)),
		record("c", "eth0", stamp(1, "half", ledger.Adding, "now", 5)),
		record("d", "eth0", stamp(1, "going", ledger.Deleting, "now", 6)),
		record("e", "eth0", stamp(1, "before", ledger.Added, "then", 7)),
		{Key: ledger.Key{ContainerID: "f", IfName: "eth0"}, Addrs: []netip.Addr{addr(8)}},
	}, "now")
	if len(got) != 2 || got[0].Name != "early" || got[1].Name != "late" || len(got[1].Addrs) != 2 || got[1].Container != "a" ||
		len(got[0].Links) != 1 || got[0].Links[0].Port != "veth-early" || len(got[1].Links) != 2 {
		t.Errorf("%+v", got)
	}
}
