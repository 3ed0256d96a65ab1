// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
)

// status is brief with the list of peers, which may be long.
func (a *agent) status() api.Status {
	s := a.brief()
	if snap := a.snapshot.Load(); snap != nil && a.reconciler.Load() != nil {
		s.Peers = peers(snap.Leases, a.reconciler.Load().Status().Lease)
	}
	return s
}

// brief is the one account of how this node does, from which readiness, the
// metrics, `weft status` and the CNI plugin's messages are all made.
func (a *agent) brief() api.Status {
	s := api.Status{
		Node: a.o.NodeName, Version: api.Version(),
		Guard: api.Guard{Mode: string(a.o.Guard), Masquerade: a.o.IPMasq},
		Store: a.storeText(), Networks: a.networks(),
		Pending: []api.Change{}, Devices: []api.Device{}, Peers: []api.Peer{}, Problems: []subnet.Problem{},
	}
	s.Problems = append(s.Problems, a.problems.all()...)
	s.Policy = a.policyStatus()
	if e := a.enforcer.Load(); e != nil {
		s.Problems = append(s.Problems, e.Status().Problems...)
	}
	held := a.held.Load()
	// What a node that lost its lease asks for is its own old subnet; that
	// this is not free says the other problem better.
	if reason := a.store.Reason(); reason != "" && held == nil {
		s.Problems = append(s.Problems, subnet.Problem{Kind: "StoreWaiting", Object: s.Store, Detail: reason})
	}
	if held != nil {
		s.Problems = append(s.Problems, *held)
	}
	r := a.reconciler.Load()
	if r == nil {
		s.Reason = a.waiting("starting")
		return s
	}
	st := r.Status()
	a.fill(&s, st)
	switch {
	case held != nil:
		s.Reason = held.Detail
	case !st.LastPass.IsZero() && !st.InSync: // the store has answered; it is the kernel
		s.Reason = cmp.Or(st.Reason, "not in sync")
	case !st.InSync || !st.Synced:
		s.Reason = a.waiting(cmp.Or(st.Reason, "not in sync"))
	case !a.published.Load():
		s.Reason = a.whyUnwritten()
	default:
		s.Ready = true
	}
	return s
}

// waiting is why the agent is not ready yet: what the store says, if it is
// the store that is waited for, comes before our own view.
func (a *agent) waiting(own string) string {
	if reason := a.store.Reason(); reason != "" {
		return reason
	}
	if phase := a.phase.Load(); phase != nil {
		return *phase
	}
	return own
}

func (a *agent) whyUnwritten() string {
	if why := a.unwritten.Load(); why != nil {
		return *why
	}
	return "the subnet file or the CNI configuration is not written yet"
}

func (a *agent) fill(s *api.Status, st overlay.Status) {
	s.InSync, s.Reached, s.Repairs = st.InSync, st.Peers, st.Repairs
	if since := a.downSince.Load(); since != nil && time.Since(*since) >= kube.DownFor {
		_, s.Down = dataPlane(st)
	}
	s.Problems = append(s.Problems, st.Problems...)
	s.Pending = apiChanges(st.Pending)
	if h := st.Hold; h != nil {
		s.Hold = &api.Hold{Since: h.Since, Until: h.Until, Routes: h.Routes}
	}
	if !st.LastPass.IsZero() {
		s.LastPass = &st.LastPass
	}
	if !st.Snapshot.IsZero() {
		s.Snapshot = &st.Snapshot
	}
	for _, p := range st.Lease.Paths {
		s.Subnets = append(s.Subnets, p.Subnet)
	}
	for _, l := range st.Links {
		s.Devices = append(s.Devices, api.Device{
			Name: l.Name, VNI: l.VNI, Port: l.Port, MAC: l.MAC, MTU: l.MTU, Local: l.Local, Underlay: l.Underlay,
		})
	}
}

// peers lists the leases of other nodes, by subnet.
func peers(leases subnet.Leases, own subnet.Lease) []api.Peer {
	out := []api.Peer{}
	for l := range leases.All() {
		if !isPeer(*l, own) {
			continue
		}
		p := api.Peer{Node: l.Node}
		for _, path := range l.Paths {
			p.Paths = append(p.Paths, api.PeerPath{Subnet: path.Subnet, Underlay: path.Underlay, MAC: path.MAC})
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y api.Peer) int {
		return cmp.Or(x.Paths[0].Subnet.Addr().Compare(y.Paths[0].Subnet.Addr()), cmp.Compare(x.Node, y.Node))
	})
	return out
}

// countPeers returns how many peers would be listed.
func (a *agent) countPeers() int {
	snap, r := a.snapshot.Load(), a.reconciler.Load()
	if snap == nil || r == nil {
		return 0
	}
	n, own := 0, r.Status().Lease
	for l := range snap.Leases.All() {
		if isPeer(*l, own) {
			n++
		}
	}
	return n
}

// isPeer reports whether l is another node's.
func isPeer(l, own subnet.Lease) bool {
	unclaimed := l.Backend == "" // a reservation
	return !unclaimed && len(l.Paths) > 0 && (len(own.Paths) == 0 || l.Paths[0].Subnet != own.Paths[0].Subnet)
}

// plan asks the reconciler what it would do now.
func (a *agent) plan(ctx context.Context) (api.Plan, error) {
	r := a.reconciler.Load()
	if r == nil {
		return api.Plan{}, errors.New(a.waiting("starting"))
	}
	changes, problems, err := r.Plan(ctx)
	if err != nil {
		return api.Plan{}, err
	}
	return api.Plan{Changes: apiChanges(changes), Problems: append([]subnet.Problem{}, problems...)}, nil
}

// release ends a mass removal's wait.
func (a *agent) release() (api.Released, error) {
	r := a.reconciler.Load()
	if r == nil {
		return api.Released{}, errors.New(a.waiting("starting"))
	}
	held := r.Status().Hold
	if held == nil {
		return api.Released{}, nil
	}
	a.log.Infof("asked to release %d routes of peers that the store has lost", held.Routes)
	r.Release()
	return api.Released{Routes: held.Routes}, nil
}

func apiChanges(c overlay.Changes) []api.Change {
	out := make([]api.Change, 0, len(c))
	for _, ch := range c {
		out = append(out, api.Change{Op: ch.Op.String(), Text: ch.String()})
	}
	return out
}
