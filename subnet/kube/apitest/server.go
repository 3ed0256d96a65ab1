// SPDX-License-Identifier: Apache-2.0

// Package apitest is the part of a Kubernetes API server that an agent talks
// to, for tests: Nodes that are listed, watched, read and patched, by their
// metadata too, Events, and Pods, Namespaces and NetworkPolicies that are
// listed, in pages or through a watch, watched and read. It is made of net/http
// and maps. What a real
// server decides (rights, admission, its cache's ways) is tested with a real
// one (tests/kube); this one can be made to misbehave, and needs no build.
package apitest

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Server is an http.Handler. Its methods may run at the same time.
type Server struct {
	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, when something has changed
	rev     int
	oldest  int // changes up to this one are forgotten
	uids    int
	nodes   map[string]*corev1.Node
	objects map[string]map[string]Object // others: by resource, namespace and name
	streams bool                         // listings through a watch are allowed
	asked   []string
	log     []change
	events  []Event
	patches []Patch
	refuse  string // answer to every patch of a Node, if any
	drops   int    // how often watches were ended
}

// A change is what a watch tells.
type change struct {
	rev      int
	kind     string // ADDED, MODIFIED, DELETED, BOOKMARK
	resource string
	obj      Object
}

// Patch is one that the server has taken.
type Patch struct {
	Node        string
	Subresource string
	Doc         map[string]any
}

// New returns a server without Nodes.
func New() *Server {
	return &Server{changed: make(chan struct{}), rev: 1, nodes: map[string]*corev1.Node{}, objects: map[string]map[string]Object{}}
}

// Create makes a Node, in place of one by that name, with a UID of its own.
func (s *Server) Create(name string, annotations map[string]string, podCIDRs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.nodes[name]; old != nil {
		s.drop(name)
	}
	s.uids++
	n := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + strconv.Itoa(s.uids)), Annotations: maps.Clone(annotations)},
		Spec:       corev1.NodeSpec{PodCIDRs: podCIDRs}}
	if len(podCIDRs) > 0 {
		n.Spec.PodCIDR = podCIDRs[0]
	}
	s.put("ADDED", n)
}

// Assign gives a Node its podCIDRs, as the controller manager does.
func (s *Server) Assign(name string, podCIDRs ...string) {
	s.Edit(name, func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = podCIDRs[0], podCIDRs })
}

// Delete removes a Node.
func (s *Server) Delete(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(name)
}

// Edit changes a Node as anybody but an agent would.
func (s *Server) Edit(name string, edit func(*corev1.Node)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[name].DeepCopy()
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	edit(n)
	s.put("MODIFIED", n)
}

// Node returns a copy of a Node, or nil.
func (s *Server) Node(name string) *corev1.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[name].DeepCopy()
}

// Event is one that was sent.
type Event = corev1.Event

// Events returns those that were sent, each with its latest count.
func (s *Server) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.events...)
}

// Patches returns those of Nodes that were taken.
func (s *Server) Patches() []Patch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Patch(nil), s.patches...)
}

// Refuse makes every patch of a Node fail, as forbidden with this text, until
// the text is empty.
func (s *Server) Refuse(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = text
}

// Forget ends all watches and answers 410 Gone to those that want to go on
// from where they were, as after a compaction of etcd.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev++
	s.oldest, s.log = s.rev, nil
	s.drops++
	s.wake()
}

// put makes n the Node of its name. s is locked, here and below.
func (s *Server) put(kind string, n *corev1.Node) {
	s.nodes[n.Name] = n
	s.tell(kind, nodes, n)
}

func (s *Server) drop(name string) {
	n := s.nodes[name].DeepCopy()
	delete(s.nodes, name)
	s.tell("DELETED", nodes, n)
}

func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.RequestURI())
	s.mu.Unlock()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // api v1 nodes ...
	resource, namespace, name := route(r.URL.Path)
	kind, _ := listKind(resource)
	switch {
	case len(parts) >= 5 && parts[4] == "events":
		s.event(w, r)
	case kind != "" && name != "":
		s.getObject(w, resource, namespace, name)
	case kind != "" && r.URL.Query().Get("watch") != "":
		s.watch(w, r, resource)
	case kind != "":
		s.list(w, r, resource)
	case len(parts) < 4 || parts[2] != nodes:
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such resource: "+r.URL.Path)
	case r.Method == http.MethodPatch:
		s.patch(w, r, parts[3], strings.Join(parts[4:], "/"))
	default:
		s.get(w, parts[3])
	}
}

func (s *Server) get(w http.ResponseWriter, name string) {
	n := s.Node(name)
	if n == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "nodes \""+name+"\" not found")
		return
	}
	answer(w, http.StatusOK, n)
}

// fail answers with a Status.
func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, text string) {
	answer(w, code, &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: text})
}

func answer(w http.ResponseWriter, code int, obj any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(obj) // who asked is gone, then
}

// Condition sets one of a Node's conditions, as True.
func (s *Server) Condition(name, kind, reason string) {
	s.Edit(name, func(n *corev1.Node) {
		c := corev1.NodeCondition{Type: corev1.NodeConditionType(kind), Status: corev1.ConditionTrue, Reason: reason}
		for i := range n.Status.Conditions {
			if n.Status.Conditions[i].Type == c.Type {
				n.Status.Conditions[i] = c
				return
			}
		}
		n.Status.Conditions = append(n.Status.Conditions, c)
	})
}
