// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// gen makes clusters in which much meets: few names, few labels, few ports.
type gen struct{ *rand.Rand }

func newGen(seed uint64) gen { return gen{rand.New(rand.NewPCG(seed, 0))} }

func (g gen) one(n int) bool { return g.IntN(n) == 0 }

func pick[E any](g gen, list ...E) E { return list[g.IntN(len(list))] }

func (g gen) labels() *Labels {
	m := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if !g.one(3) {
			m[k] = pick(g, "x", "y", "z")
		}
	}
	return NewLabels(m)
}

func (g gen) selector() labels.Selector {
	s := &metav1.LabelSelector{}
	for range g.IntN(3) {
		if g.one(2) {
			s.MatchLabels = map[string]string{pick(g, "a", "b"): pick(g, "x", "y", "z")}
			continue
		}
		r := metav1.LabelSelectorRequirement{Key: pick(g, "a", "b"), Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = []string{pick(g, "x", "y"), pick(g, "y", "z")}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		panic(err)
	}
	return out
}

// address returns one of few: 10.0.0.0/28, 10.0.0.16/28, some beside, and the
// same of IPv6.
func (g gen) address() netip.Addr {
	if g.one(3) {
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(g.IntN(34))})
	}
	if g.one(12) {
		return pick(g, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("::"),
			netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"))
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(g.IntN(34))})
}

func (g gen) block() *Block {
	inside := func(a netip.Addr, from int) netip.Prefix {
		p, err := a.Prefix(from + g.IntN(a.BitLen()-from+1))
		if err != nil {
			panic(err)
		}
		return p
	}
	a := g.address()
	least := 0
	if !g.one(4) {
		least = a.BitLen() - 6
	}
	b := &Block{CIDR: inside(a, least)}
	for range g.IntN(3) {
		if e := g.address(); e.BitLen() == a.BitLen() {
			b.Except = append(b.Except, inside(e, max(b.CIDR.Bits(), a.BitLen()-6)))
		}
	}
	return b
}

func (g gen) proto() uint8 { return pick(g, TCP, TCP, UDP, SCTP) }

func (g gen) number() uint16 { return pick[uint16](g, 1, 2, 80, 81, 82, 443, 5000, 5001, 8080, 65535) }

func (g gen) port() Port {
	p := Port{Proto: g.proto()}
	switch g.IntN(5) {
	case 0:
	case 1:
		p.Name = pick(g, "web", "dns", "other")
	case 2:
		p.From = g.number()
		p.To = p.From
	default:
		p.From, p.To = g.number(), g.number()
		p.From, p.To = min(p.From, p.To), max(p.From, p.To)
	}
	return p
}

func (g gen) rule() Rule {
	var r Rule
	for range g.IntN(4) {
		if g.one(2) {
			r.Peers = append(r.Peers, Peer{Block: g.block()})
			continue
		}
		var p Peer
		if g.one(2) {
			p.Namespaces = g.selector()
		}
		if p.Namespaces == nil || g.one(2) {
			p.Pods = g.selector()
		}
		r.Peers = append(r.Peers, p)
	}
	for range g.IntN(4) {
		r.Ports = append(r.Ports, g.port())
	}
	return r
}

func (g gen) namespace() string { return pick(g, "n1", "n2", "n3") }

func (g gen) policy(i int) *Policy {
	p := &Policy{Namespace: g.namespace(), Name: fmt.Sprint("p", i), Subject: g.selector()}
	for _, d := range Directions() {
		if p.Isolates[d] = !g.one(3); p.Isolates[d] {
			for range g.IntN(3) {
				p.Rules[d] = append(p.Rules[d], g.rule())
			}
		}
	}
	return p
}

func (g gen) pod(i int) *Pod {
	p := &Pod{
		Namespace: g.namespace(), Name: fmt.Sprint("pod", i), UID: fmt.Sprint(g.IntN(1000), i), Created: int64(g.IntN(3)),
		Node: pick(g, "here", "here", "there"), Labels: g.labels(), HostNetwork: g.one(12), Ended: g.one(12),
	}
	v4, v6 := netip.Addr{}, netip.Addr{}
	for range 4 {
		if a := g.address(); a.Is4() {
			v4 = a
		} else {
			v6 = a
		}
	}
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			p.Addrs = append(p.Addrs, a)
		}
	}
	for range g.IntN(3) {
		p.Ports = append(p.Ports, NamedPort{Name: pick(g, "web", "dns"), Proto: g.proto(), Number: g.number()})
	}
	return p
}

func (g gen) cluster() *Cluster {
	c := &Cluster{Namespaces: map[string]*Labels{"n1": g.labels(), "n2": g.labels()}}
	if !g.one(4) {
		c.Namespaces["n3"] = g.labels()
	}
	for i := range 1 + g.IntN(14) {
		c.Pods = append(c.Pods, g.pod(i))
	}
	for i, p := range c.Pods {
		if g.one(4) && slices.ContainsFunc(p.Addrs, func(a netip.Addr) bool { return c.podAt(a) == p }) {
			p.Extra = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(40 + i)})} // nobody's own
		}
	}
	for i := range g.IntN(8) {
		c.Policies = append(c.Policies, g.policy(i))
	}
	return c
}

func (g gen) packet(c *Cluster) Packet {
	end := func() netip.Addr {
		if p := pick(g, c.Pods...); !g.one(4) && len(p.Addrs) > 0 {
			return pick(g, append(slices.Clone(p.Addrs), p.Extra...)...)
		}
		return g.address()
	}
	k := Packet{Src: end(), Dst: end(), Proto: pick(g, TCP, TCP, TCP, UDP, SCTP, 1, 58)}
	for range 20 {
		if k.Src.BitLen() == k.Dst.BitLen() {
			break
		}
		k.Dst = end()
	}
	if k.Src.BitLen() != k.Dst.BitLen() { // no packet has both families
		k.Dst = k.Src
	}
	if hasPorts(k.Proto) {
		k.Port = g.number()
		if g.one(3) {
			k.Port += uint16(g.IntN(3)) - 1
		}
	}
	return k
}
