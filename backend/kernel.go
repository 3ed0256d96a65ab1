// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// maxDevName is IFNAMSIZ - 1 (linux/if.h).
const maxDevName = 15

// Options say what a Kernel looks after.
type Options struct {
	// Devices names the VXLAN devices that are ours, e.g. "weft.1" and
	// "weft6.1". Everything on them is ours except foreign routes. On any
	// other device only the routes that carry our mark
	// (overlay.RouteProtocol) are.
	Devices []string
	// Filter lets the kernel's table inet weft be read and written. Without
	// it nftables is never touched, and Dump returns nothing of it.
	Filter bool
	// Log gets what an operator should know and no error carries: a device
	// created, a device deleted. nil discards it.
	Log logrus.FieldLogger
}

// Kernel is the network namespace in which it was made, reached through an
// rtnetlink and an nfnetlink socket that stay open. It remembers nothing about
// the kernel's state but what the kernel confirms to be so still. Its methods
// may be called from any goroutine.
type Kernel struct {
	conn    *conn
	nft     *nft.Conn // nil without Options.Filter
	filter  filterCache
	devices []string
	log     logrus.FieldLogger
	echoes  echoes
}

var _ overlay.Kernel = (*Kernel)(nil)

// New opens the kernel of the calling thread's network namespace. It fails
// when a device name is empty, longer than 15 bytes or there twice.
func New(o Options) (*Kernel, error) {
	for i, d := range o.Devices {
		if d == "" || len(d) > maxDevName {
			return nil, fmt.Errorf("device name %q: want 1 to %d bytes", d, maxDevName)
		}
		if slices.Contains(o.Devices[:i], d) {
			return nil, fmt.Errorf("device name %q stands twice in the list of own devices", d)
		}
	}
	if o.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		o.Log = l
	}
	k := &Kernel{devices: slices.Clone(o.Devices), log: o.Log}
	var err error
	if k.conn, err = dial(); err != nil {
		return nil, err
	}
	if o.Filter {
		if k.nft, err = nft.Dial(); err != nil {
			k.Close()
			return nil, err
		}
	}
	return k, nil
}

// Close releases the sockets. What is in the kernel stays there.
func (k *Kernel) Close() {
	k.conn.close()
	if k.nft != nil {
		_ = k.nft.Close() // nothing waits to be written
	}
}

// Dump implements overlay.Kernel. A device of ours that does not exist adds
// nothing; one that is no VXLAN device is a ForeignDeviceError.
//
// It returns, of each own device: all addresses but IPv6 link-local ones;
// permanent unicast neighbours; FDB entries with a destination; unicast routes
// of the main table except those the kernel made itself (protocol 2). Of other
// devices it returns the main table's routes that carry our mark, and of
// protocol 3 (boot) gateway routes of the kind that flannel's host-gw and
// DirectRouting leave: whose those are only their prefix and gateway can tell.
// Some things that overlay's types cannot say are made to differ from anything
// wanted, so that Diff replaces or removes them:
//
//   - an FDB entry with a port, VNI, device or nexthop group of its own, or
//     one that ages, has the zero Dst (Apply deletes exactly those);
//   - a route with attributes that weft never sets (TOS, metrics, encapsulation,
//     nexthop object, further paths) has Onlink false;
//   - an address with a peer is the peer's.
//
// With Options.Filter it returns table inet weft too. The table carries what it
// was made from; a Filter's Foreign tells in what the table is another than
// weft makes from that. Nodes and Sources are shared with later dumps and must
// not be changed.
//
// An entry that somebody changes meanwhile may be missing or stale in the
// result; a table that changed under the dump is read again.
func (k *Kernel) Dump(ctx context.Context) (overlay.State, error) {
	s := overlay.NewState()
	var own []int
	for _, name := range k.devices {
		l, found, err := k.ownLink(ctx, name)
		if err != nil {
			return overlay.State{}, err
		}
		if !found {
			continue
		}
		own = append(own, l.index)
		if err := k.dumpDevice(ctx, l, s); err != nil {
			return overlay.State{}, fmt.Errorf("dump device %s: %w", name, err)
		}
	}
	if err := k.dumpDirect(ctx, own, s.Routes); err != nil {
		return overlay.State{}, fmt.Errorf("dump other devices: %w", err)
	}
	if err := k.dumpFilter(ctx, &s); err != nil {
		return overlay.State{}, err
	}
	return s, nil
}

// dumpDevice adds l and what is on it to s.
func (k *Kernel) dumpDevice(ctx context.Context, l rawLink, s overlay.State) error {
	link, err := k.overlayLink(ctx, l)
	if err != nil {
		return err
	}
	s.Add(link)
	dev := device{name: l.name, index: l.index, learning: link.Learning}
	if err := k.dumpFDB(ctx, dev, s.FDB); err != nil {
		return fmt.Errorf("FDB: %w", err)
	}
	for _, f := range subnet.Families() {
		if err := k.dumpAddrs(ctx, dev, f, s.Addrs); err != nil {
			return fmt.Errorf("%v addresses: %w", f, err)
		}
		if err := k.dumpNeighs(ctx, dev, f, s.Neighs); err != nil {
			return fmt.Errorf("%v neighbours: %w", f, err)
		}
		if err := k.dumpRoutes(ctx, dev, f, s.Routes); err != nil {
			return fmt.Errorf("%v routes: %w", f, err)
		}
	}
	return nil
}

// device is one of ours as it stands at the moment.
type device struct {
	name     string
	index    int
	learning bool
}

// afOf returns the kernel's number of an address family (bits/socket.h).
func afOf(f subnet.Family) uint8 {
	if f == subnet.IPv6 {
		return afInet6
	}
	return afInet
}
