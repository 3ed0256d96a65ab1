// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/kube"
	"weft.dev/weft/policy/rules"
	"weft.dev/weft/subnet"
)

// A Source is where policies, and what they depend on, come from: kube.Source.
type Source interface {
	Watch(ctx context.Context, set func(kube.Snapshot)) error
	Pod(ctx context.Context, namespace, name, uid string) (*policy.Pod, error)
	Reason() string
}

// A Kernel keeps the table: rules.Programmer.
type Kernel interface {
	Sync(context.Context, *policy.Table, []netip.Prefix) (rules.Report, error)
	Update(context.Context, *policy.Table, []netip.Prefix) (rules.Report, error)
}

// A Guard keeps pods from sending what is not theirs, and apart where policies
// do not reach: guard.Guard.
type Guard interface {
	Update(ctx context.Context, pods []nft.SpoofPod, closed []string, look bool) ([]error, error)
}

// Pods lists this node's own pods, in the order in which they were set up.
type Pods func(context.Context) ([]policy.Registered, error)

// Options are what an Enforcer needs.
type Options struct {
	Node   string
	Source Source
	Kernel Kernel
	Pods   Pods
	Guard  Guard
	// Unbound lets pods send from any address.
	Unbound bool
	// Allow is what pods may have beside their own addresses if they ask for it.
	Allow []netip.Prefix
	// Bridge makes what pods of this node send each other pass the table; nil
	// where it does.
	Bridge func(context.Context) error
	// Resync is the pause between two looks at the kernel, and at the ledger;
	// default 5 s, and more where a look takes long.
	Resync time.Duration
	Log    logrus.FieldLogger // edges; default: nowhere
}

// Status is what an Enforcer has last done. It must not be modified.
type Status struct {
	InForce  bool   // the last table is in the kernel
	Reason   string // else why not
	Policies int    // in the cluster
	Isolated [2]int // addresses of this node's pods, by policy.Direction
	Pods     int    // addresses of this node's pods
	Guarded  int    // of the pods' links to the node
	Rows     int
	// Compiled and Applied are how long the last change took.
	Compiled, Applied time.Duration
	Generation        rules.Generation
	Problems          []subnet.Problem

	// What explanations are made of; nil before the first pass.
	Cluster *policy.Cluster
	Table   *policy.Table
	Subnets []netip.Prefix
}

// Has reports whether pod is one of this node's.
func (s Status) Has(pod *policy.Pod) bool {
	return slices.ContainsFunc(pod.Addrs, func(a netip.Addr) bool { return s.Table.Known[a] })
}

// Explain says why k may pass, or may not.
func (s Status) Explain(k policy.Packet) policy.Explanation {
	return s.Cluster.Explain(k).Without(func(p *policy.Pod) bool { return s.Has(p) && slices.Contains(s.Table.TooLarge, p.Namespace) })
}

// An Enforcer brings policies into force on one node. The goroutine of Run
// owns everything; others hand it their news and a poke.
type Enforcer struct {
	o        Options
	snapshot atomic.Pointer[kube.Snapshot]
	place    atomic.Pointer[place]
	wake     chan struct{}  // one slot
	admits   chan admission // to Run
	status   atomic.Pointer[Status]
	cpu      func() time.Duration // cpuTime
}

// New returns an Enforcer. Nothing happens before Run.
func New(o Options) *Enforcer {
	o.Resync = cmp.Or(o.Resync, 5*time.Second)
	if o.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		o.Log = l
	}
	e := &Enforcer{o: o, wake: make(chan struct{}, 1), admits: make(chan admission), cpu: cpuTime}
	e.status.Store(&Status{Reason: "starting"})
	return e
}

// A place is where a node is in the network.
type place struct{ subnets, reserved []netip.Prefix }

// SetSubnets tells the node's subnets of pods, and what else no pod may have
// addresses of beside its own: the pod networks, the node's addresses. The lists
// must not be modified afterwards.
func (e *Enforcer) SetSubnets(subnets, reserved []netip.Prefix) {
	now := place{subnets, reserved}
	if was := e.place.Load(); was == nil || !slices.Equal(was.subnets, now.subnets) || !slices.Equal(was.reserved, now.reserved) {
		e.place.Store(&now)
		e.Poke()
	}
}

// Poke asks for a pass: the ledger or the kernel may have changed. It never
// blocks.
func (e *Enforcer) Poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Status returns what was last done.
func (e *Enforcer) Status() Status { return *e.status.Load() }

// Run watches and enforces until ctx ends.
func (e *Enforcer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return e.o.Source.Watch(ctx, func(s kube.Snapshot) {
			e.snapshot.Store(&s)
			e.Poke()
		})
	})
	g.Go(func() error { return e.loop(ctx) })
	return g.Wait()
}

