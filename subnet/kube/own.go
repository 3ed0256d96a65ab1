// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"weft.dev/weft/subnet"
)

// A plan is what follows from our Node as it is.
type plan struct {
	lease    subnet.Lease      // with a path for each family that can be served; maybe none
	publish  map[string]string // the annotations that our Node is to have
	lacks    string            // why a family cannot be served, one sentence; or ""
	kind     string            // of lacks
	problems []subnet.Problem  // what is wrong with our Node, beside
}

// planOwn decides what lease we have. It is pure. want has a path for each of
// cfg's networks; its underlays are taken, its subnets are not: those are the
// Node's podCIDRs. node may be nil, when there is none.
func (ds dialects) planOwn(cfg subnet.Config, want subnet.Lease, name string, node *corev1.Node) plan {
	var p plan
	cidrs, lacks := ownCIDRs(name, node)
	if lacks != (notYet{}) {
		return plan{kind: lacks.kind, lacks: lacks.text}
	}
	p.lease = want.Clone()
	p.lease.Node, p.lease.Paths = name, nil
	if !ds[0].whole {
		p.lease.Instance = "" // cannot be published
	}
	p.assign(cfg, want, name, cidrs)
	if len(p.lease.Paths) == 0 {
		return p
	}
	ds.publishOwn(&p, node)
	return p
}

// ownCIDRs returns the podCIDRs of our Node, which may be nil, when there is
// none; or what is waited for.
func ownCIDRs(name string, node *corev1.Node) ([]netip.Prefix, notYet) {
	if node == nil {
		return nil, noNode(name)
	}
	cidrs, err := parseCIDRs(podCIDRs(node))
	if err != nil {
		return nil, notYet{"PodCIDRMissing", fmt.Sprintf("waiting for a podCIDR of Node %s: %v; the controller manager hands them out with --allocate-node-cidrs and --cluster-cidr (kubeadm init --pod-network-cidr)", name, err)}
	}
	return cidrs, notYet{}
}

// noNode is that there is no Node of our name.
func noNode(name string) notYet {
	return notYet{"NodeMissing", fmt.Sprintf("there is no Node %q: want the name that this node has in the cluster (--node-name, NODE_NAME)", name)}
}

// NodeAddresses returns the addresses by which the cluster knows our Node:
// first those of type InternalIP, then ExternalIP, each in the order of its
// status; none where nobody has reported any yet. They are as Hold sees them, or
// read here where it does not. While our Node or the API is missing, the error
// says in one sentence what is waited for.
func (s *Store) NodeAddresses(ctx context.Context) ([]netip.Addr, error) {
	ctx, done := s.life.Scope(ctx)
	defer done()
	node := s.node.Load()
	if node == nil {
		var err error
		switch node, err = s.readNode(ctx, s.o.Node); {
		case apierrors.IsNotFound(err):
			return nil, noNode(s.o.Node)
		case ctx.Err() != nil:
			return nil, s.life.Err(ctx)
		case err != nil:
			kind, text := s.conn.Unreachable(err)
			return nil, notYet{kind, text}
		}
	}
	return nodeAddresses(node), nil
}

// nodeAddresses are those of node that are addresses and not names.
func nodeAddresses(node *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range node.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if a.Type != kind || err != nil || slices.Contains(out, addr.Unmap()) {
				continue
			}
			out = append(out, addr.Unmap())
		}
	}
	return out
}

// podCIDRs are those of node: one list, whatever version of the API wrote it.
func podCIDRs(node *corev1.Node) []string {
	if len(node.Spec.PodCIDRs) == 0 && node.Spec.PodCIDR != "" {
		return []string{node.Spec.PodCIDR}
	}
	return node.Spec.PodCIDRs
}

// assign gives each family its subnet, as far as it is there and fits.
func (p *plan) assign(cfg subnet.Config, want subnet.Lease, name string, cidrs []netip.Prefix) {
	var missing []string
	for i, n := range cfg.Networks {
		f := subnet.FamilyOf(n.Prefix.Addr())
		at := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return subnet.FamilyOf(c.Addr()) == f })
		if at < 0 {
			missing = append(missing, f.String())
			continue
		}
		c := cidrs[at]
		if c != c.Masked() || c.Bits() < n.Prefix.Bits() || !n.Prefix.Contains(c.Addr()) {
			p.problems = append(p.problems, subnet.Problem{Kind: "PodCIDROutsideNetwork", Object: name,
				Detail: fmt.Sprintf("podCIDR %v of this Node is not inside the pod network %v of the configuration: make Network the cluster's --cluster-cidr, or leave it out", c, n.Prefix)})
			continue
		}
		path := want.Paths[i]
		path.Subnet = c
		p.lease.Paths = append(p.lease.Paths, path)
	}
	for _, c := range cidrs {
		if _, ok := cfg.Network(subnet.FamilyOf(c.Addr())); !ok {
			p.problems = append(p.problems, subnet.Problem{Kind: "PodCIDRUnused", Object: name,
				Detail: fmt.Sprintf("podCIDR %v of this Node is of a family that the configuration switches off, so it has no overlay", c)})
		}
	}
	switch {
	case len(missing) > 0:
		p.kind, p.lacks = "PodCIDRMissing", fmt.Sprintf("waiting for an %s podCIDR of Node %s, which has %v; is the cluster's --cluster-cidr of both families?", strings.Join(missing, " and "), name, cidrs)
	case len(p.lease.Paths) == 0:
		p.kind, p.lacks = "PodCIDROutsideNetwork", p.problems[0].Detail
	}
}

// publishOwn adds what the operator overwrites, and the annotations.
func (ds dialects) publishOwn(p *plan, node *corev1.Node) {
	if l, err := ds.overwritten(p.lease, node.Annotations); err != nil {
		p.problems = append(p.problems, subnet.Problem{Kind: "OverwriteInvalid", Object: node.Name,
			Detail: fmt.Sprintf("%v; this node announces its own address", err)})
	} else {
		p.lease = l
	}
	ann, err := ds[0].encode(p.lease)
	if err != nil {
		p.lease.Paths = nil
		p.kind, p.lacks = "LeaseUnpublishable", err.Error()
		return
	}
	p.publish = ann
}

// difference returns what has to be patched for node to have what p publishes
// and nothing else of ours; nil stands for a removal. It is empty when nothing
// has to be.
func (ds dialects) difference(p plan, node *corev1.Node) map[string]*string {
	out := map[string]*string{}
	for name, v := range p.publish {
		if have, ok := node.Annotations[name]; !ok || have != v {
			out[name] = &v
		}
	}
	for _, name := range ds[0].names.Published {
		if _, ok := node.Annotations[name]; ok {
			if _, wanted := p.publish[name]; !wanted {
				out[name] = nil
			}
		}
	}
	return out
}
