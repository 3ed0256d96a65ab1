// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
)

// applyModel makes one change to s the way Linux does, with everything that
// the kernel removes by itself, as measured on Linux 6.18. It is stricter
// than a Kernel has to be: an Add of what is there, or a Delete of what is
// not, is an error, because Diff should know.
func applyModel(s State, c Change) error {
	switch e := c.Entry.(type) {
	case Filter:
		return modelFilter(s, c, e)
	case Node:
		return modelElement(s, s.Nodes, c, e, func(Filter) bool { return true })
	case Source:
		return modelElement(s, s.Sources, c, e, func(f Filter) bool { return f.looksFor(e.Inner) })
	case Pods:
		return modelElement(s, s.Pods, c, e, func(f Filter) bool { return f.lists(e.Subnet) && f.Lengths.With(e.Subnet) == f.Lengths })
	case Link:
		return modelLink(s, c, e)
	case Addr:
		return modelAddr(s, c, e)
	case FDB:
		return modelEntry(s.FDB, c, e, func(o FDB) bool { return o.Dev == e.Dev && o.MAC == e.MAC }, s.dev(e.Dev))
	case Neigh:
		return modelEntry(s.Neighs, c, e, func(o Neigh) bool { return o.Dev == e.Dev && o.IP == e.IP }, s.dev(e.Dev))
	case Route:
		if c.Op != Delete && e.Src.IsValid() && !s.hasAddr(e.Src) {
			return fmt.Errorf("source %s is nobody's address", e.Src)
		}
		if c.Op != Delete && s.misled(e) {
			return errors.New("nexthop has invalid gateway or device mismatch")
		}
		return modelEntry(s.Routes, c, e, func(o Route) bool { return o.Dst == e.Dst && o.Metric == e.Metric }, s.anyDev(e.Dev))
	}
	return errors.New("unknown entry")
}

