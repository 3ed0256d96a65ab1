// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
)

// A waiting is why one activity of the store does not get on, if so. It tells
// when its kind changes, not when only its wording does.
type waiting struct {
	log  logrus.FieldLogger
	told func(kind, text string) // for others than the log; not called when it ends

	mu         sync.Mutex
	kind, text string
}

// set records that the activity waits; kind is a CamelCase identifier.
func (w *waiting) set(kind, text string) {
	w.mu.Lock()
	changed := w.kind != kind
	w.kind, w.text = kind, text
	w.mu.Unlock()
	if changed {
		w.log.Warn(text)
		w.told(kind, text)
	}
}

// clear records that the activity gets on.
func (w *waiting) clear() {
	if w.forget() != "" {
		w.log.Info("no longer waiting")
	}
}

// forget drops the text without a word, and returns of what kind it was.
func (w *waiting) forget() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	kind := w.kind
	w.kind, w.text = "", ""
	return kind
}

// reason returns the text last set, or "" when the activity gets on.
func (w *waiting) reason() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text
}

// Limits of the pause between attempts. A thousand agents that lost one API
// server come back spread over maxPause.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// backoff returns the pauses between attempts: growing, with jitter.
func backoff() *wait.Backoff {
	return &wait.Backoff{Duration: minPause, Factor: 2, Jitter: 1, Steps: 1 << 30, Cap: maxPause}
}

// A pace says when an activity may be tried again, after attempts that failed
// or came to nothing. The zero value allows the first at once.
type pace struct {
	due   time.Time // of the next attempt, for who keeps it here
	tries int
	next  *wait.Backoff
}

// failed returns the pause until the next attempt.
func (p *pace) failed() time.Duration {
	if p.next == nil {
		p.next = backoff()
	}
	p.tries++
	return p.next.Step()
}

func (p *pace) reset() { *p = pace{} }

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// refused reports whether the API has understood what was asked, and said no:
// a right is missing, or an admission policy is against it.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

// unreachable words err, from a call, as what is waited for.
func (s *Store) unreachable(err error) (kind, text string) {
	if refused(err) {
		return "APIRefuses", fmt.Sprintf("the Kubernetes API at %s refuses this agent: %v; do the ClusterRole, its binding and the admission policy of weft's manifest fit its version?", s.server, err)
	}
	return "APIUnreachable", fmt.Sprintf("waiting for the Kubernetes API at %s: %s", s.server, s.cause(err))
}

// cause returns the innermost useful words of an error of the client.
func (s *Store) cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", s.o.CallTimeout)
	}
	var u *url.Error // Get "https://...?...": dial tcp ...
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}
