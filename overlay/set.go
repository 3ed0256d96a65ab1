// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// entryOf is an entry type that can be a Set's element and be put in order.
type entryOf[E any] interface {
	comparable
	Entry
	compare(E) int
}

// Add puts e into s, which must not be nil.
func (s Set[E]) Add(e E) { s[e] = struct{}{} }

// Has reports whether s holds e. A nil Set holds nothing.
func (s Set[E]) Has(e E) bool {
	_, ok := s[e]
	return ok
}

// is reports whether s and o are one set, which is quickly told.
func (s Set[E]) is(o Set[E]) bool {
	return s != nil && reflect.ValueOf(s).UnsafePointer() == reflect.ValueOf(o).UnsafePointer()
}

// NewState returns an empty State with sets that can be added to.
func NewState() State {
	return State{
		Filters: Set[Filter]{}, Nodes: Set[Node]{}, Sources: Set[Source]{}, Pods: Set[Pods]{},
		Links: Set[Link]{}, Addrs: Set[Addr]{}, FDB: Set[FDB]{}, Neighs: Set[Neigh]{}, Routes: Set[Route]{},
	}
}

// Clone returns a copy that shares no memory with s and can be added to.
func (s State) Clone() State {
	c := NewState()
	maps.Copy(c.Filters, s.Filters)
	maps.Copy(c.Nodes, s.Nodes)
	maps.Copy(c.Sources, s.Sources)
	maps.Copy(c.Pods, s.Pods)
	maps.Copy(c.Links, s.Links)
	maps.Copy(c.Addrs, s.Addrs)
	maps.Copy(c.FDB, s.FDB)
	maps.Copy(c.Neighs, s.Neighs)
	maps.Copy(c.Routes, s.Routes)
	return c
}

// Equal reports whether s and o hold the same entries.
func (s State) Equal(o State) bool {
	return maps.Equal(s.Filters, o.Filters) && maps.Equal(s.Nodes, o.Nodes) && maps.Equal(s.Sources, o.Sources) &&
		maps.Equal(s.Pods, o.Pods) &&
		maps.Equal(s.Links, o.Links) && maps.Equal(s.Addrs, o.Addrs) && maps.Equal(s.FDB, o.FDB) &&
		maps.Equal(s.Neighs, o.Neighs) && maps.Equal(s.Routes, o.Routes)
}

// Add puts e into the set of its kind, which must not be nil.
func (s State) Add(e Entry) {
	switch e := e.(type) {
	case Filter:
		s.Filters.Add(e)
	case Node:
		s.Nodes.Add(e)
	case Source:
		s.Sources.Add(e)
	case Pods:
		s.Pods.Add(e)
	case Link:
		s.Links.Add(e)
	case Addr:
		s.Addrs.Add(e)
	case FDB:
		s.FDB.Add(e)
	case Neigh:
		s.Neighs.Add(e)
	case Route:
		s.Routes.Add(e)
	}
}

// remove takes e out of the set of its kind.
func (s State) remove(e Entry) {
	switch e := e.(type) {
	case Filter:
		delete(s.Filters, e)
	case Node:
		delete(s.Nodes, e)
	case Source:
		delete(s.Sources, e)
	case Pods:
		delete(s.Pods, e)
	case Link:
		delete(s.Links, e)
	case Addr:
		delete(s.Addrs, e)
	case FDB:
		delete(s.FDB, e)
	case Neigh:
		delete(s.Neighs, e)
	case Route:
		delete(s.Routes, e)
	}
}

// Counts says how many entries of each kind a State holds. Comparable.
type Counts struct{ Filters, Nodes, Sources, Pods, Links, Addrs, FDB, Neighs, Routes int }

// Counts returns the number of entries of each kind in s.
func (s State) Counts() Counts {
	return Counts{len(s.Filters), len(s.Nodes), len(s.Sources), len(s.Pods), len(s.Links), len(s.Addrs), len(s.FDB), len(s.Neighs), len(s.Routes)}
}

// Total returns the number of entries of all kinds.
func (c Counts) Total() int {
	return c.Filters + c.Nodes + c.Sources + c.Pods + c.Links + c.Addrs + c.FDB + c.Neighs + c.Routes
}

// String renders c as "1 filter, 3 node, 9 source, 0 pods, 1 link, 1 addr, 2 fdb,
// 2 neigh, 2 route".
func (c Counts) String() string {
	return fmt.Sprintf("%d filter, %d node, %d source, %d pods, %d link, %d addr, %d fdb, %d neigh, %d route",
		c.Filters, c.Nodes, c.Sources, c.Pods, c.Links, c.Addrs, c.FDB, c.Neighs, c.Routes)
}

// sorted returns the elements of s in the order of their compare methods.
func sorted[E entryOf[E]](s Set[E]) []E {
	return slices.SortedFunc(maps.Keys(s), E.compare)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
