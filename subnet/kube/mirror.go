// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/subnet"
)

// wipeGrace is how long a Node whose annotations were wiped keeps its lease,
// also where flannel's old ones are still there and would be read next. Its
// agent sees it at once and publishes them again, unless the API is slow or the
// agent restarts; peers must not lose it over that.
const wipeGrace = time.Minute

// mostNamed bounds how many Nodes a Problem of several names.
const mostNamed = 5

// maxDetail bounds what a Problem quotes from the API, in bytes.
const maxDetail = 300

// A mirror is what all Nodes say about leases, as last seen. A Reflector
// writes it (it is a cache.TransformingStore), another goroutine adds podCIDRs.
type mirror struct {
	ds   dialects
	seed maphash.Seed
	now  func() time.Time
	poke chan struct{} // there is something to deliver
	ask  chan struct{} // there are podCIDRs to read

	mu      sync.Mutex
	peers   map[string]*peer // by Node name
	roll    subnet.Roll      // the usable leases
	listed  bool             // all Nodes have been seen once
	told    bool             // there was a snapshot
	changed bool             // since the last snapshot
}

// A peer is one Node that has, or had, a lease.
type peer struct {
	uid    types.UID
	digest uint64            // of what matters of its annotations
	ann    map[string]string // that, while it may have to be read again
	own    bool              // its lease is in the dialect that we publish in
	oneWay bool              // its lease is in another
	cidrs  []netip.Prefix    // as read from the Node with this UID; nil before
	asking bool              // cidrs are to be read
	err    error             // why the annotations do not parse
	wiped  time.Time         // since when the annotations of its lease are gone; zero while they are there
}

func newMirror(ds dialects, now func() time.Time) *mirror {
	return &mirror{ds: ds, seed: maphash.MakeSeed(), now: now, peers: map[string]*peer{},
		poke: make(chan struct{}, 1), ask: make(chan struct{}, 1)}
}

// Transformer strips what has no bearing on a lease before a Reflector keeps
// it: managedFields, labels, and the annotations of others.
func (m *mirror) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		n, ok := obj.(*metav1.PartialObjectMetadata)
		if !ok {
			return obj, nil
		}
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: m.ds.pick(n.Annotations)}}, nil
	}
}

// Add takes over a Node.
func (m *mirror) Add(obj any) error { return m.Update(obj) }

// Update takes over a Node.
func (m *mirror) Update(obj any) error {
	n, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return fmt.Errorf("a Node came as %T, want its metadata", obj)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(n)
	m.tell()
	return nil
}

// Delete takes a Node out.
func (m *mirror) Delete(obj any) error {
	name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(name)
	m.tell()
	return nil
}

// Replace makes a listing the content.
func (m *mirror) Replace(list []any, _ string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	there := make(map[string]bool, len(list))
	for _, obj := range list {
		n, ok := obj.(*metav1.PartialObjectMetadata)
		if !ok {
			return fmt.Errorf("a Node came as %T, want its metadata", obj)
		}
		there[n.Name] = true
		m.put(n)
	}
	for name := range m.peers {
		if !there[name] {
			m.remove(name)
		}
	}
	m.changed = m.changed || !m.listed
	m.listed = true
	m.tell()
	return nil
}

// Resync does nothing: what is here follows from nothing else.
func (m *mirror) Resync() error { return nil }

// put takes over a Node. Nothing happens when what matters is as before.
func (m *mirror) put(n *metav1.PartialObjectMetadata) {
	p, known := m.peers[n.Name]
	_, managed := m.ds.of(n.Annotations)
	if !known && !managed {
		return
	}
	digest := m.ds.digest(m.seed, n.Annotations)
	if known && p.uid == n.UID && p.digest == digest {
		if p.asking { // what changed may be what was lacking
			poke(m.ask)
		}
		return
	}
	if !known {
		p = &peer{}
		m.peers[n.Name] = p
	}
	if p.uid != n.UID {
		// The lease of the Node's predecessor stays until this one's is read.
		p.uid, p.cidrs, p.own = n.UID, nil, false
	}
	p.digest = digest
	m.read(n.Name, p, m.ds.pick(n.Annotations))
}

// read makes a lease of a Node's annotations.
func (m *mirror) read(name string, p *peer, ann map[string]string) {
	d, managed := m.ds.of(ann)
	oneWay := d.prefix != m.ds[0].prefix
	p.ann, p.asking = nil, false
	if !managed || p.own && oneWay {
		p.ann = ann
		if p.wiped.IsZero() {
			p.wiped = m.now()
			poke(m.poke) // there is a moment at which to look again
		}
		return
	}
	p.wiped = time.Time{}
	if !d.whole {
		p.ann = ann
	}
	if !d.whole && p.cidrs == nil {
		p.asking = true
		poke(m.ask)
		return
	}
	m.changed = m.changed || oneWay != p.oneWay
	p.oneWay = oneWay
	l, err := d.decode(name, p.cidrs, ann)
	m.changed = m.changed || fmt.Sprint(err) != fmt.Sprint(p.err)
	if p.err = err; err != nil {
		return
	}
	p.own = !oneWay
	m.changed = m.roll.Put(name, l) || m.changed
}

