// SPDX-License-Identifier: Apache-2.0

package backend

import (
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

// Kernel is the network namespace in which it was made, reached through
// rtnetlink and nfnetlink sockets that stay open. It remembers nothing about
// the kernel's state but what the kernel confirms to be so still. Its methods
// may be called from any goroutine.
type Kernel struct {
	conn    *conn
	nft     *nft.Conn // nil without Options.Filter
	tables  reader
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
	if err := k.dial(o.Filter); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// reader is what large tables are read with: sockets of its own, for what is
// left of a dump that was given up is in the way of whoever uses the socket
// next.
type reader struct {
	conn *conn
	nft  *nft.Conn // nil without Options.Filter
}

// dial opens the sockets.
func (k *Kernel) dial(filter bool) (err error) {
	for _, c := range []**conn{&k.conn, &k.tables.conn} {
		if *c, err = dial(); err != nil {
			return err
		}
	}
	if !filter {
		return nil
	}
	for _, c := range []**nft.Conn{&k.nft, &k.tables.nft} {
		if *c, err = nft.Dial(); err != nil {
			return err
		}
	}
	return nil
}

// Close releases the sockets. What is in the kernel stays there.
func (k *Kernel) Close() {
	for _, c := range []*conn{k.conn, k.tables.conn} {
		if c != nil {
			c.close()
		}
	}
	for _, c := range []*nft.Conn{k.nft, k.tables.nft} {
		if c != nil {
			_ = c.Close() // nothing waits to be written
		}
	}
}

// afOf returns the kernel's number of an address family (bits/socket.h).
func afOf(f subnet.Family) uint8 {
	if f == subnet.IPv6 {
		return afInet6
	}
	return afInet
}
