// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

const (
	nodes    = "nodes"
	bookmark = "BOOKMARK"
)

// Object is a Pod, a Namespace, a NetworkPolicy or, inside of the server, a
// Node.
type Object interface {
	metav1.Object
	runtime.Object
}

// Put makes a copy of o an object of the server, in place of one by that name.
// Without a UID it is given one, unless it has that of the one before.
func (s *Server) Put(o Object) {
	o = o.DeepCopyObject().(Object)
	resource := typed(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[resource] == nil {
		s.objects[resource] = map[string]Object{}
	}
	old, kind := s.objects[resource][keyOf(o)], "ADDED"
	if old != nil {
		kind = "MODIFIED"
	}
	if o.GetUID() == "" && old != nil {
		o.SetUID(old.GetUID())
	} else if o.GetUID() == "" {
		s.uids++
		o.SetUID(types.UID("uid-" + strconv.Itoa(s.uids)))
	}
	s.objects[resource][keyOf(o)] = o
	s.tell(kind, resource, o)
}

// Remove removes the object that has o's type, namespace and name.
func (s *Server) Remove(o Object) {
	resource := typed(o.DeepCopyObject().(Object))
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.objects[resource][keyOf(o)]; old != nil {
		delete(s.objects[resource], keyOf(o))
		s.tell("DELETED", resource, old.DeepCopyObject().(Object))
	}
}

// Objects returns copies of the objects of a resource, by namespace and name.
func (s *Server) Objects(resource string) []Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Object
	for _, o := range s.all(view{resource: resource}) {
		out = append(out, o.DeepCopyObject().(Object))
	}
	return out
}

// Stream allows listings through a watch, or forbids them again.
func (s *Server) Stream(allow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = allow
}

// Bookmark tells all watches at which revision the server is.
func (s *Server) Bookmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(bookmark, "", &metav1.PartialObjectMetadata{})
}

// Requests returns the paths and queries of what was asked.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// tell records a change. s is locked.
func (s *Server) tell(kind, resource string, o Object) {
	s.rev++
	o.SetResourceVersion(strconv.Itoa(s.rev))
	s.log = append(s.log, change{s.rev, kind, resource, o})
	s.wake()
}

// getObject answers with one object.
func (s *Server) getObject(w http.ResponseWriter, resource, namespace, name string) {
	s.mu.Lock()
	o := s.objects[resource][namespace+"/"+name]
	if o != nil {
		o = o.DeepCopyObject().(Object)
	}
	s.mu.Unlock()
	if o == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, resource+" \""+name+"\" not found")
		return
	}
	answer(w, http.StatusOK, o)
}

// route tells what is asked for: an object of a resource, or all.
func route(path string) (resource, namespace, name string) {
	parts := strings.Split(strings.Trim(path, "/"), "/") // api v1 pods, apis networking.k8s.io v1 networkpolicies
	if parts[0] == "apis" && len(parts) > 1 {
		parts = parts[1:]
	}
	switch parts = parts[min(2, len(parts)):]; {
	case len(parts) == 1:
		return parts[0], "", ""
	case len(parts) == 4 && parts[0] == "namespaces":
		return parts[2], parts[1], parts[3]
	}
	return "", "", ""
}

func keyOf(o Object) string { return o.GetNamespace() + "/" + o.GetName() }

// typed gives o its kind, and returns its resource.
func typed(o Object) string {
	switch o := o.(type) {
	case *corev1.Pod:
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		return "pods"
	case *corev1.Namespace:
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
		return "namespaces"
	case *networkingv1.NetworkPolicy:
		o.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		return "networkpolicies"
	}
	return ""
}

// listKind returns the kind of a list, "" if the server knows no such.
func listKind(resource string) (kind, version string) {
	switch resource {
	case nodes:
		return "NodeList", "v1"
	case "pods":
		return "PodList", "v1"
	case "namespaces":
		return "NamespaceList", "v1"
	case "networkpolicies":
		return "NetworkPolicyList", "networking.k8s.io/v1"
	}
	return "", ""
}

// metaOf is o's metadata.
func metaOf(o Object) metav1.ObjectMeta {
	if n, ok := o.(metav1.ObjectMetaAccessor); ok {
		if m, ok := n.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return *m
		}
	}
	return metav1.ObjectMeta{Name: o.GetName(), ResourceVersion: o.GetResourceVersion()}
}

// initialEnd is the bookmark behind the last object of a listing.
func initialEnd(rev int) Object {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.Itoa(rev),
		Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
}
