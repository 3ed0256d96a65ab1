// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// lockWait bounds how long a sweep waits for host-local, which holds its lock
// for milliseconds.
const lockWait = 5 * time.Second

// Sweep frees what is leaked: veths, then addresses, then the records. It looks
// twice, at the files and then at the kernel each time, and frees what was
// leaked both times, with the attachment's lock in hand and after a last look
// at its files: so what an ADD does meanwhile is never taken for a remnant.
// lease are this node's subnets, empty when it has none; now is the time of
// the day, for Options.Grace alone.
//
// It is safe at any moment and may be killed at any; the next one goes on
// where it ended. One attachment that cannot be freed does not stop the others:
// the error joins what went wrong, and the report is right with an error, too.
func (l *Ledger) Sweep(ctx context.Context, k Kernel, lease []netip.Prefix, now time.Time) (Report, error) {
	first, err := l.look(ctx, k, now)
	if err != nil {
		return Report{}, err
	}
	if len(first.leaked()) == 0 {
		return first.report(lease), nil
	}
	second, err := l.look(ctx, k, now)
	if err != nil {
		return Report{}, err
	}
	report := second.report(lease)
	var errs []error
	for _, e := range confirm(first.leaked(), second.leaked()) {
		err := l.settle(ctx, k, e)
		switch {
		case errors.Is(err, errMoved), errors.Is(err, ErrBusy):
			report.Busy++
		case err != nil:
			errs = append(errs, fmt.Errorf("free attachment %q %v: %w", e.Key, e.Addrs, err))
		default:
			report.Freed = append(report.Freed, e)
		}
	}
	return report, errors.Join(errs...)
}

// look reads the files and lists the veths, in this order: a veth that a
// finished ADD names is then either listed or gone.
func (l *Ledger) look(ctx context.Context, k Kernel, now time.Time) (*judgement, error) {
	records, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	veths, err := k.Veths(ctx)
	if err != nil {
		return nil, fmt.Errorf("list veths: %w", err)
	}
	return l.judge(records, veths, now), nil
}

func (j *judgement) leaked() []Entry {
	var all []Entry
	for _, r := range j.records {
		if v, why := j.verdict(r); v == leaked {
			all = append(all, Entry{Key: r.Key, Addrs: r.Addrs, Veths: j.doomed[r], Why: why, rec: r})
		}
	}
	return all
}

func (j *judgement) report(lease []netip.Prefix) Report {
	var rep Report
	for _, r := range j.records {
		switch v, _ := j.verdict(r); v {
		case busy:
			rep.Busy++
		case undecided:
			rep.Undecided = append(rep.Undecided, Entry{Key: r.Key, Addrs: r.Addrs})
		case alive:
			rep.Alive++
			if out := outside(r, lease); out != nil {
				rep.Outside = append(rep.Outside, Entry{Key: r.Key, Addrs: out})
			}
		}
	}
	return rep
}

// outside returns r's addresses that are in none of the prefixes. Without a
// lease nothing is outside.
func outside(r *record, lease []netip.Prefix) []netip.Addr {
	if len(lease) == 0 || r.Conf != nil && r.where.IPAM.Type != "host-local" {
		return nil
	}
	var out []netip.Addr
	for _, a := range slices.Concat(r.Addrs, r.Stamp.Addrs) {
		in := func(p netip.Prefix) bool { return p.Masked().Contains(a) }
		if !slices.ContainsFunc(lease, in) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// confirm returns the entries of second that are in first, too, with the same
// files, reason and veths.
func confirm(first, second []Entry) []Entry {
	var both []Entry
	for _, b := range second {
		i := slices.IndexFunc(first, func(a Entry) bool {
			return a.Key == b.Key && a.Why == b.Why && slices.Equal(a.Addrs, b.Addrs) && bytes.Equal(a.rec.state, b.rec.state)
		})
		same := func(v, w Veth) bool { return v.Name == w.Name && v.Index == w.Index }
		if i >= 0 && slices.EqualFunc(first[i].Veths, b.Veths, same) {
			both = append(both, b)
		}
	}
	return both
}

// errMoved says that an attachment is not what it was when it was judged.
var errMoved = errors.New("it has changed meanwhile")

// settle frees one leaked attachment, unless it has changed.
func (l *Ledger) settle(ctx context.Context, k Kernel, e Entry) error {
	if e.Key == (Key{}) {
		return release(ctx, e.rec.allocs)
	}
	lock, err := tryLock(l.o.StateDir, e.Key)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	state := State{l.o.StateDir, e.Key}
	have, _, err := readRegular(state.Path())
	if err != nil {
		return err
	}
	if !bytes.Equal(have, e.rec.state) {
		return errMoved
	}
	for _, v := range e.Veths {
		if err := k.DeleteVeth(ctx, v.Name, v.Index); err != nil {
			return fmt.Errorf("delete veth %s: %w", v.Name, err)
		}
	}
	if err := release(ctx, e.rec.allocs); err != nil {
		return err
	}
	return state.Remove()
}

// ReleaseTorn frees the addresses that were reserved for nobody. It is for
// callers that know that no such address is in use, as a runtime does that
// asks for GC.
func (l *Ledger) ReleaseTorn(ctx context.Context) error {
	records, err := l.read(ctx)
	if err != nil {
		return err
	}
	var torn []alloc
	for _, r := range records {
		if r.Key == (Key{}) {
			torn = append(torn, r.allocs...)
		}
	}
	return release(ctx, torn)
}

// release removes addresses from host-local, under its lock, each if its file
// still says what it said.
func release(ctx context.Context, allocs []alloc) error {
	for len(allocs) > 0 {
		dir := allocs[0].dir
		n := slices.IndexFunc(allocs, func(a alloc) bool { return a.dir != dir })
		if n < 0 {
			n = len(allocs)
		}
		if err := releaseIn(ctx, dir, allocs[:n]); err != nil {
			return err
		}
		allocs = allocs[n:]
	}
	return nil
}

func releaseIn(ctx context.Context, dir string, allocs []alloc) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	// As host-local v1.9.1 opens it (backend/disk, go-filemutex).
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDONLY|os.O_CREATE, 0o750)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the directory is gone, and the addresses with it
	}
	if err != nil {
		return fmt.Errorf("lock addresses: %w", err)
	}
	defer f.Close() // and unlocks
	if err := flock(ctx, int(f.Fd()), f.Name()); err != nil {
		return fmt.Errorf("host-local does not give its lock back: %v", err)
	}
	for _, a := range allocs {
		have, _, err := readRegular(a.path())
		if err != nil {
			return err
		}
		if have == nil || string(have) != a.content {
			continue // somebody freed it, or freed and took it
		}
		if err := os.Remove(a.path()); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("free address: %w", err)
		}
	}
	return nil
}