func (m *mirror) remove(name string) {
	p, known := m.peers[name]
	if !known {
		return
	}
	delete(m.peers, name)
	m.changed = m.roll.Remove(name) || p.err != nil || p.oneWay || m.changed
}

// unread returns the names of the Nodes whose podCIDRs are to be read.
func (m *mirror) unread() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name, p := range m.peers {
		if p.asking {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// learn takes over what was read of the Node called name: its podCIDRs, or why
// there are none. It reports whether that is settled. What belongs to another
// UID than the one the watch has seen is not taken.
func (m *mirror) learn(name string, uid types.UID, cidrs []netip.Prefix, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.tell()
	p, known := m.peers[name]
	switch {
	case !known || !p.asking:
		return true
	case err != nil:
		m.changed = m.changed || fmt.Sprint(err) != fmt.Sprint(p.err)
		p.err = err
		return false
	case p.uid != uid:
		return false // the watch brings the other one, or takes it away
	}
	p.cidrs, p.asking = cidrs, false
	m.read(name, p, p.ann)
	return true
}

// tell pokes when there is something to deliver.
func (m *mirror) tell() {
	if m.changed && m.listed {
		poke(m.poke)
	}
}

// snapshot returns the content, and in how long it has to be looked at again
// without a change (0 for never). It is empty-handed (false) when nothing has
// changed, and before all Nodes have been seen and those that have to be read
// were: what the first snapshot lacks would be taken out of the kernel.
func (m *mirror) snapshot() (snap subnet.Snapshot, again time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	again = m.forgetWiped()
	if !m.listed || !m.changed || !m.told && m.untried() {
		return snap, again, false
	}
	m.changed, m.told = false, true
	snap.Leases = m.roll.Leases()
	for name, p := range m.peers {
		if p.err != nil {
			snap.Problems = append(snap.Problems, m.junk(name, p))
		}
	}
	slices.SortFunc(snap.Problems, func(a, b subnet.Problem) int { return strings.Compare(a.Object, b.Object) })
	snap.Problems = append(snap.Problems, m.oneWay()...)
	return snap, again, true
}

// untried reports whether there are Nodes that nobody has tried to read.
func (m *mirror) untried() bool {
	for _, p := range m.peers {
		if p.asking && p.err == nil {
			return true
		}
	}
	return false
}

// forgetWiped drops the leases whose annotations have been gone for wipeGrace,
// or reads those that are left, and returns when the next one will be (0 for none).
func (m *mirror) forgetWiped() (next time.Duration) {
	now := m.now()
	for name, p := range m.peers {
		if p.wiped.IsZero() {
			continue
		}
		left := wipeGrace - now.Sub(p.wiped)
		if left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		if _, managed := m.ds.of(p.ann); managed {
			p.own = false
			m.read(name, p, p.ann)
			continue
		}
		m.remove(name)
	}
	return next
}

// oneWay is the Problem of all Nodes together that only flannel has annotated,
// while we write weft's annotations: flannel does not read these.
func (m *mirror) oneWay() []subnet.Problem {
	var names []string
	for name, p := range m.peers {
		if p.oneWay && m.roll.Has(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	more := ""
	if n := len(names) - mostNamed; n > 0 {
		names, more = names[:mostNamed], fmt.Sprintf(" and %d more", n)
	}
	return []subnet.Problem{{Kind: "OneWayPeers", Object: "flannel", Detail: fmt.Sprintf(
		"only flannel has annotated Nodes %s%s; it reads no annotations of weft's, so what pods here send there is not answered: run weft on these nodes too, or flannel's annotations on all (--flannel-compat)",
		clip(strings.Join(names, ", ")), more)}}
}

// junk is the Problem of one Node.
func (m *mirror) junk(name string, p *peer) subnet.Problem {
	detail := p.err.Error()
	if m.roll.Has(name) {
		detail = "its last good lease is kept: " + detail
	}
	return subnet.Problem{Kind: "JunkLease", Object: clip(name), Detail: clip(detail)}
}

// clip bounds text that came from the API.
func clip(text string) string {
	if len(text) <= maxDetail {
		return text
	}
	return strings.ToValidUTF8(text[:maxDetail], "") + "..."
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is enough
	}
}
