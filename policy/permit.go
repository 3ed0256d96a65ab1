// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
)

// permit writes pairs and rows. It is false if they are too many.
func (k *compiler) permit() bool {
	p := permitter{compiler: k, sets: map[ends]*portSet{}, distinct: map[string]*portSet{}}
	for _, d := range Directions() {
		for _, cl := range k.classes[d] {
			for _, np := range cl.policies {
				for _, r := range k.words.rules[np][d] {
					if k.spent.items += k.reach(d, r) * (1 + len(r.ports)); k.spent.over() {
						return false
					}
					for _, f := range k.addressees(d, r) {
						p.at(ends{d, cl, f}).add(r.ports, cl.names(d, f))
					}
					if len(p.sets) > MaxRows {
						return false
					}
				}
			}
		}
	}
	p.tidy()
	k.spent.rows += len(p.sets)
	for _, s := range p.distinct {
		k.spent.rows += s.rows()
	}
	if k.spent.over() {
		return false
	}
	p.write()
	return true
}

// A permitter is permit at work.
type permitter struct {
	*compiler
	sets     map[ends]*portSet
	distinct map[string]*portSet // by key, once tidy
}

// ends are a Pair before it has numbers.
type ends struct {
	direction Direction
	class     *class
	face      *face // nil: anyone
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
func (k *compiler) reach(d Direction, r termRule) int {
	if r.terms == nil && d == Egress {
		return 1 + len(k.faces)
	}
	n := 1
	for _, t := range r.terms {
		n += len(k.byTerm[t])
	}
	return n
}

// addressees returns the faces that rule r is for; nil among them is anyone.
// Names of ports make an Egress rule without peers one for pods alone, as far
// as those go.
func (k *compiler) addressees(d Direction, r termRule) []*face {
	if r.terms == nil {
		out := []*face{nil}
		if d == Egress && slices.ContainsFunc(r.ports, func(p Port) bool { return p.Name != "" }) {
			for _, f := range k.faces {
				if len(f.named) > 0 {
					out = append(out, f)
				}
			}
		}
		return out
	}
	var out []*face
	for _, t := range r.terms {
		out = append(out, k.byTerm[t]...)
	}
	return out
}

// names returns what resolves port names between pods of c and addresses of f.
func (c *class) names(d Direction, f *face) func(Port) []uint16 {
	named := c.named
	if d == Egress {
		named = nil
		if f != nil {
			named = f.named
		}
	}
	return func(p Port) []uint16 {
		var out []uint16
		for _, n := range named {
			if n.Name == p.Name && n.Proto == p.Proto {
				out = append(out, n.From)
			}
		}
		return out
	}
}
