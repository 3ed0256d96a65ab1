// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// A span is the ports from to to, both included.
type span struct{ from, to uint16 }

// lastPort is the highest port.
const lastPort = 65535

func (s span) every() bool { return s == span{0, lastPort} }

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
	number PortSet
	others bool // protocols without ports
	spans  [3][]span
}

// add adds what a rule's ports let pass, and returns for how many names there
// are numbers. byName has these.
func (s *portSet) add(ports []Port, byName map[Port][]uint16) (numbers int) {
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
			for _, n := range byName[Port{Proto: p.Proto, Name: p.Name}] {
				s.spans[i] = append(s.spans[i], span{n, n})
				numbers++
			}
		case p.all():
			s.spans[i] = append(s.spans[i], span{0, lastPort})
		default:
			s.spans[i] = append(s.spans[i], span{p.From, p.To})
		}
	}
	return numbers
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

// empty reports whether s, which is tidy, lets nothing pass.
func (s *portSet) empty() bool {
	for range s.each {
		return false
	}
	return true
}

// rows is how many rows s is, which is tidy.
func (s *portSet) rows() int {
	n := 0
	for range s.each {
		n++
	}
	return n
}

// each goes through the rows of s, which is tidy.
func (s *portSet) each(yield func(Row) bool) {
	if s.others && !yield(Row{Set: s.number}) {
		return
	}
	for i, proto := range portProtocols() {
		for _, sp := range s.spans[i] {
			if sp.every() {
				if !yield(Row{s.number, proto, 0, 0}) {
					return
				}
				continue
			}
			for r := range sp.runs {
				if !yield(Row{s.number, proto, r.bits, r.port}) {
					return
				}
			}
		}
	}
}

// key is equal for equal sets that are tidy.
func (s *portSet) key() string {
	var b []byte
	if s.others {
		b = append(b, '*')
	}
	for i, list := range s.spans {
		b = append(b, '/', byte(i))
		b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
		for _, sp := range list {
			b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, sp.from), sp.to)
		}
	}
	return string(b)
}

// includes reports whether all of o is in s; both are tidy.
func (s *portSet) includes(o *portSet) bool {
	if o.others && !s.others {
		return false
	}
	for i, list := range o.spans {
		n := 0
		for _, sp := range list {
			for n < len(s.spans[i]) && s.spans[i][n].to < sp.from {
				n++
			}
			if n == len(s.spans[i]) || s.spans[i][n].from > sp.from || sp.to > s.spans[i][n].to {
				return false
			}
		}
	}
	return true
}
