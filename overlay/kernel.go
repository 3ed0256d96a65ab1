// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"net/netip"

	"weft.dev/weft/subnet"
)

// A Store is where nodes lease subnets.
type Store interface {
	// Config blocks until the network's configuration is present and valid.
	Config(ctx context.Context) (subnet.Config, error)
	// Hold acquires the lease, publishes and renews it until ctx ends, and
	// leaves it in the store. want carries one Path for each network of cfg;
	// a non-zero Subnet in it is a hint (the subnet held before a restart).
	// granted is called with the lease as published, at once when it is
	// first granted and again whenever it changes. Hold returns ctx.Err(),
	// or another error when the lease is lost for good: someone else holds
	// it, or the configuration leaves no subnet.
	Hold(ctx context.Context, cfg subnet.Config, want subnet.Lease, granted func(subnet.Lease)) error
	// Watch calls set with the whole current content now and after each
	// change, from one goroutine, until ctx ends. It reconnects by itself.
	// While the store is out of reach set is not called.
	Watch(ctx context.Context, cfg subnet.Config, set func(subnet.Snapshot)) error
}

// A Kernel is one network namespace.
type Kernel interface {
	// Dump returns what is on weft's devices now, complete or with an error.
	// like stands for what is expected: a set that is as like has it is nil,
	// so that a dump that finds nothing new costs no memory. With the zero
	// Digest no set is nil.
	Dump(ctx context.Context, like Digest) (State, error)
	// Apply makes the changes in order. It is idempotent: adding what is
	// there and deleting what is gone succeed. A failing entry does not stop
	// the others; all failures come back joined, each naming its entry.
	Apply(ctx context.Context, c Changes) error
}

// Underlay is the device and address of this node that carry outer packets
// of one family. Comparable.
type Underlay struct {
	Dev  string       // device name
	Addr netip.Addr   // local address: source of outer packets
	Net  netip.Prefix // of Addr, masked: who is inside is reached without a gateway
	MTU  int          // of Dev, bytes
}

// Names maps an underlay family to the stem of its device name, to which
// the VNI is appended: "weft." gives "weft.1".
type Names map[subnet.Family]string

// Self is this node as an input to Desired. Lease is our lease as granted;
// its Paths carry the announced underlay addresses and our own VTEP MACs.
// Underlays holds at most one entry a family.
type Self struct {
	Lease      subnet.Lease
	Underlays  []Underlay
	Names      Names
	Guard      Guard        // "" leaves nftables alone but for Masquerade
	Bridge     string       // the device that pods are behind, which the guard lets no VXLAN come from; empty for none
	Masquerade bool         // what pods send out of the pod networks
	NoGRO      bool         // our devices do not merge packets; see Link
	Addresses  []netip.Addr // of this node, on whatever device: where pods must not send VXLAN
}

// Op says what a Change does.
type Op uint8

// The operations. Replace overwrites the entry that has the same kernel key
// (see Diff), or adds it; for a Link it deletes and re-creates the device.
// Modify changes a device in place.
const (
	Add Op = iota + 1
	Replace
	Modify
	Delete
)

// String returns "add", "replace", "modify" or "delete".
func (o Op) String() string {
	switch o {
	case Add:
		return "add"
	case Replace:
		return "replace"
	case Modify:
		return "modify"
	case Delete:
		return "delete"
	}
	return "no operation"
}

// Change is one operation on one entry. Was is the entry that a Replace or a
// Modify found in its place, so that a reader sees what differs and a Kernel
// can leave the rest alone (setting the MAC that a device has already still
// flushes its neighbours); it is nil for Add and Delete. Comparable.
type Change struct {
	Op    Op
	Entry Entry
	Was   Entry
}

// Changes is an ordered list of operations.
type Changes []Change
