// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
)

// attempts bounds how often a change is made anew because somebody else's came
// between. Those of other tables count as well, of which there may always be
// one: the first careful attempts insist on none, the others on none that made
// the change impossible. What such a one did otherwise the caller is told by
// nft.Monitor.
const (
	attempts = 8
	careful  = 4
)

// Programmer keeps table inet weft_policy as it is told. Only Touched may be
// called beside another call.
type Programmer struct {
	conn    *nft.Conn
	params  Params
	touched atomic.Bool
	known   bool // what follows is what the kernel has
	have    content
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

// Sync reads the table and makes it that of t, which must not be modified later,
// on a node whose pods have addresses of subnets.
func (p *Programmer) Sync(ctx context.Context, t *policy.Table, subnets []netip.Prefix) (Report, error) {
	to := content{table: t, subnets: slices.Clone(subnets)}
	var err error
	for i := range attempts {
		p.known = false
		p.touched.Store(false)
		var r Report
		r, err = p.sync(ctx, to, i < careful)
		// What a new table lacks is lacking in the kernel, unless it says that
		// it was not even tried.
		if err == nil || !outdated(err) || r.Replaced != nil && !errors.Is(err, unix.ERESTART) {
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
	plan, to := delta(p.have, content{table: t, subnets: slices.Clone(subnets)})
	plan.Table = Structure(p.params, p.gen)
	is := held{knows: func(a netip.Addr) bool { return p.have.table.Known[a] }, pairs: setsOf(p.have.table)}
	r, err := p.apply(ctx, plan, is, to)
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

func (p *Programmer) sync(ctx context.Context, to content, careful bool) (Report, error) {
	var since uint32
	if careful {
		var err error
		if since, err = p.conn.Generation(ctx); err != nil {
			return Report{}, err
		}
	}
	have, err := p.conn.Dump(ctx, Table())
	if err != nil {
		return Report{}, err
	}
	p.gen = generationOf(have)
	plan := nft.Diff(Desired(p.params, p.gen, to.table, to.subnets), have)
	plan.Since = since
	return p.apply(ctx, plan, heldIn(have), to)
}

// heldIn is what a table that was read has.
func heldIn(have nft.Content) held {
	is := held{pairs: map[policy.PortSet]bool{}}
	for e := range have.Elements {
		if e.Set == pairMap && len(e.Data) == 4 {
			is.pairs[policy.PortSet(binary.NativeEndian.Uint32([]byte(e.Data)))] = true
		}
	}
	is.knows = func(a netip.Addr) bool {
		_, ok := have.Elements[nft.Element{Set: knownSet(familyOf(a)), Key: key(a)}]
		return ok
	}
	return is
}

// apply carries out a plan of the present generation, in the next one if that
// is necessary, given what the table has. After it the table has what is made
// from to.
func (p *Programmer) apply(ctx context.Context, plan nft.Plan, is held, to content) (Report, error) {
	r := Report{Added: len(plan.Add), Deleted: len(plan.Delete), Replaced: plan.Why, Generation: p.gen}
	if plan.Replace || p.gen == None || revokes(plan, is, to.subnets) {
		r.Generation, r.Unlabelled = p.advance(ctx)
		plan.Table = Structure(p.params, r.Generation)
		if r.Generation != p.gen {
			plan.Rewrite = r.Generation.chains()
		}
	}
	p.known = false
	if err := p.conn.Apply(ctx, plan); err != nil {
		return r, err
	}
	p.known, p.have, p.gen = true, to, r.Generation
	return r, nil
}

// advance returns the next generation, whose label no flow has.
func (p *Programmer) advance(ctx context.Context) (Generation, error) {
	next, clear := p.gen.next()
	if !clear {
		return next, nil
	}
	if err := p.conn.ClearLabels(ctx, int(p.gen)); err != nil {
		return None, err
	}
	return next, nil
}
