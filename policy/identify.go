// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// identify gives addresses their identities: those of blocks, and those of
// pods that are something else to a policy than their address alone says. It is
// false if that is too much.
func (t *trial) identify() bool {
	i := identifier{trial: t, faces: map[digest]*face{}}
	var ok bool
	if i.zones, ok = zones(t.words.blocks, &t.meter); !ok || !i.pods() {
		return false
	}
	for _, z := range i.zones {
		i.ofZones = append(i.ofZones, i.look(z.members, nil))
	}
	var keys []string
	for key := range i.faces {
		keys = append(keys, string(key[:]))
	}
	for key, n := range numbers(keys) {
		i.faces[digest([]byte(key))].id = Identity(n)
	}
	for n, z := range i.zones {
		t.table.Blocks = append(t.table.Blocks, AddrRange{z.from, z.to, i.ofZones[n].id})
	}
	t.table.Identities = make(map[netip.Addr]Identity, len(i.ofPods))
	for _, p := range i.ofPods {
		t.table.Identities[p.addr] = p.face.id
	}
	t.byTerm = make([][]*face, len(t.words.terms))
	for _, f := range i.faces {
		t.faces = append(t.faces, f)
		for _, n := range f.terms {
			t.byTerm[n] = append(t.byTerm[n], f)
		}
	}
	return true
}

// An identifier is identify at work.
type identifier struct {
	*trial
	zones   []zone
	faces   map[digest]*face
	ofZones []*face
	ofPods  []podFace
}

// look returns the face of terms and names of ports, the same for equal ones.
func (i *identifier) look(terms []int, named []Port) *face {
	key := i.words.key(terms, named)
	f, ok := i.faces[key]
	if !ok {
		f = &face{terms: terms, byName: byName(named)}
		i.faces[key] = f
	}
	return f
}

// A podFace is the face of a pod's address.
type podFace struct {
	addr netip.Addr
	face *face
}

// A spot is what the face of a pod's address depends on beside its choice.
type spot struct {
	zone  int // -1: none
	ports string
}

// pods finds the faces of pods' addresses that need one.
func (i *identifier) pods() bool {
	i.ofPods = make([]podFace, 0, len(i.holders))
	quarters := map[string]*quarter{}
	for a, pod := range i.holders {
		q, ok := quarters[pod.Namespace]
		if !ok {
			ns, exists := i.cluster.Namespaces[pod.Namespace]
			if exists {
				i.steps += i.words.crossing
			}
			q = newQuarter(i.words, i.words.of(pod.Namespace, ns, exists))
			quarters[pod.Namespace] = q
		}
		choice := q.choice(i.words, pod.Labels, &i.meter)
		if i.full() {
			return false
		}
		ports := i.resolved(pod)
		if len(choice.terms) == 0 && len(ports) == 0 {
			continue // what its address is
		}
		f, ok := i.face(choice, zoneAt(i.zones, a), ports)
		if !ok {
			return false
		}
		i.ofPods = append(i.ofPods, podFace{a, f})
	}
	return true
}

// face returns the face of the pods that a choice selects, with addresses of a
// zone and ports that policies name; false if it is one too many.
func (i *identifier) face(c *choice, zone int, ports []Port) (*face, bool) {
	at := spot{zone, portKeys(ports)}
	if f, ok := c.faces[at]; ok {
		return f, true
	}
	terms := c.terms
	if zone >= 0 {
		terms = append(slices.Clone(terms), i.zones[zone].members...)
		slices.Sort(terms)
	}
	if i.items += len(terms); i.full() {
		return nil, false
	}
	f := i.look(terms, ports)
	if c.faces == nil {
		c.faces = map[spot]*face{}
	}
	c.faces[at] = f
	return f, true
}

// resolved returns which ports of pod the names of Egress rules stand for.
func (i *identifier) resolved(pod *Pod) []Port {
	if len(i.words.names) == 0 {
		return nil
	}
	i.steps += len(pod.Ports)
	return resolve(func(p Port) bool { return i.words.names[p] }, pod)
}

// A quarter is a namespace as peers see it.
type quarter struct {
	byLabel map[[2]string][]int // terms that may select its pods, by one that these must have
	others  []int
	cost    int                 // of comparing labels with others
	kinds   map[*Labels]*choice // equal labels are mostly the same
	none    choice
}

func newQuarter(v *vocabulary, terms []int) *quarter {
	q := &quarter{byLabel: map[[2]string][]int{}, kinds: map[*Labels]*choice{}}
	for _, t := range terms {
		if label := v.terms[t].label; label != ([2]string{}) {
			q.byLabel[label] = append(q.byLabel[label], t)
			continue
		}
		q.others = append(q.others, t)
		q.cost += v.terms[t].cost
	}
	return q
}

// A choice is the terms that select pods, and the faces of these.
type choice struct {
	terms []int
	faces map[spot]*face
}

// choice returns the terms that select pods of q with labels l. Once s is full,
// it may be none.
func (q *quarter) choice(v *vocabulary, l *Labels, s *meter) *choice {
	if len(q.byLabel)+len(q.others) == 0 {
		return &q.none
	}
	if c, ok := q.kinds[l]; ok {
		return c
	}
	candidates := slices.Clone(q.others)
	s.steps += q.cost
	if l != nil {
		for name, value := range l.set {
			for _, t := range q.byLabel[[2]string{name, value}] {
				candidates = append(candidates, t)
				s.steps += v.terms[t].cost
			}
		}
	}
	if s.full() {
		return &q.none
	}
	c := &choice{terms: v.entitled(candidates, l)}
	s.items += len(c.terms)
	q.kinds[l] = c
	return c
}
