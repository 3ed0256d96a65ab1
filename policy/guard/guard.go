// SPDX-License-Identifier: Apache-2.0

// Package guard keeps table bridge weft_guard: what the pods of this node may
// say on its bridge, and which of them the bridge may join.
//
// Update takes the whole list each time and changes what differs. It takes the
// table to be as it has left it, unless it was told to look, or Touched says
// that somebody else may have changed it.
package guard

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
)

// attempts bounds how often the table is read anew because it was not what a
// change had taken it to be.
const attempts = 4

// ErrUnsupported is wrapped by errors of a kernel that has no tables for
// bridges.
var ErrUnsupported = errors.New("this kernel's nftables know no bridges: it takes CONFIG_NF_TABLES_BRIDGE")

// A Guard keeps the table. Only Touched may be called beside another call.
type Guard struct {
	conn    *nft.Conn
	touched atomic.Bool
	have    *nft.Content // what the kernel has, nil when that is not known
}

// New returns a Guard that uses conn. It changes nothing yet.
func New(conn *nft.Conn) *Guard { return &Guard{conn: conn} }

// Table is the name and family of the table.
func Table() nft.Table { return nft.Table{Family: nft.Bridge, Name: nft.SpoofTableName} }

// Touched says that somebody else may have changed the table. It is meant for
// nft.Monitor, which is to be told of Table.
func (g *Guard) Touched() { g.touched.Store(true) }

// Update makes the table that of the given pods, between whose ports closed the
// bridge forwards nothing; with look the kernel's is read even if nothing has
// changed. A pod that cannot be described is left out: the first list of errors
// says why, and its port is not guarded.
func (g *Guard) Update(ctx context.Context, pods []nft.SpoofPod, closed []string, look bool) ([]error, error) {
	want, left := Desired(pods, closed)
	if look || g.touched.Swap(false) {
		g.have = nil
	}
	var err error
	for range attempts {
		if err = g.apply(ctx, want); err == nil || !outdated(err) {
			break
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return left, err
}

// outdated reports whether err may come from the table being other than it was
// taken to be.
func outdated(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) }

func (g *Guard) apply(ctx context.Context, want nft.Desired) error {
	if g.have == nil {
		have, err := g.conn.Dump(ctx, Table())
		if err != nil {
			return err
		}
		g.have = &have
	}
	plan := nft.Diff(want, *g.have)
	if plan.Empty() {
		return nil
	}
	g.have = nil
	if err := g.conn.Apply(ctx, plan); err != nil {
		return fmt.Errorf("table bridge %s: %w", nft.SpoofTableName, err)
	}
	have := want.Content()
	g.have = &have
	return nil
}

// Desired is the table of the given pods and closed ports, and why some are not
// in it.
func Desired(pods []nft.SpoofPod, closed []string) (nft.Desired, []error) {
	d := nft.Desired{Table: nft.SpoofTable()}
	var left []error
	for _, p := range pods {
		list, err := nft.SpoofElements(p)
		if err != nil {
			left = append(left, err)
			continue
		}
		d.Elements = append(d.Elements, list...)
	}
	for _, port := range closed {
		e, err := nft.ClosedPort(port)
		if err != nil {
			left = append(left, err)
			continue
		}
		d.Elements = append(d.Elements, e)
	}
	return d, left
}

// Remove deletes the table, from when on pods may send anything, and reports
// whether there was one.
func (g *Guard) Remove(ctx context.Context) (removed bool, err error) {
	g.have = nil
	have, err := g.conn.Dump(ctx, Table())
	if err != nil || !have.Present {
		return false, err
	}
	return true, g.conn.Apply(ctx, nft.Removal(Table(), have))
}
