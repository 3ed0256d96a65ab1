// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"weft.dev/weft/backend"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/subnet"
)

const (
	// sweepEvery is the pause between two sweeps.
	sweepEvery = 10 * time.Minute
	// sweepLook is the pause between two looks for a lease, without which
	// there is nothing to sweep by.
	sweepLook = time.Second
	// mostNamed bounds how many pods one Problem names.
	mostNamed = 5
)

// sweep frees what pods have left behind, at start and every sweepEvery: a
// runtime that was killed loses DELs, and host-local has no GC of its own. Only
// what is proven dead is freed; see package ledger.
func (a *agent) sweep(ctx context.Context) error {
	l, err := ledger.Open(ledger.Options{
		Network: presetFor(a.o.FlannelCompat).cniNetwork, StateDir: a.o.CNIDataDir, Bridge: bridge,
	})
	if err != nil {
		a.problems.set(partSweep, sweepFails(err))
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		self := a.self.Load()
		if self == nil {
			if err := sleep(ctx, sweepLook); err != nil {
				return err
			}
			continue
		}
		var lease []netip.Prefix
		for _, p := range self.Lease.Paths {
			lease = append(lease, p.Subnet)
		}
		report, err := l.Sweep(ctx, veths{}, lease, time.Now())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.swept(report, err)
		if err := sleep(ctx, sweepEvery); err != nil {
			return err
		}
	}
}

// swept tells what a sweep has done and what it could not do.
func (a *agent) swept(r ledger.Report, err error) {
	for _, e := range r.Freed {
		a.log.WithField("dst", e.Addrs).Infof("freed what pod %s left: %s", e.Key, e.Why)
	}
	var problems []subnet.Problem
	if err != nil {
		problems = append(problems, sweepFails(err))
	}
	for i, e := range r.Outside {
		if i == mostNamed {
			problems = append(problems, subnet.Problem{Kind: "PodOutsideLease", Object: bridge,
				Detail: fmt.Sprintf("%d more pods have addresses outside this node's subnets", len(r.Outside)-i)})
			break
		}
		problems = append(problems, subnet.Problem{Kind: "PodOutsideLease", Object: e.Key.String(),
			Detail: fmt.Sprintf("its addresses %v are outside this node's subnets, so other nodes cannot reach it: restart the pod", e.Addrs)})
	}
	a.problems.set(partSweep, problems...)
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
