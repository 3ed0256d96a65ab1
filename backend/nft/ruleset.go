// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// Guard says what a VXLAN packet for our port and VNI has to show before the
// VXLAN device sees it.
type Guard string

// The modes of the ingress guard.
const (
	GuardBind  Guard = "bind"  // a peer's outer source, with an inner source that is this peer's
	GuardPeers Guard = "peers" // a peer's outer source
	GuardOff   Guard = "off"   // nothing
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

// Params is what the rules of table inet weft are made from. Peers are none
// of it but through Lengths.
type Params struct {
	Guard      Guard
	Masquerade bool
	Port       uint16         // outer UDP destination port
	VNI        uint32         // 24 bits
	Networks   []netip.Prefix // pod networks
	Subnets    []netip.Prefix // this node's pod subnets
	Own        []netip.Addr   // this node's addresses: its underlays, and others that pods must not send VXLAN to
	Devices    []string       // our VXLAN devices
	// Lengths are the lengths of the peers' inner prefixes, single addresses
	// left out, ordered by family, then length. Take them from WithLengths.
	Lengths []Length
}

// Length is a prefix length of a family. Comparable.
type Length struct {
	Family subnet.Family
	Bits   int
}

// Peer is another node as the guard sees it. Outer are the addresses that its
// VXLAN packets may come from or that ours go to: announced, before address
// translation, and further ones it published. Inner are its pod subnets and
// VTEP addresses; its outer addresses are inner ones too, without being
// listed: what the node itself sends to a pod carries them.
type Peer struct {
	Outer []netip.Addr
	Inner []netip.Prefix
}

// WithLengths returns p with Lengths extended by what peers need. Give p the
// lengths of the configuration (SubnetLen) before: then the rules stay the
// same from the first peer on.
func (p Params) WithLengths(peers []Peer) Params {
	all := slices.Clone(p.Lengths)
	for _, peer := range peers {
		for _, in := range peer.inner() {
			all = append(all, lengthOf(in))
		}
	}
	all = slices.DeleteFunc(all, func(l Length) bool { return l.Bits == addrBits(l.Family) })
	slices.SortFunc(all, func(a, b Length) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Bits, b.Bits))
	})
	p.Lengths = slices.Compact(all)
	return p
}

// outer and inner pass over what no packet can carry or no node can own, so
// that junk in one peer's lease does not make the kernel refuse the rest.

func (p Peer) outer() []netip.Addr { return usable(p.Outer) }

func (p Peer) inner() []netip.Prefix {
	var out []netip.Prefix
	for _, in := range p.Inner {
		if in.IsValid() && in.Bits() > 0 && !in.Addr().Is4In6() {
			out = append(out, in.Masked())
		}
	}
	for _, a := range p.outer() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func usable(list []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() {
			out = append(out, a)
		}
	}
	return out
}

func lengthOf(p netip.Prefix) Length {
	return Length{Family: subnet.FamilyOf(p.Addr()), Bits: p.Bits()}
}

func addrBits(f subnet.Family) int {
	if f == subnet.IPv4 {
		return 32
	}
	return 128
}

// Ruleset returns table inet weft without elements.
//
// The guard is in the input hook, after IPv4 reassembly: in prerouting, a
// first fragment of 8 bytes shows no VNI to match. IPv6 is reassembled after
// the input hook unless something in the namespace uses conntrack, so there a
// first fragment has to show what the guard compares.
func Ruleset(p Params) Table {
	t := Table{Family: Inet, Name: TableName, Sets: p.sets()}
	t.Chains = append(t.Chains, p.input())
	t.Counters = []string{RefusedRouterAdv, RefusedPodVXLAN}
	if p.Guard != GuardOff {
		t.Counters = append(t.Counters, RefusedEtherType, RefusedOuter, RefusedInner, RefusedFragment)
		for _, f := range subnet.Families() {
			t.Chains = append(t.Chains, p.outer(f))
		}
		t.Chains = append(t.Chains, p.fragments())
	}
	t.Chains = append(t.Chains,
		Chain{Name: "early_prerouting", Hook: Prerouting, Priority: PriorityRaw, Rules: append(p.podRules(), p.notrack(true)...)},
		// Once more after address translation, which can turn a service
		// address into a node's.
		Chain{Name: "early_forward", Hook: Forward, Priority: PriorityRaw, Rules: p.podRules()},
		Chain{Name: "early_output", Hook: Output, Priority: PriorityRaw, Rules: p.notrack(false)},
	)
	if p.Masquerade {
		t.Chains = append(t.Chains, p.postrouting())
	}
	return t
}

// Names of sets. Peers' and our own addresses have a set for each family; the
// guard has one for each outer family and inner prefix, because one key for
// several lengths would let 10.0.1.0/25 stand for 10.0.1.0/24.

func peerSet(f subnet.Family) string { return fmt.Sprintf("peers%d", f) }

