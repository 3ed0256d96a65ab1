// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/etcdtest"
)

// A campaign writes mutants of store entries beside good peers.
const (
	mutants     = 1000  // for each kind of server
	mutantsFull = 10000 // with fullVar
	fullVar     = "WEFT_FULL"
	batch       = 250 // that are in the store at once
	goodPeers   = 20
)

// TestJunkCampaign is F12, and T17 (flannel loses 9 of 36 entries to 300 such
// keys): 10,000 mutated entries beside 20 good peers, through a real etcd and
// the store into overlay.Desired. What the good peers' entries in the kernel
// should be never changes, in no snapshot, and nothing comes beside them that
// would lead their packets elsewhere.
func TestJunkCampaign(t *testing.T) {
	each(t, func(*testing.T) etcdtest.Options { return etcdtest.Options{} }, func(e *env, _ etcdtest.Options) {
		seed := rand.Uint64()
		if s := os.Getenv("WEFT_SEED"); s != "" {
			if _, err := fmt.Sscan(s, &seed); err != nil {
				e.Fatal(err)
			}
		}
		e.Logf("WEFT_SEED=%d", seed)
		n := mutants
		if os.Getenv(fullVar) != "" {
			n = mutantsFull
		}
		start := time.Now()
		c := newCampaign(e, seed)
		for c.written < n {
			c.round(min(batch, n-c.written))
		}
		c.report(time.Since(start))
	})
}

// A campaign is the state of one.
type campaign struct {
	e     *env
	rng   *rand.Rand
	self  overlay.Self
	cfg   subnet.Config
	good  map[string]subnet.Lease // by key
	keep  map[string]subnet.Lease // what else is put back after each round
	beat  subnet.Lease            // one more peer, changed to mark the end of a round
	watch *watching

	before   overlay.State  // last desired state
	baseline overlay.State  // with the good peers alone
	seen     map[string]int // problems by kind
	accepted int            // largest number of mutants that became peers at once
	checked  int            // snapshots

	written, bytes int
	kinds          map[string]int
}

func newCampaign(e *env, seed uint64) *campaign {
	c := &campaign{e: e, rng: rand.New(rand.NewPCG(seed, 0)), cfg: dual(e),
		good: make(map[string]subnet.Lease), keep: make(map[string]subnet.Lease), seen: make(map[string]int), kinds: make(map[string]int)}
	own := at(want(c.cfg, 100), "10.42.100.0/24", "fd42:0:0:64::/64")
	c.self = overlay.Self{
		Lease: own, Guard: overlay.GuardBind, Masquerade: true,
		Names:     overlay.Names{subnet.IPv4: "weft.", subnet.IPv6: "weft6."},
		Addresses: []netip.Addr{netip.MustParseAddr("10.7.7.7"), own.Paths[0].Underlay, own.Paths[1].Underlay},
	}
	for _, p := range own.Paths {
		net, err := p.Underlay.Prefix(p.Underlay.BitLen() / 2)
		if err != nil {
			e.Fatal(err)
		}
		c.self.Underlays = append(c.self.Underlays, overlay.Underlay{Dev: "eth0", Addr: p.Underlay, Net: net, MTU: 1500})
	}
	c.keep[e.putLease(own, 0)] = own
	c.beat = at(want(c.cfg, 99), "10.42.99.0/24", "fd42:0:0:63::/64")
	e.putLease(c.beat, 0)
	var leases []subnet.Lease
	for i := 1; i <= goodPeers; i++ {
		l := c.peer(i)
		c.good[e.putLease(l, 0)] = l
		leases = append(leases, l)
	}
	var problems []subnet.Problem
	c.baseline, problems = overlay.Desired(c.self, c.cfg, leases, overlay.NewState())
	if len(problems) != 0 || len(c.baseline.Routes) < goodPeers {
		e.Fatalf("%d routes of good peers, problems %v", len(c.baseline.Routes), problems)
	}
	c.before = c.baseline
	c.watch = e.watch(e.store())
	c.settle()
	return c
}

