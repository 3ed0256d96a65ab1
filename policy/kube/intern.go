// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"runtime"
	"sync"
	"weak"

	"weft.dev/weft/policy"
)

// mostWords bounds the words that are kept once.
const mostWords = 1 << 14

// interned keeps labels and words once that many objects have: the pods of a
// Deployment have the same labels, those of a node its name. Labels that no
// object has any more are the garbage collector's, whoever had them: an object,
// a snapshot, or a listing that came to nothing.
type interned struct {
	mu     sync.Mutex
	labels map[string]weak.Pointer[policy.Labels] // by their key
	words  map[string]string
}

func newInterned() *interned {
	return &interned{labels: map[string]weak.Pointer[policy.Labels]{}, words: map[string]string{}}
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
	runtime.AddCleanup(l, t.forget, key)
	return l
}

// forget drops an entry whose labels are gone, unless there are new ones.
func (t *interned) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w, ok := t.labels[key]; ok && w.Value() == nil {
		delete(t.labels, key)
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
