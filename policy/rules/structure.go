// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// TableName is the name of the table that Structure makes, of family inet.
const TableName = "weft_policy"

// Names of counters: of packets that a pod's policies do not let in or out, of
// those from or to an address of the node's subnets that is no known pod's, and
// of those that belong to no flow.
const (
	DeniedIngress = "denied_ingress"
	DeniedEgress  = "denied_egress"
	UnknownPod    = "unknown_pod"
	Stray         = "stray"
)

// DefaultLogGroup is the group of NFLOG that weft's programs listen to.
const DefaultLogGroup = 5010

const (
	tableComment = "made by weftd, which undoes changes"
	// priority is before that of other filters, which so see only what may pass.
	priority = -10
	// Copies of refused packets are for people; floods of them are for nobody.
	logsPerSecond, logBurst = 10, 20
)

// Names of chains and sets.
const (
	forwardChain = "pod_forward"
	passChain    = "pass"
	strayChain   = "stray"
	pairMap      = "pairs"
	rowSet       = "rows"
	protocolSet  = "protocols"
)

// logPrefix is the prefix of copies of packets that a direction's policies
// refuse, and of answers that they do.
func logPrefix(d policy.Direction, answer bool) string {
	if answer {
		return "weft denied " + d.String() + " answer"
	}
	return "weft denied " + d.String()
}

// Denied returns the direction in which a packet was refused whose copy has the
// given prefix, and whether it is an answer in a flow that is refused by now;
// false for a copy that no rule of the table has made.
func Denied(prefix string) (d policy.Direction, answer, ok bool) {
	for _, d := range policy.Directions() {
		for _, answer := range []bool{false, true} {
			if prefix == logPrefix(d, answer) {
				return d, answer, true
			}
		}
	}
	return 0, false, false
}

func knownSet(f subnet.Family) string { return fmt.Sprintf("known%d", f) }

func leaseSet(f subnet.Family) string { return fmt.Sprintf("lease%d", f) }

func hairpinSet(f subnet.Family) string { return fmt.Sprintf("hairpin%d", f) }

func identitySet(f subnet.Family) string { return fmt.Sprintf("identity%d", f) }

func blockSet(f subnet.Family) string { return fmt.Sprintf("block%d", f) }

func classSet(d policy.Direction, f subnet.Family) string { return fmt.Sprintf("class_%s%d", d, f) }

func chainOf(d policy.Direction, f subnet.Family) string { return fmt.Sprintf("%s%d", d, f) }

// portProtocols are the protocols that rows name ports of.
func portProtocols() [3]uint8 { return [3]uint8{policy.TCP, policy.UDP, policy.SCTP} }

// Params are what is the node's choice.
type Params struct {
	// LogGroup is the group of NFLOG that gets copies of some refused packets;
	// zero for none, which a kernel without nfnetlink_log needs.
	LogGroup uint16
}

// Structure returns table inet weft_policy of generation g, without elements.
func Structure(p Params, g Generation) nft.Table {
	t := nft.Table{
		Family: nft.Inet, Name: TableName, Comment: tableComment,
		Counters: []string{DeniedIngress, DeniedEgress, UnknownPod, Stray},
		Sets:     sets(),
	}
	for _, d := range policy.Directions() {
		for _, f := range subnet.Families() {
			t.Chains = append(t.Chains, p.direction(d, f))
		}
	}
	t.Chains = append(t.Chains, stray())
	t.Chains = append(t.Chains, g.chains()...)
	return t
}

func sets() []nft.Set {
	out := []nft.Set{
		{Name: pairMap, Fields: []nft.Type{nft.Mark, nft.Mark, nft.Mark}, Data: nft.Mark},
		{Name: rowSet, Fields: []nft.Type{nft.Mark, nft.Mark, nft.Protocol, nft.PortWords}},
		{Name: protocolSet, Fields: []nft.Type{nft.Protocol}, Interval: true, Data: nft.Protocol},
	}
	for _, f := range subnet.Families() {
		addr := nft.LoadSource(f).Type
		out = append(out,
			nft.Set{Name: knownSet(f), Fields: []nft.Type{addr}},
			nft.Set{Name: leaseSet(f), Fields: []nft.Type{addr}, Interval: true},
			nft.Set{Name: hairpinSet(f), Fields: []nft.Type{addr, addr}},
			nft.Set{Name: identitySet(f), Fields: []nft.Type{addr}, Data: nft.Mark},
			nft.Set{Name: blockSet(f), Fields: []nft.Type{addr}, Interval: true, Data: nft.Mark},
		)
		for _, d := range policy.Directions() {
			out = append(out, nft.Set{Name: classSet(d, f), Fields: []nft.Type{addr}, Data: nft.Mark})
		}
	}
	return out
}

func rule(comment string, exprs ...nft.Expr) nft.Rule {
	return nft.Rule{Exprs: exprs, Comment: comment}
}

// drop is the end of a rule that refuses.
func drop(counter string, match ...nft.Expr) []nft.Expr {
	return append(match, nft.Count{Counter: counter}, nft.Verdict{Code: nft.Drop})
}