// peer returns good peer i: of weft and of flannel, of one family and of
// both, with sources and without, with VXLAN and without.
func (c *campaign) peer(i int) subnet.Lease {
	l := at(want(c.cfg, i), fmt.Sprintf("10.42.%d.0/24", i), fmt.Sprintf("fd42:0:0:%x::/64", i))
	switch i % 5 {
	case 1:
		l = flannel(l)
	case 2:
		l.Sources = []netip.Addr{netip.AddrFrom4([4]byte{172, 16, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 9, 15: byte(i)})}
	case 3:
		l.Paths = l.Paths[:1]
	case 4:
		l.Backend = subnet.BackendHostGW
		for i := range l.Paths {
			l.Paths[i].MAC, l.Paths[i].VNI = subnet.MAC{}, 0
		}
	}
	return l
}

// round writes n mutants, waits until they have been seen, and removes them.
func (c *campaign) round(n int) {
	e := c.e
	entries := make(map[string]string, n)
	for len(entries) < n {
		key, value, kind := c.mutant()
		if _, twice := entries[key]; !twice && len(key) < 1<<15 {
			entries[key] = value
			c.kinds[kind]++
			c.bytes += len(value)
		}
	}
	var keys []string
	var ops []clientv3.Op
	size := 0
	flush := func() {
		if len(ops) > 0 {
			if _, err := e.c.Txn(e.Context()).Then(ops...).Commit(); err != nil {
				e.Fatal(err)
			}
		}
		ops, size = nil, 0
	}
	for key, value := range entries {
		keys = append(keys, key)
		if size += len(key) + len(value); len(ops) == 20 || size > 1<<20 {
			flush()
			size = len(key) + len(value)
		}
		ops = append(ops, clientv3.OpPut(key, value))
	}
	flush()
	c.written += n
	c.settle()
	for _, key := range keys {
		if l, ok := c.good[key]; ok {
			e.putLease(l, 0)
			continue
		} else if l, ok := c.keep[key]; ok {
			e.putLease(l, 0)
			continue
		}
		if _, err := e.c.Delete(e.Context(), key); err != nil {
			e.Fatal(err)
		}
	}
	c.settle()
	if snap := c.watch.last(); snap.Leases.Len() != goodPeers+2 || len(snap.Problems) != 0 {
		e.Fatalf("after a round: %d leases, problems %v", snap.Leases.Len(), snap.Problems)
	}
}

// settle waits until what was written before has come through, and judges all
// snapshots of it.
func (c *campaign) settle() {
	c.e.Helper()
	c.beat.Paths[0].MAC[5]++
	c.e.putLease(c.beat, 0)
	c.e.eventually("what was written", func() bool {
		return slices.ContainsFunc(c.watch.last().Leases.Slice(), c.beat.Equal)
	})
	for _, snap := range c.watch.take() {
		c.judge(snap)
	}
}

func (c *campaign) report(took time.Duration) {
	e := c.e
	e.Logf("%d mutants (%d MB) in %s: %d snapshots, up to %d mutants were peers at once, 0 entries of %d good peers changed",
		c.written, c.bytes>>20, took.Round(time.Millisecond), c.checked, c.accepted, goodPeers)
	e.Logf("mutants by kind: %v", c.kinds)
	e.Logf("problems by kind: %v", c.seen)
	// Nothing of the above says much if the mutants never got as far.
	if c.accepted == 0 {
		e.Error("no mutant was ever accepted as a peer")
	}
	kinds := []string{"JunkLease", "PeerOverlap", "PeerOutsideNetwork", "PeerMACIsOurs", "PeerDuplicateNode", "PeerBackend"}
	if c.written >= mutantsFull {
		kinds = append(kinds, "PeerOverlapsSelf", "PeerMACDuplicate", "PeerUnderlayIsOurs", "PeerUnreachable", "PeerVNI", "PeerSource")
	}
	for _, kind := range kinds {
		if c.seen[kind] == 0 {
			e.Errorf("no mutant has led to a problem of kind %s", kind)
		}
	}
}
