// SPDX-License-Identifier: Apache-2.0

// Package kube tests the store on the Node API against a real kube-apiserver:
// watches, expiry, patches and rights are what it decides.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
	"weft.dev/weft/tests/etcdtest"
	"weft.dev/weft/tests/kubetest"
)

// patience bounds what should take a second or two on an idle machine.
const patience = 30 * time.Second

// env is a server and what a test does to it.
type env struct {
	*testing.T
	srv  *kubetest.Server
	c    *rest.RESTClient // an admin's
	conf string           // net-conf.json
}

// newEnv starts a server on which user weft has exactly the manifest's rights.
func newEnv(t *testing.T) *env {
	t.Helper()
	e := newServer(t)
	e.allow()
	return e
}

// newServer starts a server that grants nobody anything yet.
func newServer(t *testing.T) *env {
	t.Helper()
	e := &env{T: t, srv: kubetest.New(t, etcdtest.Embedded)}
	var err error
	if e.c, err = kubetest.Client(e.srv.Admin()); err != nil {
		t.Fatal(err)
	}
	e.conf = filepath.Join(t.TempDir(), "net-conf.json")
	e.check(os.WriteFile(e.conf, []byte(`{"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48"}`), 0o600))
	return e
}

func (e *env) check(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// allow gives user weft the rights that the package's doc names.
func (e *env) allow() {
	e.Helper()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "weft"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"nodes/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "weft"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "weft"}},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "weft"}}
	const at = "/apis/rbac.authorization.k8s.io/v1/"
	for path, obj := range map[string]any{"clusterroles": role, "clusterrolebindings": binding} {
		data, err := json.Marshal(obj)
		e.check(err)
		e.check(e.c.Post().AbsPath(at+path).SetHeader("Content-Type", "application/json").Body(data).Do(e.Context()).Error())
	}
}

// node creates a Node as a kubelet would, with podCIDRs if any.
func (e *env) node(name string, ann map[string]string, cidrs ...string) *corev1.Node {
	e.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: ann}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR = cidrs[0]
	}
	out := &corev1.Node{}
	e.check(e.c.Post().Resource("nodes").Body(n).Do(e.Context()).Into(out))
	return out
}

func (e *env) get(name string) *corev1.Node {
	e.Helper()
	out := &corev1.Node{}
	e.check(e.c.Get().Resource("nodes").Name(name).Do(e.Context()).Into(out))
	return out
}

func (e *env) delete(name string) {
	e.Helper()
	e.check(e.c.Delete().Resource("nodes").Name(name).Do(e.Context()).Error())
}

// patch merges doc into a Node, or one of its subresources.
func (e *env) patch(name, doc string, sub ...string) {
	e.Helper()
	e.check(e.c.Patch(types.MergePatchType).Resource("nodes").Name(name).SubResource(sub...).Body([]byte(doc)).Do(e.Context()).Error())
}

