// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft.dev/weft/subnet"
)

// The vandal. Each program is made from its seed alone, so that
//
//	WEFT_SEED=1234 go test -run TestVandal -v ./overlay
//
// runs it again and prints each step.

// vandalise does one thing that somebody with root might do, or that a kernel
// does when asked by others. The caller holds mu.
func (k *vkernel) vandalise() string {
	acts := []func() string{
		k.breakLink, k.breakLink, k.breakLink, k.breakAddrs, k.breakFDB, k.breakNeighs,
		k.breakRoutes, k.breakRoutes, k.breakTable, k.breakTable, k.addCanary, k.addCanary,
	}
	return acts[k.rng.IntN(len(acts))]()
}

func (k *vkernel) breakLink() string {
	l, ok := anyOf(k.rng, k.state.Links)
	if !ok {
		return "no link to break"
	}
	was := l
	switch k.rng.IntN(9) {
	case 0:
		k.drop(l.Name)
		return "delete " + l.Name
	case 1:
		k.alter(was, down(l))
		l = down(l)
		if k.rng.IntN(2) == 0 {
			was, l.Up = l, true
			k.alter(was, l)
			return "down and up: " + l.Name
		}
		return "down: " + l.Name
	case 2:
		l.MAC = mac(800 + k.rng.IntN(3))
	case 3:
		l.MTU = []int{1000, 1279, 1280, 9000}[k.rng.IntN(4)]
	case 4:
		l.Learning = !l.Learning
	case 5:
		l.RPFilter = 1
	case 6:
		l.AddrGen, l.NoGRO = "eui64", !l.NoGRO
	case 7: // another device of this name
		k.drop(l.Name)
		l.Foreign, l.Port = "ttl 5", uint16(8472+k.rng.IntN(2))
		k.state.Links.Add(l)
		return "another " + l.String()
	case 8:
		l.GBP = !l.GBP
		k.drop(l.Name)
		k.state.Links.Add(l)
		return "recreate " + l.String()
	}
	k.alter(was, l)
	return "alter " + l.String()
}

func down(l Link) Link { l.Up = false; return l }

func (k *vkernel) breakAddrs() string {
	a, ok := anyOf(k.rng, k.state.Addrs)
	l, up := anyOf(k.rng, k.state.Links)
	switch n := k.rng.IntN(4); {
	case n == 0 && up && l.Up:
		k.state.Addrs.Add(Addr{l.Name, prefix("10.99.0.1/32")})
		return "another address on " + l.Name
	case n == 1 && ok: // flushed
		k.unaddress(a.Dev, func(netip.Addr) bool { return true })
		return "no addresses on " + a.Dev
	case ok:
		k.removeAddr(a)
		return "no address " + a.String()
	}
	return "no address to break"
}

func (k *vkernel) breakFDB() string {
	f, ok := anyOf(k.rng, k.state.FDB)
	l, up := anyOf(k.rng, k.state.Links)
	switch n := k.rng.IntN(5); {
	case n == 0 && up:
		f = FDB{l.Name, mac(900 + k.rng.IntN(3)), host(4, 90)}
		k.state.FDB.Add(f)
		return "junk fdb " + f.String()
	case !ok:
		return "no fdb to break"
	case n == 1: // a second destination for a MAC
		f.Dst = host(4, 90+k.rng.IntN(3))
		k.state.FDB.Add(f)
		return "append fdb " + f.String()
	case n == 2:
		delete(k.state.FDB, f)
		f.Dst = host(4, 90)
		k.state.FDB.Add(f)
		return "redirect fdb " + f.String()
	}
	delete(k.state.FDB, f)
	return "no fdb " + f.String()
}

func (k *vkernel) breakNeighs() string {
	n, ok := anyOf(k.rng, k.state.Neighs)
	l, up := anyOf(k.rng, k.state.Links)
	switch i := k.rng.IntN(4); {
	case i == 0 && up && l.Up:
		n = Neigh{l.Name, addr("10.5.99.0"), mac(900)}
		k.state.Neighs.Add(n)
		return "junk neigh " + n.String()
	case !ok:
		return "no neigh to break"
	case i == 1:
		delete(k.state.Neighs, n)
		n.MAC = mac(900)
		k.state.Neighs.Add(n)
		return "redirect neigh " + n.String()
	}
	delete(k.state.Neighs, n)
	return "no neigh " + n.String()
}

