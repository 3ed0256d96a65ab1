// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/subnet"
)

// Traces are what weft's agents write on a Node, by names.
type Traces struct {
	Annotations []string
	Conditions  []string // their types
}

// Empty reports whether there are none.
func (t Traces) Empty() bool { return len(t.Annotations) == 0 && len(t.Conditions) == 0 }

// String lists the names.
func (t Traces) String() string {
	var parts []string
	if len(t.Annotations) > 0 {
		parts = append(parts, "annotations "+strings.Join(t.Annotations, " "))
	}
	if len(t.Conditions) > 0 {
		parts = append(parts, "conditions "+strings.Join(t.Conditions, " "))
	}
	return strings.Join(parts, " and ")
}

// Kubectl returns the commands that take t off the Node called name. They do
// no harm where it is gone already.
func (t Traces) Kubectl(name string) []string {
	var out []string
	if len(t.Annotations) > 0 {
		out = append(out, fmt.Sprintf("kubectl annotate node %s %s-", name, strings.Join(t.Annotations, "- ")))
	}
	if len(t.Conditions) > 0 {
		var list []string
		for _, c := range t.Conditions {
			list = append(list, fmt.Sprintf(`{"type":%q,"$patch":"delete"}`, c))
		}
		out = append(out, fmt.Sprintf(`kubectl patch node %s --subresource=status -p '{"status":{"conditions":[%s]}}'`, name, strings.Join(list, ",")))
	}
	return out
}

// AllTraces returns what agents with o may have written, without a look at
// any Node.
func AllTraces(o Options) (Traces, error) {
	o.setPrefix()
	ds, err := newDialects(o)
	if err != nil {
		return Traces{}, err
	}
	return Traces{ds[0].names.Published, []string{string(corev1.NodeNetworkUnavailable), string(OverlayDegraded)}}, nil
}

// Withdraw takes off our Node what agents of weft have written there, for when
// none is to run any more: annotations, and conditions that carry one of our
// reasons. NetworkUnavailable goes, too, and is not set True: a node without
// any network says so by not being Ready, and the next network, if it knows
// nothing of this condition, would find a taint that nobody ever takes away.
//
// In flannel's dialect annotations bear no author. They go when ours says so of
// the lease in them, and else are left, and named.
//
// A Node that does not exist is ErrNoNode.
func (s *Store) Withdraw(ctx context.Context, ours func(subnet.Lease) bool) (gone, left Traces, err error) {
	ctx, done := s.life.Scope(ctx)
	defer done()
	node, err := s.readNode(ctx, s.o.Node)
	if apierrors.IsNotFound(err) {
		return gone, left, fmt.Errorf("Node %q: %w", s.o.Node, ErrNoNode)
	}
	if err != nil {
		return gone, left, s.explained("read Node", err)
	}
	gone, left = s.dialects.traces(node, ours)
	if gone.Empty() {
		return gone, left, nil
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if err := s.api.patch(ctx, types.StrategicMergePatchType, s.o.Node, withdrawal(node.UID, gone)); err != nil {
		return Traces{}, left, s.explained("patch Node", err)
	}
	return gone, left, nil
}

// ErrNoNode says that our Node does not exist.
var ErrNoNode = errors.New("there is no such Node")

// explained says which call on our Node has failed, and why in the words of
// who waits for the API.
func (s *Store) explained(what string, err error) error {
	_, text := s.conn.Unreachable(err)
	return fmt.Errorf("%s %q: %s", what, s.o.Node, text)
}

// traces tells apart what on node is ours to remove and what may be flannel's.
func (ds dialects) traces(node *corev1.Node, ours func(subnet.Lease) bool) (gone, left Traces) {
	d := ds[0]
	theirs := !d.whole && !d.wrote(node, ours)
	for _, name := range d.names.Published {
		if _, ok := node.Annotations[name]; !ok {
			continue
		}
		if theirs && name != d.names.Sources {
			left.Annotations = append(left.Annotations, name)
			continue
		}
		gone.Annotations = append(gone.Annotations, name)
	}
	for _, c := range node.Status.Conditions {
		if slices.Contains(reasons(), c.Reason) && (c.Type == corev1.NodeNetworkUnavailable || c.Type == OverlayDegraded) {
			gone.Conditions = append(gone.Conditions, string(c.Type))
		}
	}
	slices.Sort(gone.Conditions) // their order on a Node is that of who came first
	return gone, left
}

// wrote reports whether the lease in node's annotations is ours. What does not
// parse is not.
func (d dialect) wrote(node *corev1.Node, ours func(subnet.Lease) bool) bool {
	cidrs, err := parseCIDRs(podCIDRs(node))
	if err != nil {
		return false
	}
	l, err := d.decode(node.Name, cidrs, node.Annotations)
	return err == nil && ours(l)
}

// withdrawal is the patch that removes t from the Node with this UID.
func withdrawal(uid types.UID, t Traces) map[string]any {
	annotations := map[string]any{}
	for _, name := range t.Annotations {
		annotations[name] = nil
	}
	conditions := []map[string]any{}
	for _, kind := range t.Conditions {
		conditions = append(conditions, map[string]any{"type": kind, "$patch": "delete"})
	}
	doc := map[string]any{"metadata": map[string]any{"uid": uid, "annotations": annotations}}
	if len(conditions) > 0 {
		doc["status"] = map[string]any{"conditions": conditions}
	}
	return doc
}
