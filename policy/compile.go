// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Compile returns the Table of node.
func Compile(c *Cluster, node string) *Table { return NewCompiler(node).Compile(c) }

// A Compiler makes Tables of one node. What it remembers of a policy from one
// Cluster to the next only saves time; it knows policies by their pointers. It
// is for one goroutine.
type Compiler struct {
	node   string
	limits spending
	said   map[*Policy]*saying // of the last Cluster
}

// NewCompiler returns a Compiler for node.
func NewCompiler(node string) *Compiler { return &Compiler{node: node, limits: limits()} }

// Compile returns the Table of c.
func (m *Compiler) Compile(c *Cluster) *Table {
	k := &compiler{cluster: c, limits: m.limits, known: m.said, said: map[*Policy]*saying{}}
	k.pods(m.node)
	k.classify()
	m.said = k.said
	all := k.try(nil)
	if !all.over() {
		return all.table
	}
	return k.refuse().table
}

// compiler is one compilation.
type compiler struct {
	cluster     *Cluster
	limits      spending
	known, said map[*Policy]*saying // from before, and of the active policies now

	holders map[netip.Addr]*Pod // who has an address
	local   []*Pod
	classes [2]map[string]*class // by key
	base    Table                // what does not depend on what policies let pass
}

// A trial is a compilation in which the policies of some namespaces let nothing
// pass.
type trial struct {
	*compiler
	meter
	words  *vocabulary
	table  *Table
	faces  []*face
	byTerm [][]*face // faces that have a term
}

// try compiles without what policies of refused namespaces let pass. If it comes
// to too much there is no table.
func (k *compiler) try(refused map[string]bool) *trial {
	table := k.base
	table.Pairs, table.Rows, table.TooLarge = map[Pair]PortSet{}, map[Row]bool{}, slices.Sorted(maps.Keys(refused))
	t := &trial{compiler: k, meter: meter{most: k.limits}, words: newVocabulary(), table: &table}
	for p, s := range k.said {
		if !refused[p.Namespace] {
			t.words.learn(p, s)
		}
	}
	if !t.identify() || !t.permit() {
		t.table = nil
	}
	return t
}

// over reports whether t came to too much.
func (t *trial) over() bool { return t.table == nil }

// A class is the policies that select some pods, and what the ports that they
// name are to those.
type class struct {
	number   Class
	policies []*Policy
	named    []Port // for Ingress
	byName   map[Port][]uint16
}

// pods finds out who has which address, and which pods are the node's.
func (k *compiler) pods(node string) {
	k.holders = make(map[netip.Addr]*Pod, len(k.cluster.Pods))
	for _, p := range k.cluster.Pods {
		if !p.holds() {
			continue
		}
		for _, a := range p.Addrs {
			if o := k.holders[a]; o == nil || p.newer(o) {
				k.holders[a] = p
			}
		}
	}
	for _, p := range k.cluster.Pods {
		if p.holds() && p.Node == node && slices.ContainsFunc(p.Addrs, func(a netip.Addr) bool { return k.holders[a] == p }) {
			k.local = append(k.local, p)
		}
	}
}

