// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/policy"
	"weft.dev/weft/subnet/kube/apitest"
)

// fixture is an API server that can be out of reach, and a source on it.
type fixture struct {
	*testing.T
	api    *apitest.Server
	srv    *httptest.Server
	down   atomic.Bool            // connections are cut
	conns  sync.Map               // net.Conns that were made
	refuse atomic.Pointer[string] // resource that is refused
	s      *Source
	logged *test.Hook
}

// ServeHTTP passes on what may pass.
func (f *fixture) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.down.Load() {
		panic(http.ErrAbortHandler)
	}
	if name := f.refuse.Load(); name != nil && strings.HasSuffix(r.URL.Path, *name) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"%s are forbidden"}`, *name)
		return
	}
	f.api.ServeHTTP(w, r)
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, api: apitest.New()}
	f.srv = httptest.NewUnstartedServer(f)
	f.srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		f.conns.Store(c, nil)
		return ctx
	}
	f.srv.Start()
	f.s = f.source()
	t.Cleanup(func() {
		f.cut()
		f.srv.Close()
	})
	return f
}

// source returns another source on f's server.
func (f *fixture) source() *Source {
	f.Helper()
	log, hook := test.NewNullLogger()
	f.logged = hook
	s, err := New(Options{Server: f.srv.URL, Node: "n1", CallTimeout: 5 * time.Second, maxPause: 100 * time.Millisecond, Log: log.WithFields(logrus.Fields{})})
	must(f, err)
	f.Cleanup(func() { must(f, s.Close()) })
	return s
}

// outage cuts all connections and lets none through until it is over.
func (f *fixture) outage(on bool) {
	f.down.Store(on)
	f.cut()
}

// cut ends all connections. (httptest waits for each to be known as closed.)
func (f *fixture) cut() {
	for c := range f.conns.Range {
		f.conns.Delete(c)
		_ = c.(net.Conn).Close()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// watched are the snapshots of a Watch under way.
type watched struct {
	*fixture
	mu    sync.Mutex
	snaps []Snapshot
}

// watch watches until the test ends, which is the only thing that may end it.
func (f *fixture) watch() *watched {
	w := &watched{fixture: f}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- f.s.Watch(ctx, func(s Snapshot) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.snaps = append(w.snaps, s)
		})
	}()
	f.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			f.Errorf("ended with %v", err)
		}
	})
	return w
}

func (w *watched) all() []Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.snaps)
}

// last returns the latest snapshot, an empty one before the first.
func (w *watched) last() Snapshot {
	if all := w.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return Snapshot{}
}

// shows waits for a snapshot of this text to be the latest.
func (w *watched) shows(want ...string) Snapshot {
	w.Helper()
	var s Snapshot
	text := strings.Join(want, "; ")
	defer func() {
		if w.Failed() {
			w.Logf("the latest of %d snapshots: %q; waits: %q", len(w.all()), snapText(w.last()), w.s.Reason())
		}
	}()
	eventually(w, "a snapshot "+text, func() bool {
		s = w.last()
		return snapText(s) == text
	})
	return s
}

func (f *fixture) says(words ...string) {
	f.Helper()
	eventually(f, "Reason says "+strings.Join(words, ", "), func() bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f.s.Reason(), w) })
	})
}

// snapText renders a snapshot: namespaces, pods, policies, problems.
func snapText(s Snapshot) string {
	var out []string
	for name, l := range s.Cluster.Namespaces {
		out = append(out, "ns "+name+labelText(l))
	}
	slices.Sort(out)
	for _, p := range s.Cluster.Pods {
		out = append(out, podText(p))
	}
	for _, p := range s.Cluster.Policies {
		out = append(out, fmt.Sprintf("np %v{%v}%v", p, p.Subject, p.Isolates))
	}
	for _, p := range s.Problems {
		out = append(out, p.Kind+" "+p.Object)
	}
	return strings.Join(out, "; ")
}

func podText(p *policy.Pod) string {
	text := fmt.Sprintf("%v@%s=%v%s", p, p.Node, p.Addrs, labelText(p.Labels))
	if len(p.Allowed) > 0 {
		text += fmt.Sprintf("+%v", p.Allowed)
	}
	if p.Ended {
		text += " ended"
	}
	return text
}

func labelText(l *policy.Labels) string {
	return "{" + strings.ReplaceAll(strings.TrimRight(l.Key(), "\x00"), "\x00", ",") + "}"
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// pod is one of namespace ns on n1.
func pod(name string, labels map[string]string, addrs ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-of-" + name), Labels: labels},
		Spec: corev1.PodSpec{NodeName: "n1"}}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func isolate(name string, labels map[string]string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: labels}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
}

// app are the labels of an application's pods.
func app(name string) map[string]string { return map[string]string{"app": name} }