func (k *vkernel) breakRoutes() string {
	r, ok := k.ourRoute()
	if !ok {
		return "no route to break"
	}
	was := r
	switch k.rng.IntN(7) {
	case 0, 1:
		delete(k.state.Routes, r)
		return "no route " + r.String()
	case 2: // one beside it
		r.Metric += uint32(1 + k.rng.IntN(3))
		r.Proto = []uint8{RouteProtocol, protoBoot, 4}[k.rng.IntN(3)]
		if !k.own[r.Dev] {
			r.Proto = RouteProtocol // of others there are canaries
		}
		k.state.Routes.Add(r)
		return "beside it route " + r.String()
	case 3:
		r.Via = r.Dst.Addr().Next().Next()
	case 4:
		r.Onlink, r.Proto = !r.Onlink, 4
		if !k.own[r.Dev] {
			r.Proto = RouteProtocol
		}
	case 5:
		r.Dev, r.Proto = "eth0", RouteProtocol // else it is somebody else's
		r.Via = host(subnet.FamilyOf(r.Dst.Addr()), 99)
	case 6: // one more of the kind
		r.Dst = pods(subnet.FamilyOf(r.Dst.Addr()), 100+k.rng.IntN(4))
		k.state.Routes.Add(r)
		return "junk route " + r.String()
	}
	delete(k.state.Routes, was)
	k.state.Routes.Add(r)
	return "alter route " + r.String()
}

func (k *vkernel) ourRoute() (Route, bool) {
	for range 4 {
		if r, ok := anyOf(k.rng, k.state.Routes); ok && !k.canaries.Has(r) {
			return r, true
		}
	}
	return Route{}, false
}

func (k *vkernel) breakTable() string {
	f, ok := anyOf(k.rng, k.state.Filters)
	n, hasNode := anyOf(k.rng, k.state.Nodes)
	s, hasSource := anyOf(k.rng, k.state.Sources)
	switch i := k.rng.IntN(8); {
	case !ok:
		k.state.Filters.Add(Filter{Foreign: "somebody's own", Guard: GuardOff})
		return "a table of somebody else"
	case i == 0:
		k.dropTable()
		return "flush ruleset"
	case i == 1 && f.Foreign == "": // a rule more
		delete(k.state.Filters, f)
		f.Foreign = "chain input has 1 rule more"
		k.state.Filters.Add(f)
		return "a foreign rule"
	case i == 2: // of another configuration
		delete(k.state.Filters, f)
		f.Port++
		k.state.Filters.Add(f)
		return "another table"
	case i == 3:
		clear(k.state.Nodes)
		clear(k.state.Sources)
		clear(k.state.Pods)
		return "flush sets"
	case i == 4 && hasNode:
		delete(k.state.Nodes, n)
		return "no node " + n.String()
	case i == 5 && hasSource:
		delete(k.state.Sources, s)
		return "no source " + s.String()
	case i == 6:
		n = Node{Addr: host(4, 90), Own: k.rng.IntN(2) == 0}
		k.state.Nodes.Add(n)
		return "junk node " + n.String()
	case f.Guard == GuardBind:
		s = Source{host(4, 90), single(host(4, 91))}
		k.state.Sources.Add(s)
		return "junk source " + s.String()
	}
	return "no element to break"
}

// addCanary adds somebody else's route: on one of our devices to a prefix that
// is nobody's, or on another device to one that weft wants too. (Not with
// IPv6: there the kernel would refuse weft's, which is for a Problem to tell.)
func (k *vkernel) addCanary() string {
	l, ok := anyOf(k.rng, k.state.Links)
	f := subnet.Families()[k.rng.IntN(2)]
	r := Route{Dev: "eth0", Dst: pods(f, 1+k.rng.IntN(7)), Via: host(f, 200), Metric: uint32(1 + k.rng.IntN(3)), Proto: 4}
	switch n := k.rng.IntN(3); {
	case n == 0 && ok && l.Up && l.carries(f):
		r.Dev, r.Dst, r.Via = l.Name, pods(f, 200+k.rng.IntN(3)), netip.Addr{}
	case n == 1:
		r.Proto = protoBoot // as flannel's direct routes, but not to a peer
	}
	if f == subnet.IPv6 && r.Dev == "eth0" {
		r.Dst = pods(f, 210+k.rng.IntN(3))
	}
	k.state.Routes.Add(r)
	k.canaries.Add(r)
	return "somebody's route " + r.String()
}