// loop makes a pass for each poke and each admission, and looks at the kernel
// every Resync or so.
func (e *Enforcer) loop(ctx context.Context) error {
	p := &pass{Enforcer: e, compiler: policy.NewCompiler(e.o.Node)}
	audit := time.NewTimer(0)
	defer audit.Stop()
	due := time.Now()
	rested := time.NewTimer(0)
	defer rested.Stop()
	for {
		look, paced := false, false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-e.admits:
			p.waiting = append(p.waiting, a)
		case <-e.wake:
			paced = true
		case <-rested.C:
			paced = true // there may have been a pass meanwhile, for a pod
		case <-audit.C:
			look = true
		}
		if wait := time.Until(p.rest); paced && wait > 0 {
			rested.Reset(wait)
			continue
		}
		p.collect() // what has come together is one pass
		start, had := time.Now(), e.cpu()
		p.make(ctx, look)
		now := time.Now()
		took := now.Sub(start)
		pause := rest(took, e.cpu()-had)
		p.rest = now.Add(pause)
		if again := now.Add(max(e.o.Resync, pause)); look {
			due = again
			if p.Status().InForce {
				due = now.Add(max(e.o.Resync, min(lookFactor*took, longestPause), pause))
			}
		} else if !p.Status().InForce && again.Before(due) {
			due = again
		}
		audit.Reset(time.Until(due))
	}
}

// lookFactor times the duration of a look at the kernel is the time to the next
// one if that is longer than Resync, up to longestPause: a table of a quarter of a
// million elements takes a second to read. What somebody does to it is told by
// nft.Monitor meanwhile.
const (
	lookFactor   = 10
	longestPause = time.Minute
)

// pass is the state of Run's goroutine.
type pass struct {
	*Enforcer
	compiler *policy.Compiler
	waiting  []admission
	early    []policy.Registered // admitted pods that the API was asked for
	last     string              // reason of the last status, to tell edges
	rest     time.Time           // when the next pass may be
}

// collect takes all admissions that are there.
func (p *pass) collect() {
	for {
		select {
		case a := <-p.admits:
			p.waiting = append(p.waiting, a)
		default:
			return
		}
	}
}

// make makes one pass and answers who waits for it.
func (p *pass) make(ctx context.Context, audit bool) {
	st, err := p.enforce(ctx, audit)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if st.Table == nil {
			st = p.Status() // what is in force still is
		}
		st.InForce, st.Reason = false, err.Error()
	}
	p.status.Store(&st)
	p.say(st)
	for _, a := range p.waiting {
		a.reply <- verdict(a, st)
	}
	p.waiting = nil
}

// say logs edges.
func (p *pass) say(st Status) {
	if st.Reason == p.last {
		return
	}
	p.last = st.Reason
	if st.Reason == "" {
		p.o.Log.Infof("network policies are in force: %d policies, %d of %d pod addresses isolated", st.Policies, max(st.Isolated[0], st.Isolated[1]), st.Pods)
		return
	}
	p.o.Log.WithField("op", "enforce policies").Warning(st.Reason)
}

// enforce compiles what there is and brings it into force. With look the
// kernel's tables are read even if nothing has changed.
func (p *pass) enforce(ctx context.Context, look bool) (Status, error) {
	snap, at := p.snapshot.Load(), p.place.Load()
	if snap == nil {
		return Status{}, errors.New(cmp.Or(p.o.Source.Reason(), "waiting for the first list of pods, namespaces and policies"))
	}
	if at == nil {
		return Status{}, errors.New("waiting for a subnet lease")
	}
	local, err := p.o.Pods(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("this node's pods: %w", err)
	}
	start := time.Now()
	cluster, extras := snap.Cluster.With(p.o.Node, p.known(snap.Cluster, local)).
		WithAllowed(policy.Allowance{Node: p.o.Node, Of: p.o.Allow, Reserved: slices.Concat(at.subnets, at.reserved)})
	table := p.compiler.Compile(&cluster)
	compiled := time.Now()
	put := p.o.Kernel.Update
	if look {
		put = p.o.Kernel.Sync
	}
	report, err := put(ctx, table, at.subnets)
	if err != nil {
		return Status{}, err
	}
	st := Status{
		InForce: true, Policies: len(cluster.Policies), Pods: len(table.Known), Rows: len(table.Pairs) + len(table.Rows),
		Compiled: compiled.Sub(start), Applied: time.Since(compiled), Generation: report.Generation,
		Problems: slices.Clone(snap.Problems), Cluster: &cluster, Table: table, Subnets: at.subnets,
	}
	for _, d := range policy.Directions() {
		st.Isolated[d] = len(table.Classes[d])
	}
	for _, ns := range table.TooLarge {
		st.Problems = append(st.Problems, subnet.Problem{Kind: "PolicyTooLarge", Object: ns,
			Detail: fmt.Sprintf("nothing passes that policies of this namespace would let pass to and from pods of this node: of all that have policies here they come to the most, and with them the node's table had more than %d rows, or took too long to make; fewer peers, exceptions and ports help", policy.MaxRows)})
	}
	if report.Unlabelled != nil {
		st.Problems = append(st.Problems, subnet.Problem{Kind: "PolicySlowPath", Object: rules.TableName,
			Detail: fmt.Sprintf("every packet is judged, which costs CPU but lets nothing else pass: %v", report.Unlabelled)})
	}
	return st, p.guard(ctx, &st, local, extras, look)
}
