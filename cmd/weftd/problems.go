// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/subnet"
)

// The parts of the agent that report to the board.
const (
	partHost     = "host"     // what probes find
	partUnderlay = "underlay" // whether there is one
	partConfig   = "config"   // the configuration in the store
	partLease    = "lease"    // what is announced
	partSweep    = "sweep"    // leftovers of pods
)

// board is what is wrong with this node beside the overlay itself. Each part
// of the agent sets the whole list of what it knows; the board logs what
// appears and what is solved. The zero value but for log is empty.
type board struct {
	log logrus.FieldLogger

	mu sync.Mutex
	by map[string][]subnet.Problem
}

// set replaces what part knows. Problems are the same as before when kind and
// object are, whatever their details say now.
func (b *board) set(part string, now ...subnet.Problem) {
	b.mu.Lock()
	before := b.by[part]
	if b.by == nil {
		b.by = map[string][]subnet.Problem{}
	}
	b.by[part] = now
	b.mu.Unlock()
	for _, p := range now {
		if !among(before, p) {
			b.log.Warn(p.String())
		}
	}
	for _, p := range before {
		if !among(now, p) {
			b.log.Infof("%s %s: solved", p.Kind, p.Object)
		}
	}
}

func among(list []subnet.Problem, p subnet.Problem) bool {
	return slices.ContainsFunc(list, func(o subnet.Problem) bool { return o.Kind == p.Kind && o.Object == p.Object })
}

// all returns everything, part by part.
func (b *board) all() []subnet.Problem {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []subnet.Problem
	for _, part := range slices.Sorted(maps.Keys(b.by)) {
		out = append(out, b.by[part]...)
	}
	return out
}
