// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
)

// permit writes pairs and rows. It is false if they are too many.
func (t *trial) permit() bool {
	p := permitter{trial: t, sets: map[ends]*portSet{}, distinct: map[string]*portSet{}}
	for _, d := range Directions() {
		for _, cl := range t.classes[d] {
			for _, np := range cl.policies {
				for _, r := range t.words.rules[np][d] {
					if !p.rule(d, cl, r) {
						return false
					}
				}
			}
		}
	}
	p.tidy()
	t.rows += len(p.sets)
	for _, s := range p.distinct {
		t.rows += s.rows()
	}
	if t.full() {
		return false
	}
	p.write()
	return true
}

// A permitter is permit at work.
type permitter struct {
	*trial
	sets     map[ends]*portSet
	distinct map[string]*portSet // by key, once tidy
}

// ends are a Pair before it has numbers.
type ends struct {
	direction Direction
	class     *class
	face      *face // nil: anyone
}

// rule adds what r lets pass between pods of cl and others. It is false once that
// is too much.
func (p *permitter) rule(d Direction, cl *class, r termRule) bool {
	if p.items += p.reach(d, r) * (1 + len(r.ports)); p.full() {
		return false
	}
	for _, f := range p.addressees(d, r) {
		p.items += p.at(ends{d, cl, f}).add(r.ports, cl.names(d, f))
		if len(p.sets) > p.most.rows || p.full() {
			return false
		}
	}
	return true
}

func (p *permitter) at(e ends) *portSet {
	s, ok := p.sets[e]
	if !ok {
		s = &portSet{}
		p.sets[e] = s
	}
	return s
}

// tidy leaves out what is said for anyone already, and makes equal sets one.
func (p *permitter) tidy() {
	for _, s := range p.sets {
		s.tidy()
	}
	for e, s := range p.sets {
		if all, ok := p.sets[ends{e.direction, e.class, nil}]; s.empty() || e.face != nil && ok && all.includes(s) {
			delete(p.sets, e)
			continue
		}
		key := s.key()
		if same, ok := p.distinct[key]; ok {
			p.sets[e] = same
		} else {
			p.distinct[key] = s
		}
	}
}

// write writes the table.
func (p *permitter) write() {
	keys := make([]string, 0, len(p.distinct))
	for key := range p.distinct {
		keys = append(keys, key)
	}
	for key, n := range numbers(keys) {
		s := p.distinct[key]
		s.number = PortSet(n)
		for r := range s.each {
			p.table.Rows[r] = true
		}
	}
	for e, s := range p.sets {
		pair := Pair{Direction: e.direction, Class: e.class.number}
		if e.face != nil {
			pair.Identity = e.face.id
		}
		p.table.Pairs[pair] = s.number
	}
}

// reach is how many faces addressees returns at most, and at least 1.
func (t *trial) reach(d Direction, r termRule) int {
	if r.terms == nil && d == Egress {
		return 1 + len(t.faces)
	}
	n := 1
	for _, i := range r.terms {
		n += len(t.byTerm[i])
	}
	return n
}

// addressees returns the faces that rule r is for; nil among them is anyone.
// Names of ports make an Egress rule without peers one for pods alone, as far
// as those go.
func (t *trial) addressees(d Direction, r termRule) []*face {
	if r.terms == nil {
		out := []*face{nil}
		if d == Egress && slices.ContainsFunc(r.ports, func(p Port) bool { return p.Name != "" }) {
			for _, f := range t.faces {
				if len(f.byName) > 0 {
					out = append(out, f)
				}
			}
		}
		return out
	}
	var out []*face
	for _, i := range r.terms {
		out = append(out, t.byTerm[i]...)
	}
	return out
}

// names returns what resolves port names between pods of c and addresses of f.
func (c *class) names(d Direction, f *face) map[Port][]uint16 {
	switch {
	case d == Ingress:
		return c.byName
	case f != nil:
		return f.byName
	}
	return nil
}
