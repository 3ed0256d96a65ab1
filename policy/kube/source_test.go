// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/weft/policy"
)

// both runs a test with a server that streams listings, and one that pages.
func both(t *testing.T, test func(*fixture)) {
	for name, streams := range map[string]bool{"streamed": true, "paged": false} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.api.Stream(streams)
			test(f)
		})
	}
}

// What a first snapshot lacks would be let pass: there is none before all that
// it is made of was listed, and what is missing is said.
func TestNothingBeforeAllIsListed(t *testing.T) {
	for _, missing := range []string{"pods", "namespaces", "networkpolicies"} {
		t.Run(missing, func(t *testing.T) {
			f := newFixture(t)
			f.refuse.Store(&missing)
			f.api.Put(namespace("ns", nil))
			f.api.Put(pod("a", app("a"), "10.0.0.1"))
			f.api.Put(isolate("deny", nil))
			w := f.watch()
			f.says("refuses this agent", missing+" are forbidden", "ClusterRole")
			f.api.Put(pod("b", nil)) // nor then
			time.Sleep(20 * settle)
			if n := len(w.all()); n > 0 {
				t.Fatalf("%d snapshots without %s: %s", n, missing, snapText(w.last()))
			}
			f.refuse.Store(nil)
			w.shows("ns ns{}", "ns/a@n1=[10.0.0.1]{app=a}", "ns/b@n1=[]{}", "np ns/deny{}[true false]")
			eventually(t, "no Reason", func() bool { return f.s.Reason() == "" })
		})
	}
}

func TestWatch(t *testing.T) {
	both(t, func(f *fixture) {
		w := f.watch()
		first := w.shows()
		if first.Cluster.Namespaces == nil {
			eventually(f, "a snapshot of a cluster without anything", func() bool { return len(w.all()) == 1 })
		}
		f.api.Put(namespace("ns", app("ns")))
		f.api.Put(pod("b", app("b")))
		f.api.Put(pod("a", app("a"), "10.0.0.1", "fd00::1"))
		w.shows("ns ns{app=ns}", "ns/a@n1=[10.0.0.1 fd00::1]{app=a}", "ns/b@n1=[]{app=b}")
		f.api.Put(isolate("deny", app("a")))
		f.api.Put(pod("b", app("b"), "10.0.0.2"))
		f.api.Bookmark()
		w.shows("ns ns{app=ns}", "ns/a@n1=[10.0.0.1 fd00::1]{app=a}", "ns/b@n1=[10.0.0.2]{app=b}", "np ns/deny{app=a}[true false]")
		ended := pod("a", app("a"), "10.0.0.1")
		ended.Status.Phase = corev1.PodSucceeded
		f.api.Put(ended)
		f.api.Remove(pod("b", nil))
		w.shows("ns ns{app=ns}", "ns/a@n1=[10.0.0.1]{app=a} ended", "np ns/deny{app=a}[true false]")
		f.api.Remove(isolate("deny", nil))
		f.api.Remove(namespace("ns", nil))
		f.api.Remove(ended)
		w.shows()
	})
}

// More than a page comes whole.
func TestPages(t *testing.T) {
	f := newFixture(t)
	for i := range 2*pageSize + 7 {
		f.api.Put(pod(fmt.Sprint("p", i), app("a")))
	}
	w := f.watch()
	eventually(t, "a snapshot of all", func() bool { return len(w.last().Cluster.Pods) == 2*pageSize+7 })
	if all := w.all(); len(all) != 1 {
		t.Errorf("%d snapshots", len(all))
	}
	pages := 0
	for _, r := range f.api.Requests() {
		if strings.HasPrefix(r, "/api/v1/pods?") && !strings.Contains(r, "watch") {
			pages++
			if !strings.Contains(r, fmt.Sprint("limit=", pageSize)) || strings.Contains(r, "resourceVersion") {
				t.Errorf("asked for more than a page: %s", r)
			}
		}
	}
	if pages != 3 {
		t.Errorf("%d pages, want 3", pages)
	}
}

