// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend"
	"weft.dev/weft/backend/nft"
	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/overlay"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/denials"
	"weft.dev/weft/policy/enforce"
	"weft.dev/weft/policy/guard"
	"weft.dev/weft/policy/kube"
	"weft.dev/weft/policy/rules"
	"weft.dev/weft/subnet"
)

// policies is what keeps NetworkPolicies in force and pods to their own
// addresses, or sees that nothing does.
type policies struct {
	a *agent

	// Where none are enforced all of these are nil.
	conn       *nft.Conn
	programmer *rules.Programmer
	guard      *guard.Guard
	copies     *nft.Copies // of what is refused; nil while they cannot be had
	source     *kube.Source
	enforcer   *enforce.Enforcer
}

// policyParams are those of this node's table of policies.
func (a *agent) policyParams() rules.Params {
	if a.noCopies.Load() {
		return rules.Params{}
	}
	return rules.Params{LogGroup: rules.DefaultLogGroup}
}

// newPolicies connects to the kernel; the caller closes what it returns. Where
// policies are not enforced the tables of an agent that did are removed.
func (a *agent) newPolicies(ctx context.Context) (*policies, error) {
	if !a.o.enforces() {
		if a.o.filters() { // else tables may be another agent's; see dropTable
			if _, err := removePolicies(ctx); err != nil {
				a.log.WithField("err", err).Warn("tables of policies of former settings may be left")
			}
		}
		return &policies{a: a}, nil
	}
	conn, err := nft.Dial()
	if err != nil {
		return nil, fmt.Errorf("network policies: %w", err)
	}
	p := &policies{a: a, conn: conn, guard: guard.New(conn)}
	p.copies, err = nft.ListenCopies(ctx, rules.DefaultLogGroup) // readCopies tries again, and says it
	a.noCopies.Store(errors.Is(err, nft.ErrNoLog))
	p.programmer = rules.NewProgrammer(conn, a.policyParams())
	if err := p.connect(); err != nil {
		p.close()
		return nil, fmt.Errorf("network policies: %w; --network-policy=false does without", err)
	}
	a.enforcer.Store(p.enforcer)
	return p, nil
}

// listenAgain is the pause between attempts to get copies of refused packets.
const listenAgain = 30 * time.Second

