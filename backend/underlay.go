// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// UnderlaySpec says how to find the devices that carry outer packets.
//
// The selectors Ifaces, Regexes and CanReach are tried in that order, and
// each list in its own; the first device on which a family has a usable
// address is that family's underlay. Only when no selector is given does the
// device of a public address count; after it, where the host has one of
// NodeAddrs, those alone; and else the default route's.
type UnderlaySpec struct {
	Ifaces    []string     // device names or addresses on a device
	Regexes   []string     // unanchored (regexp/syntax); each is matched with all addresses first, then with names
	CanReach  []netip.Addr // the route to it decides, for its own family and then for the other on that device
	PublicIPs []netip.Addr // announced addresses, at most one a family; preferred as local address where the device has them
	// NodeAddrs are those by which a cluster knows this node, best first: what it
	// is not known by, others may not reach, and in a family of which none is
	// known it is not to be reached at all.
	NodeAddrs []netip.Addr
	// Keep are the addresses used so far: each is preferred among those of its
	// device, so that an address which comes, such as a virtual one, does not
	// move the tunnel.
	Keep []netip.Addr
	Skip []string // device names that are never underlays: our own
}

// ErrNoUnderlay is what FindUnderlays fails with when no device fits. It may
// fit later: an interface comes up, an address arrives.
var ErrNoUnderlay = errors.New("no underlay device")

// FindUnderlays returns the underlay of each family in want that has one, in
// that order. Families are independent: they may be found on different
// devices. It fails with ErrNoUnderlay when none is found, naming what was
// tried and which devices exist, and with another error for a bad regular
// expression or when the kernel does not answer.
//
// A device must be up and no loopback, and a VXLAN device must be named: no
// regular expression or route may lead weft to run over itself. An address must not be link-local,
// tentative, deprecated or temporary (RFC 8981). Of several on a device the one
// in Keep is taken; else primary IPv4 addresses come before secondary ones, and
// of IPv6 the oldest, those without a link (/128) last; one that is named in spec may be secondary,
// deprecated or temporary.
func FindUnderlays(ctx context.Context, spec UnderlaySpec, want []subnet.Family) ([]overlay.Underlay, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	k := &Kernel{conn: c}
	nics, err := k.nics(ctx)
	if err != nil {
		return nil, err
	}
	f := finder{k: k, spec: spec, nics: nics}
	var out []overlay.Underlay
	for _, family := range want {
		if err := f.candidates(ctx, family); err != nil {
			return nil, err
		}
		if u, ok := f.pick(family); ok {
			out = append(out, u)
		}
	}
	if len(out) == 0 {
		return nil, f.failure(want)
	}
	return out, nil
}

// nic is a device with its addresses, in the kernel's order.
type nic struct {
	rawLink
	addrs []nicAddr
}

type nicAddr struct {
	ip    netip.Addr
	net   netip.Prefix // who is on the link: of ip, or of its peer on a point-to-point link
	flags uint32       // IFA_F_*
}

// candidate is a device that a selector names. pin is the address that named
// it, if one did.
type candidate struct {
	index int
	pin   netip.Addr
	by    string // the selector as an operator writes it
	named bool   // by its name or address
}

// finder is one search. tried collects what the selectors led to.
type finder struct {
	k     *Kernel
	spec  UnderlaySpec
	nics  []nic
	cands []candidate
	tried []string
}

// try notes why a selector or candidate came to nothing.
func (f *finder) try(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(f.tried, s) {
		f.tried = append(f.tried, s)
	}
}

// candidates collects the devices that may be family's underlay, best first.
func (f *finder) candidates(ctx context.Context, family subnet.Family) error {
	f.cands = nil
	for _, s := range f.spec.Ifaces {
		f.byIface(s)
	}
	for _, s := range f.spec.Regexes {
		if err := f.byRegex(s); err != nil {
			return err
		}
	}
	for _, of := range [...]subnet.Family{family, family.Other()} {
		for _, a := range f.spec.CanReach {
			if subnet.FamilyOf(a) != of {
				continue
			}
			if err := f.byRoute(ctx, a); err != nil {
				return err
			}
		}
	}
	if len(f.spec.Ifaces)+len(f.spec.Regexes)+len(f.spec.CanReach) > 0 {
		return nil
	}
	for _, a := range f.spec.PublicIPs {
		if n, ok := f.owner(a); ok {
			f.cands = append(f.cands, candidate{index: n.index, pin: a, by: "public address " + a.String()})
		} else {
			f.try("public address %s (on no device)", a)
		}
	}
	if f.byNodeAddrs(family) {
		return nil
	}
	return f.byDefaultRoute(ctx, family)
}

// byNodeAddrs reports whether the host has any address that its cluster knows.
func (f *finder) byNodeAddrs(family subnet.Family) bool {
	var here bool
	for _, a := range f.spec.NodeAddrs {
		by := "address " + a.String() + " of the Node"
		n, ok := f.owner(a)
		if !ok {
			f.try("%s (on no device)", by)
			continue
		}
		if why := f.usable(n, false); why != "" {
			f.try("%s (%s %s)", by, n.name, why)
			continue
		}
		here = true
		if subnet.FamilyOf(a.Unmap()) == family {
			f.cands = append(f.cands, candidate{index: n.index, pin: a.Unmap(), by: by})
		}
	}
	return here
}

