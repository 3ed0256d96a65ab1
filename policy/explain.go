// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// An Explanation says why a packet may pass, or may not.
type Explanation struct {
	Packet   Packet
	Allowed  bool
	Reasons  [2]Reason // by Direction
	Misses   [2][]Miss // by Direction: of what is denied, the rules that come close
	TooLarge [2]bool   // by Direction: a policy lets it pass, but the table has no room for the namespace's (Table.TooLarge)
	ends     [2]string // what is at the source, and at the destination
	labels   [2]string // of the pods there
}

// A Miss is a rule of an isolating policy that lets something pass, but not
// this packet, for one reason alone: another peer, or another port.
type Miss struct {
	Policy *Policy
	Rule   int
	Port   bool // the peer is right and the port is not; else the other way round
}

// Without returns e where policies let nothing pass for pods that refused holds
// of (Table.TooLarge).
func (e Explanation) Without(refused func(*Pod) bool) Explanation {
	for _, d := range Directions() {
		if r := e.Reasons[d]; r.Policy != nil && e.Packet.Src != e.Packet.Dst && refused(r.Pod) {
			e.TooLarge[d], e.Allowed = true, false
		}
	}
	return e
}

// Explain returns what Allows says of k, and what would let it pass.
func (c *Cluster) Explain(k Packet) Explanation {
	e := Explanation{Packet: k}
	e.Allowed, e.Reasons = c.Allows(k)
	src, dst := c.podAt(k.Src), c.podAt(k.Dst)
	for i, end := range []struct {
		pod *Pod
		at  netip.Addr
	}{{src, k.Src}, {dst, k.Dst}} {
		e.ends[i] = end.at.String()
		if end.pod != nil {
			e.ends[i] = fmt.Sprintf("pod %s (%s)", end.pod, end.at)
			e.labels[i] = labelText(end.pod.Labels)
		}
	}
	for _, r := range e.Reasons {
		if r.Allowed {
			continue
		}
		peer, at, target := src, k.Src, r.Pod
		if r.Direction == Egress {
			peer, at, target = dst, k.Dst, dst
		}
		for _, p := range r.Isolating {
			for i, rule := range p.Rules[r.Direction] {
				peers, ports := c.peers(p, rule, at, peer), rule.ports(target, k)
				if peers != ports {
					e.Misses[r.Direction] = append(e.Misses[r.Direction], Miss{p, i, peers})
				}
			}
		}
	}
	return e
}

// String renders e for people: a verdict, then a paragraph for each direction.
func (e Explanation) String() string {
	var b strings.Builder
	verdict := "DENIED"
	if e.Allowed {
		verdict = "ALLOWED"
	}
	fmt.Fprintf(&b, "%s: %s to %s, %s\n", verdict, e.ends[0], e.ends[1], portText(e.Packet.Proto, e.Packet.Port))
	for _, d := range []Direction{Egress, Ingress} {
		e.explain(&b, d)
	}
	return b.String()
}

func (e Explanation) explain(b *strings.Builder, d Direction) {
	r := e.Reasons[d]
	fmt.Fprintf(b, "%s: ", d)
	switch {
	case r.Pod == nil:
		fmt.Fprintf(b, "not checked: %s is no pod\n", e.ends[1-e.other(d)])
	case len(r.Isolating) == 0:
		fmt.Fprintf(b, "allowed: no policy of %s selects %s\n", r.Pod.Namespace, r.Pod)
	case e.TooLarge[d]:
		fmt.Fprintf(b, "denied: %s, rule %s[%d] would let it pass, but %s\n", r.Policy, d, r.Rule, tooLarge(r.Pod.Namespace))
	case r.Policy != nil:
		fmt.Fprintf(b, "allowed by %s, rule %s[%d]\n", r.Policy, d, r.Rule)
	case r.Allowed:
		fmt.Fprintf(b, "allowed: a pod reaches itself\n")
	default:
		fmt.Fprintf(b, "denied: %s is isolated by %s, and no rule of theirs lets this pass\n", r.Pod, Names(r.Isolating))
		for _, m := range e.Misses[d] {
			fmt.Fprintf(b, "  %s\n", e.miss(d, m))
		}
		fmt.Fprintf(b, "  to allow it: %s\n", e.remedy(d))
	}
}

