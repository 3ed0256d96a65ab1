// SPDX-License-Identifier: Apache-2.0

package waiting

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"
)

// A reason is told when its kind changes, and its end only to the log.
func TestReasonTellsEdges(t *testing.T) {
	log, hook := test.NewNullLogger()
	var told []string
	r := &Reason{Log: log, Told: func(kind, text string) { told = append(told, kind+": "+text) }}
	r.Clear()
	r.Set("a", "one")
	r.Set("a", "two")
	if got := First(&Reason{Log: log}, r); got != "two" {
		t.Errorf("reason %q, want the latest wording", got)
	}
	r.Set("b", "three")
	r.Clear()
	r.Clear()
	r.Set("a", "four")
	r.Forget()
	if got := First(r); got != "" {
		t.Errorf("reason %q after it was forgotten", got)
	}
	if want := []string{"a: one", "b: three", "a: four"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	var logged []string
	for _, e := range hook.AllEntries() {
		logged = append(logged, e.Message)
	}
	if want := []string{"one", "three", "no longer waiting", "four"}; !slices.Equal(logged, want) {
		t.Errorf("logged %v, want %v", logged, want)
	}
}

// A scope ends with its caller or with the life, and says with which.
func TestScopeSaysWhoEndedIt(t *testing.T) {
	closed := errors.New("closed")
	l := NewLife(closed)
	outer, cancel := context.WithCancel(t.Context())
	ctx, done := l.Scope(outer)
	defer done()
	cancel()
	Pause(ctx, time.Hour)
	if err := l.Err(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, closed) {
		t.Errorf("the caller's end is %v", err)
	}

	ctx, done = l.Scope(t.Context())
	defer done()
	l.End()
	Pause(ctx, time.Hour)
	if err := l.Err(ctx); !errors.Is(err, closed) {
		t.Errorf("the store's end is %v", err)
	}
	ctx, done = l.Scope(t.Context())
	defer done()
	Pause(ctx, time.Hour) // one that begins later ends at once
	if err := l.Err(ctx); !errors.Is(err, closed) {
		t.Errorf("after the store's end: %v", err)
	}
}