// applyAll makes all changes and returns the errors by change.
func applyAll(s State, changes Changes) error {
	var errs []error
	for _, c := range changes {
		if err := applyModel(s, c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

// modelFilter is the one table there can be; its elements go with it.
func modelFilter(s State, c Change, f Filter) error {
	if c.Op == Add && len(s.Filters) > 0 {
		return errors.New("exists")
	}
	if was, ok := c.Was.(Filter); c.Op == Replace && (!ok || !s.Filters.Has(was)) || c.Op == Delete && !s.Filters.Has(f) {
		return fmt.Errorf("not there: %v", c.Was)
	}
	clear(s.Filters)
	clear(s.Nodes)
	clear(s.Sources)
	clear(s.Pods)
	if c.Op != Delete {
		s.Filters.Add(f)
	}
	return nil
}

// modelElement is an element of one of the table's sets.
func modelElement[E comparable](s State, set Set[E], c Change, e E, fits func(Filter) bool) error {
	for f := range s.Filters {
		if !fits(f) {
			return errors.New("the table has no set for it")
		}
		switch has := set.Has(e); {
		case c.Op == Add && !has:
			set.Add(e)
			return nil
		case c.Op == Delete && has:
			delete(set, e)
			return nil
		}
		return fmt.Errorf("cannot %s", c.Op)
	}
	return errors.New("there is no table")
}

// looksFor reports whether f has a set for Sources with this inner prefix.
func (f Filter) looksFor(in netip.Prefix) bool {
	return f.Guard == GuardBind && (in.IsSingleIP() || f.Lengths.With(in) == f.Lengths)
}

// underlayDev is a device that is not ours, always up.
const underlayDev = "eth0"

func (s State) anyDev(name string) *Link {
	if name == underlayDev {
		return &Link{Name: name, Up: true}
	}
	return s.dev(name)
}

func modelEntry[E comparable](set Set[E], c Change, e E, twin func(E) bool, dev *Link) error {
	if c.Op == Delete {
		if !set.Has(e) {
			return errors.New("nothing to delete")
		}
		delete(set, e)
		return nil
	}
	if dev == nil || !dev.Up {
		return errors.New("the device is missing or down")
	}
	if c.Op == Add {
		for o := range set {
			if twin(o) {
				return fmt.Errorf("exists: %v", o)
			}
		}
	}
	if c.Op == Replace {
		was, ok := c.Was.(E)
		if !ok || !set.Has(was) || !twin(was) {
			return fmt.Errorf("nothing to replace: %v", c.Was)
		}
		delete(set, was)
	}
	set.Add(e)
	return nil
}

func modelLink(s State, c Change, l Link) error {
	old := s.dev(l.Name)
	switch c.Op {
	case Add:
		if old != nil {
			return errors.New("exists")
		}
	case Replace, Delete:
		if old == nil {
			return errors.New("no such device")
		}
		s.drop(l.Name)
		if c.Op == Delete {
			return nil
		}
	case Modify:
		if old == nil || !l.changeable(*old) {
			return errors.New("cannot be changed in place")
		}
		if l.MAC != old.MAC {
			maps.DeleteFunc(s.Neighs, func(n Neigh, _ struct{}) bool { return n.Dev == l.Name })
		}
		if old.Up && !l.Up {
			s.flush(l.Name, func(netip.Addr) bool { return true })
		}
		delete(s.Links, *old)
	}
	for o := range s.Links {
		if o.endpoint() == l.endpoint() {
			return fmt.Errorf("VNI in use by %s", o.Name)
		}
	}
	s.Links.Add(l)
	return nil
}

func modelAddr(s State, c Change, a Addr) error {
	if c.Op != Delete {
		return modelEntry(s.Addrs, c, a, func(o Addr) bool { return o == a }, s.dev(a.Dev))
	}
	if !s.Addrs.Has(a) {
		return errors.New("nothing to delete")
	}
	delete(s.Addrs, a)
	if !a.Prefix.Addr().Is4() {
		return nil
	}
	s.unsource(a.Prefix.Addr())
	for o := range s.Addrs {
		if o.Dev == a.Dev && o.Prefix.Addr().Is4() {
			return nil
		}
	}
	s.flush(a.Dev, netip.Addr.Is4)
	return nil
}

// dev returns the link called name, or nil.
func (s State) dev(name string) *Link {
	for l := range s.Links {
		if l.Name == name {
			return &l
		}
	}
	return nil
}

// misled reports whether the table leads r's IPv6 gateway over another device.
func (s State) misled(r Route) bool {
	if !r.Via.Is6() || r.Dev == underlayDev {
		return false
	}
	var best Route
	for o := range s.Routes {
		if o.Dst.Bits() > 0 && o.Dst.Contains(r.Via) && (o.Dst.Bits() > best.Dst.Bits() || o.Dst == best.Dst && o.Metric < best.Metric) {
			best = o
		}
	}
	return best.Dev != "" && best.Dev != r.Dev
}

func (s State) hasAddr(a netip.Addr) bool {
	for o := range s.Addrs {
		if o.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// flush removes the routes and neighbours of a device in some families.
func (s State) flush(dev string, family func(netip.Addr) bool) {
	maps.DeleteFunc(s.Routes, func(r Route, _ struct{}) bool { return r.Dev == dev && family(r.Dst.Addr()) })
	maps.DeleteFunc(s.Neighs, func(n Neigh, _ struct{}) bool { return n.Dev == dev && family(n.IP) })
}

// unsource removes the routes with an IPv4 source address that is left
// nowhere. (An IPv6 route stays and loses its source.)
func (s State) unsource(a netip.Addr) {
	if s.hasAddr(a) {
		return
	}
	maps.DeleteFunc(s.Routes, func(r Route, _ struct{}) bool { return a.Is4() && r.Src == a })
}

// drop removes a device with all that is on it.
func (s State) drop(dev string) {
	s.flush(dev, func(netip.Addr) bool { return true })
	maps.DeleteFunc(s.Links, func(l Link, _ struct{}) bool { return l.Name == dev })
	for a := range s.Addrs {
		if a.Dev == dev {
			delete(s.Addrs, a)
			defer s.unsource(a.Prefix.Addr())
		}
	}
	maps.DeleteFunc(s.FDB, func(f FDB, _ struct{}) bool { return f.Dev == dev })
}
