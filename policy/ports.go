// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"
)

// A span is the ports from to to, both included.
type span struct{ from, to uint16 }

// lastPort is the highest port.
const lastPort = 65535

func (s span) every() bool { return s == span{0, lastPort} }

// expandPorts is how many ports a span may have to become a row for each: such
// rows are found at the first lookup, and never have to be cut.
const expandPorts = 16

func (s span) long() bool { return int(s.to)-int(s.from) >= expandPorts && !s.every() }

// portSet is what some rules let pass between two ends.
type portSet struct {
	others bool // protocols without ports
	spans  [3][]span
}

// add adds what a rule's ports let pass. named resolves names.
func (s *portSet) add(ports []Port, named func(Port) []uint16) {
	if len(ports) == 0 {
		s.others = true
		for i := range s.spans {
			s.spans[i] = append(s.spans[i], span{0, lastPort})
		}
	}
	for _, p := range ports {
		protos := portProtocols()
		i := slices.Index(protos[:], p.Proto)
		switch {
		case i < 0:
		case p.Name != "":
			for _, n := range named(p) {
				s.spans[i] = append(s.spans[i], span{n, n})
			}
		case p.all():
			s.spans[i] = append(s.spans[i], span{0, lastPort})
		default:
			s.spans[i] = append(s.spans[i], span{p.From, p.To})
		}
	}
}

// tidy makes spans ascending, with a gap between any two.
func (s *portSet) tidy() {
	for i, list := range s.spans {
		s.spans[i] = tidied(list)
	}
}

func tidied(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var out []span
	for _, s := range list {
		if n := len(out); n > 0 && int(s.from) <= int(out[n-1].to)+1 {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// pieces cuts spans so that each of them is a number of whole pieces.
func pieces(spans map[span]bool) []span {
	var cuts []int // where one begins
	for s := range spans {
		cuts = append(cuts, int(s.from), int(s.to)+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []span
	for i := 1; i < len(cuts); i++ {
		p := span{uint16(cuts[i-1]), uint16(cuts[i] - 1)}
		for s := range spans {
			if s.from <= p.from && p.to <= s.to {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// within returns those of ascending pieces that are in s.
func within(pieces []span, s span) []span {
	i, _ := slices.BinarySearchFunc(pieces, s.from, func(p span, from uint16) int { return cmp.Compare(p.from, from) })
	j := i
	for j < len(pieces) && pieces[j].to <= s.to {
		j++
	}
	return pieces[i:j]
}
