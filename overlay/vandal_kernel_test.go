// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"

	"weft.dev/weft/subnet"
)

// vkernel is a small kernel with a vandal in it: it holds entries, ours and
// others', removes by itself what Linux removes, fails when told to, and
// objects to every step of weft that a packet could suffer from. It is
// written from the kernel's point of view and knows nothing of Diff.
type vkernel struct {
	mu       sync.Mutex
	rng      *rand.Rand
	state    State
	own      map[string]bool // names of devices that are weft's
	canaries Set[Route]      // others' routes; the kernel may take them, weft may not
	made     Set[Route]      // weft's, as it made them
	todo     Changes         // what Apply has still to do
	calls    int             // of weft, since the start
	writes   int             // that changed something
	reads    int
	fault    *fault
	excused  bool // a vandal was at work in this Apply, or a call failed
	failed   bool // a Filter could not be made in this Apply
	guessed  bool // in this Apply an entry met several with its key
	acts     [faultKinds]int
	crimes   []string
}

// fault is what happens to one call of weft, in steps calls from now.
type fault struct {
	steps int
	kind  faultKind
	errno syscall.Errno
}

type faultKind int

const (
	refuse faultKind = iota // an error, nothing done
	unsure                  // done, and an error all the same
	meddle                  // the vandal acts just before
	blind                   // the next Dump fails
	faultKinds
)

func errnos() []syscall.Errno {
	return []syscall.Errno{syscall.EEXIST, syscall.EBUSY, syscall.ENOENT, syscall.EINTR, syscall.ENOMEM, syscall.ENOBUFS, syscall.EPERM, syscall.EINVAL}
}

func newVKernel(rng *rand.Rand, own ...string) *vkernel {
	k := &vkernel{rng: rng, state: NewState(), own: map[string]bool{}, canaries: Set[Route]{}, made: Set[Route]{}}
	for _, name := range own {
		k.own[name] = true
	}
	return k
}

// Dump returns what weft can see: what is on its devices and in its table, its
// routes on other devices, and gateway routes there that flannel may have
// left.
func (k *vkernel) Dump(ctx context.Context, like Digest) (State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reads++
	if f := k.fault; f != nil && f.kind == blind {
		k.fault = nil
		k.acts[blind]++
		return State{}, f.errno
	}
	s := k.state.Clone()
	maps.DeleteFunc(s.Routes, func(r Route, _ struct{}) bool {
		return !k.own[r.Dev] && r.Proto != RouteProtocol && (r.Proto != protoBoot || !r.Via.IsValid())
	})
	return s.without(like), ctx.Err()
}

// Apply makes the changes as backend does: what belongs to nftables in one
// transaction for each run, the rest one by one; nothing stops the others, but
// no device is made when its guard could not be.
func (k *vkernel) Apply(ctx context.Context, changes Changes) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.excused, k.failed, k.guessed = false, false, false
	var errs []error
	for i := 0; i < len(changes); {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		n := 1
		for isFilter(changes[i]) && i+n < len(changes) && isFilter(changes[i+n]) {
			n++
		}
		k.todo = changes[i+n:]
		errs = append(errs, k.call(changes[i:i+n])...)
		i += n
	}
	return errors.Join(errs...)
}

func isFilter(c Change) bool {
	switch c.Entry.(type) {
	case Filter, Node, Source:
		return true
	}
	return false
}

// call is one request to the kernel.
func (k *vkernel) call(run Changes) []error {
	k.calls++
	errno := syscall.Errno(0)
	if f := k.fault; f != nil && f.kind != blind {
		if f.steps--; f.steps < 0 {
			k.fault, k.excused = nil, true
			k.acts[f.kind]++
			switch {
			case f.kind == meddle:
				k.vandalise()
			case f.kind == refuse && len(run) > 1 && k.rng.IntN(2) == 0: // one element alone
				i := k.rng.IntN(len(run))
				if _, ok := run[i].Entry.(Filter); !ok {
					return append(k.call(append(append(Changes{}, run[:i]...), run[i+1:]...)), f.errno)
				}
				errno = f.errno
			case f.kind == refuse:
				k.failed = k.failed || hasFilter(run)
				return []error{f.errno}
			default:
				errno = f.errno
			}
		}
	}
	before := k.unreachable()
	var errs []error
	for _, c := range run {
		if err := k.change(c); err != nil {
			errs = append(errs, fmt.Errorf("%s %s %s: %w", c.Op, c.Kind(), c.Entry, err))
		}
	}
	k.judge(run, before)
	if errno != 0 {
		errs = append(errs, errno)
	}
	return errs
}

