// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"regexp"
	"slices"
	"time"
)

// bridgeVeth is how the reference plugins name the node's end of a veth
// (plugins v1.9.1, pkg/ip RandomVethName).
var bridgeVeth = regexp.MustCompile(`^veth[0-9a-f]{8}$`)

// judgement is what one look at the files and then at the kernel shows.
type judgement struct {
	l       *Ledger
	records []*record
	veths   []Veth
	now     time.Time

	byPort  map[string][]*record     // of this boot
	byAddr  map[netip.Addr][]*record // by host-local's files
	byNetns map[int][]*record        // of this boot
	doomed  map[*record][]Veth       // veths that go with an attachment that was begun or being undone
	blind   bool                     // the bridge has a port of which nobody knows whose it is
}

// verdict is what becomes of a record.
type verdict int

const (
	alive verdict = iota
	busy
	undecided
	leaked
)

// judge decides on every record. It does no I/O: records were read before
// veths were listed.
//
// Of a stamped attachment of this boot, where nobody holds the lock: "adding"
// and "deleting" are leaked, with the veths that doomVeths finds; "added" is
// leaked when none of its veths is there any more, since a veth's end on the
// node lives exactly as long as the pod's. A stamp of another boot is leaked.
//
// Without a stamp an attachment counts as alive if some pod has its address.
// Otherwise it may still be that of a pod that removed its address (KubeVirt
// hands it to a virtual machine), so it is left alone as long as the bridge
// has a port that nobody owns, or it is younger than Options.Grace.
//
// Whatever the files say, an address that is seen in a pod is not freed, unless
// that pod's veth goes first.
func (l *Ledger) judge(records []*record, veths []Veth, now time.Time) *judgement {
	j := &judgement{
		l: l, records: records, veths: veths, now: now,
		byPort: map[string][]*record{}, byAddr: map[netip.Addr][]*record{},
		byNetns: map[int][]*record{}, doomed: map[*record][]Veth{},
	}
	for _, r := range records {
		for _, a := range r.allocs {
			j.byAddr[a.addr] = append(j.byAddr[a.addr], r)
		}
		if !j.current(r) {
			continue
		}
		for _, p := range r.Stamp.Ports {
			j.byPort[p] = append(j.byPort[p], r)
		}
		if id := r.Stamp.NetnsID; id != nil {
			j.byNetns[*id] = append(j.byNetns[*id], r)
		}
	}
	j.doomVeths()
	return j
}

// current reports whether r has a stamp of this boot.
func (j *judgement) current(r *record) bool { return r.Stamped && r.Stamp.Boot == j.l.boot }

// half reports whether r was left half done: only such an attachment's veths
// are ever deleted.
func (j *judgement) half(r *record) bool {
	return j.current(r) && !r.Busy && r.where.judged(j.l.o.Bridge) &&
		(r.Stamp.Phase == Adding || r.Stamp.Phase == Deleting)
}

// doomVeths finds the veths of half done attachments, and whether there are
// ports of which it cannot be said whose they are.
func (j *judgement) doomVeths() {
	for _, v := range j.veths {
		if !v.Port && !v.Bare {
			continue // on another bridge: it is looked at for its addresses, and never deleted
		}
		owners := j.owners(v)
		if len(owners) == 0 {
			j.blind = j.blind || v.Port
			continue
		}
		if !slices.ContainsFunc(owners, func(r *record) bool { return !j.half(r) }) {
			j.doomed[owners[0]] = append(j.doomed[owners[0]], v)
		}
	}
}

// owners returns the attachments that v may belong to: those that name it,
// else those whose addresses its pod has, else those whose pod it leads to. In
// the last case v must look like what the bridge plugin makes; without a
// bridge it must have no address either, as other plugins make such veths.
func (j *judgement) owners(v Veth) []*record {
	if named := j.byPort[v.Name]; named != nil {
		return named
	}
	var owners []*record
	addressed := false
	for _, a := range v.Addrs {
		if a = a.Unmap(); a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsMulticast() {
			continue
		}
		addressed = true
		owners = append(owners, j.byAddr[a]...)
	}
	if owners != nil {
		return owners
	}
	if v.Unreadable || v.Netns == nil || !bridgeVeth.MatchString(v.Name) {
		return nil
	}
	if !v.Port && (!v.Bare || addressed) {
		return nil
	}
	// The id of a namespace is given again when that is gone, so it may be
	// in the stamp of a pod that has died since, too.
	for _, r := range j.byNetns[*v.Netns] {
		if r.Busy || r.Stamp.Phase != Added || j.there(r) {
			owners = append(owners, r)
		}
	}
	return owners
}

// there reports whether a veth of r, which has been added, is there; a stamp
// that names none cannot tell and counts as one whose veth is.
func (j *judgement) there(r *record) bool {
	return len(r.Stamp.Ports) == 0 ||
		slices.ContainsFunc(j.veths, func(v Veth) bool { return slices.Contains(r.Stamp.Ports, v.Name) })
}

// seen reports whether a pod has one of r's addresses, beyond the veths that
// go with r.
func (j *judgement) seen(r *record) bool {
	return slices.ContainsFunc(j.veths, func(v Veth) bool {
		return slices.ContainsFunc(v.Addrs, func(a netip.Addr) bool { return slices.Contains(r.Addrs, a.Unmap()) }) &&
			!slices.ContainsFunc(j.doomed[r], func(d Veth) bool { return d.Name == v.Name && d.Index == v.Index })
	})
}

// verdict decides on r.
func (j *judgement) verdict(r *record) (verdict, Reason) {
	switch {
	case r.Busy:
		return busy, ""
	case !r.Stamped:
		return j.unstamped(r)
	case !j.current(r):
		if r.where.IPAM.Type != "host-local" || j.seen(r) {
			return undecided, "" // only its DEL can free it
		}
		return leaked, OtherBoot
	case !r.where.judged(j.l.o.Bridge):
		return alive, ""
	}
	switch r.Stamp.Phase {
	case Adding, Deleting:
		// A port that cannot be read may have the address, too.
		if j.seen(r) || j.unread() {
			return undecided, ""
		}
		if r.Stamp.Phase == Adding {
			return leaked, AddKilled
		}
		return leaked, DelKilled
	case Added:
		if !j.there(r) && !j.seen(r) {
			return leaked, VethGone
		}
	}
	return alive, ""
}

// unread reports whether the bridge has a port without an owner whose
// addresses are not known.
func (j *judgement) unread() bool {
	return slices.ContainsFunc(j.veths, func(v Veth) bool { return v.Port && v.Unreadable && len(j.owners(v)) == 0 })
}

// unstamped decides on an attachment of which only host-local, or a version
// without stamps, wrote something down.
func (j *judgement) unstamped(r *record) (verdict, Reason) {
	young := j.now.Sub(r.newest) < j.l.o.Grace
	switch {
	case r.state == nil && r.allocs == nil: // only debris
		return leaked, AddKilled
	case r.Key == Key{}:
		if j.seen(r) || j.unread() {
			return undecided, ""
		}
		return leaked, TornRecord
	case j.seen(r):
		return alive, ""
	case r.Conf != nil && !r.where.judged(j.l.o.Bridge):
		return alive, ""
	case j.blind, young, r.Key.IfName == "" && j.related(r):
		return undecided, ""
	}
	return leaked, Unknown
}

// related reports whether another attachment of r's container is in the
// ledger: an address without the name of an interface may be that one's.
func (j *judgement) related(r *record) bool {
	return slices.ContainsFunc(j.records, func(o *record) bool { return o != r && o.Key.ContainerID == r.Key.ContainerID })
}