// Who caches by pointer has to compile again only what has changed, also when
// all was listed anew; and what does not count is no snapshot.
func TestPointersStay(t *testing.T) {
	both(t, func(f *fixture) {
		f.api.Put(pod("a", app("a"), "10.0.0.1"))
		f.api.Put(pod("b", app("a"), "10.0.0.2"))
		f.api.Put(isolate("x", app("a")))
		f.api.Put(isolate("y", app("a")))
		w := f.watch()
		before := w.shows("ns/a@n1=[10.0.0.1]{app=a}", "ns/b@n1=[10.0.0.2]{app=a}", "np ns/x{app=a}[true false]", "np ns/y{app=a}[true false]").Cluster
		if before.Pods[0].Labels != before.Pods[1].Labels || before.Policies[0].Subject != before.Policies[1].Subject {
			f.Error("equal labels or selectors are there twice")
		}
		n := len(w.all())
		busy := pod("a", app("a"), "10.0.0.1")
		busy.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		busy.Annotations = map[string]string{"other": "x"}
		f.api.Put(busy)
		marked := isolate("x", app("a"))
		marked.Labels = app("x")
		f.api.Put(marked)
		f.api.Forget()
		time.Sleep(20 * settle)
		if got := len(w.all()); got != n {
			f.Errorf("%d snapshots of what does not count: %s", got-n, snapText(w.last()))
		}
		f.api.Put(pod("b", app("b"), "10.0.0.2"))
		f.api.Put(isolate("y", app("b")))
		after := w.shows("ns/a@n1=[10.0.0.1]{app=a}", "ns/b@n1=[10.0.0.2]{app=b}", "np ns/x{app=a}[true false]", "np ns/y{app=b}[true false]").Cluster
		if after.Pods[0] != before.Pods[0] || after.Policies[0] != before.Policies[0] {
			f.Error("what has not changed is another")
		}
		if after.Pods[1] == before.Pods[1] || after.Policies[1] == before.Policies[1] || labelText(before.Pods[1].Labels) != "{app=a}" {
			f.Error("what has changed was changed in place")
		}
	})
}

// etcd is compacted while a watch is away: that is no outage.
func TestExpiredResourceVersion(t *testing.T) {
	both(t, func(f *fixture) {
		f.api.Put(pod("a", app("a")))
		w := f.watch()
		w.shows("ns/a@n1=[]{app=a}")
		f.api.Put(pod("b", app("b")))
		f.api.Forget()
		f.api.Remove(pod("a", nil))
		w.shows("ns/b@n1=[]{app=b}")
		if r := f.s.Reason(); r != "" {
			f.Errorf("reason %q", r)
		}
		for _, e := range f.logged.AllEntries() {
			f.Errorf("logged: %s", e.Message)
		}
	})
}

// Connections that are dropped, for this node has another address now, are made
// anew, and nothing is missed.
func TestReconnect(t *testing.T) {
	both(t, func(f *fixture) {
		f.api.Put(pod("a", app("a")))
		w := f.watch()
		w.shows("ns/a@n1=[]{app=a}")
		made := func() (n int) {
			for range f.conns.Range {
				n++
			}
			return n
		}
		for _, name := range []string{"b", "c"} {
			before := made()
			if err := f.s.Reconnect(f.Context()); err != nil {
				f.Fatal(err)
			}
			f.api.Put(pod(name, nil))
			eventually(f, "a pod that came meanwhile", func() bool { last := w.last().Cluster.Pods; return last[len(last)-1].Name == name })
			eventually(f, "another connection", func() bool { return made() > before })
		}
		eventually(f, "no Reason", func() bool { return f.s.Reason() == "" })
	})
}

// The API is away for a while, and has restarted and forgotten meanwhile: what
// is known stands, once it is said, and what was missed comes.
func TestOutage(t *testing.T) {
	both(t, func(f *fixture) {
		f.api.Put(pod("a", app("a")))
		w := f.watch()
		w.shows("ns/a@n1=[]{app=a}")
		n := len(w.all())
		for round := range 2 {
			f.outage(true)
			f.says("waiting for the Kubernetes API at " + f.srv.URL)
			if round == 1 {
				f.api.Forget()
			}
			time.Sleep(time.Second)
			if p, err := f.s.Pod(f.Context(), "ns", "a", ""); err != nil || p.Name != "a" {
				f.Errorf("a pod that is known: %v, %v", p, err)
			}
			if got := len(w.all()); got != n+round {
				f.Errorf("%d snapshots during an outage: %s", got-n, snapText(w.last()))
			}
			f.api.Put(pod(fmt.Sprint("b", round), nil))
			f.outage(false)
			eventually(f, "what was missed", func() bool { return len(w.last().Cluster.Pods) == 2+round })
			eventually(f, "no Reason", func() bool { return f.s.Reason() == "" })
		}
		warned := 0
		for _, e := range f.logged.AllEntries() {
			if e.Level == logrus.WarnLevel {
				warned++
			}
			if e.Data["node"] != "n1" || !strings.HasPrefix(fmt.Sprint(e.Data["op"]), "watch ") {
				f.Errorf("logged with %v", e.Data)
			}
		}
		if warned < 2 || warned > 2*int(kinds) {
			f.Errorf("warned %d times of two outages of %d kinds", warned, kinds)
		}
	})
}

