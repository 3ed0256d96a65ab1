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
	node string
	said map[*Policy]*saying // of the last Cluster
}

// NewCompiler returns a Compiler for node.
func NewCompiler(node string) *Compiler { return &Compiler{node: node} }

// Compile returns the Table of c.
func (m *Compiler) Compile(c *Cluster) *Table {
	refused, said := map[string]bool{}, map[*Policy]*saying{}
	for more := 1; ; more *= 2 {
		k := &compiler{
			cluster: c, words: newVocabulary(), known: m.said, said: said, refused: refused, weights: map[string]int{},
			table: &Table{
				Known: map[netip.Addr]bool{}, Identities: map[netip.Addr]Identity{}, Pairs: map[Pair]PortSet{}, Rows: map[Row]bool{},
				Classes: [2]map[netip.Addr]Class{{}, {}}, TooLarge: slices.Sorted(maps.Keys(refused)),
			},
		}
		k.pods(m.node)
		k.classify()
		if k.identify() && k.permit() {
			m.said = said
			return k.table
		}
		for _, ns := range heaviest(k.weights, refused, more) { // there is one: else there are no rules
			refused[ns] = true
		}
	}
}

// compiler is one compilation.
type compiler struct {
	cluster *Cluster
	words   *vocabulary
	table   *Table
	refused map[string]bool // namespaces whose policies let nothing pass
	weights map[string]int  // of namespaces whose policies let something pass
	spent   spending

	known, said map[*Policy]*saying // from before, and now

	holders map[netip.Addr]*Pod // who has an address
	local   []*Pod
	classes [2]map[string]*class // by key
	faces   []*face
	byTerm  [][]*face // faces that have a term
}

// A class is the policies that select some pods, and what the ports that they
// name are to those.
type class struct {
	number   Class
	policies []*Policy
	named    []Port // for Ingress
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

// classify gives the node's pods their classes; the policies that select any
// are the active ones.
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
				by = &isolation{policies: selecting(in[pod.Namespace], pod, d)}
				if d == Ingress && !k.refused[pod.Namespace] {
					by.names = portNames(by.policies)
				}
				alike[kd] = by
			}
			if len(by.policies) == 0 {
				continue
			}
			cl := &class{policies: by.policies, named: by.named(pod)}
			key := cl.key()
			members[d][key] = append(members[d][key], pod)
			if k.classes[d][key] == nil {
				k.classes[d][key] = cl
				k.learn(by.policies)
			}
		}
	}
	for _, d := range Directions() {
		var keys []string
		for key := range k.classes[d] {
			keys = append(keys, key)
		}
		for key, n := range numbers(keys) {
			k.classes[d][key].number = Class(n)
			for _, pod := range members[d][key] {
				for _, a := range pod.Addrs {
					if k.holders[a] == pod {
						k.table.Classes[d][a] = Class(n)
					}
				}
				for _, a := range pod.Extra {
					if k.holders[a] == nil {
						k.table.Classes[d][a] = Class(n)
					}
				}
			}
		}
	}
	for _, pod := range k.local {
		for _, a := range pod.Addrs {
			if k.holders[a] == pod {
				k.table.Known[a] = true
			}
		}
	}
}

// learn learns what policies say, each once.
func (k *compiler) learn(policies []*Policy) {
	for _, p := range policies {
		if _, learned := k.words.rules[p]; learned {
			continue
		}
		s := cmp.Or(k.said[p], k.known[p])
		if s == nil {
			s = newSaying(p)
		}
		k.said[p] = s
		if k.refused[p.Namespace] {
			continue
		}
		k.weights[p.Namespace] += s.weight
		k.words.learn(p, s)
	}
}

// A kind is pods that no selector tells apart.
type kind struct{ namespace, labels string }

// An isolation is the policies that select pods of a kind, and the names of
// ports in their Ingress rules.
type isolation struct {
	policies []*Policy
	names    map[Port]bool
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

// key tells classes of one direction apart.
func (c *class) key() string {
	var b strings.Builder
	for _, p := range c.policies {
		b.WriteString(p.String() + "\x00")
	}
	for _, p := range c.named {
		b.WriteString("\x01" + portKey(p))
	}
	return b.String()
}

// portNames returns the names in Ingress rules of policies, by protocol.
func portNames(policies []*Policy) map[Port]bool {
	out := map[Port]bool{}
	for _, p := range policies {
		for _, r := range p.Rules[Ingress] {
			for _, port := range r.Ports {
				if port.Name != "" {
					out[Port{Proto: port.Proto, Name: port.Name}] = true
				}
			}
		}
	}
	return out
}

// named returns what the names are to pod.
func (i *isolation) named(pod *Pod) []Port { return resolve(i.names, pod) }

// resolve returns which ports of pod names stand for, in order.
func resolve(names map[Port]bool, pod *Pod) []Port {
	if len(names) == 0 {
		return nil
	}
	var out []Port
	for _, n := range pod.Ports {
		if names[Port{Proto: n.Proto, Name: n.Name}] {
			out = append(out, Port{Proto: n.Proto, Name: n.Name, From: n.Number})
		}
	}
	slices.SortFunc(out, comparePort)
	return slices.Compact(out)
}

// hash returns a number for key. Two keys of one number are told apart by
// numbers; who makes such keys on purpose has other numbers change with theirs,
// and nothing pass by that.
func hash(key string) uint32 {
	sum := sha256.Sum256([]byte(key))
	return binary.BigEndian.Uint32(sum[:4])
}
