// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
)

// published has n1's agent publish its lease, and ends it.
func published(e *env, s *kube.Store) {
	cfg, err := s.Config(e.Context())
	e.check(err)
	ctx, cancel := context.WithCancel(e.Context())
	err = s.Hold(ctx, cfg, request(cfg, "n1", 1), func(subnet.Lease) { cancel() })
	if !errors.Is(err, context.Canceled) {
		e.Fatalf("Hold ended with %v", err)
	}
}

// What a real server makes of the one patch that takes weft off a Node: our
// annotations and conditions are gone, and nobody else's.
func TestWithdraw(t *testing.T) {
	e := newEnv(t)
	e.node("n1", map[string]string{"other": "x"}, "10.244.1.0/24", "fd00:244:0:1::/64")
	s := e.store("n1")
	published(e, s)
	e.check(e.c.Patch(types.StrategicMergePatchType).Resource("nodes").Name("n1").SubResource("status").Body([]byte(`{"status":{"conditions":[
		{"type":"Ready","status":"True","reason":"KubeletReady"},
		{"type":"NetworkUnavailable","status":"False","reason":"WeftIsUp"},
		{"type":"OverlayDegraded","status":"True","reason":"OverlayHasProblems"}]}}`)).Do(e.Context()).Error())

	gone, left, err := e.store("n1").Withdraw(e.Context(), func(subnet.Lease) bool { return false })
	if err != nil || len(gone.Annotations) != 8 || len(gone.Conditions) != 2 || !left.Empty() {
		t.Errorf("gone %v, left %v, %v", gone, left, err)
	}
	n := e.get("n1")
	if !maps.Equal(n.Annotations, map[string]string{"other": "x"}) || len(n.Status.Conditions) != 1 || n.Status.Conditions[0].Type != corev1.NodeReady {
		t.Errorf("left %v, %v", n.Annotations, n.Status.Conditions)
	}
	if gone, left, err = e.store("n1").Withdraw(e.Context(), nil); err != nil || !gone.Empty() || !left.Empty() {
		t.Errorf("again: gone %v, left %v, %v", gone, left, err)
	}
	e.delete("n1")
	if _, _, err = e.store("n1").Withdraw(e.Context(), nil); !errors.Is(err, kube.ErrNoNode) {
		t.Errorf("without a Node: %v", err)
	}
}
