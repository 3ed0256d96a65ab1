// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/subnet"
)

// followConfig follows the network's configuration in the store. What may
// change under running pods is handed to apply; what may not, and what is not
// valid, is a Problem, and the configuration in force stays as it is. As it
// depends on who has which subnet, it is judged again when leased says so.
func (a *agent) followConfig(ctx context.Context, start subnet.Config, leased <-chan struct{}, apply func(subnet.Config)) error {
	type word struct {
		cfg subnet.Config
		err error
	}
	words := make(chan word)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.store.WatchConfig(ctx, start, func(next subnet.Config, err error) {
			select {
			case words <- word{next, err}:
			case <-ctx.Done():
			}
		})
	})
	g.Go(func() error {
		var last *word
		for {
			select {
			case <-ctx.Done():
				return nil
			case w := <-words:
				last = &w
			case <-leased:
			}
			if last != nil {
				a.judgeConfig(last.cfg, last.err, apply)
			}
		}
	})
	return g.Wait()
}

func (a *agent) judgeConfig(next subnet.Config, err error, apply func(subnet.Config)) {
	key := a.o.configText()
	running := *a.network.Load()
	if err != nil {
		a.problems.set(partConfig, subnet.Problem{Kind: "ConfigInvalid", Object: key,
			Detail: err.Error() + "; this node goes on with the last valid one"})
		return
	}
	if fixed := a.fixedChanges(running, next); len(fixed) > 0 {
		a.problems.set(partConfig, subnet.Problem{Kind: "ConfigChanged", Object: key,
			Detail: fmt.Sprintf("%s cannot change under running pods, so nothing of the new configuration applies on this node until weftd is restarted", strings.Join(fixed, ", "))})
		return
	}
	if outside := a.outside(next); outside != "" {
		a.problems.set(partConfig, subnet.Problem{Kind: "ConfigInvalid", Object: key,
			Detail: outside + "; this node goes on with the last valid one"})
		return
	}
	a.problems.set(partConfig)
	if next.Equal(running) {
		return
	}
	a.log.Infof("the network configuration has changed: networks %s and backend %+v, before %s and %+v",
		networksText(next), next.Backend, networksText(running), running.Backend)
	a.network.Store(&next)
	apply(next)
}

// fixedChanges names what differs between two configurations and needs a
// restart: subnets in use would not fit any more, or peers not find this node.
// Where subnets come with the node, a network is no more than the bound of
// where pods are.
func (a *agent) fixedChanges(running, next subnet.Config) []string {
	var out []string
	for _, f := range subnet.Families() {
		was, had := running.Network(f)
		is, has := next.Network(f)
		switch {
		case had && has && a.o.Store == storeKube:
		case had != has || was.Prefix != is.Prefix:
			out = append(out, fmt.Sprintf("the %v network (%s, now %s)", f, networkText(was), networkText(is)))
		case was != is:
			out = append(out, fmt.Sprintf("the %v subnets (/%d from %s to %s, now /%d from %s to %s)", f,
				was.SubnetLen, was.SubnetMin, was.SubnetMax, is.SubnetLen, is.SubnetMin, is.SubnetMax))
		}
	}
	if running.Backend.VNI != next.Backend.VNI {
		out = append(out, fmt.Sprintf("the VNI (%d, now %d)", running.Backend.VNI, next.Backend.VNI))
	}
	if running.Backend.Port != next.Backend.Port {
		out = append(out, fmt.Sprintf("the port (%d, now %d)", running.Backend.Port, next.Backend.Port))
	}
	return out
}

// outside names a subnet that is in use and that next's networks leave out: this
// node's, or else a peer's that the networks in force do not. Peers that are not
// let in anyway are no reason against a network.
func (a *agent) outside(next subnet.Config) string {
	running := *a.network.Load()
	fits := func(c subnet.Config, p netip.Prefix) bool {
		n, ok := c.Network(subnet.FamilyOf(p.Addr()))
		return !ok || n.Prefix.Bits() <= p.Bits() && n.Prefix.Contains(p.Addr())
	}
	look := func(l *subnet.Lease, whose string) string {
		for _, p := range l.Paths {
			if n, _ := next.Network(subnet.FamilyOf(p.Subnet.Addr())); fits(running, p.Subnet) && !fits(next, p.Subnet) {
				return fmt.Sprintf("the pod network %v does not contain %v, the subnet of %s", n.Prefix, p.Subnet, whose)
			}
		}
		return ""
	}
	if slices.Equal(next.Networks, running.Networks) {
		return ""
	}
	if self := a.self.Load(); self != nil {
		if text := look(&self.Lease, "this node"); text != "" {
			return text
		}
	}
	if snap := a.snapshot.Load(); snap != nil {
		for l := range snap.Leases.All() {
			if text := look(l, "node "+cmp.Or(l.Node, "?")); text != "" {
				return text
			}
		}
	}
	return ""
}

func networkText(n subnet.Network) string {
	switch {
	case !n.Prefix.IsValid():
		return "none"
	case n.Open():
		return subnet.FamilyOf(n.Prefix.Addr()).String() + " as leased"
	}
	return n.Prefix.String()
}

// networksText names all networks of c.
func networksText(c subnet.Config) string {
	var out []string
	for _, n := range c.Networks {
		out = append(out, networkText(n))
	}
	return strings.Join(out, " and ")
}
