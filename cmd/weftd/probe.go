// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"weft.dev/weft/backend"
	"weft.dev/weft/subnet"
)

const (
	// hostProbe is the pause between two looks at what the host must provide
	// that no event asked for.
	hostProbe = 30 * time.Second
	// probeSettle is how long events collect before they are looked at:
	// links come and go with every pod.
	probeSettle = 2 * time.Second
)

// probe looks once at the host: what an operator can mend is a Problem.
func (a *agent) probe(ctx context.Context) error {
	problems, err := backend.Probe(ctx, a.probeSpec())
	if err != nil {
		return err
	}
	a.problems.set(partHost, problems...)
	return nil
}

// probeSpec is what the host is to serve, as far as it is known yet.
func (a *agent) probeSpec() backend.ProbeSpec {
	spec := backend.ProbeSpec{Bridge: bridge}
	cfg, self := a.network.Load(), a.self.Load()
	if cfg == nil {
		return spec
	}
	spec.Devices = deviceNames(presetFor(a.o.FlannelCompat).names, cfg.Backend.VNI)
	for _, n := range cfg.Networks {
		if !n.Open() {
			spec.Networks = append(spec.Networks, n.Prefix)
		}
	}
	if self == nil {
		return spec
	}
	for _, p := range self.Lease.Paths {
		spec.Own = append(spec.Own, p.Subnet)
		if n, _ := cfg.Network(subnet.FamilyOf(p.Subnet.Addr())); n.Open() { // what is forwarded here is from or to a pod of ours
			spec.Networks = append(spec.Networks, p.Subnet)
		}
	}
	spec.Leased = a.leased(*cfg, self.Lease)
	// Only what comes directly from a peer meets the underlay's own filter
	// with a pod's address.
	if cfg.Backend.DirectRouting || cfg.Backend.Type == subnet.BackendHostGW {
		spec.Underlays = self.Underlays
	}
	return spec
}

// leased returns the subnets of peers in open networks, in which pods are too.
func (a *agent) leased(cfg subnet.Config, own subnet.Lease) []netip.Prefix {
	snap := a.snapshot.Load()
	if snap == nil || !slices.ContainsFunc(cfg.Networks, subnet.Network.Open) {
		return nil
	}
	var out []netip.Prefix
	for l := range snap.Leases.All() {
		for _, p := range l.Paths {
			if n, _ := cfg.Network(subnet.FamilyOf(p.Subnet.Addr())); n.Open() && !slices.ContainsFunc(own.Paths, func(o subnet.Path) bool { return o.Subnet == p.Subnet }) {
				out = append(out, p.Subnet)
			}
		}
	}
	return out
}

// watchHost probes after events on the host and from time to time: forwarding
// may be switched off, or another program load its rules, under a running
// agent.
func (a *agent) watchHost(ctx context.Context, changed <-chan struct{}) error {
	for {
		timer := time.NewTimer(hostProbe)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-changed:
			timer.Stop()
			if err := sleep(ctx, probeSettle); err != nil {
				return err
			}
		case <-timer.C:
		}
		if err := a.probe(ctx); err != nil {
			a.log.WithField("err", err).Debug("the host could not be probed")
		}
	}
}