// Many events that have arrived together are few snapshots.
func TestCoalesced(t *testing.T) {
	both(t, func(f *fixture) {
		w := f.watch()
		eventually(f, "the first", func() bool { return len(w.all()) == 1 })
		const many = 1000
		start := time.Now()
		for i := range many {
			f.api.Put(pod(fmt.Sprint("p", i), app("a")))
		}
		eventually(f, "all", func() bool { return len(w.last().Cluster.Pods) == many })
		most := int(time.Since(start)/settle) + 2
		f.Logf("%d snapshots of %d events in %s", len(w.all()), many, time.Since(start))
		if n := len(w.all()); n > most {
			f.Errorf("%d snapshots, want at most %d", n, most)
		}
	})
}

func TestProblems(t *testing.T) {
	f := newFixture(t)
	bad := isolate("bad", app("a"))
	bad.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "nonsense"}}}}}
	f.api.Put(bad)
	some := pod("a", nil, "10.0.0.1")
	some.Annotations = map[string]string{allowAnnotation: "10.9.0.0/16, nonsense,fd00::1 ,::ffff:10.1.2.3,"}
	f.api.Put(some)
	w := f.watch()
	s := w.shows("ns/a@n1=[10.0.0.1]{}+[10.9.0.0/16 fd00::1/128 10.1.2.3/32]", "np ns/bad{app=a}[true false]", "PodInvalid ns/a", "PolicyInvalid ns/bad")
	for i, word := range []string{`"nonsense"`, "ipBlock.cidr"} {
		if !strings.Contains(s.Problems[i].Detail, word) {
			t.Errorf("%v does not say %s", s.Problems[i], word)
		}
	}
	c := s.Cluster
	if ok, _ := c.Allows(policy.Packet{Src: netip.MustParseAddr("10.8.8.8"), Dst: netip.MustParseAddr("10.0.0.1"), Proto: policy.TCP, Port: 80}); !ok {
		t.Error("a pod that the policy does not select is isolated")
	}
	f.api.Put(isolate("bad", app("a")))
	some.Annotations = nil
	f.api.Put(some)
	w.shows("ns/a@n1=[10.0.0.1]{}", "np ns/bad{app=a}[true false]")
	for i := range 2 * mostProblems {
		bad.Name = fmt.Sprintf("bad%03d", i)
		f.api.Put(bad)
	}
	eventually(t, "a bounded list of Problems", func() bool {
		list := w.last().Problems
		return len(list) == mostProblems+1 && strings.HasPrefix(list[mostProblems].Detail, fmt.Sprint(mostProblems, " more"))
	})
}