func (f *finder) byIface(s string) {
	by := "interface " + s
	if a, err := netip.ParseAddr(s); err == nil {
		if n, ok := f.owner(a); ok {
			f.cands = append(f.cands, candidate{index: n.index, pin: a.Unmap(), by: by, named: true})
			return
		}
		f.try("%s (on no device)", by)
		return
	}
	for _, n := range f.nics {
		if n.name == s {
			f.cands = append(f.cands, candidate{index: n.index, by: by, named: true})
			return
		}
	}
	f.try("%s (no such device)", by)
}

func (f *finder) byRegex(s string) error {
	re, err := regexp.Compile(s)
	if err != nil {
		return fmt.Errorf("interface regular expression %q: %w", s, err)
	}
	by, before := "regular expression "+s, len(f.cands)
	for _, n := range f.nics {
		for _, a := range n.addrs {
			if re.MatchString(a.ip.String()) && f.usable(n, false) == "" {
				f.cands = append(f.cands, candidate{index: n.index, pin: a.ip, by: by})
			}
		}
	}
	for _, n := range f.nics {
		if re.MatchString(n.name) && f.usable(n, false) == "" {
			f.cands = append(f.cands, candidate{index: n.index, by: by})
		}
	}
	if len(f.cands) == before {
		f.try("%s (matches no usable device)", by)
	}
	return nil
}

func (f *finder) byRoute(ctx context.Context, to netip.Addr) error {
	by := "route to " + to.String()
	index, src, err := f.k.routeTo(ctx, to.Unmap())
	switch {
	case unreachable(err):
		f.try("%s (%v)", by, err)
		return nil
	case err != nil:
		return fmt.Errorf("look up the %s: %w", by, err)
	}
	f.cands = append(f.cands, candidate{index: index, pin: src, by: by})
	return nil
}

func (f *finder) byDefaultRoute(ctx context.Context, family subnet.Family) error {
	routes, err := f.k.defaultRoutes(ctx, family)
	if err != nil {
		return fmt.Errorf("look up the %v default route: %w", family, err)
	}
	by := fmt.Sprintf("%v default route", family)
	for _, r := range routes {
		f.cands = append(f.cands, candidate{index: r.hops[0].index, pin: r.src, by: by})
	}
	if len(routes) == 0 {
		f.try("%s (there is none)", by)
	}
	return nil
}

// owner returns the device that has address a.
func (f *finder) owner(a netip.Addr) (nic, bool) {
	for _, n := range f.nics {
		if slices.ContainsFunc(n.addrs, func(x nicAddr) bool { return x.ip == a.Unmap() }) {
			return n, true
		}
	}
	return nic{}, false
}

// pick returns the first candidate that has a usable address of family.
func (f *finder) pick(family subnet.Family) (overlay.Underlay, bool) {
	for _, c := range f.cands {
		i := slices.IndexFunc(f.nics, func(n nic) bool { return n.index == c.index })
		if i < 0 {
			f.try("%s (its device has gone)", c.by)
			continue
		}
		n := f.nics[i]
		if why := f.usable(n, c.named); why != "" {
			f.try("%s (%s %s)", c.by, n.name, why)
			continue
		}
		if a, ok := n.address(family, c.pin, f.spec.PublicIPs, f.spec.Keep); ok {
			return overlay.Underlay{Dev: n.name, Addr: a.ip, Net: a.net, MTU: n.mtu}, true
		}
		f.try("%s (%s has no usable %v address)", c.by, n.name, family)
	}
	return overlay.Underlay{}, false
}

// failure says what was tried and what there is.
func (f *finder) failure(want []subnet.Family) error {
	families := make([]string, len(want))
	for i, w := range want {
		families[i] = w.String()
	}
	devices := make([]string, len(f.nics))
	for i, n := range f.nics {
		devices[i] = f.describe(n)
	}
	return fmt.Errorf("%w for %s: tried %s; devices: %s", ErrNoUnderlay,
		strings.Join(families, " or "), strings.Join(f.tried, ", "), strings.Join(devices, ", "))
}

// describe renders a device and its addresses, e.g. "eth0 (10.0.0.1 fd00::1)"
// or "eth1 (10.1.0.1, is down)".
func (f *finder) describe(n nic) string {
	var addrs, notes []string
	for _, a := range n.addrs {
		addrs = append(addrs, a.ip.String())
	}
	if len(addrs) > 0 {
		notes = append(notes, strings.Join(addrs, " "))
	}
	if why := f.usable(n, false); why != "" {
		notes = append(notes, why)
	}
	if len(notes) == 0 {
		notes = []string{"no address"}
	}
	return n.name + " (" + strings.Join(notes, ", ") + ")"
}