func hasFilter(run Changes) bool {
	for _, c := range run {
		if _, ok := c.Entry.(Filter); ok {
			return true
		}
	}
	return false
}

// judge accuses weft when a run has left a route without what its packets need
// that had it before, or was not there.
func (k *vkernel) judge(run Changes, before Set[Route]) {
	if l, ok := run[0].Entry.(Link); ok {
		if was, ok := run[0].Was.(Link); ok && was.MAC != l.MAC {
			return // the kernel flushes the neighbours, come what may
		}
	}
	if k.excused {
		return
	}
	for r := range k.unreachable() {
		if !before.Has(r) && (!hasFilter(run) || !k.comes(r)) {
			k.crimes = append(k.crimes, fmt.Sprintf("after %s, %s lacks %s", run[len(run)-1], r, k.lacks(r)))
		}
	}
}

// comes reports whether this Apply will still see to r or to where it leads:
// a table that is made anew cannot let in what is not a peer's any more.
func (k *vkernel) comes(r Route) bool {
	for _, c := range k.todo {
		switch e := c.Entry.(type) {
		case Route:
			if e.Dst == r.Dst {
				return true
			}
		case Link:
			if e.Name == r.Dev && c.Op != Modify {
				return true
			}
		case Neigh:
			if e.Dev == r.Dev && e.IP == r.Via {
				return true
			}
		case FDB:
			for n := range k.state.Neighs {
				if n.Dev == r.Dev && n.IP == r.Via && e.Dev == n.Dev && e.MAC == n.MAC {
					return true
				}
			}
		}
	}
	return false
}

// unreachable returns the routes that weft made and that lead nowhere, or
// whose peers' packets are refused.
func (k *vkernel) unreachable() Set[Route] {
	out := Set[Route]{}
	for r := range k.state.Routes {
		if k.made.Has(r) && k.lacks(r) != "" {
			out.Add(r)
		}
	}
	return out
}

// lacks names what a route needs and has not.
func (k *vkernel) lacks(r Route) string {
	if !k.own[r.Dev] {
		return k.refuses(r.Via, r.Dst)
	}
	why, to := "a neighbour", r.Via
	if !to.IsValid() {
		to = r.Dst.Addr() // the way to a gateway alone
	}
	for n := range k.state.Neighs {
		if n.Dev != r.Dev || n.IP != to {
			continue
		}
		why = "an FDB entry"
		for f := range k.state.FDB { // of several, one will do
			if f.Dev != r.Dev || f.MAC != n.MAC {
				continue
			}
			if why = k.refuses(f.Dst, r.Dst); why == "" {
				return ""
			}
		}
	}
	return why
}

// refuses says what the guard misses of a peer with that outer address.
func (k *vkernel) refuses(outer netip.Addr, inner netip.Prefix) string {
	for f := range k.state.Filters {
		switch {
		case f.Foreign != "" || f.Guard != GuardBind && f.Guard != GuardPeers:
		case !k.state.Nodes.Has(Node{Addr: outer}):
			return "a node element"
		case f.Guard == GuardBind && !k.letsIn(inner):
			return "a source element"
		}
	}
	return ""
}

// letsIn reports whether packets from inner are let in from anywhere: a peer
// chooses the underlay that it answers on.
func (k *vkernel) letsIn(inner netip.Prefix) bool {
	for s := range k.state.Sources {
		if s.Inner.Bits() <= inner.Bits() && s.Inner.Contains(inner.Addr()) {
			return true
		}
	}
	return false
}

// change makes one change and counts it when it makes a difference.
func (k *vkernel) change(c Change) error {
	switch e := c.Entry.(type) {
	case Filter:
		return k.changeFilter(c, e)
	case Node:
		return changeElement(k, k.state.Nodes, c, e, true)
	case Source:
		return changeElement(k, k.state.Sources, c, e, k.looksFor(e.Inner))
	case Pods:
		return changeElement(k, k.state.Pods, c, e, k.looksFor(e.Subnet))
	case Link:
		return k.changeLink(c, e)
	case Addr:
		return k.changeAddr(c, e)
	case FDB:
		return put(k, k.state.FDB, c, e, e.Dev, e.key(), FDB.key)
	case Neigh:
		return put(k, k.state.Neighs, c, e, e.Dev, e.key(), Neigh.key)
	case Route:
		return k.changeRoute(c, e)
	}
	return errors.New("unknown entry")
}

