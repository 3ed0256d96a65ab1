// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
)

// maxRefused bounds how many elements of a run are found out one by one to be
// refused. A refusal that valid elements meet is the table's, and the next
// pass replaces it.
const maxRefused = 256

// errUnguarded refuses a link.
var errUnguarded = errors.New("not created: its ingress guard is not in place")

// element is a change of one element of a set.
type element struct {
	change *overlay.Change
	nft.Element
}

func (e element) deletes() bool { return e.change.Op == overlay.Delete }

func (e element) String() string { return title(*e.change) }

// filterRun is a run of changes of our table: the last change of the table
// itself, if there is one, and those of elements that come after it. What
// came before it the table takes with it.
type filterRun struct {
	table    *overlay.Change
	elements []element
	errs     []error
}

func newFilterRun(changes overlay.Changes) filterRun {
	var r filterRun
	bySet := map[string][]element{}
	for i := range changes {
		c := &changes[i]
		if _, ok := c.Entry.(overlay.Filter); ok {
			r = filterRun{table: c}
			clear(bySet)
			continue
		}
		e, err := elementOf(c.Entry)
		if err != nil {
			r.errs = append(r.errs, fmt.Errorf("%s: %w", title(*c), err))
			continue
		}
		bySet[e.Set] = append(bySet[e.Set], element{c, e})
	}
	// A message carries elements of one set.
	for _, set := range slices.Sorted(maps.Keys(bySet)) {
		r.elements = append(r.elements, bySet[set]...)
	}
	return r
}

// applyFilter makes a run of changes of our table in one transaction, and
// returns what failed.
func (a *applier) applyFilter(ctx context.Context, changes overlay.Changes) []error {
	if a.k.nft == nil {
		for _, c := range changes {
			a.guardFailed(c.Entry)
		}
		return []error{fmt.Errorf("%d changes of nftables, the first to %s: weft was told to leave nftables alone", len(changes), title(changes[0]))}
	}
	r := newFilterRun(changes)
	switch {
	case r.table == nil:
		r.errs = append(r.errs, a.k.applyElements(ctx, r.elements)...)
	case r.table.Op == overlay.Delete:
		if err := a.k.nft.Apply(ctx, nft.Removal(tableWeft(), nft.Content{Present: true})); err != nil {
			r.errs = append(r.errs, fmt.Errorf("%s: %w", title(*r.table), err))
		} else {
			a.k.log.Info("table inet weft deleted from nftables")
		}
	default:
		if err := a.k.replaceFilter(ctx, &r); err != nil {
			a.guardFailed(r.table.Entry)
			r.errs = append(r.errs, fmt.Errorf("%s, with %d elements: %w", title(*r.table), len(r.elements), err))
		}
	}
	return r.errs
}

// guardFailed notes that e could not be put in place.
func (a *applier) guardFailed(e overlay.Entry) {
	if f, ok := e.(overlay.Filter); ok {
		a.unguarded = a.unguarded || f.Guard == overlay.GuardBind || f.Guard == overlay.GuardPeers
	}
}

// replaceFilter puts a new table in the place of the one there is, with the
// elements that follow in the run and the old one's counters. Elements that
// the table has no set for are refused by themselves.
func (k *Kernel) replaceFilter(ctx context.Context, r *filterRun) error {
	f := r.table.Entry.(overlay.Filter)
	p, err := paramsOf(f)
	if err != nil {
		return err
	}
	plan := nft.Plan{Table: nft.Ruleset(p), Replace: true}
	if plan.Counts, err = k.nft.Counters(ctx, tableWeft()); err != nil {
		return err
	}
	sets := map[string]bool{}
	for _, s := range plan.Table.Sets {
		sets[s.Name] = true
	}
	plan.Add = make([]nft.Element, 0, len(r.elements))
	for _, e := range r.elements {
		switch {
		case e.deletes(): // it is not in the new table
		case !sets[e.Set]:
			r.errs = append(r.errs, noSet(e))
		default:
			plan.Add = append(plan.Add, e.Element)
		}
	}
	if err := k.nft.Apply(ctx, plan); err != nil {
		return err
	}
	if was, ok := r.table.Was.(overlay.Filter); ok {
		why := was.Foreign
		if why == "" {
			why = "parameters changed"
		}
		k.log.Infof("table inet weft of nftables replaced: %s", why)
	} else {
		k.log.Info("table inet weft added to nftables")
	}
	return nil
}

func noSet(e element) error {
	return fmt.Errorf("%s: table inet weft has no set %s: %w", e, e.Set, unix.ENOENT)
}

// applyElements changes elements in one transaction. If that is refused, each
// that is not the cause is still changed.
func (k *Kernel) applyElements(ctx context.Context, list []element) []error {
	err := k.send(ctx, list)
	if err == nil {
		return nil
	}
	if len(list) == 1 {
		return refusals(list[0], err)
	}
	sets, lerr := k.nft.SetNames(ctx, tableWeft())
	if lerr != nil {
		return []error{fmt.Errorf("%d changes of nftables sets, the first to %s: %w", len(list), list[0], errors.Join(err, lerr))}
	}
	var rest []element
	absent := map[string]int{}
	for _, e := range list {
		switch {
		case sets[e.Set]:
			rest = append(rest, e)
		case !e.deletes():
			absent[e.Set]++
		}
	}
	var errs []error
	for set, n := range absent {
		errs = append(errs, fmt.Errorf("add %d elements to set %s of table inet weft: %w", n, set, unix.ENOENT))
	}
	if len(sets) == 0 && len(absent) > 0 {
		return []error{fmt.Errorf("add elements to %d sets: table inet weft is gone: %w", len(absent), unix.ENOENT)}
	}
	left := maxRefused
	return append(errs, k.bisect(ctx, rest, &left)...)
}

// bisect changes elements in ever smaller transactions, until each that is
// refused is alone. left counts down how many may be.
func (k *Kernel) bisect(ctx context.Context, list []element, left *int) []error {
	if len(list) == 0 {
		return nil
	}
	if *left <= 0 {
		return []error{fmt.Errorf("%d further changes of nftables sets not tried, the first to %s", len(list), list[0])}
	}
	err := k.send(ctx, list)
	switch {
	case err == nil:
		return nil
	case len(list) == 1:
		errs := refusals(list[0], err)
		*left -= len(errs)
		return errs
	case ctx.Err() != nil:
		return []error{fmt.Errorf("%d changes of nftables sets: %w", len(list), err)}
	}
	half := len(list) / 2
	return append(k.bisect(ctx, list[:half], left), k.bisect(ctx, list[half:], left)...)
}

// refusals tells whether a change that the kernel refused was none: deleting
// what is gone, adding what is there.
func refusals(e element, err error) []error {
	if e.deletes() && errors.Is(err, unix.ENOENT) || !e.deletes() && errors.Is(err, unix.EEXIST) {
		return nil
	}
	return []error{fmt.Errorf("%s: %w", e, err)}
}

// send changes elements in one transaction.
func (k *Kernel) send(ctx context.Context, list []element) error {
	plan := nft.Plan{Table: tableWeft()}
	for _, e := range list {
		if e.deletes() {
			plan.Delete = append(plan.Delete, e.Element)
		} else {
			plan.Add = append(plan.Add, e.Element)
		}
	}
	return k.nft.Apply(ctx, plan)
}
