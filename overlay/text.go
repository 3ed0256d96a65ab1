// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"weft.dev/weft/subnet"
)

func (Filter) entry() {}
func (Node) entry()   {}
func (Source) entry() {}
func (Pods) entry()   {}
func (Link) entry()   {}
func (Addr) entry()   {}
func (FDB) entry()    {}
func (Neigh) entry()  {}
func (Route) entry()  {}

// String renders l as the arguments of `ip link add`. What iproute2 cannot
// say there follows as a shell comment, so that every field shows.
func (l Link) String() string {
	state := "down"
	if l.Up {
		state = "up"
	}
	s := fmt.Sprintf("%s # %s addrgenmode %s rp_filter %d", l.create(), state, l.addrGen(), l.RPFilter)
	if l.NoGRO {
		s += " gro off"
	}
	return s
}

// gro switches the merging of packets on or off; it is on at a new device.
func (l Link) gro() string {
	return fmt.Sprintf("ethtool -K %s gro %s", l.Name, map[bool]string{false: "on", true: "off"}[l.NoGRO])
}

// create is the part of l that `ip link add` takes.
func (l Link) create() string {
	s := fmt.Sprintf("%s address %s mtu %d type vxlan id %d local %s dev %s dstport %d %s",
		l.Name, l.MAC, l.MTU, l.VNI, l.Local, l.Underlay, l.Port, l.learning())
	if l.GBP {
		s += " gbp"
	}
	if l.Foreign != "" {
		s += " " + l.Foreign
	}
	return s
}

func (l Link) learning() string {
	if l.Learning {
		return "learning"
	}
	return "nolearning"
}

func (l Link) addrGen() string {
	if l.AddrGen == "" {
		return "default"
	}
	return l.AddrGen
}

// sysctl sets rp_filter. The dots of a device name become slashes there.
func (l Link) sysctl() string {
	return fmt.Sprintf("sysctl -qw net.ipv4.conf.%s.rp_filter=%d", strings.ReplaceAll(l.Name, ".", "/"), l.RPFilter)
}

// settle is what follows `ip link add`: the address generation mode has to be
// in place before the device comes up, or the kernel adds a link-local
// address. `ip link add` refuses to take it, and in one request with `up` the
// kernel brings the device up first.
func (l Link) settle() []string {
	out := []string{l.sysctl()}
	if l.NoGRO {
		out = append(out, l.gro())
	}
	if l.AddrGen != "" && l.carries(subnet.IPv6) { // else it has no such mode
		out = append(out, "ip link set "+l.Name+" addrgenmode "+l.AddrGen)
	}
	if l.Up {
		out = append(out, "ip link set "+l.Name+" up")
	}
	return out
}

// modify is the commands that turn was into l. Learning needs a command of
// its own, because vxlan_changelink refuses any request that carries an MTU.
func (l Link) modify(was Link) []string {
	var out, set []string
	if l.MAC != was.MAC {
		set = append(set, "address", l.MAC.String())
	}
	if l.MTU != was.MTU {
		set = append(set, "mtu", strconv.Itoa(l.MTU))
	}
	if l.Up != was.Up {
		set = append(set, map[bool]string{true: "up", false: "down"}[l.Up])
	}
	if l.RPFilter != was.RPFilter {
		out = append(out, l.sysctl())
	}
	if l.AddrGen != was.AddrGen {
		out = append(out, "ip link set "+l.Name+" addrgenmode "+l.AddrGen)
	}
	if l.Learning != was.Learning {
		out = append(out, fmt.Sprintf("ip link set %s type vxlan id %d %s", l.Name, l.VNI, l.learning()))
	}
	if l.NoGRO != was.NoGRO {
		out = append(out, l.gro())
	}
	if len(set) > 0 {
		out = append(out, "ip link set "+l.Name+" "+strings.Join(set, " "))
	}
	return out
}

// String renders a as the arguments of `ip addr add`.
func (a Addr) String() string { return fmt.Sprintf("%s dev %s", a.Prefix, a.Dev) }

// String renders f as the arguments of `bridge fdb add`.
func (f FDB) String() string {
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Dev, f.Dst)
}

