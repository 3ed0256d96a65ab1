// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"runtime"
	"sync"
	"weak"

	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/policy"
)

// mostWords bounds the words that are kept once.
const mostWords = 1 << 14

// interned keeps labels, selectors and words once that many objects have: the
// pods of a Deployment have the same labels, those of a node its name. Labels
// and selectors that no object has any more are the garbage collector's, whoever had them: an object,
// a snapshot, or a listing that came to nothing.
type interned struct {
	mu        sync.Mutex
	labels    map[string]weak.Pointer[policy.Labels] // by their key
	selectors map[string]weak.Pointer[selector]      // by their text
	words     map[string]string
}

// A selector is one that many policies have.
type selector struct{ labels.Selector }

func newInterned() *interned {
	return &interned{labels: map[string]weak.Pointer[policy.Labels]{}, selectors: map[string]weak.Pointer[selector]{}, words: map[string]string{}}
}

// label returns the labels of m, the same for equal ones.
func (t *interned) label(m map[string]string) *policy.Labels {
	l := policy.NewLabels(m)
	key := l.Key()
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.labels[key].Value(); have != nil {
		return have
	}
	t.labels[key] = weak.Make(l)
	runtime.AddCleanup(l, func(key string) { forget(t, t.labels, key) }, key)
	return l
}

// selector returns s, the same for equal ones. Those of no text, which may
// select everything or nothing, have no size.
func (t *interned) selector(s labels.Selector) labels.Selector {
	if s == nil || s.String() == "" {
		return s
	}
	key := s.String()
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.selectors[key].Value(); have != nil {
		return have
	}
	out := &selector{s}
	t.selectors[key] = weak.Make(out)
	runtime.AddCleanup(out, func(key string) { forget(t, t.selectors, key) }, key)
	return out
}

// forget drops an entry of t whose value is gone, unless there is a new one.
func forget[E any](t *interned, from map[string]weak.Pointer[E], key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w, ok := from[key]; ok && w.Value() == nil {
		delete(from, key)
	}
}

// word returns s. There are few namespaces and nodes; should there be many, or
// should they change, those of before are forgotten and may be kept twice.
func (t *interned) word(s string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have, ok := t.words[s]; ok {
		return have
	}
	if len(t.words) >= mostWords {
		clear(t.words)
	}
	t.words[s] = s
	return s
}