// tooLarge says why nothing passes that policies of a namespace let pass.
func tooLarge(namespace string) string {
	return fmt.Sprintf("the policies of namespace %s come to more than the node's table has room for (%d rows for all)", namespace, MaxRows)
}

// miss says what a rule lets pass, and why not e's packet.
func (e Explanation) miss(d Direction, m Miss) string {
	what := fmt.Sprintf("lets %s pass, but not from here", portText(e.Packet.Proto, e.Packet.Port))
	switch {
	case m.Port:
		what = "is for this peer, but for other ports: " + portsText(m.Policy.Rules[d][m.Rule].Ports)
	case d == Egress:
		what = fmt.Sprintf("lets %s pass, but not to there", portText(e.Packet.Proto, e.Packet.Port))
	}
	return fmt.Sprintf("%s, rule %s[%d] %s", m.Policy, d, m.Rule, what)
}

// Denial says in one line why e's packet is refused in direction d.
func (e Explanation) Denial(d Direction) string {
	head := fmt.Sprintf("%s to %s, %s: ", e.ends[0], e.ends[1], portText(e.Packet.Proto, e.Packet.Port))
	r := e.Reasons[d]
	if e.TooLarge[d] {
		return head + tooLarge(r.Pod.Namespace)
	}
	if r.Allowed {
		return head + "it was denied, and is allowed by now"
	}
	line := head + fmt.Sprintf("%s of %s is isolated by %s", d, r.Pod, Names(r.Isolating))
	for _, m := range e.Misses[d] {
		line += "; " + e.miss(d, m)
	}
	return line
}

// other is the place in ends of who is at the other end, seen from d's pod.
func (e Explanation) other(d Direction) int {
	if d == Egress {
		return 1
	}
	return 0
}

// remedy says what a policy would need to let e's packet pass in direction d.
func (e Explanation) remedy(d Direction) string {
	r, at := e.Reasons[d], e.other(d)
	word, addr := "from", e.Packet.Src
	if d == Egress {
		word, addr = "to", e.Packet.Dst
	}
	peer := fmt.Sprintf("ipBlock %s", netip.PrefixFrom(addr, addr.BitLen()))
	if o := e.Reasons[1-d].Pod; o != nil {
		peer = "podSelector " + e.labels[at]
		if o.Namespace != r.Pod.Namespace {
			peer = fmt.Sprintf("namespaceSelector {kubernetes.io/metadata.name: %s}, podSelector %s", o.Namespace, e.labels[at])
		}
	}
	return fmt.Sprintf("a policy in namespace %s that selects %s, with %s: %s, ports: %s", r.Pod.Namespace, r.Pod.Name, word, peer, portText(e.Packet.Proto, e.Packet.Port))
}

// Names lists policies by name, sorted.
func Names(list []*Policy) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func labelText(l *Labels) string {
	if l == nil || len(l.set) == 0 {
		return "{}"
	}
	return "{" + strings.ReplaceAll(labels.Set(l.set).String(), "=", ": ") + "}"
}

func protoText(proto uint8) string {
	switch proto {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", proto)
}

func portText(proto uint8, port uint16) string {
	if !hasPorts(proto) {
		return protoText(proto)
	}
	return fmt.Sprintf("%s port %d", protoText(proto), port)
}

func portsText(ports []Port) string {
	var out []string
	for _, p := range ports {
		switch {
		case p.Name != "":
			out = append(out, fmt.Sprintf("%s port %q", protoText(p.Proto), p.Name))
		case p.all():
			out = append(out, protoText(p.Proto))
		case p.From == p.To:
			out = append(out, portText(p.Proto, p.From))
		default:
			out = append(out, fmt.Sprintf("%s ports %d-%d", protoText(p.Proto), p.From, p.To))
		}
	}
	return strings.Join(out, ", ")
}
