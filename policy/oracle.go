// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// A Reason is why a packet may pass, or may not, in one direction.
type Reason struct {
	Direction Direction
	Pod       *Pod      // the pod that is sent from, or to; nil: it is no pod, nothing is checked
	Isolating []*Policy // those that select it; none: everything passes
	Policy    *Policy   // of Isolating, the first that lets the packet pass; nil: none
	Rule      int       // which of its rules, from 0
	Allowed   bool
}

// Allows reports whether c's policies let k pass from its source, and to its
// destination, wherever these are, with the reasons. It is the oracle.
func (c *Cluster) Allows(k Packet) (bool, [2]Reason) {
	src, dst, to := c.podAt(k.Src), c.podAt(k.Dst), c.subjectAt(k.Dst)
	in, out := c.judge(Ingress, to, k.Src, src, to, k), c.judge(Egress, c.subjectAt(k.Src), k.Dst, dst, dst, k)
	if src != nil && src == dst {
		in.Allowed, out.Allowed = true, true // a pod reaches itself
	}
	return in.Allowed && out.Allowed, [2]Reason{Ingress: in, Egress: out}
}

// podAt returns the pod that has a, nil if none has.
func (c *Cluster) podAt(a netip.Addr) *Pod {
	var found *Pod
	for _, p := range c.Pods {
		if p.has(a) && (found == nil || p.newer(found)) {
			found = p
		}
	}
	return found
}

// subjectAt returns the pod whose policies are for a: the one that has it, or
// has it beside its own.
func (c *Cluster) subjectAt(a netip.Addr) *Pod {
	if p := c.podAt(a); p != nil {
		return p
	}
	for _, p := range c.Pods {
		if p.holds() && slices.Contains(p.Extra, a) {
			return p
		}
	}
	return nil
}

// judge judges k in one direction: pod is subject, peer is at the other end,
// at address at; target is the pod that is sent to, by as much as pod's policies
// can know of it.
func (c *Cluster) judge(d Direction, pod *Pod, at netip.Addr, peer, target *Pod, k Packet) Reason {
	r := Reason{Direction: d, Pod: pod, Allowed: true}
	if pod == nil {
		return r
	}
	for _, p := range c.Policies {
		if !p.Selects(pod, d) {
			continue
		}
		r.Isolating = append(r.Isolating, p)
		if r.Policy != nil {
			continue
		}
		for i, rule := range p.Rules[d] {
			if c.peers(p, rule, at, peer) && rule.ports(target, k) {
				r.Policy, r.Rule = p, i
				break
			}
		}
	}
	r.Allowed = len(r.Isolating) == 0 || r.Policy != nil
	return r
}

// peers reports whether one of rule's peers is at a, where pod is, or nil.
func (c *Cluster) peers(p *Policy, rule Rule, a netip.Addr, pod *Pod) bool {
	if len(rule.Peers) == 0 {
		return true
	}
	for _, peer := range rule.Peers {
		if peer.Block != nil {
			if peer.Block.Contains(a) {
				return true
			}
			continue
		}
		if pod == nil || !pod.Labels.matches(peer.Pods) {
			continue
		}
		if peer.Namespaces == nil {
			if pod.Namespace == p.Namespace {
				return true
			}
			continue
		}
		if ns, ok := c.Namespaces[pod.Namespace]; ok && ns.matches(peer.Namespaces) {
			return true
		}
	}
	return false
}

// ports reports whether one of the rule's ports is k's, which is sent to pod,
// nil if that is none.
func (r Rule) ports(pod *Pod, k Packet) bool {
	if len(r.Ports) == 0 {
		return true
	}
	for _, port := range r.Ports {
		if port.Proto != k.Proto {
			continue
		}
		if port.Name == "" {
			if port.all() || port.From <= k.Port && k.Port <= port.To {
				return true
			}
			continue
		}
		if pod == nil {
			continue
		}
		for _, named := range pod.Ports {
			if named.Name == port.Name && named.Proto == port.Proto && named.Number == k.Port {
				return true
			}
		}
	}
	return false
}
