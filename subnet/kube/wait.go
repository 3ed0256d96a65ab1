// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
)

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