func (k *vkernel) wrote() { k.writes++ }

func (k *vkernel) changeFilter(c Change, f Filter) error {
	if c.Op == Delete {
		k.dropTable()
		k.wrote()
		return nil
	}
	k.dropTable() // replaced as a whole, in one transaction
	k.state.Filters.Add(f)
	k.wrote()
	return nil
}

func (k *vkernel) dropTable() {
	clear(k.state.Filters)
	clear(k.state.Nodes)
	clear(k.state.Sources)
	clear(k.state.Pods)
}

// looksFor reports whether the table has a set for elements like inner.
func (k *vkernel) looksFor(inner netip.Prefix) bool {
	for f := range k.state.Filters {
		for family, n := range f.Lengths.All() {
			if family == subnet.FamilyOf(inner.Addr()) && n == inner.Bits() {
				return true
			}
		}
	}
	return inner.IsSingleIP()
}

func changeElement[E comparable](k *vkernel, set Set[E], c Change, e E, fits bool) error {
	has := set.Has(e)
	if c.Op == Delete {
		delete(set, e)
		if has {
			k.wrote()
		}
		return nil
	}
	if len(k.state.Filters) == 0 || !fits {
		return syscall.ENOENT
	}
	set.Add(e)
	if !has {
		k.wrote()
	}
	return nil
}

// changeLink makes, changes or deletes a device.
func (k *vkernel) changeLink(c Change, l Link) error {
	old, exists := k.link(l.Name)
	switch c.Op {
	case Delete:
		if exists {
			k.drop(l.Name)
			k.wrote()
		}
		return nil
	case Modify:
		if !exists || !l.changeable(old) {
			return syscall.EOPNOTSUPP
		}
		k.wrote()
		k.alter(old, l)
		return nil
	}
	if k.failed {
		return errors.New("not created: its ingress guard is not in place")
	}
	if exists && c.Op == Add {
		return syscall.EEXIST
	}
	k.drop(l.Name)
	for o := range k.state.Links {
		if o.endpoint() == l.endpoint() {
			return syscall.EEXIST
		}
	}
	k.state.Links.Add(l)
	k.wrote()
	return nil
}

func (k *vkernel) link(name string) (Link, bool) {
	for l := range k.state.Links {
		if l.Name == name {
			return l, true
		}
	}
	return Link{}, false
}

// alter turns a device into l, with what the kernel removes on the occasion.
func (k *vkernel) alter(old, l Link) {
	delete(k.state.Links, old)
	k.state.Links.Add(l)
	if l.MAC != old.MAC {
		maps.DeleteFunc(k.state.Neighs, func(n Neigh, _ struct{}) bool { return n.Dev == l.Name })
	}
	switch {
	case old.Up && !l.Up:
		k.flush(l.Name, func(netip.Addr) bool { return true })
		k.unaddress(l.Name, func(a netip.Addr) bool { return a.Is6() })
	case old.carries(subnet.IPv6) && !l.carries(subnet.IPv6):
		k.flush(l.Name, netip.Addr.Is6)
		k.unaddress(l.Name, netip.Addr.Is6)
	}
}

// drop removes a device with all that is on it.
func (k *vkernel) drop(name string) {
	maps.DeleteFunc(k.state.Links, func(l Link, _ struct{}) bool { return l.Name == name })
	maps.DeleteFunc(k.state.FDB, func(f FDB, _ struct{}) bool { return f.Dev == name })
	k.flush(name, func(netip.Addr) bool { return true })
	k.unaddress(name, func(netip.Addr) bool { return true })
}

// flush removes routes and neighbours of a device. No event tells of routes.
func (k *vkernel) flush(name string, family func(netip.Addr) bool) {
	maps.DeleteFunc(k.state.Neighs, func(n Neigh, _ struct{}) bool { return n.Dev == name && family(n.IP) })
	k.takeRoutes(func(r Route) bool { return r.Dev == name && family(r.Dst.Addr()) })
}

