// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/backend"
	"weft.dev/weft/backend/nft"
	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/enforce"
	"weft.dev/weft/policy/kube"
	"weft.dev/weft/policy/rules"
)

// policies is what keeps NetworkPolicies in force, or sees that none are.
type policies struct {
	a          *agent
	conn       *nft.Conn
	programmer *rules.Programmer
	source     *kube.Source      // nil where none are enforced
	enforcer   *enforce.Enforcer // nil then, too
}

// policyParams are those of this node's table of policies.
func policyParams() rules.Params { return rules.Params{LogGroup: rules.DefaultLogGroup} }

// newPolicies connects to the kernel; the caller closes what it returns. Where
// policies are not enforced the table of an agent that did is removed.
func (a *agent) newPolicies(ctx context.Context) (*policies, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, fmt.Errorf("network policies: %w", err)
	}
	p := &policies{a: a, conn: conn, programmer: rules.NewProgrammer(conn, policyParams())}
	if !a.o.enforces() {
		if !a.o.filters() { // the table may be another agent's; see dropTable
			return p, nil
		}
		if err := p.programmer.Remove(ctx); err != nil && !errors.Is(err, nft.ErrUnsupported) {
			a.log.WithField("err", err).Warn("a table inet weft_policy of former settings may be left")
		}
		return p, nil
	}
	if err := p.connect(); err != nil {
		p.close()
		return nil, fmt.Errorf("network policies: %w; --network-policy=false does without", err)
	}
	a.enforcer.Store(p.enforcer)
	return p, nil
}

// removePolicies removes the table of policies, from when on all passes, and
// reports whether there was one.
func removePolicies(ctx context.Context) (removed bool, err error) {
	conn, err := nft.Dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }() // nothing is lost by closing late
	have, err := conn.Dump(ctx, rules.Table())
	if errors.Is(err, nft.ErrUnsupported) || err == nil && !have.Present {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, rules.NewProgrammer(conn, rules.Params{}).Remove(ctx)
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
	p.enforcer = enforce.New(enforce.Options{Node: o.NodeName, Source: p.source, Kernel: p.programmer, Pods: enforce.FromLedger(l), Log: log,
		Bridge: func(ctx context.Context) error {
			_, err := backend.FilterBridge(ctx, bridge)
			return err
		}})
	return nil
}

// setSubnets tells this node's subnets of pods.
func (p *policies) setSubnets(list []netip.Prefix) {
	if p.enforcer != nil && len(list) > 0 {
		p.enforcer.SetSubnets(list)
	}
}

// run enforces until ctx ends; without anything to enforce it only waits.
func (p *policies) run(ctx context.Context) error {
	if p.enforcer == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	monitor, err := nft.Listen(p.conn, rules.Table())
	if err != nil {
		return fmt.Errorf("network policies: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return monitor.Watch(ctx, func() { p.programmer.Touched(); p.enforcer.Poke() })
	})
	g.Go(func() error { return p.enforcer.Run(ctx) })
	return g.Wait()
}

// close gives up the connections. What is in force stays.
func (p *policies) close() {
	if p.source != nil {
		_ = p.source.Close() // nothing is lost by closing late
	}
	_ = p.conn.Close()
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

// denied reads what policies have refused, nil where that cannot be read.
func (a *agent) denied(ctx context.Context) map[string]uint64 {
	ctx, cancel := context.WithTimeout(ctx, countersPatience)
	defer cancel()
	conn, err := nft.Dial()
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }() // nothing is lost by closing late
	counts, err := conn.Counters(ctx, rules.Table())
	if err != nil {
		return nil
	}
	out := make(map[string]uint64, len(counts))
	for name, c := range counts {
		out[name] = c.Packets
	}
	return out
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
		InForce: st.InForce, Reason: st.Reason, Policies: st.Policies, Pods: st.Pods, Rows: st.Rows,
		Isolated: map[string]int{policy.Ingress.String(): st.Isolated[policy.Ingress], policy.Egress.String(): st.Isolated[policy.Egress]},
	}
}