// beat does what a kubelet does every few minutes.
func (e *env) beat(name string, i int) {
	e.Helper()
	e.patch(name, fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"beat%d","lastHeartbeatTime":"2026-01-01T00:00:%02dZ"}]}}`, i, i%60), "status")
}

// kubeconfig writes a file for who has the token, user weft when it is empty.
func (e *env) kubeconfig(url, token string) string {
	e.Helper()
	path := filepath.Join(e.TempDir(), "kubeconfig")
	e.check(e.srv.WriteKubeconfig(path, url, token))
	return path
}

// store returns a store for the Node called name.
func (e *env) store(name string, edit ...func(*kube.Options)) *kube.Store {
	e.Helper()
	o := kube.Options{Kubeconfig: e.kubeconfig("", ""), Node: name, NetConf: e.conf, CallTimeout: 5 * time.Second}
	for _, f := range edit {
		f(&o)
	}
	s, err := kube.New(o)
	e.check(err)
	e.Cleanup(func() { s.Close() })
	return s
}

func (e *env) eventually(what string, ok func() bool) {
	e.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			e.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func (e *env) reason(s *kube.Store, words ...string) {
	e.Helper()
	e.eventually(fmt.Sprintf("Reason says %q; it is %q", words, s.Reason()), func() bool {
		for _, w := range words {
			if !strings.Contains(s.Reason(), w) {
				return false
			}
		}
		return true
	})
}

// request is what an agent at host 192.0.2.i asks for.
func request(cfg subnet.Config, name string, i byte) subnet.Lease {
	l := subnet.Lease{Node: name, Instance: "id-" + name, Backend: subnet.BackendVXLAN}
	for _, n := range cfg.Networks {
		p := subnet.Path{Underlay: netip.AddrFrom4([4]byte{192, 0, 2, i}), MAC: subnet.MAC{2, 0, 0, 0, 4, i}, VNI: 1}
		if subnet.FamilyOf(n.Prefix.Addr()) == subnet.IPv6 {
			p.Underlay, p.MAC = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: i}), subnet.MAC{2, 0, 0, 0, 6, i}
		}
		l.Paths = append(l.Paths, p)
	}
	return l
}

// holding is a Hold under way.
type holding struct {
	*env
	leases chan subnet.Lease
}

func (e *env) hold(s *kube.Store, name string, i byte) *holding {
	e.Helper()
	cfg, err := s.Config(e.Context())
	e.check(err)
	h := &holding{env: e, leases: make(chan subnet.Lease, 100)}
	ctx, cancel := context.WithCancel(e.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Hold(ctx, cfg, request(cfg, name, i), func(l subnet.Lease) { h.leases <- l })
	}()
	e.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			e.Errorf("Hold ended with %v", err)
		}
	})
	return h
}

// granted returns the next lease, whose subnets must be these.
func (h *holding) granted(subnets ...string) subnet.Lease {
	h.Helper()
	select {
	case l := <-h.leases:
		var got []string
		for _, p := range l.Paths {
			got = append(got, p.Subnet.String())
		}
		if strings.Join(got, " ") != strings.Join(subnets, " ") {
			h.Fatalf("granted %v, want %v", got, subnets)
		}
		return l
	case <-time.After(patience):
		h.Fatalf("nothing granted; want %v", subnets)
	}
	return subnet.Lease{}
}

// watching is a Watch under way.
type watching struct {
	*env
	mu    sync.Mutex
	snaps []subnet.Snapshot
}

func (e *env) watch(s *kube.Store) *watching {
	e.Helper()
	w := &watching{env: e}
	ctx, cancel := context.WithCancel(e.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, subnet.Config{}, func(s subnet.Snapshot) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.snaps = append(w.snaps, s)
		})
	}()
	e.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			e.Errorf("Watch ended with %v", err)
		}
	})
	return w
}

func (w *watching) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.snaps)
}

// text renders the last snapshot: nodes with their subnets, and problems.
func (w *watching) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.snaps) == 0 {
		return "none"
	}
	return textOf(w.snaps[len(w.snaps)-1])
}

// lacked reports whether a snapshot since the n-th was without node's lease.
func (w *watching) lacked(node string, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.snaps[n:] {
		if !strings.Contains(" "+textOf(s), " "+node+"=") {
			return true
		}
	}
	return false
}

func textOf(s subnet.Snapshot) string {
	var out []string
	for l := range s.Leases.All() {
		var subnets []string
		for _, p := range l.Paths {
			subnets = append(subnets, p.Subnet.String()+"@"+p.Underlay.String())
		}
		out = append(out, l.Node+"="+strings.Join(subnets, "+"))
	}
	for _, p := range s.Problems {
		out = append(out, p.Kind+":"+p.Object)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// shows waits for the last snapshot to be as wanted.
func (w *watching) shows(items ...string) {
	w.Helper()
	slices.Sort(items)
	want := strings.Join(items, " ")
	for end := time.Now().Add(patience); w.text() != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("shows %s\nwant  %s", w.text(), want)
		}
	}
}
