// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/backend"
	"weft.dev/weft/subnet"
)

// fenceRetry is the pause between two tries to take part again after the
// lease was lost. Each try waits for the store's events meanwhile, so that a
// subnet that becomes free is taken back at once.
const fenceRetry = time.Minute

// fenceSettle is how long the lease of whoever took ours may be in coming
// through the watch, after the store has said that it is lost.
const fenceSettle = 2 * time.Second

// tenure is what is known of the lease that this process has held.
type tenure struct {
	had    subnet.Lease // as last granted; without paths before
	fenced bool         // it is another's now
	twin   bool         // and that one is this very node, says the store
}

// hold keeps the lease until ctx ends. When it is lost to somebody else this
// node is fenced: its pods keep their data plane and it says loudly what is
// wrong, but it announces nothing. It takes part again as soon as it can have
// the subnets it had. Others it takes only when no pod of its own would be left
// with an address that leads elsewhere.
func (n *node) hold(ctx context.Context, want subnet.Lease, granted func(subnet.Lease)) error {
	for {
		began := time.Now()
		held, err := n.attempt(ctx, want, granted)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case n.a.o.Once:
			return err
		}
		n.fence(err)
		if errors.Is(err, errRetry) {
			continue
		}
		pause := n.settle
		if !held {
			pause = max(pause, n.retry-time.Since(began))
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		n.fence(err)
	}
}

// errRetry ends a try that has come to nothing so far.
var errRetry = errors.New("look again")

// attempt tries to have the lease, and holds it once it has, which held tells.
// A try for a lease that was held before ends with errRetry after fenceRetry,
// for what may be asked for is decided anew each time.
func (n *node) attempt(outer context.Context, want subnet.Lease, granted func(subnet.Lease)) (held bool, err error) {
	t := &n.tenure
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	cfg, patience := *n.a.network.Load(), time.NewTimer(0)
	patience.Stop()
	if len(t.had.Paths) > 0 {
		if t.fenced && n.twin() {
			// Whoever has our name and id would be taken for us by the store.
			if err := sleep(ctx, n.retry); err != nil {
				return false, err
			}
			return false, errRetry
		}
		if n.pods(ctx) {
			cfg = narrowed(cfg, t.had)
		}
		patience = time.AfterFunc(n.retry, cancel)
		defer patience.Stop()
	}
	err = n.a.store.Hold(ctx, cfg, want, func(l subnet.Lease) {
		patience.Stop()
		held = true
		n.regained(l)
		granted(l)
	})
	if ctx.Err() != nil && outer.Err() == nil {
		err = errRetry
	}
	return held, err
}

// narrowed is cfg with had's subnets as the only ones there are, so that the
// store grants these or waits for them.
func narrowed(cfg subnet.Config, had subnet.Lease) subnet.Config {
	cfg.Networks = slices.Clone(cfg.Networks)
	for i, n := range cfg.Networks {
		if p, ok := had.Path(subnet.FamilyOf(n.Prefix.Addr())); ok && n.Holds(p.Subnet) == nil {
			cfg.Networks[i].SubnetMin, cfg.Networks[i].SubnetMax = p.Subnet.Addr(), p.Subnet.Addr()
		}
	}
	return cfg
}

// havePods reports whether pods are attached to this node. It says yes when it
// cannot tell.
func havePods(ctx context.Context) bool {
	pods, err := backend.Attachments(ctx, bridge)
	return err != nil || len(pods) > 0
}

func (n *node) regained(l subnet.Lease) {
	if n.tenure.fenced {
		n.a.log.WithField("dst", prefixText(l)).Info("this node has a lease again and takes part")
	}
	n.tenure = tenure{had: l}
	n.a.held.Store(nil)
}

// fence makes it a Problem that the lease is another's: after an error of the
// store, or when the others' leases show it. A try that came to nothing, with
// nobody in our place, is either a store out of reach or soon over.
func (n *node) fence(err error) {
	rival, taken := fencedBy(n.leases(), n.tenure.had)
	detail := err.Error()
	switch {
	case taken:
		detail = n.a.fenceText(n.tenure.had, rival)
	case errors.Is(err, errRetry):
		return
	}
	if !n.tenure.fenced {
		n.a.log.WithField("err", err).Error("lease lost; this node takes no part until it can have its subnets again")
	}
	n.tenure.fenced = true
	n.tenure.twin = n.tenure.twin || errors.Is(err, subnet.ErrTwin)
	n.a.held.Store(&subnet.Problem{Kind: "LeaseLost", Object: n.a.o.NodeName, Detail: detail})
}

