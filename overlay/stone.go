// SPDX-License-Identifier: Apache-2.0

package overlay

import "net/netip"

// steppingStones returns routes that have to be there while those of put are
// made, and their removal. The gateway of a route through VXLAN is inside its
// own prefix, and IPv6 refuses a gateway to which the main table leads over
// another device, the default route apart, onlink or not
// (ip6_route_check_nh_onlink, net/ipv6/route.c). So a route that comes back
// from the underlay, or moves between two devices of ours, has the old one in
// its way. A route to the gateway alone on the new device lets it replace the
// old one in one step, with nothing lost.
func steppingStones(put Changes, now Set[Route]) delta {
	var d delta
	inWay := map[string]spans{} // by device
	for _, c := range put {
		r, ok := c.Entry.(Route)
		if !ok || !r.Dst.Addr().Is6() || r.Via != r.Dst.Addr() || r.Dst.IsSingleIP() {
			continue
		}
		if _, ok := inWay[r.Dev]; !ok {
			inWay[r.Dev] = elsewhere(now, r.Dev)
		}
		stone := Route{Dev: r.Dev, Dst: single(r.Via), Metric: routeMetric(single(r.Via)), Proto: RouteProtocol}
		if inWay[r.Dev].overlaps(stone.Dst) && !now.Has(stone) { // one left behind is deleted in any case
			d.put = append(d.put, Change{Op: Add, Entry: stone})
			d.del = append(d.del, Change{Op: Delete, Entry: stone})
		}
	}
	return d
}

// elsewhere returns where IPv6 routes over other devices than dev lead to.
func elsewhere(routes Set[Route], dev string) spans {
	var out []netip.Prefix
	for r := range routes {
		if r.Dev != dev && r.Dst.Bits() > 0 && r.Dst.Addr().Is6() {
			out = append(out, r.Dst)
		}
	}
	return newSpans(out)
}
