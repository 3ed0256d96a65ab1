// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/subnet/kube/apitest"
)

// After whatever sequence of changes, ends of watches, forgotten revisions and
// outages, what was delivered last is what a fresh listing says.
func TestMirrorFollowsAnything(t *testing.T) {
	both(t, func(f *fixture) {
		seed := uint64(time.Now().UnixNano())
		f.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		w := f.watch()
		for range 40 {
			for range r.IntN(60) {
				step(f, r)
			}
			want := f.fresh()
			eventually(f, fmt.Sprintf("a snapshot as a fresh listing (seed %d): %s", seed, want), func() bool { return snapText(w.last()) == want })
		}
	})
}

// step changes one of few objects, or lets something go wrong.
func step(f *fixture, r *rand.Rand) {
	o := someObject(r)
	switch n := r.IntN(100); {
	case n < 55:
		f.api.Put(o)
	case n < 90:
		f.api.Remove(o)
	case n < 94:
		f.api.Bookmark()
	case n < 97:
		f.cut()
	case n < 99:
		f.api.Forget()
	default:
		f.outage(true)
		f.api.Put(o)
		f.outage(false)
	}
}

func someObject(r *rand.Rand) apitest.Object {
	namespaces := []string{"a", "a-b", "b"} // whose names sort otherwise once joined with those of pods
	ns, name := namespaces[r.IntN(3)], fmt.Sprint("o", r.IntN(8))
	labels := app(fmt.Sprint(r.IntN(3)))
	switch r.IntN(4) {
	case 0:
		return &corev1.Namespace{ObjectMeta: someMeta("", ns, labels)}
	case 1:
		return &networkingv1.NetworkPolicy{ObjectMeta: someMeta(ns, name, nil),
			Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: labels}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}}}
	}
	p := &corev1.Pod{ObjectMeta: someMeta(ns, name, labels), Spec: corev1.PodSpec{NodeName: fmt.Sprint("n", r.IntN(2))}}
	if r.IntN(3) > 0 {
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprint("10.0.0.", r.IntN(9))}}
	}
	if r.IntN(6) == 0 {
		p.Status.Phase = corev1.PodFailed
	}
	return p
}
