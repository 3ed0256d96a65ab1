// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// A term is a peer that an active policy names: a block, or pods of one
// namespace, or of selected ones. Equal peers of several rules are one term.
type term struct {
	key        digest
	block      *Block
	namespace  string          // where there is no namespaces
	namespaces labels.Selector // or nil
	pods       labels.Selector // nil: all
	cost       int             // of comparing labels with it
	label      [2]string       // name and value of one that pods must have; empty: none
}

// A digest tells apart what it is made from.
type digest [sha256.Size]byte

func compareDigests(a, b digest) int { return bytes.Compare(a[:], b[:]) }

func newTerm(namespace string, p Peer) term {
	if p.Block != nil {
		except := make([]string, 0, len(p.Block.Except))
		for _, e := range p.Block.Except {
			except = append(except, e.Masked().String())
		}
		slices.Sort(except)
		return term{key: sha256.Sum256([]byte("b " + p.Block.CIDR.Masked().String() + " " + strings.Join(except, " "))), block: p.Block}
	}
	t := term{namespace: namespace, namespaces: p.Namespaces, pods: p.Pods, cost: 1 + values(p.Namespaces) + values(p.Pods), label: labelOf(p.Pods)}
	where := "n " + namespace
	if p.Namespaces != nil {
		where, t.namespace = "s "+p.Namespaces.String(), ""
	}
	what := ""
	if p.Pods != nil {
		what = p.Pods.String()
	}
	t.key = sha256.Sum256([]byte(where + "\x00" + what))
	return t
}

// labelOf returns a label that s asks for, empty if it asks for none.
func labelOf(s labels.Selector) [2]string {
	if s == nil {
		return [2]string{}
	}
	requirements, _ := s.Requirements() // of one that selects nothing, none
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if list := r.Values().UnsortedList(); len(list) == 1 {
				return [2]string{r.Key(), list[0]}
			}
		}
	}
	return [2]string{}
}

// A saying is a Policy with its peers as terms. Making it costs more than all
// that is done with it.
type saying struct {
	rules  [2][]sayingRule
	names  [2]map[Port]bool // in rules, by Direction: protocol and name
	weight int              // see weigh
}

type sayingRule struct {
	terms []term // none: anyone
	ports []Port
}

func newSaying(p *Policy) *saying {
	s := &saying{weight: weigh(p)}
	for _, d := range Directions() {
		s.names[d] = map[Port]bool{}
		for _, r := range p.Rules[d] {
			sr := sayingRule{ports: once(r.Ports)}
			for _, peer := range r.Peers {
				sr.terms = append(sr.terms, newTerm(p.Namespace, peer))
			}
			s.rules[d] = append(s.rules[d], sr)
			for _, port := range sr.ports {
				if port.Name != "" {
					s.names[d][Port{Proto: port.Proto, Name: port.Name}] = true
				}
			}
		}
	}
	return s
}

// once returns ports without those that are there twice.
func once(ports []Port) []Port {
	seen := make(map[Port]bool, len(ports))
	var out []Port
	for _, p := range ports {
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

// vocabulary is all that the active policies ask of an address: terms, and
// for Egress the names of ports. It is built from the policies alone.
type vocabulary struct {
	terms    []term
	byKey    map[digest]int
	names    map[Port]bool             // by protocol and name
	blocks   map[int]*Block            // by term
	inside   map[string][]int          // terms of one namespace
	across   []int                     // terms of selected namespaces
	crossing int                       // what comparing a namespace with all of these costs
	rules    map[*Policy][2][]termRule // of active policies
}

// A termRule is a Rule whose peers are terms; nil terms: anyone.
type termRule struct {
	terms []int
	ports []Port
}

func newVocabulary() *vocabulary {
	return &vocabulary{byKey: map[digest]int{}, names: map[Port]bool{}, blocks: map[int]*Block{}, inside: map[string][]int{}, rules: map[*Policy][2][]termRule{}}
}

// learn adds what p says.
func (v *vocabulary) learn(p *Policy, s *saying) {
	var both [2][]termRule
	for _, d := range Directions() {
		for _, r := range s.rules[d] {
			tr := termRule{ports: r.ports}
			for i := range r.terms {
				tr.terms = append(tr.terms, v.term(&r.terms[i]))
			}
			both[d] = append(both[d], tr)
		}
	}
	for n := range s.names[Egress] {
		v.names[n] = true
	}
	v.rules[p] = both
}

// term returns the number of t.
func (v *vocabulary) term(t *term) int {
	if i, ok := v.byKey[t.key]; ok {
		return i
	}
	i := len(v.terms)
	v.terms = append(v.terms, *t)
	v.byKey[t.key] = i
	switch {
	case t.block != nil:
		v.blocks[i] = t.block
	case t.namespaces != nil:
		v.across = append(v.across, i)
		v.crossing += t.cost
	default:
		v.inside[t.namespace] = append(v.inside[t.namespace], i)
	}
	return i
}

func comparePort(a, b Port) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), strings.Compare(a.Name, b.Name), cmp.Compare(a.From, b.From))
}

// portKeys is equal for equal lists, and empty for none.
func portKeys(list []Port) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(portKey(p) + "\x00")
	}
	return b.String()
}

func portKey(p Port) string { return fmt.Sprintf("%03d %s %05d", p.Proto, p.Name, p.From) }

// of returns the terms that could select a pod of a namespace with labels ns;
// known says whether there is such a namespace.
func (v *vocabulary) of(namespace string, ns *Labels, known bool) []int {
	out := slices.Clone(v.inside[namespace])
	if !known {
		return out
	}
	for _, i := range v.across {
		if ns.matches(v.terms[i].namespaces) {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// entitled returns the terms, of candidates, that select a pod with labels l,
// ascending.
func (v *vocabulary) entitled(candidates []int, l *Labels) []int {
	var out []int
	for _, i := range candidates {
		if l.matches(v.terms[i].pods) {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// A face is what an address is to the active policies.
type face struct {
	id     Identity
	terms  []int
	byName map[Port][]uint16 // what names of ports stand for
}

// key is equal for faces that are the same to the same policies. It is made of
// what terms say and not of their numbers, so that it lasts.
func (v *vocabulary) key(terms []int, named []Port) digest {
	keys := make([]digest, 0, len(terms))
	for _, i := range terms {
		keys = append(keys, v.terms[i].key)
	}
	slices.SortFunc(keys, compareDigests)
	h := sha256.New()
	fmt.Fprintln(h, len(keys))
	for _, k := range keys {
		h.Write(k[:])
	}
	for _, p := range named {
		fmt.Fprintln(h, portKey(p))
	}
	return digest(h.Sum(nil))
}

// numbers gives out numbers for keys: never 0, no number twice, the same for
// the same set of keys.
func numbers(keys []string) map[string]uint32 {
	slices.Sort(keys)
	out := make(map[string]uint32, len(keys))
	taken := make(map[uint32]bool, len(keys))
	for _, k := range slices.Compact(keys) {
		n := hash(k)
		for n == 0 || taken[n] {
			n++
		}
		out[k], taken[n] = n, true
	}
	return out
}
