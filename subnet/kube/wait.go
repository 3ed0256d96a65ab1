// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"weft.dev/weft/internal/kubeapi"
)

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
		p.next = kubeapi.Backoff()
	}
	p.tries++
	return p.next.Step()
}

func (p *pace) reset() { *p = pace{} }
