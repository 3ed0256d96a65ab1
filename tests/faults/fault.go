// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"weft.dev/weft/tests/netlab"
)

// Bounds on recovery, by what tells the agent of the fault.
const (
	byEvent = time.Second     // an event of the kernel or of the store
	byAudit = 5 * time.Second // nothing: the next audit finds it
)

// A fault is one row of the table. IDs are those of the catalogue that the
// table answers to: T for what was measured on flannel, F for the promises.
type fault struct {
	ID      string
	Name    string
	Flannel string        // what flannel v0.28.9 makes of it, with the number of the issue where there is one
	Limit   time.Duration // of the recovery, p99; 0 for byEvent, or byAudit where there is no event
	Loses   bool          // packets may be lost; otherwise one is a failure
	Deaf    bool          // drift of the kernel: measured with the agent deaf too
	Silent  bool          // the kernel makes no event of it at all
	Slow    bool          // not part of the sample
	Tells   bool          // the report quotes the note of its first injection
	Seeds   int           // at most so many injections; 0 for as many as asked for
	Run     func(ctx context.Context, s *scene) error
}

// A campaign is a lab and the faults that are injected into it in turn.
type campaign struct {
	Name    string
	What    string
	Nodes   int
	Pods    int      // on each node
	Args    []string // of every weftd
	Conf    string   // net-conf.json; empty for the lab's default
	Agents  []string // names of the nodes with an agent and pods; empty for all
	Counted bool     // the report shows what scripts counted, not how long they took
	Still   bool     // no agents and no traffic before the first fault: it brings its own
	Faults  []fault
	// Prepare is called before the agents start; nil for nothing.
	Prepare func(ctx context.Context, l *netlab.Lab) error
}

// result is what one injection came to.
type result struct {
	Campaign string
	ID       string
	Name     string
	Seed     uint64
	Audit    bool          // there was no event to hear: the agents were deaf, or the fault is silent
	Took     time.Duration // until all was as it has to be; 0 when it never was
	Sent     int           // pings from the injection to the end
	Lost     int           // of them
	Note     string        // what the script found worth telling
	Failure  string        // why the injection counts as unrecovered
}

// ok reports whether the injection met the fault's promise. The time is
// judged over all injections of a fault, not here.
func (r result) ok() bool { return r.Failure == "" }

// limit returns what the fault's recovery may take.
func (f fault) limit(audit bool) time.Duration {
	switch {
	case f.Limit > 0:
		return f.Limit
	case audit:
		return byAudit
	}
	return byEvent
}