func ownSet(f subnet.Family) string { return fmt.Sprintf("own%d", f) }

func bindSet(outer subnet.Family, inner Length) string {
	return fmt.Sprintf("bind%d_inner%d_%d", outer, inner.Family, inner.Bits)
}

func addrType(f subnet.Family) Type {
	if f == subnet.IPv4 {
		return IPv4Addr
	}
	return IPv6Addr
}

// inner is the lengths that the guard looks inner sources up with: the pods'
// first, because most packets are theirs, then single addresses.
func (p Params) inner() []Length {
	return append(slices.Clone(p.Lengths), Length{subnet.IPv4, 32}, Length{subnet.IPv6, 128})
}

func (p Params) sets() []Set {
	var out []Set
	for _, f := range subnet.Families() {
		out = append(out, Set{Name: peerSet(f), Fields: []Type{addrType(f)}}, Set{Name: ownSet(f), Fields: []Type{addrType(f)}})
	}
	if p.Guard != GuardBind {
		return out
	}
	for _, f := range subnet.Families() {
		for _, in := range p.inner() {
			out = append(out, Set{
				Name:   bindSet(f, in),
				Fields: []Type{addrType(f), addrType(in.Family)},
				Of:     []Load{LoadSource(f), loadInner(in.Family)},
			})
		}
	}
	return out
}

// Elements returns the elements of Ruleset's sets, sorted and without
// duplicates. p.Lengths must cover the peers (WithLengths).
func Elements(p Params, peers []Peer) []Element {
	all := map[Element]struct{}{}
	add := func(set string, fields ...[]byte) { all[Element{Set: set, Key: Key(fields...)}] = struct{}{} }
	for _, a := range usable(p.Own) {
		add(ownSet(subnet.FamilyOf(a)), a.AsSlice())
	}
	for _, peer := range peers {
		for _, a := range peer.outer() {
			add(peerSet(subnet.FamilyOf(a)), a.AsSlice())
			if p.Guard != GuardBind {
				continue
			}
			for _, in := range peer.inner() {
				add(bindSet(subnet.FamilyOf(a), lengthOf(in)), a.AsSlice(), in.Addr().AsSlice())
			}
		}
	}
	return sorted(all)
}

// Weft returns table inet weft for a node and its peers.
func Weft(p Params, peers []Peer) Desired {
	p = p.WithLengths(peers)
	return Desired{Table: Ruleset(p), Elements: Elements(p, peers)}
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

// podRules drop VXLAN from our pods to nodes: masquerading would give it this
// node's address, which peers trust.
func (p Params) podRules() []Rule {
	var out []Rule
	for _, s := range p.Subnets {
		f := subnet.FamilyOf(s.Addr())
		for _, to := range []string{peerSet(f), ownSet(f)} {
			match := append([]Expr{FamilyIs(f), Within(LoadSource(f), s, false)}, p.vxlan()...)
			match = append(match, In{Fields: []Load{LoadDest(f)}, Set: to})
			out = append(out, rule("pods send no VXLAN to nodes", append(match, verdict(Drop, RefusedPodVXLAN)...)...))
		}
	}
	return out
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
		match := append([]Expr{FamilyIs(f)}, p.vxlan()...)
		match = append(match, In{Fields: []Load{LoadSource(f)}, Set: from}, In{Fields: []Load{LoadDest(f)}, Set: to}, Notrack{})
		out = append(out, rule("peers' VXLAN needs no conntrack", match...))
	}
	return out
}

// postrouting masquerades what pods send out of the pod networks. Only the
// first packet of a flow comes here, so that answers are left alone.
func (p Params) postrouting() Chain {
	// kube-proxy's mark for what it masquerades itself
	// (kubernetes, --iptables-masquerade-bit=14).
	bit := string(markBytes(0x4000))
	mark := LoadMark()
	mark.Mask = bit
	rules := []Rule{rule("kube-proxy masquerades these", Match{Load: mark, Value: bit}, Verdict{Code: Return})}
	for _, f := range subnet.Families() {
		nets := slices.DeleteFunc(slices.Clone(p.Networks), func(n netip.Prefix) bool { return subnet.FamilyOf(n.Addr()) != f })
		if len(nets) == 0 {
			continue
		}
		var outside []Expr
		for _, n := range append(slices.Clone(nets), multicast(f)) {
			outside = append(outside, Within(LoadDest(f), n, true))
		}
		for _, n := range nets {
			match := append([]Expr{FamilyIs(f), Within(LoadSource(f), n, false)}, outside...)
			rules = append(rules, rule("pods to the world outside", append(match, Masquerade{})...))
		}
	}
	return Chain{Name: "pod_masquerade", NAT: true, Hook: Postrouting, Priority: PrioritySrcNAT, Rules: rules}
}

func multicast(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4) // RFC 5771
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8) // RFC 4291 section 2.7
}
