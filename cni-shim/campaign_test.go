// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"

	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/subnet"
)

// TestKillCampaign is the promise of package ledger on a real node: the chain
// weft -> bridge -> host-local -> portmap is run by several workers at once,
// the plugin's process group is killed with SIGKILL at a random moment of
// nearly every call, or at a random change of a file, and the runtime then
// does what runtimes do: tries DEL, lets the pod's namespace go without one,
// or forgets it. After that one sweep leaves no address, no veth and no state
// that no pod has, and every pod that was answered has all it had.
//
// WEFT_FULL=1 makes 1,000 calls, otherwise 120. The seed is printed.
func TestKillCampaign(t *testing.T) {
	calls := 120
	if os.Getenv("WEFT_FULL") == "1" {
		calls = 1000
	}
	p := buildPlugins(t)
	t.Run("one sweep afterwards", func(t *testing.T) { runCampaign(t, p, calls, false) })
	t.Run("sweeps meanwhile", func(t *testing.T) { runCampaign(t, p, calls/2, true) })
}

// campaign is a node under attack.
type campaign struct {
	*node
	list *libcni.NetworkConfigList
	seed uint64

	mu      sync.Mutex
	pods    []*victim
	calls   int
	moments map[string]span // by command

	killed                   map[string]*atomic.Int64 // by command
	afterDone, sweeps, freed atomic.Int64
	last                     ledger.Report // of the last sweep
}

// span is how long an undisturbed call takes, and how many files it touches.
type span struct {
	took   time.Duration
	events int
}

// victim is a pod as its runtime sees it.
type victim struct {
	id       string
	ns       *netns
	rt       *libcni.RuntimeConf
	answered bool // ADD succeeded
	deleted  bool // DEL was tried
	ended    bool // the namespace is gone
}

func runCampaign(t *testing.T, p plugins, calls int, meanwhile bool) {
	c := newCampaign(t, p)
	c.warmUp(t)
	stop, swept := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swept)
		for meanwhile {
			select {
			case <-stop:
				return
			default:
				c.sweep(t)
			}
		}
	}()
	var workers sync.WaitGroup
	for w := range 3 {
		workers.Go(func() { c.work(t, w, calls) })
	}
	workers.Wait()
	close(stop)
	<-swept
	c.settle(t)
	leftAddrs, leftVeths := len(c.addresses(t)), len(c.veths(t))
	c.sweep(t)
	c.verify(t)
	if t.Failed() {
		t.Logf("the last sweep left %d busy and %v undecided", c.last.Busy, c.last.Undecided)
	}
	t.Logf("%d calls, %d ADD and %d DEL killed (%d after the plugin had done its work or before it had begun); before the last sweep %d addresses and %d veths, after it %d and %d; %d attachments freed by %d sweeps; %d hostPort rules of pods that are gone",
		calls, c.killed["ADD"].Load(), c.killed["DEL"].Load(), c.afterDone.Load(), leftAddrs, leftVeths, len(c.addresses(t)), len(c.veths(t)), c.freed.Load(), c.sweeps.Load(), c.stalePorts(t))
}

