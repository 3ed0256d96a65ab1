// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"net/netip"
	"slices"
)

// Family is an IP address family: IPv4 or IPv6. The zero value is no family.
type Family uint8

// The two address families. The values are the IP version numbers.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families in the order in which weft reports them.
func Families() [2]Family { return [2]Family{IPv4, IPv6} }

// FamilyOf returns the family of a, or 0 when a is the zero Addr.
// IPv4-mapped IPv6 addresses count as IPv4.
func FamilyOf(a netip.Addr) Family {
	switch {
	case a.Is4(), a.Is4In6():
		return IPv4
	case a.Is6():
		return IPv6
	}
	return 0
}

// String returns "IPv4", "IPv6" or "no family".
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return "no family"
}

// Bits returns the length of an address of f in bits: 32 or 128; 0 for no
// family.
func (f Family) Bits() int {
	switch f {
	case IPv4:
		return 32
	case IPv6:
		return 128
	}
	return 0
}

// Other returns the other family.
func (f Family) Other() Family {
	if f == IPv4 {
		return IPv6
	}
	return IPv4
}

// BackendType says how a node's pods are reached. The strings are flannel's
// (pkg/backend, flannel v0.28), because they stand in shared stores.
type BackendType string

// The backend types that weft can read. It programs BackendVXLAN.
const (
	BackendVXLAN     BackendType = "vxlan"
	BackendHostGW    BackendType = "host-gw"
	BackendWireGuard BackendType = "wireguard"
)

// A Lease says which pod subnets live on a node and how to reach them.
//
// Node and Instance identify the holder. Both are empty for a lease that
// flannel wrote; such a holder is known by its underlay address alone.
// A dual-stack node has two Paths, ordered IPv4 subnet first; code below the
// codecs never counts to two.
type Lease struct {
	Node     string      // node name, unique in the network
	Instance string      // random id of the node's state directory; fences clones
	Backend  BackendType // how the holder expects to be reached
	Paths    []Path      // one for each pod subnet, IPv4 first
	// Sources are further addresses that the holder's outer packets may come
	// from, sorted: those it has behind an announced one that is translated.
	Sources []netip.Addr
}

// A Path is one pod subnet of a node and the tunnel endpoint (VTEP) that
// serves it. The families of Subnet and Underlay may differ: IPv6 pods can
// travel over an IPv4 underlay and the other way round. Comparable.
type Path struct {
	Subnet   netip.Prefix // masked pod subnet; the zero Prefix in a request means "any"
	Underlay netip.Addr   // announced outer destination of packets to this node
	MAC      MAC          // VTEP MAC of the node's device on Underlay's family
	VNI      uint32       // 24 bits (RFC 7348 section 5); 0 when the writer left it out
	Key      string       // WireGuard public key, base64; empty for other backends
	Port     uint16       // WireGuard listen port; 0 means the reader's own port
}

// Clone returns a copy that shares no memory with l.
func (l Lease) Clone() Lease {
	l.Paths = append([]Path(nil), l.Paths...)
	l.Sources = append([]netip.Addr(nil), l.Sources...)
	return l
}

// Equal reports whether l and o say the same.
func (l Lease) Equal(o Lease) bool {
	if l.Node != o.Node || l.Instance != o.Instance || l.Backend != o.Backend || len(l.Paths) != len(o.Paths) || !slices.Equal(l.Sources, o.Sources) {
		return false
	}
	for i := range l.Paths {
		if l.Paths[i] != o.Paths[i] {
			return false
		}
	}
	return true
}

// Path returns the path whose subnet is of family f.
func (l Lease) Path(f Family) (Path, bool) {
	for _, p := range l.Paths {
		if FamilyOf(p.Subnet.Addr()) == f {
			return p, true
		}
	}
	return Path{}, false
}

// VTEP returns the first path whose underlay is of family f: the tunnel
// endpoint that the node offers on that underlay, whatever subnet it is
// published with.
func (l Lease) VTEP(f Family) (Path, bool) {
	for _, p := range l.Paths {
		if FamilyOf(p.Underlay) == f {
			return p, true
		}
	}
	return Path{}, false
}

// A Snapshot is the whole current content of a store: every lease, our own
// included, in no particular order. Stores deliver snapshots, never events.
// Problems name what the store could not read; they never hide other leases.
// Dip is how many leases fewer there were at the lowest point from the snapshot
// before to this one: of a store that forgets its leases and is given them back
// this may be the first snapshot, in which few are missing any more.
type Snapshot struct {
	Leases   Leases
	Problems []Problem
	Dip      int // at least 0
}

// A Problem is something wrong that an operator should know, as data: it is
// logged on its edge, counted, and shown by `weft status`. Comparable.
type Problem struct {
	Kind   string `json:"kind"`   // stable CamelCase identifier, e.g. "PeerOverlap"
	Object string `json:"object"` // what it is about: a key, node, device or setting
	Detail string `json:"detail"` // one sentence: the value, what is allowed, what to do
}

// String renders "Kind object: detail".
func (p Problem) String() string { return p.Kind + " " + p.Object + ": " + p.Detail }
