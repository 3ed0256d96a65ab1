// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"encoding/json"
	"io"
	"net/http"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// patch merges a document into a Node. Both kinds of merge are the same here
// but for a Node's conditions, which a strategic one merges by their types.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, name, sub string) {
	body, err := io.ReadAll(r.Body)
	var doc map[string]any
	if err == nil {
		err = json.Unmarshal(body, &doc)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.nodes[name]
	switch {
	case old == nil:
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "nodes \""+name+"\" not found")
		return
	case s.refuse != "":
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, s.refuse)
		return
	}
	if meta, _ := doc["metadata"].(map[string]any); meta["uid"] != nil && meta["uid"] != string(old.UID) {
		fail(w, http.StatusConflict, metav1.StatusReasonConflict, "Precondition failed: UID in precondition is another")
		return
	}
	n, err := merged(old, doc)
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, err.Error())
		return
	}
	s.patches = append(s.patches, Patch{name, sub, doc})
	s.put("MODIFIED", n)
	answer(w, http.StatusOK, n)
}

func merged(n *corev1.Node, doc map[string]any) (*corev1.Node, error) {
	text, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	var have map[string]any
	if err := json.Unmarshal(text, &have); err != nil {
		return nil, err
	}
	if text, err = json.Marshal(merge(have, doc)); err != nil {
		return nil, err
	}
	out := &corev1.Node{}
	return out, json.Unmarshal(text, out)
}

// merge returns have with patch in it; null removes.
func merge(have, patch map[string]any) map[string]any {
	if have == nil {
		have = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(have, k)
		case map[string]any:
			sub, _ := have[k].(map[string]any)
			have[k] = merge(sub, v)
		case []any:
			list, _ := have[k].([]any)
			have[k] = mergeByType(list, v)
		default:
			have[k] = v
		}
	}
	return have
}

// mergeByType is how a Node's conditions are merged.
func mergeByType(have, patch []any) []any {
	for _, entry := range patch {
		p, _ := entry.(map[string]any)
		at := slices.IndexFunc(have, func(h any) bool { c, _ := h.(map[string]any); return c["type"] == p["type"] })
		switch {
		case p["$patch"] == "delete":
			if at >= 0 {
				have = slices.Delete(have, at, at+1)
			}
		case at >= 0:
			had, _ := have[at].(map[string]any)
			have[at] = merge(had, p)
		default:
			have = append(have, p)
		}
	}
	return have
}

// event takes one, or counts it again.
func (s *Server) event(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	e := corev1.Event{}
	if err == nil && r.Method == http.MethodPatch {
		err = json.Unmarshal(body, &e)
	} else if err == nil {
		err = decode(body, &e)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method != http.MethodPatch {
		e.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}
		s.events = append(s.events, e)
		answer(w, http.StatusCreated, e)
		return
	}
	for i := range s.events {
		if old := &s.events[i]; path.Base(r.URL.Path) == old.Name {
			old.Count = e.Count
			answer(w, http.StatusOK, old)
			return
		}
	}
	fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such event")
}

// decode reads an object in any of the API's encodings.
func decode(data []byte, into runtime.Object) error {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return err
	}
	return runtime.DecodeInto(serializer.NewCodecFactory(scheme).UniversalDeserializer(), data, into)
}