// anyOf returns an element.
func anyOf[E entryOf[E]](rng *rand.Rand, s Set[E]) (E, bool) {
	all := sorted(s)
	if len(all) == 0 {
		var none E
		return none, false
	}
	return all[rng.IntN(len(all))], true
}

// program is one run of weft against a vandal.
type program struct {
	seed   uint64
	rng    *rand.Rand
	k      *vkernel
	r      *Reconciler
	cancel context.CancelFunc
	done   chan error
	config subnet.Config
	self   Self
	leases []subnet.Lease
	hold   time.Duration
	passes []pass
	trace  []string
	loud   bool
}

// pass is what one pass of the Reconciler did.
type pass struct {
	at     time.Time
	writes int // up to its end
	inSync bool
	// guessed: it set an FDB entry of a MAC with several destinations, none of
	// them right. The kernel moves the oldest of them (vxlan_fdb_replace,
	// drivers/net/vxlan/vxlan_core.c), which a dump does not tell.
	guessed bool
}

func (p *program) note(format string, args ...any) {
	if p.loud {
		p.trace = append(p.trace, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
	}
}

func newProgram(seed uint64, loud bool) *program {
	p := &program{seed: seed, rng: rand.New(rand.NewPCG(seed, 4)), loud: loud, hold: -1, config: testConfig()}
	all := shapes()
	p.self = testSelf(all[sortedKeys(all)[p.rng.IntN(len(all))]]...)
	for i, u := range p.self.Underlays {
		p.self.Underlays[i].Net = netip.PrefixFrom(u.Addr, u.Addr.BitLen()-8).Masked()
	}
	p.self.Guard = []Guard{"", GuardBind, GuardBind, GuardPeers, GuardOff}[p.rng.IntN(5)]
	p.self.Masquerade = p.rng.IntN(2) == 0
	if p.rng.IntN(5) == 0 {
		p.hold = 10 * time.Second
	}
	p.configure()
	p.k = newVKernel(rand.New(rand.NewPCG(seed, 5)), "weft.1", "weft6.1")
	return p
}

// configure draws another configuration.
func (p *program) configure() {
	b := &p.config.Backend
	b.DirectRouting = p.rng.IntN(3) == 0
	b.Type = []subnet.BackendType{subnet.BackendVXLAN, subnet.BackendVXLAN, subnet.BackendVXLAN, subnet.BackendHostGW}[p.rng.IntN(4)]
	b.MTU = []int{0, 0, 0, 1400}[p.rng.IntN(4)]
	b.Learning = p.rng.IntN(4) == 0
	b.GBP = p.rng.IntN(4) == 0
}

// move gives this node another underlay address of one family, or another MTU.
func (p *program) move() {
	p.self.Lease = p.self.Lease.Clone()
	p.self.Underlays = slices.Clone(p.self.Underlays)
	u := &p.self.Underlays[p.rng.IntN(len(p.self.Underlays))]
	was := u.Addr
	u.Addr = host(subnet.FamilyOf(was), 1+230*p.rng.IntN(2))
	u.MTU = []int{1500, 1500, 1400}[p.rng.IntN(3)]
	for i, path := range p.self.Lease.Paths {
		if path.Underlay == was {
			p.self.Lease.Paths[i].Underlay = u.Addr
		}
	}
}

// deliver draws the leases that the store has now.
func (p *program) deliver() {
	p.leases = nil
	for n := 2; n < 8; n++ {
		if p.rng.IntN(3) == 0 {
			continue
		}
		l := lease(n, [2]subnet.Family{4, 4}, [2]subnet.Family{6, 6})
		if p.rng.IntN(4) == 0 { // elsewhere
			l = edit(l, func(p *subnet.Path) { p.Underlay = p.Underlay.Next(); p.MAC[4]++ })
		}
		p.leases = append(p.leases, l)
	}
	p.note("%d leases", len(p.leases))
	p.wait(func() { p.r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(p.leases...)}) })
}

