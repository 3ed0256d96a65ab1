// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// routeProtocol marks weft's routes (overlay.RouteProtocol).
const routeProtocol = 87

// A state is what weft keeps in a node's kernel, one line an object, sorted:
// its devices, what is on them, its routes, and table inet weft. It is read
// here in other ways than weft reads it.
type state []string

// diff says what differs between the wanted and the actual state, shortly.
func (s state) diff(is state) string {
	var out []string
	for _, l := range s {
		if _, found := slices.BinarySearch(is, l); !found {
			out = append(out, "missing: "+l)
		}
	}
	for _, l := range is {
		if _, found := slices.BinarySearch(s, l); !found {
			out = append(out, "extra: "+l)
		}
	}
	if len(out) > 3 {
		out = append(out[:3], fmt.Sprintf("and %d more", len(out)-3))
	}
	return strings.Join(out, ", ")
}

// has reports whether a line contains all the words.
func (s state) has(words ...string) bool {
	return slices.ContainsFunc(s, func(l string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l+" ", w+" ") })
	})
}

// own returns whether a device is one of weft's.
func own(name string) bool { return strings.HasPrefix(name, "weft") }

// stateOf reads a node's state.
func stateOf(ctx context.Context, n *netlab.Node) (state, error) {
	var out state
	err := n.Netlink(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("list links on %s: %w", n, err)
		}
		names := map[int]string{}
		for _, l := range links {
			a := l.Attrs()
			names[a.Index] = a.Name
			if !own(a.Name) {
				continue
			}
			out = append(out, linkLine(l))
			more, err := onDevice(h, l)
			if err != nil {
				return fmt.Errorf("on %s: %w", n, err)
			}
			out = append(out, more...)
		}
		routes, err := routeLines(h, names)
		out = append(out, routes...)
		return err
	})
	if err != nil {
		return nil, err
	}
	settings, err := settingLines(n)
	if err != nil {
		return nil, err
	}
	table, err := tableLines(ctx, n)
	if err != nil {
		return nil, err
	}
	out = append(append(out, settings...), table...)
	slices.Sort(out)
	return slices.Compact(out), nil
}

func linkLine(l netlink.Link) string {
	a := l.Attrs()
	s := fmt.Sprintf("link %s %s mtu %d address %s up %t", a.Name, l.Type(), a.MTU, a.HardwareAddr, a.Flags&1 != 0)
	if v, ok := l.(*netlink.Vxlan); ok {
		s += fmt.Sprintf(" id %d local %s port %d learning %t", v.VxlanId, v.SrcAddr, v.Port, v.Learning)
	}
	return s
}

// onDevice reads addresses, permanent neighbours and forwarding entries.
func onDevice(h *netlink.Handle, l netlink.Link) ([]string, error) {
	var out []string
	name, index := l.Attrs().Name, l.Attrs().Index
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		out = append(out, fmt.Sprintf("addr %s dev %s", a.IPNet, name))
	}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		neighs, err := h.NeighList(index, f)
		if err != nil {
			return nil, fmt.Errorf("list neighbours of %s: %w", name, err)
		}
		for _, e := range neighs {
			if e.State&unix.NUD_PERMANENT != 0 {
				out = append(out, fmt.Sprintf("neigh %s lladdr %s dev %s", e.IP, e.HardwareAddr, name))
			}
		}
	}
	fdb, err := h.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries of %s: %w", name, err)
	}
	for _, e := range fdb {
		if e.IP != nil {
			out = append(out, fmt.Sprintf("fdb %s dst %s dev %s", e.HardwareAddr, e.IP, name))
		}
	}
	return out, nil
}

// routeLines reads the main table's routes that are weft's by their mark or by
// their device.
func routeLines(h *netlink.Handle, names map[int]string) ([]string, error) {
	routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []string
	for _, r := range routes {
		dev := names[r.LinkIndex]
		// The kernel's own routes come and go with addresses.
		if r.Protocol == unix.RTPROT_KERNEL || (r.Protocol != routeProtocol && !own(dev)) {
			continue
		}
		out = append(out, fmt.Sprintf("route %v via %v dev %s metric %d flags %v proto %d", r.Dst, r.Gw, dev, r.Priority, r.ListFlags(), r.Protocol))
	}
	return out, nil
}

// settingLines reads the kernel settings that weft sets for its devices.
func settingLines(n *netlab.Node) ([]string, error) {
	var out []string
	err := n.Do(func() error {
		dirs, err := os.ReadDir("/proc/sys/net/ipv4/conf")
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if !own(d.Name()) {
				continue
			}
			b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + d.Name() + "/rp_filter")
			if err != nil {
				continue // the device went meanwhile
			}
			out = append(out, fmt.Sprintf("setting rp_filter %s dev %s", strings.TrimSpace(string(b)), d.Name()))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read settings on %s: %w", n, err)
	}
	return out, nil
}

// tableLines reads table inet weft through nft(8), without counts and
// handles. A node without it has none.
func tableLines(ctx context.Context, n *netlab.Node) ([]string, error) {
	tables, err := n.Run(ctx, "nft", "list", "tables")
	if err != nil {
		return nil, err
	}
	if !slices.Contains(strings.Split(strings.TrimSpace(tables), "\n"), "table inet weft") {
		return nil, nil
	}
	text, err := n.Run(ctx, "nft", "-j", "list", "table", "inet", "weft")
	if err != nil {
		return nil, nil // it went between the two
	}
	var doc struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return nil, fmt.Errorf("table inet weft on %s: %w", n, err)
	}
	var out []string
	place := map[string]int{} // rules count within their chain: order matters
	for _, o := range doc.Nftables {
		for kind, fields := range o {
			if kind == "metainfo" {
				continue
			}
			elements, _ := fields["elem"].([]any)
			for _, k := range []string{"handle", "packets", "bytes", "elem"} {
				delete(fields, k)
			}
			if kind == "rule" {
				chain := fmt.Sprint(fields["chain"])
				place[chain]++
				fields["place"] = place[chain]
			}
			b, err := json.Marshal(fields)
			if err != nil {
				return nil, err
			}
			out = append(out, "nft "+kind+" "+string(b))
			for _, e := range elements {
				b, err := json.Marshal(e)
				if err != nil {
					return nil, err
				}
				out = append(out, fmt.Sprintf("nft element %s %s", fields["name"], b))
			}
		}
	}
	return out, nil
}