// removePolicies removes the tables of policies and of what pods may send, from
// when on all passes, and returns the names of those that were there.
func removePolicies(ctx context.Context) (removed []string, err error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // nothing is lost by closing late
	var errs []error
	for _, t := range []nft.Table{rules.Table(), guard.Table()} {
		have, err := conn.Dump(ctx, t)
		if errors.Is(err, nft.ErrUnsupported) || err == nil && !have.Present {
			continue
		}
		if err == nil {
			err = conn.Apply(ctx, nft.Removal(t, have))
		}
		if err == nil {
			removed = append(removed, t.Family.String()+" "+t.Name)
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// connect makes source and enforcer.
func (p *policies) connect() (err error) {
	o := p.a.o
	log := p.a.log.WithField("node", o.NodeName)
	l, err := ledger.Open(ledger.Options{Network: presetFor(o.FlannelCompat).cniNetwork, StateDir: o.CNIDataDir, Bridge: bridge})
	if err != nil {
		return err
	}
	p.source, err = kube.New(kube.Options{Kubeconfig: o.Kubeconfig, Server: o.KubeAPI, Node: o.NodeName, Version: api.Version(), Log: log})
	if err != nil {
		return err
	}
	eo := enforce.Options{Node: o.NodeName, Source: p.source, Kernel: p.programmer, Guard: p.guard, Pods: enforce.FromLedger(l), Log: log,
		Unbound: !o.SpoofGuard, Allow: o.AllowAddresses,
		Bridge: func(ctx context.Context) error {
			_, err := backend.GuardBridge(ctx, bridge)
			return err
		}}
	p.enforcer = enforce.New(eo)
	return nil
}

// connections are those to the API, beside the store's.
func (p *policies) connections() []connected {
	if p.source == nil {
		return nil
	}
	return []connected{p.source}
}

// setPlace tells where this node is: its subnets of pods, the pod networks and
// the addresses that are the node's own.
func (p *policies) setPlace(self overlay.Self, networks []subnet.Network) {
	list := subnets(self.Lease)
	if p.enforcer == nil || len(list) == 0 {
		return
	}
	var reserved []netip.Prefix
	for _, n := range networks {
		if !n.Open() {
			reserved = append(reserved, n.Prefix)
		}
	}
	for _, a := range self.Addresses {
		reserved = append(reserved, netip.PrefixFrom(a, a.BitLen()))
	}
	p.enforcer.SetSubnets(list, reserved)
}

// run enforces until ctx ends; without anything to enforce it only waits.
func (p *policies) run(ctx context.Context) error {
	if p.enforcer == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	monitor, err := nft.Listen(p.conn, rules.Table(), guard.Table())
	if err != nil {
		return fmt.Errorf("network policies: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return monitor.Watch(ctx, func() { p.programmer.Touched(); p.guard.Touched(); p.enforcer.Poke() })
	})
	g.Go(func() error { return p.enforcer.Run(ctx) })
	g.Go(func() error { return p.tellDenials(ctx) })
	return g.Wait()
}

// tellDenials logs what policies refuse until ctx ends.
func (p *policies) tellDenials(ctx context.Context) error {
	log := denials.New(p.a.log.WithField("node", p.a.o.NodeName), func(k policy.Packet) (policy.Explanation, bool) {
		st := p.enforcer.Status()
		if st.Cluster == nil {
			return policy.Explanation{}, false
		}
		return st.Explain(k), true
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return log.Run(ctx) })
	g.Go(func() error { return p.readCopies(ctx, log) })
	return g.Wait()
}

// readCopies hands copies of refused packets to log until ctx ends. That it
// cannot is no reason to end: nothing but the log depends on it.
func (p *policies) readCopies(ctx context.Context, log *denials.Log) error {
	said := false
	for {
		var err error
		if p.copies == nil {
			p.copies, err = nft.ListenCopies(ctx, rules.DefaultLogGroup)
		}
		if p.copies != nil {
			said = false
			err = p.copies.Watch(ctx, func(c nft.Copy) {
				if d, answer, ok := rules.Denied(c.Prefix); ok {
					log.Tell(denials.Refusal{Direction: d, Answer: answer, Packet: c.Packet})
				}
			})
			_ = p.copies.Close() // it is of no use any more
			p.copies = nil
		}
		if ctx.Err() == nil && !said {
			said = true
			p.a.log.WithField("err", err).Warn("what network policies deny is counted and not logged for now")
		}
		if err := sleep(ctx, listenAgain); err != nil {
			return err
		}
	}
}

// close gives up the connections. What is in force stays.
func (p *policies) close() {
	if p.source != nil {
		_ = p.source.Close() // nothing is lost by closing late
	}
	if p.copies != nil {
		_ = p.copies.Close()
	}
	if p.conn != nil {
		_ = p.conn.Close()
	}
}

// admit answers the CNI plugin, which asks for a pod that starts.
func (a *agent) admit(w http.ResponseWriter, r *http.Request) {
	if !a.o.enforces() {
		http.NotFound(w, r)
		return
	}
	e := a.enforcer.Load()
	if e == nil {
		http.Error(w, a.waiting("starting"), http.StatusServiceUnavailable)
		return
	}
	if err := e.Admit(r.Context(), r.PathValue("container")); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// counted reads the counters of one of the tables of policies, nil where they
// cannot be read.
func (a *agent) counted(ctx context.Context, t nft.Table) map[string]uint64 {
	ctx, cancel := context.WithTimeout(ctx, countersPatience)
	defer cancel()
	conn, err := nft.Dial()
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }() // nothing is lost by closing late
	counts, err := conn.Counters(ctx, t)
	if err != nil {
		return nil
	}
	out := make(map[string]uint64, len(counts))
	for name, c := range counts {
		out[strings.TrimPrefix(name, "refused_")] = c.Packets
	}
	return out
}

// denied is what policies have refused, spoofed what pods may not send.
func (a *agent) denied(ctx context.Context) map[string]uint64 { return a.counted(ctx, rules.Table()) }

func (a *agent) spoofed(ctx context.Context) map[string]uint64 {
	return a.counted(ctx, guard.Table())
}

// policyStatus is what status says of policies, nil where none are enforced.
func (a *agent) policyStatus() *api.Policy {
	if !a.o.enforces() {
		return nil
	}
	e := a.enforcer.Load()
	if e == nil {
		return &api.Policy{Reason: "starting"}
	}
	st := e.Status()
	return &api.Policy{
		InForce: st.InForce, Reason: st.Reason, Policies: st.Policies, Pods: st.Pods, Rows: st.Rows, Guarded: st.Guarded,
		Isolated: map[string]int{policy.Ingress.String(): st.Isolated[policy.Ingress], policy.Egress.String(): st.Isolated[policy.Egress]},
	}
}