func newCampaign(t *testing.T, p plugins) *campaign {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &campaign{node: newNode(t, p, "dual"), seed: seed, moments: map[string]span{},
		killed: map[string]*atomic.Int64{"ADD": {}, "DEL": {}}}
	env := leaseOf(t, "dual")
	env.Subnets[0] = netip.MustParsePrefix("10.42.16.1/20") // leaks may not fill it before the sweep
	if err := subnet.WriteSubnetEnv(c.subnetFile(), env); err != nil {
		t.Fatal(err)
	}
	c.conf["delegate"] = map[string]any{"isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "forceAddress": true}
	_, c.list = c.runtime(t, map[string]any{
		"cniVersion": "1.0.0", "name": "weft",
		"plugins": []any{c.with(map[string]any{"cniVersion": nil, "name": nil}),
			map[string]any{"type": "portmap", "backend": "nftables", "capabilities": map[string]any{"portMappings": true}}},
	})
	return c
}

// warmUp measures undisturbed calls.
func (c *campaign) warmUp(t *testing.T) {
	for range 5 {
		v := c.newVictim(t, rand.New(rand.NewPCG(c.seed, 0)))
		for _, command := range []string{"ADD", "DEL"} {
			touched := c.watch(t)
			start := time.Now()
			if err := c.chain(t, c.netns, v, command, nil); err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			m := c.moments[command]
			c.moments[command] = span{max(m.took, time.Since(start)), max(m.events, touched.count())}
			touched.close()
		}
		v.ns.end()
	}
	c.pods = nil
	t.Logf("an undisturbed ADD takes up to %v and %d file events, a DEL %v and %d",
		c.moments["ADD"].took, c.moments["ADD"].events, c.moments["DEL"].took, c.moments["DEL"].events)
}

func (c *campaign) newVictim(t *testing.T, rng *rand.Rand) *victim {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &victim{id: fmt.Sprintf("pod-%d", len(c.pods)), ns: newNetns(t)}
	v.rt = &libcni.RuntimeConf{ContainerID: v.id, IfName: "eth0", NetNS: v.ns.path}
	if rng.IntN(3) == 0 {
		v.rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 20000 + len(c.pods), "containerPort": 80, "protocol": "tcp"}}}
	}
	c.pods = append(c.pods, v)
	return v
}

// work makes calls until all are made. Each worker is a thread on the node.
func (c *campaign) work(t *testing.T, worker, calls int) {
	rng := rand.New(rand.NewPCG(c.seed, uint64(worker)+1))
	on := enter(t, c.path)
	for {
		c.mu.Lock()
		c.calls++
		over := c.calls > calls
		c.mu.Unlock()
		if over {
			return
		}
		if v := c.pick(rng); v != nil {
			c.del(t, on, rng, v)
		} else {
			c.add(t, on, rng)
		}
	}
}

// pick chooses a pod to delete, or nil to make one.
func (c *campaign) pick(rng *rand.Rand) *victim {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rng.IntN(2) == 0 {
		return nil
	}
	for _, i := range rng.Perm(len(c.pods)) {
		if v := c.pods[i]; v.answered && !v.deleted {
			v.deleted = true
			return v
		}
	}
	return nil
}

func (c *campaign) add(t *testing.T, on *netns, rng *rand.Rand) {
	v := c.newVictim(t, rng)
	err := c.attack(t, on, rng, v, "ADD")
	if err == nil {
		c.mu.Lock()
		v.answered = true
		c.mu.Unlock()
		return
	}
	if !errors.Is(err, errKilled) {
		t.Errorf("ADD %s: %v", v.id, err)
	}
	c.mu.Lock()
	v.deleted = true
	c.mu.Unlock()
	switch rng.IntN(4) {
	case 0: // as the specification asks
		if err := c.chain(t, on, v, "DEL", nil); err != nil {
			t.Errorf("DEL %s after its ADD was killed: %v", v.id, err)
		}
		c.end(v)
	case 1: // the runtime was killed, too; the pod's processes end
		c.end(v)
	} // else its namespace stays
}

func (c *campaign) del(t *testing.T, on *netns, rng *rand.Rand, v *victim) {
	err := c.attack(t, on, rng, v, "DEL")
	if err != nil && !errors.Is(err, errKilled) {
		t.Errorf("DEL %s: %v", v.id, err)
	}
	if err == nil || rng.IntN(2) == 0 {
		c.end(v)
	}
}

func (c *campaign) end(v *victim) {
	v.ns.end()
	c.mu.Lock()
	v.ended = true
	c.mu.Unlock()
}

