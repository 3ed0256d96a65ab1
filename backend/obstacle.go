// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// plainWord matches what neither nft nor a shell takes for more than a name.
var plainWord = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// forwardProblems finds others' chains that drop what no rule of theirs
// accepts. A verdict of another table cannot override that one (nft(8),
// "accept"), so only a rule in that very chain helps.
func forwardProblems(ctx context.Context, spec ProbeSpec) ([]subnet.Problem, error) {
	if len(spec.Networks) == 0 {
		return nil, nil
	}
	c, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // nothing waits to be written
	chains, err := c.ForeignChains(ctx)
	switch {
	case noNFTables(err):
		return nil, nil // then nobody has a chain there
	case err != nil:
		return nil, err
	}
	var out []subnet.Problem
	for _, ch := range chains {
		if p, ok := forwardProblem(ch, spec); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// noNFTables reports whether err says that the kernel has no nftables, or
// does not let us see it: that is a Problem of another kind.
func noNFTables(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

// forwardProblem judges one chain. A rule whose comment begins with "weft"
// tells that an operator has opened it.
func forwardProblem(ch nft.ChainInfo, spec ProbeSpec) (subnet.Problem, bool) {
	opened := slices.ContainsFunc(ch.Comments, func(s string) bool { return strings.HasPrefix(s, "weft") })
	matches := passing(ch.Family, spec)
	if ch.Hook != nft.Forward || ch.Policy != nft.Drop || opened || len(matches) == 0 {
		return subnet.Problem{}, false
	}
	name := fmt.Sprintf("%s %s %s", ch.Family, nftName(ch.Table), nftName(ch.Name))
	rules := make([]string, len(matches))
	for i, m := range matches {
		rules[i] = fmt.Sprintf(`insert rule %s %s accept comment "weft"`, name, m)
	}
	return subnet.Problem{Kind: "ForwardDropped", Object: "nft chain " + name, Detail: fmt.Sprintf(
		"its policy drops forwarded packets that none of its rules accepts, pods' among them: run `nft %s`", quote(strings.Join(rules, "; ")))}, true
}

// passing returns the matches of an nft rule that pods' packets pass chains of
// a family by: what comes from or goes to a pod network, and on a bridge the
// frames that carry it, and look for neighbours. (Not "meta ibrname": not
// every kernel has it.)
func passing(f nft.Family, spec ProbeSpec) []string {
	var out []string
	for _, n := range spec.Networks {
		proto, family, neighbours := "ip", nft.IP, "ether type arp"
		if n.Addr().Is6() {
			proto, family, neighbours = "ip6", nft.IP6, "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
		}
		from, to := fmt.Sprintf("%s saddr %s", proto, n.Masked()), fmt.Sprintf("%s daddr %s", proto, n.Masked())
		switch {
		case f == nft.Inet, f == family:
			out = append(out, from, to)
		case f == nft.Bridge && spec.Bridge != "":
			out = append(out, from, neighbours)
		}
	}
	return out
}

// nftName quotes a name for nft where it has to be.
func nftName(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return `"` + s + `"`
}

// quote quotes an argument for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// routeProblems finds routes of others that take packets for pods off weft's.
func routeProblems(ctx context.Context, spec ProbeSpec) ([]subnet.Problem, error) {
	if len(spec.Networks) == 0 {
		return nil, nil
	}
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
	var out []subnet.Problem
	for _, f := range subnet.Families() {
		routes, err := k.shadowing(ctx, f, spec, nics)
		if err != nil {
			return nil, fmt.Errorf("list %v routes: %w", f, err)
		}
		for _, r := range routes {
			out = append(out, shadowProblem(r, nics))
		}
	}
	return out, nil
}

// shadowing returns the main table's routes of others that take packets for
// pods off weft's: those that no route of weft to the same prefix goes before.
// There may be a whole Internet of others, and there are many of ours: the
// first are not decoded, and ours are only asked for where it matters.
func (k *Kernel) shadowing(ctx context.Context, f subnet.Family, spec ProbeSpec, nics []nic) ([]rawRoute, error) {
	head := unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN}
	space := newPodSpace(spec)
	others, err := gatherRoutes(ctx, k.conn, head, 0, func(out []rawRoute, msg []byte) []rawRoute {
		if protoOf(msg) == overlay.RouteProtocol || !space.leadsInto(msg) {
			return out
		}
		if r, ok := decodeRoute(msg, f); ok && r.shadows(spec, space, nics) {
			r.attrs = bytes.Clone(r.attrs)
			out = append(out, r)
		}
		return out
	})
	if err != nil || len(others) == 0 {
		return nil, err
	}
	theirs := map[netip.Prefix]bool{}
	for _, o := range others {
		theirs[o.dst] = true
	}
	lowest := map[netip.Prefix]uint32{} // metric of weft's routes to where others lead too
	head.Protocol = overlay.RouteProtocol
	err = k.conn.streamRoutes(ctx, head, 0, func() { clear(lowest) }, func(msg []byte) {
		r, ok := decodeRoute(msg, f)
		if !ok || r.proto != overlay.RouteProtocol || !theirs[r.dst] {
			return
		}
		if m, known := lowest[r.dst]; !known || r.metric < m {
			lowest[r.dst] = r.metric
		}
	})
	return slices.DeleteFunc(others, func(r rawRoute) bool {
		m, ours := lowest[r.dst]
		if !ours { // the bridge's own, of a subnet that this node had and nobody has now
			return r.isOn(spec.Bridge, nics)
		}
		return m < r.metric
	}), err
}

// A podSpace answers whether prefixes are among the pods: there may be many
// subnets of peers, and many routes of others.
type podSpace struct {
	networks []netip.Prefix
	leased   map[netip.Prefix]bool
	lengths  []int // of leased
}

func newPodSpace(spec ProbeSpec) podSpace {
	s := podSpace{networks: spec.Networks, leased: make(map[netip.Prefix]bool, len(spec.Leased))}
	for _, p := range spec.Leased {
		s.leased[p] = true
		if !slices.Contains(s.lengths, p.Bits()) {
			s.lengths = append(s.lengths, p.Bits())
		}
	}
	return s
}

// leadsInto reports whether a route message is of one to an address of pods.
func (s podSpace) leadsInto(msg []byte) bool {
	if len(msg) < unix.SizeofRtMsg {
		return false
	}
	b, _ := attr(msg[unix.SizeofRtMsg:], unix.RTA_DST)
	dst, ok := netip.AddrFromSlice(b)
	return ok && (slices.ContainsFunc(s.networks, func(n netip.Prefix) bool { return n.Contains(dst) }) ||
		s.isLeased(netip.PrefixFrom(dst, dst.BitLen())))
}

// isLeased reports whether p is a peer's subnet or in one.
func (s podSpace) isLeased(p netip.Prefix) bool {
	return slices.ContainsFunc(s.lengths, func(n int) bool {
		around, err := p.Addr().Prefix(n)
		return err == nil && n <= p.Bits() && s.leased[around]
	})
}

// shadows reports whether r is somebody else's and leads into a pod network. A
// route to one pod of ours that has no gateway does not: some CNI plugins
// make those.
func (r rawRoute) shadows(spec ProbeSpec, space podSpace, nics []nic) bool {
	inside := func(p netip.Prefix) bool { return p.Bits() <= r.dst.Bits() && p.Contains(r.dst.Addr()) }
	isPod := func(p netip.Prefix) bool { return inside(p) && r.dst.IsSingleIP() && !r.hops[0].via.IsValid() }
	strictly := func(p netip.Prefix) bool { return inside(p) && p.Bits() < r.dst.Bits() }
	if r.proto == overlay.RouteProtocol || !slices.ContainsFunc(spec.Networks, strictly) && !space.isLeased(r.dst) || slices.ContainsFunc(spec.Own, isPod) {
		return false
	}
	ours := slices.Clone(spec.Devices)
	if slices.ContainsFunc(spec.Own, inside) { // not of a subnet that this node had once
		ours = append(ours, spec.Bridge)
	}
	return !slices.ContainsFunc(ours, func(dev string) bool { return r.isOn(dev, nics) })
}

// isOn reports whether r leads to device dev.
func (r rawRoute) isOn(dev string, nics []nic) bool {
	return slices.ContainsFunc(r.hops, func(h hop) bool { return h.index != 0 && nicName(nics, h.index) == dev })
}

func nicName(nics []nic, index int) string {
	for _, n := range nics {
		if n.index == index {
			return n.name
		}
	}
	return "if" + strconv.Itoa(index)
}

// shadowProblem names r and what removes it. A route that the kernel made goes
// with the address that it was made for.
func shadowProblem(r rawRoute, nics []nic) subnet.Problem {
	route, dev := r.text(nics), nicName(nics, r.hops[0].index)
	command := "ip route del " + route
	if r.dst.Addr().Is6() {
		command = "ip -6 route del " + route
	}
	for _, n := range nics {
		for _, a := range n.addrs {
			if r.proto == unix.RTPROT_KERNEL && n.index == r.hops[0].index && a.net == r.dst {
				command = fmt.Sprintf("ip addr del %s/%d dev %s", a.ip, a.net.Bits(), dev)
			}
		}
	}
	return subnet.Problem{Kind: "RouteShadowed", Object: r.dst.String(), Detail: fmt.Sprintf(
		"the route `%s` is not weft's and takes packets for pods there: run `%s`, or choose another pod network", route, command)}
}

// text renders r as ip-route(8) takes it.
func (r rawRoute) text(nics []nic) string {
	types := map[uint8]string{unix.RTN_BLACKHOLE: "blackhole ", unix.RTN_UNREACHABLE: "unreachable ", unix.RTN_PROHIBIT: "prohibit ", unix.RTN_THROW: "throw "}
	s := types[r.typ] + r.dst.String()
	if h := r.hops[0]; len(r.hops) == 1 && r.typ == unix.RTN_UNICAST {
		if h.via.IsValid() {
			s += " via " + h.via.String()
		}
		if h.index != 0 {
			s += " dev " + nicName(nics, h.index)
		}
	}
	if r.metric != 0 {
		s += fmt.Sprintf(" metric %d", r.metric)
	}
	return s
}

// reversePathProblems finds underlays on which the kernel drops what peers
// send without VXLAN while the way back goes through it (RFC 3704 section 2.2
// calls that strict). The larger of the setting for all devices and for this
// one is in force (Documentation/networking/ip-sysctl.rst). root is /proc/sys.
func reversePathProblems(root string, spec ProbeSpec) ([]subnet.Problem, error) {
	var out []subnet.Problem
	for _, u := range spec.Underlays {
		if !u.Addr.Is4() {
			continue // IPv6 has no such setting
		}
		value := 0
		for _, dev := range []string{"all", u.Dev} {
			b, err := os.ReadFile(root + "/net/ipv4/conf/" + dev + "/rp_filter")
			if errors.Is(err, os.ErrNotExist) {
				continue // the device has gone
			}
			if err != nil {
				return out, fmt.Errorf("read sysctl rp_filter of %s: %w", dev, err)
			}
			n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			value = max(value, n)
		}
		if value == 1 {
			name := "net/ipv4/conf/" + u.Dev + "/rp_filter" // a device's name may hold a dot
			out = append(out, subnet.Problem{Kind: "ReversePathFilter", Object: u.Dev, Detail: fmt.Sprintf(
				"rp_filter is 1 (strict) there, so what a peer sends directly is dropped while it is reached through VXLAN: run `sysctl -w %s=2`", name)})
		}
	}
	return out, nil
}
