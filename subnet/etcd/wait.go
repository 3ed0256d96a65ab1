// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	crand "crypto/rand"
	"math/rand/v2"
	"sync"
	"time"

	"weft.dev/weft/internal/waiting"
)

// dice are random numbers, seeded by the kernel, for any goroutine.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func newDice() *dice {
	var seed [32]byte
	crand.Read(seed[:]) // never fails (crypto/rand, Go 1.24)
	return &dice{rng: rand.New(rand.NewChaCha8(seed))}
}

// below returns a number in [0,n); n is at least 1.
func (d *dice) below(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

// between returns a duration in [low,high].
func (d *dice) between(low, high time.Duration) time.Duration {
	return low + time.Duration(d.below(int(high-low)+1))
}

// Limits of the pause between attempts.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// A backoff grows the pause between attempts, with jitter.
type backoff struct {
	dice *dice
	next time.Duration
}

// take returns the next pause, in [d/2,d] with d doubling up to maxPause.
func (b *backoff) take() time.Duration {
	d := max(b.next, minPause)
	b.next = min(2*d, maxPause)
	return b.dice.between(d/2, d)
}

func (b *backoff) reset() { b.next = 0 }

// pause waits for the next pause of b or until ctx ends.
func (b *backoff) pause(ctx context.Context) { waiting.Pause(ctx, b.take()) }
