// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// macNetwork is the network in every VTEP's MAC (ADR 2). It is not the etcd
// prefix: peers hold on to an agent that was started with a wrong one, and
// send to the MAC it had.
const macNetwork = "weft"

// request is the lease this node asks for: one path for each pod network, on
// the underlay of its own family where there is one and else on the other;
// the subnets held before, from the subnet file, are hints. The problems are
// about settings that it cannot honour.
func (a *agent) request(instance string, underlays []overlay.Underlay) (subnet.Lease, []subnet.Problem, error) {
	cfg := *a.network.Load()
	l := subnet.Lease{Node: a.o.NodeName, Instance: instance, Backend: cfg.Backend.Type, Sources: slices.Clone(a.o.Sources)}
	previous, err := subnet.ReadSubnetEnv(a.o.SubnetFile)
	if err != nil {
		a.log.WithField("err", err).Debug("no previous subnet")
	}
	var notes []subnet.Problem
	for _, n := range cfg.Networks {
		f := subnet.FamilyOf(n.Prefix.Addr())
		u, ok := underlayOf(underlays, f)
		if !ok {
			if u, ok = underlayOf(underlays, f.Other()); !ok {
				return l, nil, fmt.Errorf("no underlay address of either family for network %s", n.Prefix)
			}
		}
		announced := a.announced(u)
		if announced != u.Addr && cfg.Backend.Type == subnet.BackendHostGW {
			notes = append(notes, publicUnused(announced, u))
			announced = u.Addr
		}
		if announced != u.Addr {
			l.Sources = append(l.Sources, u.Addr)
		}
		// The MAC is there whatever the backend: it may become VXLAN.
		p := subnet.Path{
			Underlay: announced, VNI: cfg.Backend.VNI,
			MAC: subnet.DeriveMAC(macNetwork, cfg.Backend.VNI, subnet.FamilyOf(u.Addr), a.o.NodeName),
		}
		for _, s := range previous.Subnets {
			if subnet.FamilyOf(s.Addr()) == f {
				p.Subnet = s.Masked()
			}
		}
		l.Paths = append(l.Paths, p)
	}
	l.Sources = sources(l)
	return l, slices.Compact(notes), nil
}

// sources are the lease's further sources in order and each once, without
// what it announces anyway.
func sources(l subnet.Lease) []netip.Addr {
	slices.SortFunc(l.Sources, netip.Addr.Compare)
	out := slices.DeleteFunc(slices.Compact(l.Sources), func(a netip.Addr) bool {
		return slices.ContainsFunc(l.Paths, func(p subnet.Path) bool { return p.Underlay == a })
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

// publicUnused says that an address that this node's device has not cannot be
// the gateway of a route.
func publicUnused(announced netip.Addr, u overlay.Underlay) subnet.Problem {
	return subnet.Problem{Kind: "PublicAddressUnused", Object: announced.String(),
		Detail: fmt.Sprintf("with backend host-gw peers route to this node through an address on their own link; %s is not on %s, so %s is announced", announced, u.Dev, u.Addr)}
}

// announced is the address peers send to: the public address given for this
// family, else the underlay's own.
func (a *agent) announced(u overlay.Underlay) netip.Addr {
	for _, ip := range a.o.PublicIPs {
		if subnet.FamilyOf(ip) == subnet.FamilyOf(u.Addr) {
			return ip
		}
	}
	return u.Addr
}
