// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/backend"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

const (
	// sweepEvery is the pause between two sweeps.
	sweepEvery = 10 * time.Minute
	// sweepSoon is that while pods run outside this node's subnets, so that it
	// is seen when they are gone.
	sweepSoon = 5 * time.Second
	// sweepSettle is how long after a change of the subnets to sweep so soon: an
	// ADD that was under way ends with an address of before.
	sweepSettle = time.Minute
	// mostNamed bounds how many things of a kind a Problem names.
	mostNamed = 5
)

// sweep frees what pods have left behind, at start, when this node's subnets
// change, and every sweepEvery: a runtime that was killed loses DELs, and
// host-local has no GC of its own. Only what is proven dead is freed; see
// package ledger. told is poked when this node has a lease or another one.
func (a *agent) sweep(ctx context.Context, told <-chan struct{}) error {
	l, err := ledger.Open(ledger.Options{
		Network: presetFor(a.o.FlannelCompat).cniNetwork, StateDir: a.o.CNIDataDir, Bridge: bridge,
	})
	if err != nil {
		a.problems.set(partSweep, sweepFails(err))
		<-ctx.Done()
		return ctx.Err()
	}
	var last []netip.Prefix
	var since time.Time // of the last change of the subnets
	for {
		pause := sweepEvery
		if self := a.self.Load(); self != nil { // else there is nothing to sweep by
			lease := subnets(self.Lease)
			if !slices.Equal(lease, last) {
				last, since = lease, time.Now()
			}
			report, err := l.Sweep(ctx, veths{}, lease, time.Now())
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.swept(report, lease, err)
			if err == nil && time.Since(since) >= sweepSettle {
				a.dropGateways(ctx, *self, report)
			}
			if len(report.Outside) > 0 || time.Since(since) < sweepSettle {
				pause = sweepSoon
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-told:
		case <-time.After(pause):
		}
	}
}

// dropGateways removes from the bridge the gateways of subnets that this node has
// no more, once no pod has an address of theirs: with the kernel's routes to them
// it would not reach the node that has them now. The bridge plugin replaces an
// IPv4 gateway with the next pod, and never one of IPv6.
func (a *agent) dropGateways(ctx context.Context, self overlay.Self, r ledger.Report) {
	all, err := backend.Veths(ctx, bridge)
	blind := slices.ContainsFunc(all, func(v backend.Veth) bool { return v.Port && v.Unreadable != nil })
	if err != nil || blind || r.Busy > 0 || !a.published.Load() {
		return // nobody can say who is there, or new pods may still get the old gateway; the next sweep may
	}
	var used []netip.Addr // by pods, in the kernel or, where these have handed them on, in the ledger
	for _, v := range all {
		used = append(used, v.Addrs...)
	}
	for _, e := range slices.Concat(r.Outside, r.Undecided) {
		used = append(used, e.Addrs...)
	}
	cfg := *a.network.Load()
	dropped, err := backend.DropAddrs(ctx, bridge, func(p netip.Prefix) bool {
		return isFormerGateway(p, subnets(self.Lease), cfg.Networks, a.leased(cfg, self.Lease)) && !slices.ContainsFunc(used, p.Contains)
	})
	if len(dropped) > 0 {
		a.log.WithField("dev", bridge).Infof("removed the gateways of subnets that this node has no more: %v", dropped)
	}
	if err != nil && ctx.Err() == nil {
		a.log.WithField("dev", bridge).Warnf("gateways of subnets that this node has no more are left: %v", err)
	}
}

// isFormerGateway reports whether p, an address of the bridge, is what the plugin
// gives it as the gateway of a subnet in networks as long as this node's, and not
// this node's: the first address. Where a network is open, whose pods' are those
// that are leased, it must be a peer's.
func isFormerGateway(p netip.Prefix, lease []netip.Prefix, networks []subnet.Network, leased []netip.Prefix) bool {
	base := p.Masked()
	like := func(own netip.Prefix) bool {
		return subnet.FamilyOf(own.Addr()) == subnet.FamilyOf(p.Addr()) && own.Bits() == p.Bits()
	}
	return p.Addr() == base.Addr().Next() && slices.ContainsFunc(lease, like) &&
		!slices.ContainsFunc(lease, base.Overlaps) &&
		slices.ContainsFunc(networks, func(n subnet.Network) bool {
			return n.Prefix.Bits() < p.Bits() && n.Prefix.Contains(p.Addr()) && (!n.Open() || slices.Contains(leased, base))
		})
}

func subnets(l subnet.Lease) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range l.Paths {
		out = append(out, p.Subnet)
	}
	return out
}

