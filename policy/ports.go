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

// rows is how many rows s is, which is tidy.
func (s *portSet) rows() int {
	n := 0
	if s.others {
		n++
	}
	for _, list := range s.spans {
		for _, sp := range list {
			if sp.every() {
				n++
				continue
			}
			for range sp.runs {
				n++
			}
		}
	}
	return n
}

// A run is the 1<<bits ports from port on, which is a multiple of that.
type run struct {
	port uint16
	bits uint8
}

// runs are the fewest of a port and of Widths that are s, ascending. Port 0 by
// itself is none: nothing is sent to it (RFC 6335, section 6), and no policy
// names it.
func (s span) runs(yield func(run) bool) {
	widths := Widths()
	for port, end := int(s.from), int(s.to)+1; port < end; {
		var bits uint8
		for _, b := range widths {
			if size := 1 << b; port%size == 0 && port+size <= end {
				bits = b
			}
		}
		if (bits > 0 || port > 0) && !yield(run{uint16(port), bits}) {
			return
		}
		port += 1 << bits
	}
}

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
