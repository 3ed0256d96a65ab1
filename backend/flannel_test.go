// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// flannelShape is a dual-stack node of two, with flannel's device names.
func flannelShape() scenario {
	s := named{}.scenario()
	s.self.Names = overlay.Names{subnet.IPv4: "flannel.", subnet.IPv6: "flannel-v6."}
	peers(2)(&s)
	return s
}

func flannelDevices() []string { return []string{"flannel.1", "flannel-v6.1"} }

// flannelNode makes what flannel v0.28 makes of flannelShape, by the same
// library calls (pkg/backend/vxlan/device.go and vxlan_network.go).
func flannelNode(t *testing.T, s scenario) {
	t.Helper()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	nic, err := netlink.LinkByName("u0")
	do(err)
	for i, own := range s.self.Lease.Paths {
		peer := s.leases[0].Paths[i]
		base, bits := own.Subnet.Addr(), own.Subnet.Addr().BitLen()
		dev := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: flannelDevices()[i], HardwareAddr: own.MAC.HardwareAddr(), MTU: 1450},
			VxlanId:   1, VtepDevIndex: nic.Attrs().Index, SrcAddr: own.Underlay.AsSlice(), Port: 8472,
		}
		do(netlink.LinkAdd(dev))
		do(netlink.AddrAdd(dev, &netlink.Addr{IPNet: &net.IPNet{IP: base.AsSlice(), Mask: net.CIDRMask(bits, bits)}}))
		do(netlink.LinkSetUp(dev))
		gw := peer.Subnet.Addr()
		do(netlink.NeighSet(&netlink.Neigh{LinkIndex: dev.Index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
			IP: gw.AsSlice(), HardwareAddr: peer.MAC.HardwareAddr()}))
		do(netlink.NeighSet(&netlink.Neigh{LinkIndex: dev.Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			IP: peer.Underlay.AsSlice(), HardwareAddr: peer.MAC.HardwareAddr()}))
		route := &netlink.Route{LinkIndex: dev.Index, Scope: netlink.SCOPE_UNIVERSE, Gw: gw.AsSlice(),
			Dst: &net.IPNet{IP: gw.AsSlice(), Mask: net.CIDRMask(peer.Subnet.Bits(), bits)}}
		route.SetFlag(unix.RTNH_F_ONLINK)
		do(netlink.RouteReplace(route))
	}
}

// show prints both devices and all that is on them, without what differs
// from one run to the next.
func show(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, d := range flannelDevices() {
		for _, c := range []string{"ip -d link show " + d, "ip addr show " + d, "ip route show dev " + d, "ip -6 route show dev " + d,
			"ip neigh show dev " + d + " nud permanent", "bridge fdb show dev " + d} {
			out := regexp.MustCompile(`(?m)^\d+: `).ReplaceAllString(run(t, c), "")
			lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
			for i := range lines {
				lines[i] = strings.TrimRight(lines[i], " ")
			}
			b.WriteString("$ " + c + "\n" + strings.Join(lines, "\n") + "\n")
		}
	}
	return b.String()
}

// modulo removes the intended differences: the route's protocol and metric;
// the link-local address that weft's devices do without; the address that is
// valid at once; and the queue length, which flannel sets to 0, so that a
// qdisc put there later drops nearly everything.
func modulo(s string) string {
	for _, r := range [][2]string{
		{`( proto \S+)?( metric \d+)?`, ""},
		{`addrgenmode \w+`, ""},
		{`(?m)^    inet6 fe80.*\n.*\n`, ""},
		{`(?m)^fe80::/64.*\n`, ""},
		{`pref medium|nodad|tentative|qlen 1000`, ""},
		{` +`, " "},
		{`(?m) $`, ""},
		{`\n\n+`, "\n"},
	} {
		s = regexp.MustCompile(r[0]).ReplaceAllString(s, r[1])
	}
	return s
}

// TestFlannelShape: `ip` and `bridge` print the same of a node that weft made
// and of one that flannel made, apart from what modulo says.
func TestFlannelShape(t *testing.T) {
	s := flannelShape()
	enterNetns(t)
	addUnderlay(t)
	flannelNode(t, s)
	theirs := show(t)

	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, flannelDevices()...)
	mustApply(t, k, overlay.Diff(s.desired(t, overlay.NewState()), overlay.NewState())...)
	ours := show(t)
	if modulo(ours) != modulo(theirs) {
		t.Errorf("ours\n%s\nflannel's\n%s", modulo(ours), modulo(theirs))
	}
	golden(t, "flannel-shape.txt", ours)
}

// golden compares got with a file in testdata, or rewrites it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got\n%s", path, got)
	}
}

// TestAdoptFlannel: weft takes a node over from flannel in one pass. The
// devices stay the same ones, and so do neighbours and FDB entries; only the
// route changes its mark and metric, and two settings of the device.
func TestAdoptFlannel(t *testing.T) {
	s := flannelShape()
	enterNetns(t)
	addUnderlay(t)
	flannelNode(t, s)
	index := [2]int{ifindex(t, "flannel.1"), ifindex(t, "flannel-v6.1")}
	k := newKernel(t, flannelDevices()...)
	have := mustDump(t, k)
	changes := overlay.Diff(s.desired(t, have), have)
	for _, c := range changes {
		_, route := c.Entry.(overlay.Route)
		if !route && c.Op != overlay.Modify {
			t.Errorf("unexpected change: %s", c)
		}
	}
	mustApply(t, k, changes...)
	wantState(t, k, s.desired(t, have))
	if now := [2]int{ifindex(t, "flannel.1"), ifindex(t, "flannel-v6.1")}; now != index {
		t.Errorf("devices %v became %v", index, now)
	}
}

// TestUninstall: the desired state of an uninstalled node leaves the
// namespace as it was, whoever filled it.
func TestUninstall(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	before := run(t, "ip route") + run(t, "ip -6 route") + run(t, "ip addr")
	flannelNode(t, flannelShape())
	k := newKernel(t, flannelDevices()...)
	mustApply(t, k, overlay.Diff(overlay.NewState(), mustDump(t, k))...)
	wantState(t, k, overlay.NewState())
	if after := run(t, "ip route") + run(t, "ip -6 route") + run(t, "ip addr"); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
}

// TestFlannelIPv6MTU pins the kernel fact that flannel rests on: it asks for
// the same MTU over IPv6 and the kernel reduces it to what fits.
func TestFlannelIPv6MTU(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	flannelNode(t, flannelShape())
	k := newKernel(t, flannelDevices()...)
	mtus := map[netip.Addr]int{}
	for l := range mustDump(t, k).Links {
		mtus[l.Local] = l.MTU
	}
	got := []int{mtus[ip("10.0.0.1")], mtus[ip("fd00::1")]}
	if want := []int{1500 - overlay.Overhead(subnet.IPv4), 1500 - overlay.Overhead(subnet.IPv6)}; !slices.Equal(got, want) {
		t.Errorf("MTUs %v, want %v", got, want)
	}
}