// classify finds out which pods are known and gives them their classes; the
// policies that select any are the active ones.
func (k *compiler) classify() {
	in := map[string][]*Policy{}
	for _, pod := range k.local {
		in[pod.Namespace] = nil
	}
	for _, p := range k.cluster.Policies {
		if list, here := in[p.Namespace]; here {
			in[p.Namespace] = append(list, p)
		}
	}
	for _, list := range in {
		slices.SortFunc(list, func(a, b *Policy) int { return strings.Compare(a.Name, b.Name) })
	}
	var members [2]map[string][]*Pod
	for _, d := range Directions() {
		k.classes[d], members[d] = map[string]*class{}, map[string][]*Pod{}
		alike := map[kind]*isolation{}
		for _, pod := range k.local {
			kd := kind{pod.Namespace, pod.Labels.Key()}
			by, known := alike[kd]
			if !known {
				by = k.isolation(selecting(in[pod.Namespace], pod, d), d)
				alike[kd] = by
			}
			if len(by.policies) == 0 {
				continue
			}
			cl := newClass(by, pod)
			key := by.key + cl.key()
			members[d][key] = append(members[d][key], pod)
			if k.classes[d][key] == nil {
				k.classes[d][key] = cl
			}
		}
	}
	for _, d := range Directions() {
		k.base.Classes[d] = map[netip.Addr]Class{}
		var keys []string
		for key := range k.classes[d] {
			keys = append(keys, key)
		}
		for key, n := range numbers(keys) {
			k.classes[d][key].number = Class(n)
			for _, pod := range members[d][key] {
				for _, a := range pod.Addrs {
					if k.holders[a] == pod {
						k.base.Classes[d][a] = Class(n)
					}
				}
				for _, a := range pod.Extra {
					if k.holders[a] == nil {
						k.base.Classes[d][a] = Class(n)
					}
				}
			}
		}
	}
	k.base.Known = map[netip.Addr]bool{}
	for _, pod := range k.local {
		for _, a := range pod.Addrs {
			if k.holders[a] == pod {
				k.base.Known[a] = true
			}
		}
	}
}

// saying returns what p says, which is made once.
func (k *compiler) saying(p *Policy) *saying {
	s := cmp.Or(k.said[p], k.known[p])
	if s == nil {
		s = newSaying(p)
	}
	k.said[p] = s
	return s
}

// A kind is pods that no selector tells apart.
type kind struct{ namespace, labels string }

// An isolation is the policies that select pods of a kind in one direction, and
// those of them that name ports in Ingress rules.
type isolation struct {
	policies []*Policy
	naming   []*saying
	key      string // tells policies from others
}

func (k *compiler) isolation(policies []*Policy, d Direction) *isolation {
	i := &isolation{policies: policies}
	var b strings.Builder
	for _, p := range policies {
		b.WriteString(p.String() + "\x00")
		if s := k.saying(p); d == Ingress && len(s.names[Ingress]) > 0 {
			i.naming = append(i.naming, s)
		}
	}
	i.key = b.String()
	return i
}

// names reports whether a policy names a port of a pod.
func (i *isolation) names(p Port) bool {
	return slices.ContainsFunc(i.naming, func(s *saying) bool { return s.names[Ingress][p] })
}

func newClass(by *isolation, pod *Pod) *class {
	c := &class{policies: by.policies, named: resolve(by.names, pod)}
	c.byName = byName(c.named)
	return c
}

// selecting returns those of policies that isolate pod in direction d.
func selecting(policies []*Policy, pod *Pod, d Direction) []*Policy {
	var out []*Policy
	for _, p := range policies {
		if p.Selects(pod, d) {
			out = append(out, p)
		}
	}
	return out
}

// key tells classes of the same policies apart.
func (c *class) key() string {
	var b strings.Builder
	for _, p := range c.named {
		b.WriteString("\x01" + portKey(p))
	}
	return b.String()
}

// resolve returns the ports of pod that are named, in order.
func resolve(isNamed func(Port) bool, pod *Pod) []Port {
	var out []Port
	for _, n := range pod.Ports {
		if isNamed(Port{Proto: n.Proto, Name: n.Name}) {
			out = append(out, Port{Proto: n.Proto, Name: n.Name, From: n.Number})
		}
	}
	slices.SortFunc(out, comparePort)
	return slices.Compact(out)
}

// byName returns the numbers that each name stands for.
func byName(named []Port) map[Port][]uint16 {
	out := make(map[Port][]uint16, len(named))
	for _, p := range named {
		name := Port{Proto: p.Proto, Name: p.Name}
		out[name] = append(out[name], p.From)
	}
	return out
}

// hash returns a number for key. Two keys of one number are told apart by
// numbers; who makes such keys on purpose has other numbers change with theirs,
// and nothing pass by that.
func hash(key string) uint32 {
	sum := sha256.Sum256([]byte(key))
	return binary.BigEndian.Uint32(sum[:4])
}