// leases are those that the store last delivered. What stands on our own Node
// is nobody else's: two agents there write over each other's annotations, and an
// operator's overwrite of the address is in force before it is granted.
func (n *node) leases() []subnet.Lease {
	s := n.a.snapshot.Load()
	if s == nil {
		return nil
	}
	list := s.Leases.Slice()
	if n.a.o.Store == storeKube {
		list = slices.DeleteFunc(list, func(l subnet.Lease) bool { return l.Node == n.a.o.NodeName })
	}
	return list
}

// twin reports whether another machine, or another agent on this one, has our
// name and instance id. Ours is not in the store while we are fenced.
func (n *node) twin() bool {
	had := n.tenure.had
	return slices.ContainsFunc(n.leases(), func(l subnet.Lease) bool {
		return isTwin(l, had) && (n.tenure.twin || !sameHome(l, had))
	})
}

func isTwin(l, had subnet.Lease) bool {
	return l.Node == had.Node && l.Instance == had.Instance
}

// fencedBy returns the lease that keeps had from being ours: of somebody with
// our name, or of a subnet that overlaps ours. A lease like had itself, with
// our name, id and addresses, is our own.
func fencedBy(leases []subnet.Lease, had subnet.Lease) (subnet.Lease, bool) {
	overlaps := func(l subnet.Lease) bool {
		for _, p := range l.Paths {
			if slices.ContainsFunc(had.Paths, func(h subnet.Path) bool { return h.Subnet.Overlaps(p.Subnet) }) {
				return true
			}
		}
		return false
	}
	named := func(l subnet.Lease) bool { return had.Node != "" && l.Node == had.Node }
	for _, l := range leases { // a name says more than an overlap
		if named(l) && !(isTwin(l, had) && sameHome(l, had)) {
			return l, true
		}
	}
	for _, l := range leases {
		if overlaps(l) && !named(l) {
			return l, true
		}
	}
	return subnet.Lease{}, false
}

// sameHome reports whether l and had are at the same addresses.
func sameHome(l, had subnet.Lease) bool {
	return slices.EqualFunc(l.Paths, had.Paths, func(x, y subnet.Path) bool { return x.Underlay == y.Underlay })
}

// fenceText says who has what was ours, and what to do about it.
func (a *agent) fenceText(had, rival subnet.Lease) string {
	at, who := "an unknown address", "another node"
	if len(rival.Paths) > 0 {
		at = rival.Paths[0].Underlay.String()
	}
	if rival.Node != "" {
		who = "node " + rival.Node
	}
	id := filepath.Join(a.o.StateDir, "instance-id")
	switch { // the first two are etcd's: Nodes have names that differ
	case isTwin(rival, had):
		return fmt.Sprintf("another machine, at %s, runs with this node's name %s and its instance id, so its state directory is a copy: remove %s there, give it another --node-name and restart its weftd (if that machine is gone: %s)",
			at, had.Node, id, a.evict(rival))
	case rival.Node == had.Node:
		return fmt.Sprintf("another node, at %s, goes by this node's name %s: give one of them another --node-name (if the other one is gone: %s)",
			at, had.Node, a.evict(rival))
	}
	what := prefixText(rival) + ", which was this node's"
	if prefixText(rival) != prefixText(had) {
		what += " " + prefixText(had)
	}
	return fmt.Sprintf("%s, at %s, has leased %s, and other nodes send to it; this node takes its subnet back when that is free (%s if %s is not to have it), and another one once no pod runs here: drain it",
		who, at, what, a.evict(rival), who)
}

// prefixText renders the subnets of l.
func prefixText(l subnet.Lease) string {
	var out []string
	for _, p := range l.Paths {
		out = append(out, p.Subnet.String())
	}
	return strings.Join(out, " and ")
}

// evict is the command that takes l out of the store.
func (a *agent) evict(l subnet.Lease) string {
	if a.o.Store == storeKube {
		return "kubectl delete node " + l.Node
	}
	var subnets []netip.Prefix
	for _, p := range l.Paths {
		subnets = append(subnets, p.Subnet)
	}
	key, err := subnet.FormatKey(subnets)
	if err != nil {
		key = "?"
	}
	return fmt.Sprintf("etcdctl del '%s/subnets/%s'", a.o.EtcdPrefix, key)
}
