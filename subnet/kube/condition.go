// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// OverlayDegraded is the type of the condition that says that something about
// the overlay needs an operator, while this node's own data plane may be fine.
// Nothing taints on it.
const OverlayDegraded corev1.NodeConditionType = "OverlayDegraded"

const (
	// DownFor is how long the data plane must have been down before the Node is
	// said to have no network, and the container runtime is told: that taints it
	// (DESIGN 3.14).
	DownFor = 30 * time.Second
	// badFor is how long a problem must have been there before the Node is
	// called degraded, most are over before anybody could look, and fineFor how
	// long there must have been none after that. Each agent takes up to twice as
	// long, always the same: what is wrong with one Node is a problem on all of
	// them at once, and what they write of it goes to all of them again.
	badFor  = 10 * time.Second
	fineFor = 30 * time.Second
	// blip is how long problems may be away and yet count as if they had been
	// there all the time.
	blip = 5 * time.Second
	// maxMessage bounds a condition's message, bytes; it is on the Node.
	maxMessage = 300
)

// The reasons of our conditions, by which we know them as ours.
const (
	reasonUp       = "WeftIsUp"
	reasonDown     = "WeftIsDown"
	reasonProblems = "OverlayHasProblems"
	reasonFine     = "OverlayHasNoProblem"
)

func reasons() []string { return []string{reasonUp, reasonDown, reasonProblems, reasonFine} }

// DataPlane is how this node's own data plane is, peers apart.
type DataPlane int

// The states of the data plane. Unknown is before the first look; it never
// changes a condition.
const (
	Unknown DataPlane = iota
	Up
	Down
)

// Health is what the agent knows of this node, for its Node's conditions.
type Health struct {
	DataPlane DataPlane
	Why       string // why it is down, one sentence
	Degraded  string // what is wrong beside, one sentence; or ""
}

// edges turns a level into conditions that change seldom. The zero value has
// seen nothing.
type edges struct {
	spread    float64   // how much longer than badFor and fineFor, 0 to 1 times them
	downSince time.Time // zero while it is not down

	degraded  bool      // the Node says so
	badSince  time.Time // zero while nothing is wrong, nor was a blip ago
	fineSince time.Time // zero while something is wrong
	said      string    // of what is wrong
	text      string    // what was wrong last, which is said when it has been so for long enough
	textSince time.Time
}

// judge returns the conditions that h asks for at now, and when it should be
// asked again without a change (0 for never). Conditions of which h says
// nothing, or not for long enough, are not among them.
func (e *edges) judge(now time.Time, h Health) (want []corev1.NodeCondition, again time.Duration) {
	down, left := since(&e.downSince, now, h.DataPlane == Down, DownFor)
	again = left
	switch {
	case down:
		want = append(want, condition(corev1.NodeNetworkUnavailable, true, reasonDown, h.Why))
	case h.DataPlane == Up:
		want = append(want, condition(corev1.NodeNetworkUnavailable, false, reasonUp, "this node's data plane is in place"))
	}
	degraded, left := e.judgeProblems(now, h)
	if left > 0 && (again == 0 || left < again) {
		again = left
	}
	return append(want, degraded...), again
}

// judgeProblems is judge for OverlayDegraded.
func (e *edges) judgeProblems(now time.Time, h Health) (want []corev1.NodeCondition, again time.Duration) {
	fine, soonFine := since(&e.fineSince, now, h.Degraded == "", e.spreadOut(fineFor))
	if h.Degraded == "" {
		if now.Sub(e.fineSince) >= blip {
			e.badSince = time.Time{}
		}
		switch {
		case e.degraded && !fine:
			return e.say(), soonFine
		case h.DataPlane == Unknown:
			return e.say(), 0
		}
		e.degraded = false
		return []corev1.NodeCondition{condition(OverlayDegraded, false, reasonFine, "nothing is wrong that weft knows of")}, 0
	}
	if h.Degraded != e.text {
		e.text, e.textSince = h.Degraded, now
	}
	if e.badSince.IsZero() {
		e.badSince = now
	}
	from := &e.badSince
	if e.degraded {
		from = &e.textSince // it is known that something is wrong, but not what
	}
	settled, left := since(from, now, true, e.spreadOut(badFor))
	if settled {
		e.degraded, e.said, left = true, h.Degraded, 0
	}
	return e.say(), left
}

// say is the condition of a Node that has been found degraded.
func (e *edges) say() []corev1.NodeCondition {
	if !e.degraded {
		return nil
	}
	return []corev1.NodeCondition{condition(OverlayDegraded, true, reasonProblems, e.said)}
}

func (e *edges) spreadOut(d time.Duration) time.Duration {
	return d + time.Duration(e.spread*float64(d))
}

// resume takes over what a Node says that an agent before this one has judged.
func (e *edges) resume(have []corev1.NodeCondition) {
	for _, c := range have {
		if !e.degraded && c.Type == OverlayDegraded && c.Status == corev1.ConditionTrue && c.Reason == reasonProblems {
			e.degraded, e.said = true, c.Message
		}
	}
}

// since reports whether is has been so for long enough, and else how much is
// left of that (0 when it is not so).
func since(from *time.Time, now time.Time, is bool, enough time.Duration) (bool, time.Duration) {
	switch {
	case !is:
		*from = time.Time{}
		return false, 0
	case from.IsZero():
		*from = now
	}
	left := enough - now.Sub(*from)
	return left <= 0, max(left, 0)
}

func condition(kind corev1.NodeConditionType, is bool, reason, message string) corev1.NodeCondition {
	c := corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message}
	if is {
		c.Status = corev1.ConditionTrue
	}
	if len(c.Message) > maxMessage {
		c.Message = clip(c.Message)
	}
	return c
}

// changes returns those of want that have does not say, with their times. Of
// several of a type in have, the first counts.
func changes(want, have []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	var out []corev1.NodeCondition
	for _, c := range want {
		c.LastHeartbeatTime, c.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
		at := slices.IndexFunc(have, func(h corev1.NodeCondition) bool { return h.Type == c.Type })
		if at >= 0 && have[at].Status == c.Status {
			if have[at].Reason == c.Reason && have[at].Message == c.Message {
				continue
			}
			c.LastTransitionTime = have[at].LastTransitionTime
		}
		out = append(out, c)
	}
	return out
}
