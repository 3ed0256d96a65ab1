// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/subnet"
)

// How many Events there may be about our Node: eventBurst at once and one in
// eventEvery after. client-go counts what repeats in one Event.
const (
	eventBurst = 10
	eventEvery = 60 // seconds
)

// events tells an operator who looks at our Node what happens to it. Sending
// is client-go's business; what cannot be sent for some minutes is dropped.
type events struct {
	recorder record.EventRecorder
	about    *corev1.ObjectReference
}

// newEvents records until ctx ends.
func newEvents(ctx context.Context, c *client, o Options) *events {
	ctx = kubeapi.Quiet(ctx)
	b := record.NewBroadcaster(
		record.WithContext(ctx),
		record.WithCorrelatorOptions(record.CorrelatorOptions{BurstSize: eventBurst, QPS: 1. / eventEvery}))
	b.StartRecordingToSink(eventSink{c: c, ctx: func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, o.CallTimeout)
	}})
	return &events{
		recorder: b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: "weftd", Host: o.Node}),
		// The UID is the name, as in kubelet's own Events: they outlive the
		// object, and `kubectl describe node` finds them.
		about: &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: o.Node, UID: types.UID(o.Node), Namespace: metav1.NamespaceNone},
	}
}

// warn says what the store waits for.
func (e *events) warn(kind, text string) {
	e.recorder.Event(e.about, corev1.EventTypeWarning, kind, text)
}

// leased says what was granted.
func (e *events) leased(l subnet.Lease) {
	var texts []string
	for _, p := range l.Paths {
		texts = append(texts, fmt.Sprintf("%v at %v", p.Subnet, p.Underlay))
	}
	e.recorder.Event(e.about, corev1.EventTypeNormal, "LeasePublished", "pods of this node: "+strings.Join(texts, ", "))
}

// condition says that one of our Node's conditions has changed.
func (e *events) condition(c corev1.NodeCondition, good bool) {
	kind := corev1.EventTypeWarning
	if good {
		kind = corev1.EventTypeNormal
	}
	e.recorder.Event(e.about, kind, c.Reason, c.Message)
}
