// SPDX-License-Identifier: Apache-2.0

package waiting

import (
	"sync"

	"github.com/sirupsen/logrus"
)

// A Reason is why one activity does not get on, if so. It tells when its kind
// changes, not when only its wording does. Log must be set before its first
// use; its methods may run at the same time.
type Reason struct {
	Log  logrus.FieldLogger
	Told func(kind, text string) // for others than the log; may be nil; not called when it ends

	mu         sync.Mutex
	kind, text string
}

// Set records that the activity waits; kind is an identifier.
func (r *Reason) Set(kind, text string) {
	r.mu.Lock()
	changed := r.kind != kind
	r.kind, r.text = kind, text
	r.mu.Unlock()
	if !changed {
		return
	}
	r.Log.Warn(text)
	if r.Told != nil {
		r.Told(kind, text)
	}
}

// Clear records that the activity gets on.
func (r *Reason) Clear() {
	if r.drop() != "" {
		r.Log.Info("no longer waiting")
	}
}

// Forget drops the text when the activity ends, without a word.
func (r *Reason) Forget() { r.drop() }

// Text returns the text last set, or "" when the activity gets on.
func (r *Reason) Text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text
}

// drop empties r and returns of what kind it was.
func (r *Reason) drop() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := r.kind
	r.kind, r.text = "", ""
	return kind
}

// First returns the text of the first of list that has one, or "".
func First(list ...*Reason) string {
	for _, r := range list {
		if text := r.Text(); text != "" {
			return text
		}
	}
	return ""
}
