// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/guard"
	"weft.dev/weft/subnet"
)

// guard binds each of the node's pods to its own addresses. Pods whose policies
// the bridge would let them pass by are kept from other pods there. It tells st
// what it cannot do; the error is for what was possible the last time.
func (p *pass) guard(ctx context.Context, st *Status, local []policy.Registered, extras []policy.Extra, look bool) error {
	problem := func(what subnet.Problem, format string, args ...any) {
		what.Object, what.Detail = cmp.Or(what.Object, p.o.Node), fmt.Sprintf(format, args...)
		st.Problems = append(st.Problems, what)
	}
	for _, e := range extras {
		if e.Refused != "" {
			problem(subnet.Problem{Kind: "AddressNotAllowed", Object: e.Pod.String()}, "%s; the pod does not get it", e.Refused)
		}
	}
	var closed []string
	if p.o.Bridge != nil {
		if err := p.o.Bridge(ctx); err != nil {
			closed = isolated(local, st.Table)
			problem(subnet.Problem{Kind: "PolicyNotOnBridge"}, "policies do not see what pods of this node send each other: %v", err)
		}
	}
	var pods []nft.SpoofPod
	if !p.o.Unbound {
		pods = bound(local, extras)
	}
	left, err := p.o.Guard.Update(ctx, pods, closed, look)
	switch {
	case errors.Is(err, guard.ErrUnsupported):
		problem(subnet.Problem{Kind: "PodsNotGuarded"}, "pods may send from any address, and %d that policies select reach their neighbours: %v", len(closed), err)
		return nil
	case err != nil:
		return err
	}
	st.Guarded = max(0, len(pods)-len(left))
	if len(left) > 0 {
		problem(subnet.Problem{Kind: "PodsNotGuarded"}, "%d pods may send from any address: %v", len(left), left[0])
	}
	return nil
}

// bound returns what each link of the node's pods may send. A pod with several
// answers by one what came by another.
func bound(local []policy.Registered, extras []policy.Extra) []nft.SpoofPod {
	more := map[[2]string][]netip.Addr{}
	for _, e := range extras {
		more[[2]string{e.Pod.Namespace, e.Pod.Name}] = e.Pod.Extra
	}
	var out []nft.SpoofPod
	for _, r := range local {
		addrs := unmapped(r.Addrs)
		if r.Name != "" {
			addrs = append(addrs, more[[2]string{r.Namespace, r.Name}]...)
		}
		for _, l := range r.Links {
			out = append(out, nft.SpoofPod{Port: l.Port, MAC: l.MAC, Addrs: addrs})
		}
	}
	return out
}

func unmapped(list []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		out = append(out, a.Unmap())
	}
	return out
}

// isolated returns the ports of pods that policies isolate.
func isolated(local []policy.Registered, t *policy.Table) []string {
	var out []string
	for _, r := range local {
		selected := slices.ContainsFunc(r.Addrs, func(a netip.Addr) bool {
			return t.Classes[policy.Ingress][a.Unmap()] != 0 || t.Classes[policy.Egress][a.Unmap()] != 0
		})
		for _, l := range r.Links {
			if selected {
				out = append(out, l.Port)
			}
		}
	}
	return out
}
