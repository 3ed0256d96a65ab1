// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Record is what the ledger holds of one attachment.
type Record struct {
	Key     Key    // zero for an address that was reserved for nobody
	Conf    []byte // the delegate's configuration; nil without a usable state
	Stamp   Stamp
	Stamped bool // Stamp is there
	Busy    bool // a call is at work on it
	Addrs   []netip.Addr
}

// record is a Record and what it was read from.
type record struct {
	Record
	state  []byte // the file as it was; nil when there is none
	debris bool   // a lock or a half-written state is there
	where  delegation
	allocs []alloc
	newest time.Time // of the files; zero without any
}

// alloc is a file of host-local: an address, and whose it is.
type alloc struct {
	dir     string
	addr    netip.Addr
	content string // as it was
	owner   Key    // zero when content is empty
	written time.Time
}

func (a alloc) path() string { return filepath.Join(a.dir, a.addr.String()) }

// Records lists the network's attachments by key: all with a state that
// delegates for this network, or an address of it, and what calls that were
// killed before they had a state left behind.
func (l *Ledger) Records(ctx context.Context) ([]Record, error) {
	read, err := l.read(ctx)
	var all []Record
	for _, r := range read {
		all = append(all, r.Record)
	}
	return all, err
}

// read reads all files. The order matters, since calls go on meanwhile: an ADD
// has its state before it has an address, so what has an address here and no
// state has no ADD of ours. A call may end between the reading of a state and
// that of its lock; who acts on what is read takes the lock and compares.
func (l *Ledger) read(ctx context.Context) ([]*record, error) {
	f := &reading{before: l.files.Load(), now: map[string]file{}}
	dirs := []string{l.networkDir()}
	first, err := l.readStates(f)
	if err != nil {
		return nil, err
	}
	for _, r := range first {
		if base := r.where.IPAM.DataDir; base != "" && r.where.Network == l.o.Network {
			dirs = append(dirs, filepath.Join(base, l.o.Network))
		}
	}
	slices.Sort(dirs)
	var allocs []alloc
	for _, dir := range slices.Compact(dirs) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		in, err := readAllocs(f, dir)
		if err != nil {
			return nil, err
		}
		allocs = append(allocs, in...)
	}
	records, err := l.readStates(f)
	if err != nil {
		return nil, err
	}
	l.files.Store(&f.now)
	if err := l.readFlight(records); err != nil {
		return nil, err
	}
	return l.join(records, allocs), nil
}

// readStates reads the states of all networks. A state that does not parse has
// no Conf, like none.
func (l *Ledger) readStates(f *reading) (map[Key]*record, error) {
	names, err := list(l.o.StateDir)
	if err != nil {
		return nil, err
	}
	all := map[Key]*record{}
	for _, name := range names {
		k, ok := ParseKey(name)
		if !ok {
			continue // flannel's own state, or nothing of ours
		}
		path := filepath.Join(l.o.StateDir, name)
		got, err := f.file(path)
		if err != nil {
			return nil, err
		}
		if got.data == nil {
			continue
		}
		if got.state == nil {
			got.state = stateOf(k, got)
			f.now[path] = got
		}
		r := *got.state
		all[k] = &r
	}
	return all, nil
}

// stateOf reads a state.
func stateOf(k Key, f file) *record {
	r := &record{Record: Record{Key: k}, state: f.data, newest: f.written}
	if conf, stamp, stamped, err := Decode(f.data); err == nil {
		r.where = delegationOf(conf)
		if r.where.Plugin != "" {
			r.Conf, r.Stamp, r.Stamped = conf, stamp, stamped
		}
	}
	return r
}

// readFlight notes which attachments have a call at work, or the remains of
// one.
func (l *Ledger) readFlight(records map[Key]*record) error {
	dir := filepath.Join(l.o.StateDir, flightDir)
	names, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		stem, isLock := strings.CutSuffix(name, lockSuffix)
		if !isLock {
			stem = strings.TrimSuffix(name, newSuffix)
		}
		k, ok := ParseKey(stem)
		if !ok || stem == name {
			continue
		}
		r := records[k]
		if r == nil {
			r = &record{Record: Record{Key: k}}
			records[k] = r
		}
		r.debris = true
		if isLock {
			if r.Busy, err = held(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// join drops the states of other networks and gives every address to its
// attachment.
func (l *Ledger) join(records map[Key]*record, allocs []alloc) []*record {
	var nobodys []*record
	foreign := map[Key]bool{}
	for k, r := range records {
		if r.Conf != nil && r.where.Network != l.o.Network {
			foreign[k] = true
		}
	}
	for _, a := range allocs {
		r := records[a.owner]
		switch {
		case a.owner == Key{}:
			r = &record{}
			nobodys = append(nobodys, r)
		case foreign[a.owner]: // the state is another network's, the address ours
			r = &record{Record: Record{Key: a.owner, Busy: r.Busy}}
			records[a.owner] = r
			delete(foreign, a.owner)
		case r == nil:
			r = &record{Record: Record{Key: a.owner}}
			records[a.owner] = r
		}
		r.Addrs = append(r.Addrs, a.addr)
		r.allocs = append(r.allocs, a)
		if a.written.After(r.newest) {
			r.newest = a.written
		}
	}
	maps.DeleteFunc(records, func(k Key, _ *record) bool { return foreign[k] })
	all := slices.Collect(maps.Values(records))
	slices.SortFunc(all, func(a, b *record) int { return cmp.Compare(a.Key.String(), b.Key.String()) })
	return append(all, nobodys...)
}

// readAllocs reads a network's directory of host-local.
func readAllocs(f *reading, dir string) ([]alloc, error) {
	names, err := list(dir)
	if err != nil {
		return nil, err
	}
	var all []alloc
	for _, name := range names {
		addr, ok := parseAddr(name)
		if !ok {
			continue // lock, last_reserved_ip.N
		}
		got, err := f.file(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		owner, ok := parseOwner(string(got.data))
		if got.data == nil || !ok {
			continue
		}
		all = append(all, alloc{dir, addr, string(got.data), owner, got.written})
	}
	return all, nil
}

// parseAddr reads the name of a file of host-local, which is an address as
// net.IP writes it.
func parseAddr(name string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(name)
	return a, err == nil && a.Zone() == "" && a.String() == name && !a.Is4In6()
}

// parseOwner reads the content of a file of host-local: "ID\r\nIFNAME", or
// "ID" from versions before 0.7. A reservation that was killed between
// creating and writing its file is empty and gives the zero Key. What is
// neither, some person wrote: false.
func parseOwner(content string) (Key, bool) {
	content = strings.TrimSpace(content)
	if content == "" {
		return Key{}, true
	}
	id, ifName, both := strings.Cut(content, "\r\n")
	k := Key{id, ifName}
	if both {
		return k, k.valid()
	}
	return k, len(id) <= MaxContainerID && containerID.MatchString(id)
}

// list names a directory's entries; one that does not exist has none.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