// swept tells what a sweep by lease has done and what it could not do.
func (a *agent) swept(r ledger.Report, lease []netip.Prefix, err error) {
	for _, e := range r.Freed {
		a.log.WithField("dst", e.Addrs).Infof("freed what pod %s left: %s", e.Key, e.Why)
	}
	var problems []subnet.Problem
	if err != nil {
		problems = append(problems, sweepFails(err))
	}
	a.problems.set(partSweep, append(problems, outsideLease(r.Outside, lease)...)...)
}

// outsideLease is a Problem for each subnet that this node has no longer and
// that pods here still have addresses of: a Node that was re-created got another
// podCIDR, or the network is another one. The network goes on with what the
// node has now; these pods are reached by nobody on other nodes.
func outsideLease(pods []ledger.Entry, lease []netip.Prefix) []subnet.Problem {
	of := map[netip.Prefix][]string{}
	for _, e := range pods {
		for _, addr := range e.Addrs {
			p := formerSubnet(addr, lease)
			of[p] = append(of[p], fmt.Sprintf("%s (%.12s)", addr, e.ContainerID))
		}
	}
	var out []subnet.Problem
	for _, p := range slices.SortedFunc(maps.Keys(of), netip.Prefix.Compare) {
		if len(out) == mostNamed {
			return append(out, subnet.Problem{Kind: "PodOutsideLease", Object: bridge,
				Detail: fmt.Sprintf("pods of %d more subnets that are not this node's still run; restart them", len(of)-mostNamed)})
		}
		out = append(out, subnet.Problem{Kind: "PodOutsideLease", Object: p.String(),
			Detail: fmt.Sprintf("pods of %s still run, which is not this node's subnet, so other nodes cannot reach them; restart them: %s", p, some(of[p]))})
	}
	return out
}

// formerSubnet is the subnet that addr was probably given from: one as long as
// this node's of the family, or as is usual.
func formerSubnet(addr netip.Addr, lease []netip.Prefix) netip.Prefix {
	bits := map[subnet.Family]int{subnet.IPv4: 24, subnet.IPv6: 64}
	for _, p := range lease {
		bits[subnet.FamilyOf(p.Addr())] = p.Bits()
	}
	return netip.PrefixFrom(addr, bits[subnet.FamilyOf(addr)]).Masked()
}

// some lists the first of list.
func some(list []string) string {
	slices.Sort(list)
	more := ""
	if n := len(list) - mostNamed; n > 0 {
		list, more = list[:mostNamed], fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(list, ", ") + more
}

func sweepFails(err error) subnet.Problem {
	return subnet.Problem{Kind: "SweepFailed", Object: "CNI state", Detail: "addresses of pods that are gone may stay taken: " + err.Error()}
}

// veths lets the ledger see the kernel's.
type veths struct{}

var _ ledger.Kernel = veths{}

// Veths implements ledger.Kernel.
func (veths) Veths(ctx context.Context) ([]ledger.Veth, error) {
	all, err := backend.Veths(ctx, bridge)
	if err != nil {
		return nil, err
	}
	var out []ledger.Veth
	for _, v := range all {
		out = append(out, ledger.Veth{
			Name: v.Host, Index: v.Index, Netns: v.Netns, Port: v.Port, Bare: v.Bare,
			Addrs: v.Addrs, Unreadable: v.Unreadable != nil,
		})
	}
	return out, nil
}

// DeleteVeth implements ledger.Kernel.
func (veths) DeleteVeth(ctx context.Context, name string, index int) error {
	return backend.DeleteVeth(ctx, name, index)
}
