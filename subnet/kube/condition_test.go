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
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", 30 * time.Second},
		{30 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},
		{0, Health{DataPlane: Down, Why: "no device"}, "OverlayDegraded=False", 30 * time.Second},
		{29 * time.Second, Health{DataPlane: Down, Why: "no device"}, "OverlayDegraded=False", time.Second},
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0}, // it was there again
		{0, Health{DataPlane: Down, Why: "no device"}, "OverlayDegraded=False", 30 * time.Second},
		{30 * time.Second, Health{DataPlane: Down, Why: "no device"}, "NetworkUnavailable=True OverlayDegraded=False", 0},
		{time.Hour, Health{DataPlane: Down, Why: "no device", Degraded: "MTU"}, "NetworkUnavailable=True", 10 * time.Second},
		{9 * time.Second, Health{DataPlane: Up, Degraded: "MTU"}, "NetworkUnavailable=False", time.Second},
		{time.Second, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False OverlayDegraded=True", 0},
		{11 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", 30 * time.Second},
		{29 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", time.Second},
		{0, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False OverlayDegraded=True", 0}, // what comes and goes is not over
		{5 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", 30 * time.Second},
		{20 * time.Second, Health{DataPlane: Up, Degraded: "other"}, "NetworkUnavailable=False OverlayDegraded=True", 10 * time.Second}, // this is another
		{9 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", 30 * time.Second},
		{20 * time.Second, Health{DataPlane: Up, Degraded: "other"}, "NetworkUnavailable=False OverlayDegraded=True", 0}, // and it comes again
		{5 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", 30 * time.Second},
		{30 * time.Second, Health{}, "OverlayDegraded=True", 0}, // nobody knows yet
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},
		{0, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False", 10 * time.Second},
		{5 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},        // was never called so
		{4 * time.Second, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False", time.Second}, // it was only away for a moment
		{1 * time.Second, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False OverlayDegraded=True", 0},
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=True", 30 * time.Second},
		{30 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},
		{0, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False", 10 * time.Second},
		{0, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0},
		{5 * time.Second, Health{DataPlane: Up}, "NetworkUnavailable=False OverlayDegraded=False", 0}, // and now for longer
		{0, Health{DataPlane: Up, Degraded: "peers"}, "NetworkUnavailable=False", 10 * time.Second},
	} {
		c.add(s.after)
		got, again := e.judge(c.now, s.h)
		if say(got) != s.want || again != s.again {
			t.Errorf("step %d: %s, again in %s; want %s, %s", i, say(got), again, s.want, s.again)
		}
	}
}

// What all agents see at the same moment they do not write at the same moment,
// and when it flaps, 11 s of junk and 1 s without, it is one change each.
func TestConditionsOfManyNodes(t *testing.T) {
	const flap, nodes = 12 * time.Second, 100
	moments, writes := map[time.Duration]int{}, 0
	for i := range nodes {
		e, c, was := edges{spread: float64(i) / nodes}, newClock(), ""
		for at := time.Duration(0); at < 20*flap; at += time.Second {
			h := Health{DataPlane: Up}
			if at%flap != 0 {
				h.Degraded = "JunkLease n9"
			}
			got, _ := e.judge(c.now, h)
			for _, cond := range got {
				if cond.Type == OverlayDegraded && string(cond.Status) != was {
					was = string(cond.Status)
					writes++
					moments[at]++
				}
			}
			c.add(time.Second)
		}
	}
	if writes != 2*nodes {
		t.Errorf("%d writes by %d agents, want 2 of each: at the start, and that something is wrong", writes, nodes)
	}
	delete(moments, 0) // that nothing is wrong, at the start
	for at, n := range moments {
		if n > nodes/4 {
			t.Errorf("%d of %d agents write after %s", n, nodes, at)
		}
	}
}

// What is said of a degraded Node stays until something else has been wrong for a
// while, and is the Node's own word after a restart.
func TestConditionText(t *testing.T) {
	var e edges
	c := newClock()
	e.resume([]corev1.NodeCondition{{Type: OverlayDegraded, Status: corev1.ConditionTrue, Reason: reasonProblems, Message: "before"}})
	for i, s := range []struct {
		after           time.Duration
		degraded, words string
	}{
		{0, "a", "before"}, {10 * time.Second, "a", "a"}, {time.Second, "b", "a"}, {5 * time.Second, "c", "a"}, {9 * time.Second, "c", "a"},
		{time.Second, "c", "c"}, {time.Second, "", "c"}, {time.Second, "d", "c"}, {10 * time.Second, "d", "d"},
	} {
		c.add(s.after)
		got, _ := e.judge(c.now, Health{DataPlane: Unknown, Degraded: s.degraded})
		if say(got) != "OverlayDegraded=True" || got[0].Message != s.words {
			t.Errorf("step %d: %+v, want %q", i, got, s.words)
		}
	}
}

// An agent that starts goes on with what the one before it has said.
func TestConditionAfterARestart(t *testing.T) {
	for reason, want := range map[string]string{reasonProblems: "NetworkUnavailable=False OverlayDegraded=True", "AnotherProgramsReason": "NetworkUnavailable=False OverlayDegraded=False"} {
		var e edges
		c := newClock()
		e.resume([]corev1.NodeCondition{{Type: OverlayDegraded, Status: corev1.ConditionTrue, Reason: reason}})
		if got, _ := e.judge(c.now, Health{DataPlane: Up}); say(got) != want {
			t.Errorf("%s: %s, want %s", reason, say(got), want)
		}
		c.add(fineFor)
		if got, _ := e.judge(c.now, Health{DataPlane: Up}); say(got) != "NetworkUnavailable=False OverlayDegraded=False" {
			t.Errorf("%s: %s after %s", reason, say(got), fineFor)
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
