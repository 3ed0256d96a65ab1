// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
)

// attempts bounds how often a change is made anew because somebody else's came
// between.
const attempts = 8

// Programmer keeps table inet weft_policy as it is told. Only Touched may be
// called beside another call.
type Programmer struct {
	conn    *nft.Conn
	params  Params
	touched atomic.Bool
	known   bool // what follows is what the kernel has
	have    map[nft.Element]struct{}
	gen     Generation
}

// NewProgrammer returns a Programmer that uses conn. It changes nothing yet.
func NewProgrammer(conn *nft.Conn, p Params) *Programmer {
	return &Programmer{conn: conn, params: p, gen: None}
}

// Report is what a call has changed.
type Report struct {
	Added, Deleted int      // elements
	Replaced       []string // why the table was made anew; none if it was not
	Generation     Generation
	// Unlabelled is why there is no Generation: labels of flows could not be
	// cleared. All packets are judged, and the next call tries again.
	Unlabelled error
}

// Touched says that somebody else may have changed the table; the next Update
// reads it. It is meant for nft.Monitor, which is to be told of Table.
func (p *Programmer) Touched() { p.touched.Store(true) }

// Table is the name and family of the table.
func Table() nft.Table { return nft.Table{Family: nft.Inet, Name: TableName} }

// Generation is the one in force after the last call.
func (p *Programmer) Generation() Generation { return p.gen }

// Counters returns the values of the table's counters; none where there is no
// table.
func (p *Programmer) Counters(ctx context.Context) (map[string]nft.Counts, error) {
	return p.conn.Counters(ctx, Table())
}

// Sync reads the table and makes it that of t, on a node whose pods have
// addresses of subnets.
func (p *Programmer) Sync(ctx context.Context, t *policy.Table, subnets []netip.Prefix) (Report, error) {
	want := Elements(t, subnets)
	var err error
	for range attempts {
		p.known = false
		p.touched.Store(false)
		var r Report
		if r, err = p.sync(ctx, want, subnets); err == nil || !outdated(err) {
			return r, err
		}
	}
	return Report{}, fmt.Errorf("table %s changes all the time: %w", TableName, err)
}

// Update is Sync that takes the table to be as the last call left it, unless
// Touched was called since or the kernel refuses the change.
func (p *Programmer) Update(ctx context.Context, t *policy.Table, subnets []netip.Prefix) (Report, error) {
	if !p.known || p.gen == None || p.touched.Load() {
		return p.Sync(ctx, t, subnets)
	}
	plan, now := delta(p.have, Elements(t, subnets))
	plan.Table = Structure(p.params, p.gen)
	r, err := p.apply(ctx, plan, subnets, now)
	if outdated(err) {
		return p.Sync(ctx, t, subnets)
	}
	return r, err
}

// Remove deletes the table: from then on everything passes.
func (p *Programmer) Remove(ctx context.Context) error {
	p.known = false
	have, err := p.conn.Dump(ctx, Table())
	if err != nil {
		return err
	}
	return p.conn.Apply(ctx, nft.Removal(Table(), have))
}

// outdated reports whether err may come from the table being other than it was
// read.
func outdated(err error) bool {
	return errors.Is(err, unix.ERESTART) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST)
}

func (p *Programmer) sync(ctx context.Context, want []nft.Element, subnets []netip.Prefix) (Report, error) {
	since, err := p.conn.Generation(ctx)
	if err != nil {
		return Report{}, err
	}
	have, err := p.conn.Dump(ctx, Table())
	if err != nil {
		return Report{}, err
	}
	p.gen, p.have = generationOf(have), have.Elements
	plan := nft.Diff(nft.Desired{Table: Structure(p.params, p.gen), Elements: want}, have)
	plan.Since = since
	now := make(map[nft.Element]struct{}, len(want))
	for _, e := range want {
		now[e] = struct{}{}
	}
	return p.apply(ctx, plan, subnets, now)
}

// apply carries out a plan of the present generation, in the next one if that
// is necessary. After it the table has the elements of now.
func (p *Programmer) apply(ctx context.Context, plan nft.Plan, subnets []netip.Prefix, now map[nft.Element]struct{}) (Report, error) {
	r := Report{Added: len(plan.Add), Deleted: len(plan.Delete), Replaced: plan.Why, Generation: p.gen}
	if plan.Replace || p.gen == None || revokes(plan, p.have, subnets) {
		next, clear := p.gen.next()
		if clear {
			if r.Unlabelled = p.conn.ClearLabels(ctx, int(p.gen)); r.Unlabelled != nil {
				next = None
			}
		}
		r.Generation = next
		if next != p.gen || plan.Replace {
			plan.Table = Structure(p.params, next)
			plan.Rewrite = next.chains()
		}
	}
	p.known = false
	if err := p.conn.Apply(ctx, plan); err != nil {
		return Report{}, err
	}
	p.known, p.have, p.gen = true, now, r.Generation
	return r, nil
}
