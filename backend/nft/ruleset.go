// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// TableName is the name of the table that Ruleset makes.
const TableName = "weft"

// Counters of refused packets.
const (
	RefusedEtherType = "refused_ethertype" // inner frame neither IPv4 nor IPv6
	RefusedOuter     = "refused_outer"     // outer source is no peer's
	RefusedInner     = "refused_inner"     // inner source is not this peer's
	RefusedFragment  = "refused_fragment"  // IPv6 first fragment too short to tell
	RefusedRouterAdv = "refused_router_advertisement"
	RefusedPodVXLAN  = "refused_pod_vxlan" // VXLAN from a pod to a node
)

// tableComment is for who lists the ruleset.
const tableComment = "made by weftd, which undoes changes"

// Ruleset returns table inet weft without elements. p must pass Check.
//
// The guard is in the input hook, after IPv4 reassembly: in prerouting, a
// first fragment of 8 bytes shows no VNI to match. IPv6 is reassembled after
// the input hook unless something in the namespace uses conntrack, so there a
// first fragment has to show what the guard compares.
func Ruleset(p Params) Table {
	t := Table{Family: Inet, Name: TableName, Comment: tableComment, Params: string(p.encode()), Sets: p.sets()}
	t.Chains = append(t.Chains, p.input())
	t.Counters = []string{RefusedRouterAdv, RefusedPodVXLAN}
	if p.guarded() {
		t.Counters = append(t.Counters, RefusedEtherType, RefusedOuter, RefusedInner, RefusedFragment)
		for _, f := range subnet.Families() {
			t.Chains = append(t.Chains, p.outer(f))
		}
		t.Chains = append(t.Chains, p.fragments())
	}
	t.Chains = append(t.Chains,
		p.fromPods(),
		Chain{Name: "vxlan_prerouting", Rules: append(p.podRules(), p.notrack(true)...)},
		// Once more after address translation, which can turn a service
		// address into a node's.
		Chain{Name: "vxlan_forward", Rules: p.podRules()},
		Chain{Name: "vxlan_output", Rules: p.notrack(false)},
		p.aside(Prerouting, "early_prerouting", "vxlan_prerouting"),
		p.aside(Forward, "early_forward", "vxlan_forward"),
		p.aside(Output, "early_output", "vxlan_output"),
	)
	if p.open(subnet.IPv4) || p.open(subnet.IPv6) {
		t.Chains = append(t.Chains, Chain{Name: outsideChain, Rules: p.masquerade()})
	}
	if p.Masquerade {
		t.Chains = append(t.Chains, p.postrouting())
	}
	return t
}

// verdict builds the end of a rule.
func verdict(code int32, counter string) []Expr {
	if counter == "" {
		return []Expr{Verdict{Code: code}}
	}
	return []Expr{Count{counter}, Verdict{Code: code}}
}

func rule(comment string, exprs ...Expr) Rule { return Rule{Exprs: exprs, Comment: comment} }

// vxlan matches UDP to our port.
func (p Params) vxlan() []Expr {
	return []Expr{ProtocolIs(unix.IPPROTO_UDP), PortIs(LoadDestPort(), p.Port)}
}

// aside is a base chain that sends VXLAN through another chain, which takes
// that for granted. Of all other packets it looks at one rule: every rule in a
// base chain is a tax on every packet of every pod, twice on each node.
func (p Params) aside(h Hook, name, to string) Chain {
	return Chain{Name: name, Hook: h, Priority: PriorityRaw, Rules: []Rule{
		rule("VXLAN is looked at more closely", append(p.vxlan(), Verdict{Jump, to})...),
	}}
}

// podRules send VXLAN from our pods through chain vxlan_from_pods. What comes
// from the bridge is a pod's whatever it says, and what says that it is from our
// subnets is a pod's wherever it comes from. A peer's VXLAN meets as few rules as
// that takes.
func (p Params) podRules() []Rule {
	var out []Rule
	look := func(match ...Expr) {
		out = append(out, rule("from a pod", append(match, Verdict{Jump, "vxlan_from_pods"})...))
	}
	if p.Bridge != "" {
		look(InputIs(p.Bridge))
	}
	for i, f := range subnet.Families() {
		if s := p.Subnets[i]; s.IsValid() {
			look(FamilyIs(f), Within(LoadSource(f), s, false))
		}
	}
	return out
}

