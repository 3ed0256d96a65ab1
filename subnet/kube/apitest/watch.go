// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A view is what a request wants to see of which Nodes.
type view struct {
	name     string // of the one Node, or ""
	metadata bool
}

func viewOf(r *http.Request) view {
	name, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return view{name, strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")}
}

func (v view) wants(n *corev1.Node) bool { return v.name == "" || n.Name == v.name }

// object is n as v sees it.
func (v view) object(n *corev1.Node) any {
	if !v.metadata {
		return n
	}
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}, ObjectMeta: n.ObjectMeta}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	v := viewOf(r)
	s.mu.Lock()
	items := []any{}
	for _, n := range s.nodes {
		if v.wants(n) {
			items = append(items, v.object(n.DeepCopy()))
		}
	}
	rev := strconv.Itoa(s.rev)
	s.mu.Unlock()
	kind, version := "NodeList", "v1"
	if v.metadata {
		kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	answer(w, http.StatusOK, map[string]any{"kind": kind, "apiVersion": version, "metadata": map[string]any{"resourceVersion": rev}, "items": items})
}

// watch streams changes. A listing through a watch is refused, as servers of
// before 1.34 do unless they are told to allow it.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("sendInitialEvents") != "" {
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	}
	from, err := strconv.Atoi(q.Get("resourceVersion"))
	s.mu.Lock()
	gone, drops := err != nil || from < s.oldest, s.drops
	s.mu.Unlock()
	if gone {
		fail(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	v, out := viewOf(r), json.NewEncoder(w)
	for {
		news, changed, ended := s.since(from, drops)
		for _, c := range news {
			if from = c.rev; !v.wants(c.node) {
				continue
			}
			if out.Encode(map[string]any{"type": c.kind, "object": v.object(c.node)}) != nil {
				return
			}
		}
		w.(http.Flusher).Flush()
		if ended {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// since returns the changes after revision from, what is closed at the next
// one, and whether a watch of before the drops-th end has ended.
func (s *Server) since(from, drops int) (news []change, changed <-chan struct{}, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if drops != s.drops {
		return nil, s.changed, true // what came before that is forgotten
	}
	for _, c := range s.log {
		if c.rev > from {
			news = append(news, change{c.rev, c.kind, c.node.DeepCopy()})
		}
	}
	return news, s.changed, false
}
