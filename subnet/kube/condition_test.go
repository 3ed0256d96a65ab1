// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// say renders conditions briefly: NetworkUnavailable=False, ...
func say(list []corev1.NodeCondition) string {
	var out []string
	for _, c := range list {
		out = append(out, fmt.Sprintf("%s=%s", c.Type, c.Status))
	}
	return strings.Join(out, " ")
}

// TestConditionEdges goes through a node's life: each step says what the agent
// knows for how long, and what the Node is to say then.
func TestConditionEdges(t *testing.T) {
	var e edges
	c := newClock()
	for i, s := range []struct {
		after time.Duration
		h     Health
		want  string
		again time.Duration
	}{
		{0, Health{}, "", 0},                                 // starts
		{time.Hour, Health{}, "", 0},                         // waits for a podCIDR: it taints nothing by that
		{0, Health{Degraded: "waits"}, "", 10 * time.Second}, // but says so
		{10 * time.Second, Health{Degraded: "waits"}, "OverlayDegraded=True", 0},
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},
		{0, Health{DataPlane: Down, Why: "no device"}, "OverlayDegraded=False", 30 * time.Second},
		{29 * time.Second, Health{DataPlane: Down, Why: "no device"}, "OverlayDegraded=False", time.Second},
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0}, // it was there again
		{0, Health{DataPlane: Down, Why: "no device"}, "OverlayDegraded=False", 30 * time.Second},
		{30 * time.Second, Health{DataPlane: Down, Why: "no device"}, "NetworkUnavailable=True OverlayDegraded=False", 0},
		{time.Hour, Health{DataPlane: Down, Why: "no device", Degraded: "MTU"}, "NetworkUnavailable=True", 10 * time.Second},
		{9 * time.Second, Health{DataPlane: Up, Degraded: "MTU"}, "NetworkUnavailable=False", time.Second},
		{time.Second, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False OverlayDegraded=True", 0},
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},
	} {
		c.add(s.after)
		got, again := e.judge(c.now, s.h)
		if say(got) != s.want || again != s.again {
			t.Errorf("step %d: %s, again in %s; want %s, %s", i, say(got), again, s.want, s.again)
		}
	}
}

// The Node is patched when it does not say what it should, and only then.
func TestConditionChanges(t *testing.T) {
	now, before := time.Unix(2_000_000, 0), metav1.NewTime(time.Unix(1_000_000, 0))
	up := condition(corev1.NodeNetworkUnavailable, false, "WeftIsUp", "in place")
	there := up
	there.LastTransitionTime = before
	for _, c := range []struct {
		name string
		have []corev1.NodeCondition
		want string
		same bool // the transition's time is kept
	}{
		{"missing", []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}, "NetworkUnavailable=False", false},
		{"there", []corev1.NodeCondition{there}, "", false},
		{"a cloud's", []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated", LastTransitionTime: before}}, "NetworkUnavailable=False", false},
		{"flannel's", []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "FlannelIsUp", LastTransitionTime: before}}, "NetworkUnavailable=False", true},
		{"just patched", []corev1.NodeCondition{there, {Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := changes([]corev1.NodeCondition{up}, c.have, now)
			if say(got) != c.want {
				t.Fatalf("patches %s, want %s", say(got), c.want)
			}
			if len(got) > 0 && (got[0].LastTransitionTime == before) != c.same {
				t.Errorf("transition at %v", got[0].LastTransitionTime)
			}
		})
	}
}

func TestConditionMessageIsBounded(t *testing.T) {
	c := condition(OverlayDegraded, true, "R", strings.Repeat("x", 1<<20))
	if len(c.Message) > maxMessage+3 {
		t.Errorf("%d bytes", len(c.Message))
	}
}
