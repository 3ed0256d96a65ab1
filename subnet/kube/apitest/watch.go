// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A view is what a request wants to see of which objects.
type view struct {
	resource string
	name     string // of the one object, or ""
	metadata bool
}

func viewOf(r *http.Request, resource string) view {
	name, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return view{resource, name, strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")}
}

func (v view) wants(o Object) bool { return v.name == "" || o.GetName() == v.name }

// object is o as v sees it.
func (v view) object(o Object) any {
	if !v.metadata {
		return o
	}
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}, ObjectMeta: metaOf(o)}
}

// all returns the objects of v, by key. s is locked.
func (s *Server) all(v view) []Object {
	var out []Object
	if v.resource == nodes {
		for _, n := range s.nodes {
			out = append(out, n)
		}
	}
	for _, o := range s.objects[v.resource] {
		out = append(out, o)
	}
	out = slices.DeleteFunc(out, func(o Object) bool { return !v.wants(o) })
	slices.SortFunc(out, func(a, b Object) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	return out
}

// list answers with all objects, or with one page of them: then the revision of
// all pages is that of the first, and what has changed since is for a watch.
func (s *Server) list(w http.ResponseWriter, r *http.Request, resource string) {
	v, q := viewOf(r, resource), r.URL.Query()
	s.mu.Lock()
	rev, after := s.rev, ""
	if token := q.Get("continue"); token != "" {
		text, key, _ := strings.Cut(token, ":")
		rev, _ = strconv.Atoi(text)
		after = key
	}
	gone := rev < s.oldest
	all := slices.DeleteFunc(s.all(v), func(o Object) bool { return keyOf(o) <= after })
	token := ""
	if limit, _ := strconv.Atoi(q.Get("limit")); limit > 0 && len(all) > limit {
		all = all[:limit]
		token = fmt.Sprintf("%d:%s", rev, keyOf(all[limit-1]))
	}
	items := []any{}
	for _, o := range all {
		items = append(items, v.object(o.DeepCopyObject().(Object)))
	}
	s.mu.Unlock()
	if gone {
		fail(w, http.StatusGone, metav1.StatusReasonExpired, "The provided continue parameter is too old")
		return
	}
	kind, version := listKind(resource)
	if v.metadata {
		kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	answer(w, http.StatusOK, map[string]any{"kind": kind, "apiVersion": version, "items": items,
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(rev), "continue": token}})
}

// watch streams changes. A listing through a watch is refused, as servers of
// before 1.34 do unless they are told to allow it, unless Stream was called.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource string) {
	v, q := viewOf(r, resource), r.URL.Query()
	initial := q.Get("sendInitialEvents") != ""
	from, err := strconv.Atoi(q.Get("resourceVersion"))
	s.mu.Lock()
	streams, gone, drops := s.streams, err != nil || from < s.oldest, s.drops
	var news []change
	if initial {
		gone, from = false, s.rev
		for _, o := range s.all(v) {
			news = append(news, change{from, "ADDED", resource, o.DeepCopyObject().(Object)})
		}
		news = append(news, change{from, bookmark, "", initialEnd(s.rev)})
	}
	s.mu.Unlock()
	switch {
	case initial && !streams:
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	case gone:
		fail(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	for {
		later, changed, ended := s.since(from, drops)
		for _, c := range append(news, later...) {
			if from = c.rev; !v.tells(c) {
				continue
			}
			if out.Encode(map[string]any{"type": c.kind, "object": v.told(c)}) != nil {
				return
			}
		}
		news = nil
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

// tells reports whether c is told to who has v.
func (v view) tells(c change) bool {
	return c.kind == bookmark || c.resource == v.resource && v.wants(c.obj)
}

// told is what c says to who has v.
func (v view) told(c change) any {
	if c.kind != bookmark {
		return v.object(c.obj)
	}
	kind, version := listKind(v.resource)
	kind = strings.TrimSuffix(kind, "List")
	if v.metadata {
		kind, version = "PartialObjectMetadata", "meta.k8s.io/v1"
	}
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: kind}, ObjectMeta: metaOf(c.obj)}
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
			news = append(news, change{c.rev, c.kind, c.resource, c.obj.DeepCopyObject().(Object)})
		}
	}
	return news, s.changed, false
}
