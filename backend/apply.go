// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// Apply implements overlay.Kernel. An entry that exists is brought to what is
// wanted; deleting what is not there, or was on a device that is not there,
// succeeds. On devices that are not ours only routes with our mark are added,
// and only those, or what flannel left, replaced or deleted. Another's route
// to the same prefix with the same metric stays: that is an error which names
// its device.
//
// Each contiguous run of changes of nftables is one transaction. When our
// table cannot be put in place and its guard is on, links are not created.
//
// It stops early only when ctx ends; then one error counts what is left.
func (k *Kernel) Apply(ctx context.Context, changes overlay.Changes) error {
	a := applier{
		k: k, devices: map[string]device{}, held: map[subnet.Family]map[routeKey]rawRoute{},
		odd: map[table]oddRoutes{}, oddFDB: map[int]map[subnet.MAC][]*nl.NetlinkRequest{},
	}
	total := len(changes)
	var errs []error
	for len(changes) > 0 && ctx.Err() == nil {
		n := 0
		for n < len(changes) && inFilter(changes[n].Entry) {
			n++
		}
		if n > 0 {
			errs = append(errs, a.flush(ctx)...)
			errs = append(errs, a.applyFilter(ctx, changes[:n])...)
			changes = changes[n:]
			continue
		}
		errs = append(errs, a.next(ctx, changes[0])...)
		changes = changes[1:]
	}
	errs = append(errs, a.flush(ctx)...)
	if left := len(changes) + len(a.waiting); left > 0 {
		errs = append(errs, fmt.Errorf("%d of %d changes not made: %w", left, total, ctx.Err()))
	}
	return errors.Join(errs...)
}

// next makes a change, or lets it wait for others to be sent with.
func (a *applier) next(ctx context.Context, c overlay.Change) []error {
	waits, err := a.collect(ctx, c)
	var errs []error
	if !waits {
		errs = a.flush(ctx)
		err = a.change(ctx, c)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", title(c), err))
	}
	if len(a.waiting) >= batchMost {
		errs = append(errs, a.flush(ctx)...)
	}
	return errs
}

// title names a change in an error, e.g. "add fdb 0a:58:0a:00:00:02 dev weft.1
// dst 10.0.0.2 self permanent".
func title(c overlay.Change) string {
	switch e := c.Entry.(type) {
	case overlay.Link:
		return fmt.Sprintf("%s link %s", c.Op, e.Name)
	case overlay.Filter:
		return fmt.Sprintf("%s table inet weft", c.Op)
	}
	return fmt.Sprintf("%s %s %s", c.Op, c.Kind(), c.Entry)
}

// applier is what one Apply looked up. Each item is asked for when first
// needed.
type applier struct {
	k       *Kernel
	devices map[string]device                       // index 0: it does not exist
	held    map[subnet.Family]map[routeKey]rawRoute // routes that are not ours
	waiting []pending                               // plain changes that are sent together
	odd     map[table]oddRoutes
	oddFDB  map[int]map[subnet.MAC][]*nl.NetlinkRequest // by device: what deletes the entries that are not plain
	// unguarded: a table with an ingress guard could not be put in place.
	unguarded bool
}

// routeKey is what the kernel takes for one route when it adds or replaces.
type routeKey struct {
	dst    netip.Prefix
	metric uint32
}

// table names the routes of one family on one device.
type table struct {
	family subnet.Family
	index  int
}

// oddRoutes are those that Dump shows with Onlink false, by what it shows.
type oddRoutes map[overlay.Route][]rawRoute

func (a *applier) change(ctx context.Context, c overlay.Change) error {
	if l, ok := c.Entry.(overlay.Link); ok {
		if !slices.Contains(a.k.devices, l.Name) {
			return notOurs(l.Name)
		}
		if a.unguarded && (c.Op == overlay.Add || c.Op == overlay.Replace) {
			return errUnguarded
		}
		delete(a.devices, l.Name) // a new device has a new index
		return a.k.applyLink(ctx, c.Op, l)
	}
	dev, err := a.device(ctx, deviceOf(c.Entry), mayHold(c))
	if err != nil {
		return err
	}
	if dev.index == 0 {
		if c.Op == overlay.Delete {
			return nil
		}
		return unix.ENODEV
	}
	if done, err := a.special(ctx, c, dev); done || err != nil {
		return err
	}
	return a.settle(ctx, c, dev, a.k.conn.change(ctx, message(c, dev.index)))
}

// message builds the one request that makes a plain change.
func message(c overlay.Change, index int) *nl.NetlinkRequest {
	del := c.Op == overlay.Delete
	switch e := c.Entry.(type) {
	case overlay.Addr:
		return addrRequest(e, index, del)
	case overlay.FDB:
		return fdbRequest(e, index, del)
	case overlay.Neigh:
		return neighRequest(e, index, del)
	case overlay.Route:
		flags := unix.NLM_F_EXCL
		if c.Op == overlay.Replace {
			flags = unix.NLM_F_REPLACE
		}
		return routeRequest(e, index, flags, del)
	}
	return nil // not reached: a link has a path of its own, and overlay has no further kinds
}

// special makes the changes that need a look at the kernel first: those of
// entries that Dump marked as more than overlay's types can say. done says that
// nothing is left to do.
func (a *applier) special(ctx context.Context, c overlay.Change, dev device) (done bool, err error) {
	switch e := c.Entry.(type) {
	case overlay.FDB:
		was, _ := c.Was.(overlay.FDB)
		switch {
		case c.Op == overlay.Delete && !e.Dst.IsValid():
			return true, a.deleteOdd(ctx, dev, e.MAC)
		case c.Op == overlay.Replace && c.Was != nil && !was.Dst.IsValid():
			return false, a.deleteOdd(ctx, dev, e.MAC)
		}
	case overlay.Route:
		return true, a.deleteExactly(ctx, e, dev)
	}
	return false, nil
}

