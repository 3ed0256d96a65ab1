// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
)

// permit writes pairs and rows, or returns the namespaces whose policies come
// to too many.
func (k *compiler) permit() (tooLarge []string) {
	if tooLarge = k.estimate(); tooLarge != nil {
		return tooLarge
	}
	p := permitter{compiler: k, sets: map[ends]*portSet{}, distinct: map[string]*portSet{}}
	for _, d := range Directions() {
		for _, cl := range k.classes[d] {
			for _, np := range cl.policies {
				for _, r := range k.words.rules[np][d] {
					for _, f := range k.addressees(d, r) {
						p.at(ends{d, cl, f}).add(r.ports, cl.names(d, f))
					}
				}
			}
		}
	}
	p.tidy()
	if tooLarge = p.tooLarge(); tooLarge != nil {
		return tooLarge
	}
	p.write()
	return nil
}

// estimate returns the namespaces whose rules come to too many ports of peers,
// equal ones counted each.
func (k *compiler) estimate() (tooLarge []string) {
	var steps spending
	for _, d := range Directions() {
		for _, cl := range k.classes[d] {
			for _, p := range cl.policies {
				for _, r := range k.words.rules[p][d] {
					steps.add(p.Namespace, k.reach(d, r)*(1+len(r.ports)))
				}
			}
		}
	}
	if steps.total > maxSteps {
		return steps.largest()
	}
	return nil
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

// tooLarge returns the namespaces that come to the most, if all together come to
// too much.
func (p *permitter) tooLarge() []string {
	var s spending
	type use struct {
		namespace string
		set       *portSet
	}
	seen := map[use]bool{}
	for e, set := range p.sets {
		u := use{e.class.namespace(), set}
		s.add(u.namespace, 1)
		if !seen[u] {
			seen[u] = true
			s.add(u.namespace, set.rows())
		}
	}
	if s.total > MaxRows {
		return s.largest()
	}
	return nil
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