// The CNI has to know a pod before the watch brings it.
func TestPod(t *testing.T) {
	f := newFixture(t)
	f.api.Put(pod("a", app("a"), "10.0.0.1"))
	ask := func(name, uid, want string, requests int) {
		t.Helper()
		before := len(f.api.Requests())
		p, err := f.s.Pod(t.Context(), "ns", name, uid)
		got := ""
		switch {
		case errors.Is(err, ErrNoPod):
			got = "none"
		case err != nil:
			got = err.Error()
		default:
			got = podText(p) + "#" + p.UID
		}
		if got != want {
			t.Errorf("pod %s: %s, want %s", name, got, want)
		}
		if n := len(f.api.Requests()) - before; n != requests {
			t.Errorf("pod %s: %d requests, want %d", name, n, requests)
		}
	}
	ask("a", "uid-of-a", "ns/a@n1=[10.0.0.1]{app=a}#uid-of-a", 1) // before Watch
	ask("b", "", "none", 1)
	w := f.watch()
	w.shows("ns/a@n1=[10.0.0.1]{app=a}")
	eventually(t, "all watches", func() bool { return f.watches() == 3 })
	ask("a", "uid-of-a", "ns/a@n1=[10.0.0.1]{app=a}#uid-of-a", 0)
	ask("a", "", "ns/a@n1=[10.0.0.1]{app=a}#uid-of-a", 0)
	ask("a", "another", "none", 1)
	static := pod("s", nil, "10.0.0.2")
	static.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
	f.api.Put(static)
	w.shows("ns/a@n1=[10.0.0.1]{app=a}", "ns/s@n1=[10.0.0.2]{}")
	ask("s", "hash", "ns/s@n1=[10.0.0.2]{}#hash", 0)
	refused := "c"
	f.refuse.Store(&refused)
	if _, err := f.s.Pod(t.Context(), "ns", "c", ""); err == nil || !strings.Contains(err.Error(), "refuses this agent") || errors.Is(err, ErrNoPod) {
		t.Errorf("a pod that may not be read: %v", err)
	}
	closed := f.source()
	must(t, closed.Close())
	if _, err := closed.Pod(t.Context(), "ns", "c", ""); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// watches counts the requests that were for one without a listing.
func (f *fixture) watches() int {
	n := 0
	for _, r := range f.api.Requests() {
		if strings.Contains(r, "watch=true") && !strings.Contains(r, "sendInitialEvents") {
			n++
		}
	}
	return n
}

// Labels are kept as long as anything has them.
func TestLabelsAreReleased(t *testing.T) {
	r := newReader()
	m := newMirror()
	pods := &table{m, pods}
	put := func(name, of string) {
		t.Helper()
		rec, err := r.record(pod(name, app(of)))
		must(t, err)
		must(t, pods.Add(rec))
	}
	for i := range 1000 {
		put(fmt.Sprint("p", i), fmt.Sprint(i%500))
	}
	known := func() int {
		r.have.mu.Lock()
		defer r.have.mu.Unlock()
		return len(r.have.labels)
	}
	runtime.GC()
	if n := known(); n != 500 {
		t.Errorf("%d sets of labels, want 500", n)
	}
	for i := range 1000 {
		put(fmt.Sprint("p", i), "x")
	}
	eventually(t, "one set of labels", func() bool {
		runtime.GC()
		return known() == 1
	})
	runtime.KeepAlive(pods)
}

// A source that is closed or whose Watch is ended leaves nothing behind,
// whatever state the API is in.
func TestNothingIsLeft(t *testing.T) {
	both(t, func(f *fixture) {
		f.api.Put(pod("a", nil))
		runtime.GC()
		before := runtime.NumGoroutine()
		for i := range 6 {
			s := f.source()
			ctx, cancel := context.WithCancel(f.Context())
			got, ended := make(chan Snapshot, 100), make(chan error, 1)
			go func() { ended <- s.Watch(ctx, func(s Snapshot) { got <- s }) }()
			<-got
			if i%3 == 1 {
				f.api.Put(pod("a", app(fmt.Sprint(i)))) // on its way while all ends
			}
			if i%2 == 0 {
				must(f, s.Close())
				if err := <-ended; !errors.Is(err, errClosed) {
					f.Errorf("ended with %v", err)
				}
			} else {
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					f.Errorf("ended with %v", err)
				}
			}
			cancel()
			must(f, s.Close())
		}
		eventually(f, "no goroutine more than before", func() bool { return runtime.NumGoroutine() <= before })
	})
}

// fresh is what the API has, read by nothing but the API's own functions.
func (f *fixture) fresh() string {
	f.Helper()
	s := Snapshot{Cluster: policy.Cluster{Namespaces: map[string]*policy.Labels{}}}
	for _, o := range f.api.Objects("namespaces") {
		s.Cluster.Namespaces[o.GetName()] = policy.NewLabels(o.GetLabels())
	}
	for _, o := range f.api.Objects("pods") {
		p := o.(*corev1.Pod)
		s.Cluster.Pods = append(s.Cluster.Pods, policy.PodFromAPI(p, policy.NewLabels(p.Labels)))
	}
	for _, o := range f.api.Objects("networkpolicies") {
		p, err := policy.FromAPI(o.(*networkingv1.NetworkPolicy))
		must(f, err)
		s.Cluster.Policies = append(s.Cluster.Policies, p)
	}
	slices.SortFunc(s.Cluster.Pods, func(a, b *policy.Pod) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name, b.Namespace+"\x00"+b.Name)
	})
	slices.SortFunc(s.Cluster.Policies, func(a, b *policy.Policy) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name, b.Namespace+"\x00"+b.Name)
	})
	return snapText(s)
}

// someMeta is the metadata of one of few objects.
func someMeta(namespace, name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
}