// deleteExactly deletes the routes that Dump shows as r, which is not Onlink.
func (a *applier) deleteExactly(ctx context.Context, r overlay.Route, dev device) error {
	key := table{subnet.FamilyOf(r.Dst.Addr()), dev.index}
	if a.odd[key] == nil {
		odd, err := a.k.oddRoutes(ctx, key.family, dev)
		if err != nil {
			return err
		}
		a.odd[key] = odd
	}
	for _, raw := range a.odd[key][r] {
		if err := a.k.conn.change(ctx, raw.deleteRequest()); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// oddRoutes returns the routes of family f on dev that are not Onlink.
func (k *Kernel) oddRoutes(ctx context.Context, f subnet.Family, dev device) (oddRoutes, error) {
	isOdd := func(r overlay.Route) bool { return !r.Onlink }
	routes, err := k.routes(ctx, f, dev.index, func(raw rawRoute) bool {
		return slices.ContainsFunc(slices.Collect(raw.on(dev)), isOdd)
	})
	out := oddRoutes{}
	for _, raw := range routes {
		for r := range raw.on(dev) {
			if isOdd(r) {
				out[r] = append(out[r], raw)
			}
		}
	}
	return out, err
}

// exists deals with an entry that turned out to be there already. Only routes
// are added so that this can happen: other requests replace by themselves.
func (a *applier) exists(ctx context.Context, c overlay.Change, dev device, err error) error {
	r, ok := c.Entry.(overlay.Route)
	if !ok {
		return err
	}
	if c.Op == overlay.Add {
		if err := a.notHeld(ctx, r, nil); err != nil {
			return err
		}
		err = a.k.conn.change(ctx, routeRequest(r, dev.index, unix.NLM_F_REPLACE, false))
	}
	if errors.Is(err, unix.EEXIST) {
		return nil // this very route is there, behind another of ours with its key
	}
	return err
}

// notHeld fails when a route that is not ours has r's prefix and metric: the
// kernel would put r in its place. was is the one that r may replace.
func (a *applier) notHeld(ctx context.Context, r overlay.Route, was overlay.Entry) error {
	f := subnet.FamilyOf(r.Dst.Addr())
	if a.held[f] == nil {
		held, err := a.foreignRoutes(ctx, f)
		if err != nil {
			return fmt.Errorf("look for a foreign route in its place: %w", err)
		}
		a.held[f] = held
	}
	if holder, ok := a.held[f][routeKey{r.Dst, r.Metric}]; ok && !holder.is(was) {
		return fmt.Errorf("%s has the same prefix and metric and is not ours: delete it, or give it another metric: %w", a.describe(ctx, holder), unix.EEXIST)
	}
	return nil
}

// foreignRoutes returns the routes of family f in the main table that neither
// carry our mark nor are on a device of ours, and those that the kernel made
// itself.
func (a *applier) foreignRoutes(ctx context.Context, f subnet.Family) (map[routeKey]rawRoute, error) {
	var ours []int
	for _, name := range a.k.devices {
		dev, err := a.device(ctx, name, false)
		if err != nil {
			return nil, err
		}
		ours = append(ours, dev.index)
	}
	routes, err := a.k.routes(ctx, f, 0, func(r rawRoute) bool {
		own := slices.ContainsFunc(r.hops, func(h hop) bool { return h.index != 0 && slices.Contains(ours, h.index) })
		return !(own && r.proto != unix.RTPROT_KERNEL || r.proto == overlay.RouteProtocol || r.tos != 0)
	})
	if err != nil {
		return nil, err
	}
	out := map[routeKey]rawRoute{}
	for _, r := range routes {
		out[routeKey{r.dst, r.metric}] = r
	}
	return out, nil
}

// describe names a foreign route in an error.
func (a *applier) describe(ctx context.Context, r rawRoute) string {
	if r.typ != unix.RTN_UNICAST || len(r.hops) == 0 || r.hops[0].index == 0 {
		return fmt.Sprintf("a route of type %d", r.typ)
	}
	name, err := a.k.nameOf(ctx, r.hops[0].index)
	if err != nil {
		name = fmt.Sprintf("if%d", r.hops[0].index)
	}
	return "the route on " + name
}

// device looks up one of ours, or with any set whatever has that name. Its
// index is 0 when it does not exist.
func (a *applier) device(ctx context.Context, name string, any bool) (device, error) {
	own := slices.Contains(a.k.devices, name)
	if !own && !any {
		return device{}, notOurs(name)
	}
	if d, ok := a.devices[name]; ok {
		return d, nil
	}
	look := a.k.ownLink
	if !own {
		look = func(ctx context.Context, name string) (rawLink, bool, error) { return a.k.link(ctx, name, 0) }
	}
	l, found, err := look(ctx, name)
	if err != nil {
		return device{}, err
	}
	d := device{name: name}
	if found {
		d.index, d.learning = l.index, decodeVXLAN(l.data).learning
	}
	a.devices[name] = d
	return d, nil
}

func notOurs(name string) error {
	return fmt.Errorf("device %s is not one that weft was told to look after", name)
}

func deviceOf(e overlay.Entry) string {
	switch e := e.(type) {
	case overlay.Link:
		return e.Name
	case overlay.Addr:
		return e.Dev
	case overlay.FDB:
		return e.Dev
	case overlay.Neigh:
		return e.Dev
	case overlay.Route:
		return e.Dev
	}
	return ""
}