func (k *vkernel) takeRoutes(which func(Route) bool) {
	for r := range k.state.Routes {
		if which(r) {
			delete(k.state.Routes, r)
			delete(k.canaries, r)
		}
	}
}

// unaddress removes addresses of a device, and what rests on them.
func (k *vkernel) unaddress(name string, which func(netip.Addr) bool) {
	for a := range k.state.Addrs {
		if a.Dev == name && which(a.Prefix.Addr()) {
			k.removeAddr(a)
		}
	}
}

// removeAddr removes an address; the last IPv4 one of a device takes the IPv4
// routes and neighbours with it, and one that is left nowhere the routes that
// have it as source.
func (k *vkernel) removeAddr(a Addr) {
	delete(k.state.Addrs, a)
	ip := a.Prefix.Addr()
	if !ip.Is4() {
		return
	}
	last, nowhere := true, true
	for o := range k.state.Addrs {
		last = last && (o.Dev != a.Dev || !o.Prefix.Addr().Is4())
		nowhere = nowhere && o.Prefix.Addr() != ip
	}
	if nowhere {
		k.takeRoutes(func(r Route) bool { return r.Src == ip })
	}
	if last {
		k.flush(a.Dev, netip.Addr.Is4)
	}
}

func (k *vkernel) changeAddr(c Change, a Addr) error {
	if c.Op == Delete {
		if k.state.Addrs.Has(a) {
			k.removeAddr(a)
			k.wrote()
		}
		return nil
	}
	return put(k, k.state.Addrs, c, a, a.Dev, a, func(a Addr) Addr { return a })
}

// put adds an entry or puts it in place of the one with its key, as all weft's
// requests do; or deletes it. Where there are several, the kernel takes the
// first, whichever that is.
func put[E entryOf[E], K comparable](k *vkernel, set Set[E], c Change, e E, dev string, key K, keyOf func(E) K) error {
	if c.Op == Delete {
		if set.Has(e) {
			delete(set, e)
			k.wrote()
		}
		return nil
	}
	if l, ok := k.link(dev); k.own[dev] && (!ok || !l.Up) {
		return syscall.ENODEV
	}
	if set.Has(e) {
		return nil
	}
	var twins []E
	for _, o := range sorted(set) {
		if keyOf(o) == key {
			twins = append(twins, o)
		}
	}
	if len(twins) > 0 {
		k.guessed = len(twins) > 1
		delete(set, twins[k.rng.IntN(len(twins))])
	}
	set.Add(e)
	k.wrote()
	return nil
}

func (k *vkernel) changeRoute(c Change, r Route) error {
	if c.Op == Delete {
		if k.canaries.Has(r) {
			k.crimes = append(k.crimes, fmt.Sprintf("%s: somebody else's", c))
		}
		return put(k, k.state.Routes, c, r, r.Dev, r.key(), Route.key)
	}
	for o := range k.canaries {
		if o.key() == r.key() {
			return syscall.EEXIST
		}
	}
	if r.Src.IsValid() && !k.hasAddr(r.Src) {
		return syscall.EINVAL
	}
	if l, ok := k.link(r.Dev); ok && !l.carries(subnet.FamilyOf(r.Dst.Addr())) {
		return syscall.EACCES
	}
	if over, ok := k.leadsTo(r.Via); ok && r.Via.Is6() && k.own[r.Dev] && over.Dev != r.Dev {
		return syscall.EINVAL // ip6_route_check_nh_onlink, net/ipv6/route.c
	}
	err := put(k, k.state.Routes, c, r, r.Dev, r.key(), Route.key)
	if err == nil {
		k.made.Add(r)
	}
	return err
}

// leadsTo returns the route that the table has for a.
func (k *vkernel) leadsTo(a netip.Addr) (best Route, ok bool) {
	for r := range k.state.Routes {
		if r.Dst.Contains(a) && (!ok || r.Dst.Bits() > best.Dst.Bits() || r.Dst == best.Dst && r.Metric < best.Metric) {
			best, ok = r, true
		}
	}
	return best, ok
}

func (k *vkernel) hasAddr(a netip.Addr) bool {
	for o := range k.state.Addrs {
		if o.Prefix.Addr() == a {
			return true
		}
	}
	return false
}