// attack makes a call and kills it: uniformly over the time it takes, or at
// one of the changes it makes to files.
func (c *campaign) attack(t *testing.T, on *netns, rng *rand.Rand, v *victim, command string) error {
	m, k := c.moments[command], &killer{}
	done := make(chan struct{})
	switch rng.IntN(6) {
	case 0: // it is left alone
	case 1, 2:
		// With three at work a call takes longer than it did alone.
		timer := time.AfterFunc(time.Duration(rng.Float64()*2.5*float64(m.took)), k.kill)
		defer timer.Stop()
	default:
		touched := c.watch(t)
		defer touched.close()
		go touched.wait(1+rng.IntN(m.events+2), done, k.kill)
	}
	err := c.chain(t, on, v, command, k)
	close(done)
	if errors.Is(err, errKilled) {
		c.killed[command].Add(1)
	}
	return err
}

// chain runs the whole chain of plugins, as containerd does.
func (c *campaign) chain(t *testing.T, on *netns, v *victim, command string, k *killer) (err error) {
	if k == nil {
		k = &killer{}
	}
	cni := libcni.NewCNIConfigWithCacheDir(c.plugins, c.dir+"/cache", k)
	on.do(func() {
		if command == "ADD" {
			_, err = cni.AddNetworkList(t.Context(), c.list, v.rt)
		} else {
			err = cni.DelNetworkList(t.Context(), c.list, v.rt)
		}
	})
	return err
}

// errKilled ends a chain whose plugin was killed: the runtime is no more.
var errKilled = errors.New("killed")

// killer runs plugins in process groups of their own, which it can kill.
type killer struct {
	version.PluginDecoder
	mu   sync.Mutex
	pid  int
	dead bool
}

// FindInPath implements invoke.Exec.
func (k *killer) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (k *killer) ExecPlugin(_ context.Context, file string, stdin []byte, env []string) ([]byte, error) {
	cmd := exec.Command(file)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	k.mu.Lock()
	if k.dead {
		k.mu.Unlock()
		return nil, errKilled
	}
	err := cmd.Start()
	if err == nil {
		k.pid = cmd.Process.Pid
	}
	k.mu.Unlock()
	if err != nil {
		return nil, err
	}
	err = cmd.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pid = 0
	switch {
	case k.dead:
		return nil, errKilled
	case err != nil:
		return nil, fmt.Errorf("%w: %s %s", err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

// kill ends the plugin with all its children, and with it the runtime.
func (k *killer) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dead = true
	if k.pid != 0 {
		_ = syscall.Kill(-k.pid, syscall.SIGKILL) // it may have ended by itself
	}
}

// settle waits for what the kernel does on its own: killed processes give up
// their locks, and namespaces that ended take their veths away. Of such a
// namespace the addresses go first, then it cannot be looked into, then it has
// no id; meanwhile a sweep rightly decides nothing. A veth that lost only its
// addresses may also be what a killed ADD left, so it is not waited for for
// long.
func (c *campaign) settle(t *testing.T) {
	t.Helper()
	l := c.ledger(t)
	start := time.Now()
	for deadline := start.Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		records, err := l.Records(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(records, func(r ledger.Record) bool { return r.Busy })
		dying := slices.IndexFunc(c.veths(t), func(v ledger.Veth) bool {
			return v.Netns == nil || v.Unreadable || len(v.Addrs) == 0 && time.Since(start) < 5*time.Second
		})
		if at < 0 && dying < 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still at work: record %d of %v; veth %d of %v", at, records, dying, c.veths(t))
		}
	}
}

func (c *campaign) ledger(t *testing.T) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(ledger.Options{Network: "weft", StateDir: c.dataDir(), AllocDir: c.dir + "/ipam"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sweep is the agent's.
func (c *campaign) sweep(t *testing.T) {
	env := []netip.Prefix{netip.MustParsePrefix("10.42.16.0/20"), netip.MustParsePrefix("fd00:42:0:1::/64")}
	r, err := c.ledger(t).Sweep(t.Context(), lister{c}, env, time.Now())
	if err != nil {
		t.Errorf("sweep: %v", err)
	}
	if r.Outside != nil {
		t.Errorf("outside the lease: %v", r.Outside)
	}
	c.last = r
	c.sweeps.Add(1)
	c.freed.Add(int64(len(r.Freed)))
}