func (p *program) start() {
	config := p.config
	p.r = NewReconciler(p.k, Options{Config: config, MassRemovalHold: p.hold, OnStatus: func(s Status) {
		p.k.mu.Lock()
		defer p.k.mu.Unlock()
		if s.LastLook == s.LastPass {
			p.passes = append(p.passes, pass{time.Now(), p.k.writes, s.InSync, p.k.guessed})
		}
		p.note("pass: in sync %t, %s, pending\n%s", s.InSync, s.Reason, s.Pending)
	}})
	audits := rand.New(rand.NewPCG(p.seed, 6)) // drawn from in Run's goroutine
	p.r.spread = audits.Float64
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.done = make(chan error, 1)
	go func() { p.done <- p.r.Run(ctx) }()
	p.wait(func() { p.r.SetSelf(p.self) })
}

// wait does something that Run hears of and waits until Run is idle: what two
// goroutines do at one instant would not replay.
func (p *program) wait(act func()) {
	synctest.Wait()
	act()
	synctest.Wait()
}

func (p *program) stop() {
	p.cancel()
	<-p.done
}

// sleep lets time pass and all that is due then finish.
func (p *program) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// step does one thing to weft or its kernel.
func (p *program) step() {
	k := p.k
	switch n := p.rng.IntN(20); {
	case n < 12:
		k.mu.Lock()
		for range 1 + p.rng.IntN(3) {
			p.note("vandal: %s", k.vandalise())
		}
		k.mu.Unlock()
	case n < 16:
		k.mu.Lock()
		all := errnos()
		k.fault = &fault{steps: p.rng.IntN(8), kind: faultKind(p.rng.IntN(int(faultKinds))), errno: all[p.rng.IntN(len(all))]}
		p.note("fault: %+v; vandal: %s", *k.fault, k.vandalise())
		k.mu.Unlock()
	case n < 18:
		p.deliver()
	case n < 19 && p.rng.IntN(2) == 0:
		p.move()
		p.note("self %+v", p.self.Underlays)
		p.wait(func() { p.r.SetSelf(p.self) })
	case n < 19:
		p.configure()
		p.note("config %+v", p.config.Backend)
		p.wait(func() { p.r.SetConfig(p.config) })
	default: // kill -9 and start
		p.stop()
		p.note("restart")
		p.start()
		p.wait(func() { p.r.SetSnapshot(subnet.Snapshot{Leases: subnet.LeasesOf(p.leases...)}) })
	}
	if p.rng.IntN(4) > 0 { // else the event is lost, or there is none
		p.r.Poke()
	}
	p.sleep([]time.Duration{0, time.Millisecond, 60 * time.Millisecond, 300 * time.Millisecond, 6 * time.Second}[p.rng.IntN(5)])
}

// run runs the program and returns what is wrong.
func (p *program) run() string {
	p.start()
	p.note("hold %v, guard %q, masquerade %t, config %+v", p.hold, p.self.Guard, p.self.Masquerade, p.config.Backend)
	p.deliver()
	synctest.Wait()
	for range 1 + p.rng.IntN(8) {
		p.step()
	}
	p.k.mu.Lock()
	p.k.fault = nil
	p.note("vandal, the last: %s", p.k.vandalise())
	n, end := len(p.passes), time.Now()
	p.k.mu.Unlock()
	if p.rng.IntN(2) == 0 {
		p.r.Poke()
	}
	p.sleep(13 * time.Second) // two audits
	p.k.mu.Lock()
	wrong := p.settled(p.passes[n:], end)
	p.k.mu.Unlock()
	if p.hold > 0 || p.config.Backend.Type == subnet.BackendHostGW {
		p.sleep(max(p.hold, linkLinger) + 6*time.Second) // what is kept for a while goes
	}
	p.stop()
	return strings.Join(append(append(wrong, p.k.crimes...), p.final()...), "\n")
}

