// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"slices"
	"sync"

	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// mostProblems bounds the Problems of one snapshot: anybody who may make pods
// can make as many wrong ones.
const mostProblems = 50

// A mirror is what the API has, as last seen. Reflectors write it, each a
// table, and one goroutine takes snapshots of it.
type mirror struct {
	poke chan struct{} // there is something to deliver

	mu       sync.Mutex
	rows     [kinds][]*record // in order
	listed   [kinds]bool      // all objects have been seen once
	changed  [kinds]bool      // since the last snapshot
	last     policy.Cluster   // of the last snapshot
	problems [kinds][]subnet.Problem
}

func newMirror() *mirror { return &mirror{poke: make(chan struct{}, 1)} }

// A table is the objects of one kind. A Reflector writes it (it is a
// cache.ReflectorStore).
type table struct {
	m    *mirror
	kind int
}

// Add takes over an object.
func (t *table) Add(obj any) error { return t.Update(obj) }

// Update takes over an object.
func (t *table) Update(obj any) error {
	r, err := asRecord(obj)
	if err != nil {
		return err
	}
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	r.version = ""
	at, known := t.find(r.namespace, r.name)
	switch rows := t.m.rows[t.kind]; {
	case !known:
		t.m.rows[t.kind] = slices.Insert(rows, at, r)
	case rows[at].same(r):
		return nil
	default:
		rows[at] = r
	}
	t.touch()
	return nil
}

// Delete takes an object out.
func (t *table) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	r, err := asRecord(obj)
	if err != nil {
		return err
	}
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if at, known := t.find(r.namespace, r.name); known {
		t.m.rows[t.kind] = slices.Delete(t.m.rows[t.kind], at, at+1)
		t.touch()
	}
	return nil
}

// Replace makes a listing the content. What has not changed stays what it is.
func (t *table) Replace(list []any, _ string) error {
	rows := make([]*record, 0, len(list))
	for _, obj := range list {
		r, err := asRecord(obj)
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, (*record).compare)
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	kept := 0
	for i, r := range rows {
		r.version = ""
		if at, known := t.find(r.namespace, r.name); known && t.m.rows[t.kind][at].same(r) {
			rows[i] = t.m.rows[t.kind][at]
			kept++
		}
	}
	before := len(t.m.rows[t.kind])
	t.m.rows[t.kind] = rows
	if first := !t.m.listed[t.kind]; first || kept != len(rows) || before != len(rows) {
		t.m.listed[t.kind] = true
		t.touch()
	}
	return nil
}

// Resync does nothing: what is here follows from nothing else.
func (t *table) Resync() error { return nil }

// find returns where an object is, or belongs. The mirror is locked, here and
// below.
func (t *table) find(namespace, name string) (int, bool) {
	return slices.BinarySearchFunc(t.m.rows[t.kind], 0, func(r *record, _ int) int { return r.compareName(namespace, name) })
}

// touch records that something has changed.
func (t *table) touch() {
	t.m.changed[t.kind] = true
	if t.m.complete() {
		select {
		case t.m.poke <- struct{}{}:
		default: // one is enough
		}
	}
}

func asRecord(obj any) (*record, error) {
	r, ok := obj.(*record)
	if !ok {
		return nil, fmt.Errorf("an object came as %T, want a record", obj)
	}
	return r, nil
}

func (m *mirror) complete() bool { return m.listed == [kinds]bool{true, true, true} }

// snapshot returns the content. It is empty-handed (false) when nothing has
// changed, and before all kinds have been listed. What has not changed is
// shared with the last one.
func (m *mirror) snapshot() (Snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.complete() || m.changed == [kinds]bool{} {
		return Snapshot{}, false
	}
	if m.changed[pods] {
		m.last.Pods = column(m.rows[pods], func(r *record) *policy.Pod { return r.pod })
	}
	if m.changed[policies] {
		m.last.Policies = column(m.rows[policies], func(r *record) *policy.Policy { return r.policy })
	}
	if m.changed[namespaces] {
		m.last.Namespaces = make(map[string]*policy.Labels, len(m.rows[namespaces]))
		for _, r := range m.rows[namespaces] {
			m.last.Namespaces[r.name] = r.labels
		}
	}
	for kind, changed := range m.changed {
		if changed {
			m.problems[kind] = problems(m.rows[kind])
		}
	}
	m.changed = [kinds]bool{}
	return Snapshot{Cluster: m.last, Problems: bounded(slices.Concat(m.problems[:]...))}, true
}

// column is one thing of each row.
func column[E any](rows []*record, of func(*record) E) []E {
	out := make([]E, len(rows))
	for i, r := range rows {
		out[i] = of(r)
	}
	return out
}

// problems are those of rows.
func problems(rows []*record) []subnet.Problem {
	var out []subnet.Problem
	for _, r := range rows {
		switch {
		case r.problem == "":
		case r.pod != nil:
			out = append(out, subnet.Problem{Kind: "PodInvalid", Object: r.namespace + "/" + r.name, Detail: r.problem})
		default:
			out = append(out, subnet.Problem{Kind: "PolicyInvalid", Object: r.namespace + "/" + r.name, Detail: r.problem})
		}
	}
	return out
}

// bounded names the first of list, and counts the others.
func bounded(list []subnet.Problem) []subnet.Problem {
	if len(list) <= mostProblems {
		return list
	}
	return append(list[:mostProblems:mostProblems], subnet.Problem{Kind: "MoreInvalid", Object: "policies",
		Detail: fmt.Sprintf("%d more pods and policies are not understood", len(list)-mostProblems)})
}

// row returns the record of an object, nil if it was not seen.
func (m *mirror) row(kind int, namespace, name string) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := table{m, kind}
	if at, known := t.find(namespace, name); known {
		return m.rows[kind][at]
	}
	return nil
}
