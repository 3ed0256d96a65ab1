// SPDX-License-Identifier: Apache-2.0

package kubeapi

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

// Backoff returns the pauses between attempts: growing, with jitter.
func Backoff() *wait.Backoff {
	return &wait.Backoff{Duration: minPause, Factor: 2, Jitter: 1, Steps: 1 << 30, Cap: maxPause}
}

// Refused reports whether the API has understood what was asked, and said no:
// a right is missing, or an admission policy is against it.
func Refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

// Unreachable words err, from a call, as what is waited for.
func (c *Conn) Unreachable(err error) (kind, text string) {
	if Refused(err) {
		return "APIRefuses", fmt.Sprintf("the Kubernetes API at %s refuses this agent: %v; do the ClusterRole, its binding and the admission policy of weft's manifest fit its version?", c.Server(), err)
	}
	return "APIUnreachable", fmt.Sprintf("waiting for the Kubernetes API at %s: %s", c.Server(), c.cause(err))
}

// cause returns the innermost useful words of an error of the client.
func (c *Conn) cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", c.timeout)
	}
	var u *url.Error // Get "https://...?...": dial tcp ...
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}
