// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
)

// mostBlamed is how many problems a condition of the Node names.
const mostBlamed = 3

// reportHealth keeps the conditions of our Node, with a store that has Nodes.
func (a *agent) reportHealth(ctx context.Context, passed <-chan struct{}) error {
	s, ok := a.store.(interface {
		Report(ctx context.Context, changed <-chan struct{}, look func() kube.Health) error
	})
	if !ok || !a.o.Conditions {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.Report(ctx, passed, a.health)
}

// health is brief as our Node's conditions need it: the data plane of this
// node, and apart from that everything else. What the files lack is of the
// second kind, for pods that run are not concerned.
func (a *agent) health() kube.Health {
	var h kube.Health
	if r := a.reconciler.Load(); r != nil {
		h.DataPlane, h.Why = dataPlane(r.Status())
	}
	h.Degraded = degraded(a.brief())
	return h
}

// watchDown keeps when this node's own data plane went down.
func (a *agent) watchDown(st overlay.Status) {
	is, _ := dataPlane(st)
	since := a.downSince.Load()
	switch {
	case is != kube.Down:
		a.downSince.Store(nil)
	case since == nil:
		now := time.Now()
		a.downSince.Store(&now)
	}
}

// dataPlane tells how this node's own part of the overlay is: its devices,
// their addresses and the table. Before the first pass, and while the kernel
// cannot be read, nobody knows.
func dataPlane(st overlay.Status) (kube.DataPlane, string) {
	switch {
	case st.LastPass.IsZero(), len(st.Lease.Paths) == 0:
		return kube.Unknown, ""
	case slices.ContainsFunc(st.Pending, isOwn):
		return kube.Down, st.Reason
	case !st.InSync && len(st.Pending) == 0:
		return kube.Unknown, ""
	}
	return kube.Up, ""
}

// isOwn reports whether a change is about what no peer has to do with.
func isOwn(c overlay.Change) bool {
	switch c.Entry.(type) {
	case overlay.Link, overlay.Addr, overlay.Filter:
		return true
	}
	return false
}

// degraded names what is wrong; it does not change with the details of that,
// because each change is a write to the API.
func degraded(s api.Status) string {
	list := slices.Clone(s.Problems)
	if len(list) == 0 {
		return ""
	}
	slices.SortFunc(list, func(a, b subnet.Problem) int { return strings.Compare(a.Kind+a.Object, b.Kind+b.Object) })
	var names []string
	for _, p := range list {
		if name := p.Kind + " " + p.Object; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	more := ""
	if n := len(names) - mostBlamed; n > 0 {
		names, more = names[:mostBlamed], fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(names, ", ") + more + "; `weft status` on this node says more"
}
