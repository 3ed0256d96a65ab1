// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// IP protocols that have ports (IANA, protocol numbers).
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// portProtocols are the protocols that have ports.
func portProtocols() [3]uint8 { return [3]uint8{TCP, UDP, SCTP} }

func hasPorts(proto uint8) bool { return proto == TCP || proto == UDP || proto == SCTP }

// A Direction is seen from the pod that a policy selects.
type Direction uint8

const (
	Ingress Direction = iota
	Egress
)

// Directions are both, in the order of their values.
func Directions() [2]Direction { return [2]Direction{Ingress, Egress} }

// String returns the word of policyTypes, in lower case.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Cluster is a snapshot of all that policies depend on. What it points to is
// shared with other snapshots and never modified.
type Cluster struct {
	Namespaces map[string]*Labels
	Pods       []*Pod
	Policies   []*Policy
}

// Labels are the labels of pods or of a namespace. Those of many pods are the
// same; it pays to have them once.
type Labels struct {
	set labels.Set
	key string // equal for equal sets alone
}

// NewLabels returns the labels of m, which must not be modified later.
func NewLabels(m map[string]string) *Labels {
	var key strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		key.WriteString(k + "=" + m[k] + "\x00") // neither may be in a name or a value
	}
	return &Labels{set: m, key: key.String()}
}

// Key tells sets of labels apart.
func (l *Labels) Key() string {
	if l == nil {
		return ""
	}
	return l.key
}

// matches reports whether s selects l. A nil Selector selects everything.
func (l *Labels) matches(s labels.Selector) bool {
	if s == nil {
		return true
	}
	if l == nil {
		return s.Matches(labels.Set(nil))
	}
	return s.Matches(l.set)
}

// A Pod is one pod. Of pods that have an address in common the one that was
// created last has it, of those the one with the greater UID.
type Pod struct {
	Namespace, Name, UID string
	Created              int64 // seconds since 1970
	Node                 string
	Labels               *Labels
	Addrs                []netip.Addr   // at most one of a family
	Allowed              []netip.Prefix // what it asks to have beside Addrs
	Extra                []netip.Addr   // what it has of that: its policies are for these too, as a peer it is not known by them
	Ports                []NamedPort
	HostNetwork          bool // the addresses are its node's
	Ended                bool // phase Succeeded or Failed: the addresses are nobody's, or another's
}

// holds reports whether policies know the pod by its addresses.
func (p *Pod) holds() bool { return !p.HostNetwork && !p.Ended }

// has reports whether a is the pod's.
func (p *Pod) has(a netip.Addr) bool { return p.holds() && slices.Contains(p.Addrs, a) }

// newer reports whether p, and not o, has an address that both name.
func (p *Pod) newer(o *Pod) bool {
	if p.Created != o.Created {
		return p.Created > o.Created
	}
	return p.UID > o.UID
}

// String returns "namespace/name".
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// A NamedPort is a named port of a pod's container.
type NamedPort struct {
	Name   string
	Proto  uint8
	Number uint16
}

// A Policy is a NetworkPolicy.
type Policy struct {
	Namespace, Name string
	Subject         labels.Selector // of pods of Namespace
	// Isolates says in which directions pods that are selected are isolated:
	// there only Rules let anything pass. By Direction.
	Isolates [2]bool
	Rules    [2][]Rule // by Direction
}

// String returns "namespace/name".
func (p *Policy) String() string { return p.Namespace + "/" + p.Name }

// Selects reports whether the policy isolates pod in direction d.
func (p *Policy) Selects(pod *Pod, d Direction) bool {
	return p.Isolates[d] && pod.holds() && pod.Namespace == p.Namespace && pod.Labels.matches(p.Subject)
}

// A Rule lets pass what comes from, or goes to, one of Peers at one of Ports.
// No Peers are all that there are, no Ports are all ports and all protocols.
type Rule struct {
	Peers []Peer
	Ports []Port
}

// A Peer is a Block, or else pods: those that Pods selects in the namespaces
// that Namespaces selects. Without Namespaces they are in the policy's own.
type Peer struct {
	Block      *Block
	Namespaces labels.Selector
	Pods       labels.Selector
}

// A Block is the addresses of CIDR without those of Except.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Contains reports whether a is one of them.
func (b *Block) Contains(a netip.Addr) bool {
	return b.CIDR.Contains(a) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// A Port is the ports From to To of a protocol; both 0 are all of them. With a
// Name it is the port of that name and protocol, of the pod that is sent to.
type Port struct {
	Proto    uint8
	From, To uint16
	Name     string
}

// all reports whether every port of the protocol is meant.
func (p Port) all() bool { return p.Name == "" && p.From == 0 && p.To == 0 }

// A Packet is the first of a connection, or one that belongs to it, as
// conntrack's tuples have it: the source before any translation, the
// destination after it. Port is 0 where the protocol has none.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16
}