// settled checks the passes after the last fault: the first puts all right,
// the second has nothing to write.
func (p *program) settled(passes []pass, end time.Time) []string {
	if len(passes) < 2 {
		return []string{fmt.Sprintf("%d passes in 13 s", len(passes))}
	}
	var wrong []string
	if first := passes[0]; first.at.Sub(end) > 6*time.Second+time.Millisecond {
		wrong = append(wrong, fmt.Sprintf("looked after %v only", first.at.Sub(end)))
	}
	if passes[0].guessed {
		passes = passes[1:] // this may have left another one to delete
	}
	for i, s := range passes {
		if !s.inSync {
			wrong = append(wrong, fmt.Sprintf("not in sync after pass %d", i+1))
		}
		if i > 0 && s.writes != passes[i-1].writes && p.hold < 0 && p.config.Backend.Type == subnet.BackendVXLAN {
			wrong = append(wrong, fmt.Sprintf("pass %d writes %d", i+1, s.writes-passes[i-1].writes))
		}
	}
	return wrong
}

// final compares the kernel with what is wanted, and with what others want.
func (p *program) final() []string {
	var wrong []string
	have, err := p.k.Dump(context.Background(), Digest{})
	want, _ := Desired(p.self, p.config, p.leases, NewState())
	if c := Diff(want, have); err != nil || !c.Empty() {
		wrong = append(wrong, fmt.Sprintf("%v, still to do:\n%s", err, c))
	}
	for r := range p.k.canaries {
		if !p.k.state.Routes.Has(r) {
			wrong = append(wrong, "somebody else's route is gone: "+r.String())
		}
	}
	return wrong
}

// tally counts what programs did, so that a run which does nothing shows.
type tally struct {
	mu                               sync.Mutex
	programs, calls, writes, repairs int
	faults                           [faultKinds]int
}

func (c *tally) add(p *program) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.programs++
	c.calls += p.k.calls
	c.writes += p.k.writes
	c.repairs += int(p.r.Status().Repairs)
	for i, n := range p.k.acts {
		c.faults[i] += n
	}
}

// TestVandal runs random programs of damage, faults and inputs. Whatever they
// do: with the first pass after it all is as it should be, the second has
// nothing to do, no other's object is touched, and weft never leaves a route
// without what it needs. WEFT_FULL=1 runs all 20,000, WEFT_SEED=n one of them.
func TestVandal(t *testing.T) {
	var c tally
	if s := os.Getenv("WEFT_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		vandalRun(t, seed, true, &c)
		return
	}
	programs := uint64(5000)
	if os.Getenv("WEFT_FULL") != "" {
		programs = 20000
	}
	const lots = 8
	t.Run("programs", func(t *testing.T) {
		for lot := range uint64(lots) {
			t.Run(fmt.Sprint("lot ", lot), func(t *testing.T) {
				t.Parallel()
				for seed := lot; seed < programs && !t.Failed(); seed += lots {
					vandalRun(t, seed, false, &c)
				}
			})
		}
	})
	t.Logf("%d programs, %d calls, %d writes, %d repairs; refused %d, unsure %d, meddled with %d, dumps failed %d",
		c.programs, c.calls, c.writes, c.repairs, c.faults[refuse], c.faults[unsure], c.faults[meddle], c.faults[blind])
	if slices.Min(c.faults[:])*20 < c.programs || c.repairs < c.programs {
		t.Error("too little happened in these programs to prove anything")
	}
}

func vandalRun(t *testing.T, seed uint64, loud bool, c *tally) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram(seed, loud)
		wrong := p.run()
		if loud {
			t.Log(strings.Join(p.trace, "\n"))
		}
		if wrong != "" {
			t.Errorf("WEFT_SEED=%d: %s", seed, wrong)
		}
		c.add(p)
	})
}

// The vandal must be able to break each thing, and weft must be caught when it
// does wrong: here is a weft that deletes before it adds.
func TestTheVandalKernelAccuses(t *testing.T) {
	self := testSelf([2]subnet.Family{4, 4})
	want, _ := Desired(self, testConfig(), []subnet.Lease{lease(2, [2]subnet.Family{4, 4})}, NewState())
	k := newVKernel(rand.New(rand.NewPCG(1, 1)), "weft.1")
	changes := Diff(want, NewState())
	slices.Reverse(changes)
	for range 5 {
		_ = k.Apply(t.Context(), changes)
	}
	if len(k.crimes) == 0 {
		t.Error("a route before its neighbour is no crime")
	}
	k.crimes = nil
	_ = k.Apply(t.Context(), Changes{{Op: Delete, Entry: sorted(want.FDB)[0]}})
	if len(k.crimes) == 0 {
		t.Error("an FDB entry taken from a route is no crime")
	}
}