// String renders n as the arguments of `ip neigh add`.
func (n Neigh) String() string {
	return fmt.Sprintf("%s lladdr %s dev %s nud permanent", n.IP, n.MAC, n.Dev)
}

// String renders r as the arguments of `ip route add`.
func (r Route) String() string {
	var b strings.Builder
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		b.WriteString(" via " + r.Via.String())
	}
	fmt.Fprintf(&b, " dev %s proto %d", r.Dev, r.Proto)
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.Onlink {
		b.WriteString(" onlink")
	}
	return b.String()
}

// Kind returns "filter", "node", "source", "pods", "link", "addr", "fdb",
// "neigh" or "route".
func (c Change) Kind() string { return kindOf(c.Entry) }

func kindOf(e Entry) string {
	switch e.(type) {
	case Filter:
		return "filter"
	case Node:
		return "node"
	case Source:
		return "source"
	case Pods:
		return "pods"
	case Link:
		return "link"
	case Addr:
		return "addr"
	case FDB:
		return "fdb"
	case Neigh:
		return "neigh"
	case Route:
		return "route"
	}
	return "nothing"
}

// String renders c as one line that a shell can run with the same effect,
// except for a Filter, which is a comment: nft would need all of the table.
func (c Change) String() string {
	switch e := c.Entry.(type) {
	case Link:
		return strings.Join(c.linkCommands(e), " && ")
	case Filter:
		return fmt.Sprintf("# %s filter %s", c.Op, e)
	case Node, Source, Pods:
		verb := map[Op]string{Add: "add", Replace: "add", Modify: "add", Delete: "delete"}[c.Op]
		return fmt.Sprintf("nft %s element %s", verb, e)
	}
	tool, verb := "ip ", map[Op]string{Add: "add", Replace: "replace", Modify: "replace", Delete: "del"}[c.Op]
	if _, ok := c.Entry.(FDB); ok {
		tool = "bridge "
	}
	s := fmt.Sprintf("%s%s %s %s", tool, c.Kind(), verb, c.Entry)
	if a, ok := c.Entry.(Addr); ok && c.Op != Delete && a.Prefix.Addr().Is6() {
		s += " nodad" // a tentative address is no valid source for a route
	}
	return s
}

func (c Change) linkCommands(l Link) []string {
	add := append([]string{"ip link add " + l.create()}, l.settle()...)
	del := []string{"ip link del " + l.Name}
	switch c.Op {
	case Delete:
		return del
	case Replace:
		return append(del, add...)
	case Modify:
		was, ok := c.Was.(Link)
		if !ok { // not known: set everything
			was = Link{MTU: -1, Learning: !l.Learning, NoGRO: !l.NoGRO, Up: !l.Up, RPFilter: ^l.RPFilter}
		}
		return l.modify(was)
	}
	return add
}

// MarshalJSON renders c as {"op":"add","kind":"route","text":"ip route ..."}.
func (c Change) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Op   string `json:"op"`
		Kind string `json:"kind"`
		Text string `json:"text"`
	}{c.Op.String(), c.Kind(), c.String()})
}

// Empty reports whether there is nothing to do.
func (c Changes) Empty() bool { return len(c) == 0 }

// String renders c as a shell script, one change a line, in the order in
// which Apply makes them. It is empty when there is nothing to do.
func (c Changes) String() string {
	var b strings.Builder
	for _, ch := range c {
		b.WriteString(ch.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// String renders s one entry a line, sorted: the kind and the entry as its
// String does, e.g. "neigh 10.5.2.0 lladdr 0a:58:... dev weft.1 nud permanent".
func (s State) String() string {
	var b strings.Builder
	writeSet(&b, s.Filters)
	writeSet(&b, s.Nodes)
	writeSet(&b, s.Sources)
	writeSet(&b, s.Pods)
	writeSet(&b, s.Links)
	writeSet(&b, s.Addrs)
	writeSet(&b, s.FDB)
	writeSet(&b, s.Neighs)
	writeSet(&b, s.Routes)
	return b.String()
}

func writeSet[E entryOf[E]](b *strings.Builder, s Set[E]) {
	for _, e := range sorted(s) {
		fmt.Fprintf(b, "%s %s\n", kindOf(e), e)
	}
}