// sides returns what the flow says of the pod that a direction is about, and of
// its peer.
func sides(d policy.Direction, f subnet.Family) (pod, peer nft.Load) {
	from, to := nft.LoadTupleSource(f, nft.Original), nft.LoadTupleSource(f, nft.Reply)
	if d == policy.Egress {
		return from, to
	}
	return to, from
}

// direction is the chain that packets of pods go through which are isolated in
// a direction. It returns what may pass and drops the rest. One of three
// identities is one of the pair whose ports have the port, all ports, or a run of
// ports, in the order in which that is likely to be soon.
func (p Params) direction(d policy.Direction, f subnet.Family) nft.Chain {
	pod, peer := sides(d, f)
	proto := nft.LoadFlowProtocol()
	known, anyone, block := nft.Part{Load: peer, Map: identitySet(f)}, nft.Part{}, nft.Part{Load: peer, Map: blockSet(f)}
	port := nft.LoadTupleSourcePort(nft.Reply)
	c := nft.Chain{Name: chainOf(d, f)}
	row := func(comment string, bits uint8, identity, protocol, ports nft.Part) {
		pair := nft.Part{Key: []nft.Part{{Value: nft.MarkOf(uint32(d))}, identity, {Load: pod, Map: classSet(d, f)}}, Map: pairMap}
		find := nft.Find{Set: rowSet, Parts: []nft.Part{{Value: nft.MarkOf(uint32(bits))}, pair, protocol, ports}}
		c.Rules = append(c.Rules, rule(comment, find, nft.Verdict{Code: nft.Return}))
	}
	exact := func(comment string, identity nft.Part) {
		row(comment, 0, identity, nft.Part{Load: proto}, nft.Part{Load: port})
	}
	all := func(comment string, identity nft.Part) {
		row(comment, 0, identity, nft.Part{Load: proto, Map: protocolSet}, nft.Part{})
	}
	exact("a peer, a port", known)
	exact("anyone, a port", anyone)
	all("a peer, all ports", known)
	all("anyone, all ports", anyone)
	exact("a block, a port", block)
	all("a block, all ports", block)
	for _, identity := range []nft.Part{known, anyone, block} {
		for _, bits := range policy.Widths() {
			row(fmt.Sprintf("%d ports", 1<<bits), bits, identity, nft.Part{Load: proto}, nft.Part{Load: port.Masked(16 - int(bits))})
		}
	}
	counter := DeniedIngress
	if d == policy.Egress {
		counter = DeniedEgress
	}
	if p.LogGroup != 0 {
		limit := nft.Limit{PerSecond: logsPerSecond, Burst: logBurst}
		c.Rules = append(c.Rules,
			rule("", nft.DirectionIs(nft.Original), limit, nft.Log{Group: p.LogGroup, Prefix: logPrefix(d, false)}),
			rule("", nft.DirectionIs(nft.Reply), limit, nft.Log{Group: p.LogGroup, Prefix: logPrefix(d, true)}))
	}
	c.Rules = append(c.Rules, rule("no policy lets it pass", drop(counter)...))
	return c
}

// stray is the chain for packets that conntrack does not know the flow of, in
// the order of the chain for those of flows.
func stray() nft.Chain {
	c := nft.Chain{Name: strayChain}
	add := func(comment string, exprs ...nft.Expr) { c.Rules = append(c.Rules, rule(comment, exprs...)) }
	for _, f := range subnet.Families() {
		from, to := nft.LoadSource(f), nft.LoadDest(f)
		is := nft.FamilyIs(f)
		strangers := func() {
			for _, end := range []nft.Load{from, to} {
				add("no known pod", drop(Stray, append([]nft.Expr{is}, unknown(end, f)...)...)...)
			}
		}
		strangers()
		add("of an isolated pod", drop(Stray, is, nft.Has{Load: from, Map: classSet(policy.Egress, f)})...)
		add("to an isolated pod", drop(Stray, is, nft.Has{Load: to, Map: classSet(policy.Ingress, f)})...)
		strangers()
	}
	add("", nft.Verdict{Code: nft.Accept})
	return c
}

// unknown matches addresses of our subnets that are no pod's.
func unknown(end nft.Load, f subnet.Family) []nft.Expr {
	return []nft.Expr{
		nft.In{Fields: []nft.Load{end}, Set: leaseSet(f)},
		nft.In{Fields: []nft.Load{end}, Set: knownSet(f), Not: true},
	}
}

// discovery matches neighbour discovery, types 133 to 137 with a hop limit that
// no router has lowered (RFC 4861, sections 4 and 7.1); it is not forwarded, but
// a bridge may have to pass it on. conntrack leaves it alone.
func discovery() []nft.Expr {
	kind := nft.Load{From: nft.TransportHeader, Len: 1, Type: nft.Number, Name: "icmpv6 type"}
	hops := nft.Load{From: nft.NetworkHeader, Offset: 7, Len: 1, Type: nft.Number, Name: "ip6 hoplimit"}
	return []nft.Expr{
		nft.FamilyIs(subnet.IPv6), nft.Match{Load: hops, Value: "\xff"}, nft.ProtocolIs(unix.IPPROTO_ICMPV6),
		nft.Between{Load: kind, From: "\x85", To: "\x89"}, nft.Verdict{Code: nft.Accept},
	}
}
