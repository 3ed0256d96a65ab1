// SPDX-License-Identifier: Apache-2.0

package waiting

import (
	"context"
	"errors"
	"time"
)

// A Life ends every call of a store when the store is closed.
type Life struct {
	ctx    context.Context
	cancel context.CancelFunc
	closed error
}

// NewLife returns a life whose calls end with closed when it does.
func NewLife(closed error) Life {
	ctx, cancel := context.WithCancel(context.Background())
	return Life{ctx, cancel, closed}
}

// Context ends with l.
func (l Life) Context() context.Context { return l.ctx }

// End ends l.
func (l Life) End() { l.cancel() }

// Scope ties ctx to l. The returned function frees it.
func (l Life) Scope(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(l.closed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// Err is the error for a scope that has ended: that of a closed store after
// End, else the caller's own.
func (l Life) Err(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), l.closed) {
		return l.closed
	}
	return ctx.Err()
}

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