// fromPods drops VXLAN from our pods to nodes: masquerading would give it this
// node's address, which peers trust, and a pod that sends raw packets can give
// it any.
func (p Params) fromPods() Chain {
	c := Chain{Name: "vxlan_from_pods"}
	for _, f := range subnet.Families() {
		for _, to := range []string{peerSet(f), ownSet(f)} {
			match := []Expr{FamilyIs(f), In{Fields: []Load{LoadDest(f)}, Set: to}}
			c.Rules = append(c.Rules, rule("pods send no VXLAN to nodes", append(match, verdict(Drop, RefusedPodVXLAN)...)...))
		}
	}
	return c
}

// notrack keeps outer packets between us and peers out of conntrack, and
// nothing else that uses the port.
func (p Params) notrack(in bool) []Rule {
	var out []Rule
	for _, f := range subnet.Families() {
		from, to := ownSet(f), peerSet(f)
		if in {
			from, to = to, from
		}
		out = append(out, rule("peers' VXLAN needs no conntrack",
			FamilyIs(f), In{Fields: []Load{LoadSource(f)}, Set: from}, In{Fields: []Load{LoadDest(f)}, Set: to}, Notrack{}))
	}
	return out
}

// outsideChain is where masquerading happens for open networks.
const outsideChain = "to_outside"

// postrouting masquerades what pods send out of the pod networks. Only the
// first packet of a flow comes here, so that answers are left alone.
func (p Params) postrouting() Chain {
	// kube-proxy's mark for what it masquerades itself
	// (kubernetes, --iptables-masquerade-bit=14).
	bit := string(markBytes(0x4000))
	mark := LoadMark()
	mark.Mask = bit
	rules := []Rule{rule("kube-proxy masquerades these", Match{Load: mark, Value: bit}, Verdict{Code: Return})}
	for i, f := range subnet.Families() {
		n := p.Networks[i]
		switch {
		case p.open(f):
			rules = append(rules, p.fromOpen(i)...)
		case n.IsValid():
			rules = append(rules, p.masquerade(FamilyIs(f), Within(LoadSource(f), n, false),
				Within(LoadDest(f), n, true), Within(LoadDest(f), multicast(f), true))...)
		}
	}
	return Chain{Name: "pod_masquerade", NAT: true, Hook: Postrouting, Priority: PrioritySrcNAT, Rules: rules}
}

// masquerade is the rules that masquerade what matches.
func (p Params) masquerade(match ...Expr) []Rule {
	udp := append(slices.Clone(match), ProtocolIs(unix.IPPROTO_UDP), Masquerade{Ports: besides(p.Port)})
	return []Rule{
		rule("pods to the world outside, not from the VXLAN port", udp...),
		rule("pods to the world outside", append(slices.Clip(match), Masquerade{})...),
	}
}

// fromOpen sends what pods of the open network at place i send out of it to
// outsideChain. Pods are in our own subnet and in those that are elements.
func (p Params) fromOpen(i int) []Rule {
	f := subnet.Families()[i]
	among := func(l Load) (out []Expr) {
		if s := p.Subnets[i]; s.IsValid() {
			out = append(out, Within(l, s, false))
		}
		for _, n := range p.Lengths {
			if n.Family == f {
				out = append(out, In{Fields: []Load{l.Masked(n.Bits)}, Set: podSet(n)})
			}
		}
		return out
	}
	rules := []Rule{rule("to many", FamilyIs(f), Within(LoadDest(f), multicast(f), false), Verdict{Code: Return})}
	for _, to := range among(LoadDest(f)) {
		rules = append(rules, rule("to pods", FamilyIs(f), to, Verdict{Code: Return}))
	}
	for _, from := range among(LoadSource(f)) {
		rules = append(rules, rule("from pods", FamilyIs(f), from, Verdict{Goto, outsideChain}))
	}
	return rules
}

// besides is the larger of the two ranges of ports beside port, from 1024 on.
// An answer to the VXLAN port would pass conntrack by, as peers' packets do.
func besides(port uint16) [2]uint16 {
	const first, last = 1024, 65535
	if int(port)-first > last-int(port) {
		return [2]uint16{first, port - 1}
	}
	return [2]uint16{max(first, port+1), last}
}

func multicast(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4) // RFC 5771
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8) // RFC 4291 section 2.7
}
