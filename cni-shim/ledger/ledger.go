// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"
)

// Defaults of Options.
const (
	DefaultStateDir = "/var/lib/cni/weft"
	DefaultAllocDir = "/var/lib/cni/networks" // host-local v1.9.1, backend/disk
	DefaultBridge   = "cni0"                  // bridge v1.9.1
)

// Options says which network's ledger to open.
type Options struct {
	Network  string // its name in the CNI configuration, for example "weft"
	StateDir string // the plugin's dataDir; "" means DefaultStateDir
	AllocDir string // host-local's dataDir; "" means DefaultAllocDir
	Bridge   string // "" means DefaultBridge
	BootID   string // path; "" means DefaultBootID
	// Grace is how long an address may be without any state before it
	// counts as leaked: another plugin's ADD holds no lock that we could
	// look at. 0 means 10 minutes.
	Grace time.Duration
}

// Ledger is one network's. It has no content of its own: each method reads
// the files anew, but for those that have not changed since another did.
type Ledger struct {
	o     Options
	boot  string
	files atomic.Pointer[map[string]file] // as last read; the map is not modified
}

// Open returns the ledger of a network. Directories that do not exist count as
// empty and are not made. The error is about the network's name or the boot
// id.
func Open(o Options) (*Ledger, error) {
	if !containerID.MatchString(o.Network) { // the same letters as in ids
		return nil, fmt.Errorf("network %q: want a name of letters, digits, '_', '.' and '-' that starts with a letter or digit", o.Network)
	}
	for field, value := range map[*string]string{
		&o.StateDir: DefaultStateDir, &o.AllocDir: DefaultAllocDir, &o.Bridge: DefaultBridge,
	} {
		if *field == "" {
			*field = value
		}
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Minute
	}
	boot, err := BootID(o.BootID)
	if err != nil {
		return nil, err
	}
	return &Ledger{o: o, boot: boot}, nil
}

// networkDir is where host-local keeps the network's addresses unless a state
// names another directory.
func (l *Ledger) networkDir() string { return filepath.Join(l.o.AllocDir, l.o.Network) }

// Veth is a veth of the node's network namespace.
type Veth struct {
	Name  string
	Index int
	// Netns is the id of the namespace of its other end
	// (IFLA_LINK_NETNSID), nil when it has none or it is not known; then
	// the remains of an ADD that was killed early are not found.
	Netns *int
	// Port says that it is a port of the network's bridge.
	Port bool
	// Bare says that it is a port of no bridge at all, nor a slave of
	// anything else.
	Bare bool
	// Addrs are the addresses of its other end. Link-local ones may be
	// among them and are ignored.
	Addrs []netip.Addr
	// Unreadable says that Addrs could not be read.
	Unreadable bool
}

// Kernel is what a sweep needs of the node's network namespace. Both methods
// are asked from one goroutine.
type Kernel interface {
	// Veths lists every veth, whatever it is a port of. It must fail rather
	// than leave one out: a veth that is missing counts as gone. One that
	// is not on the bridge may have unread Addrs, except where Bare is
	// true.
	Veths(ctx context.Context) ([]Veth, error)
	// DeleteVeth removes the veth of this name and index, and with it its
	// other end. One that is not there is success.
	DeleteVeth(ctx context.Context, name string, index int) error
}

// Reason says why an attachment counts as leaked.
type Reason string

// The reasons.
const (
	AddKilled  Reason = "its ADD was killed"
	DelKilled  Reason = "its DEL was killed"
	VethGone   Reason = "its veth is gone"
	OtherBoot  Reason = "it is of another boot"
	Unknown    Reason = "nothing knows of it"
	TornRecord Reason = "its reservation was killed half way"
)

// Entry is one attachment.
type Entry struct {
	Key   // zero for an address that was reserved for nobody
	Addrs []netip.Addr
	Veths []Veth // of a leaked attachment: they go before its addresses
	Why   Reason // "" for a living one

	rec *record
}

// Report is what a sweep found and did.
type Report struct {
	Freed     []Entry // with Why
	Outside   []Entry // alive; Addrs has only those outside the lease
	Alive     int     // attachments that live
	Busy      int     // attachments whose ADD or DEL is at work
	Undecided []Entry // kept because nobody can tell yet
}
