// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

func families() []subnet.Family {
	f := subnet.Families()
	return f[:]
}

// underlayHost makes a host with four devices in use and some that are not:
//
//	eth0  10.0.0.1/24 (default IPv4), secondary 10.0.0.5
//	eth1  10.1.0.1/24, fd01::1/64 (default IPv6), temporary and deprecated ones
//	eth2  fd02::1/64 and link-local only for IPv4; MTU 9000
//	eth3  down, 10.3.0.1/24
//	weft.1  ours, 10.42.1.0/32
func underlayHost(t *testing.T) {
	t.Helper()
	enterNetns(t)
	for _, n := range []string{"0", "1", "2", "3"} {
		run(t, "ip link add eth"+n+" type veth peer name peer"+n)
		run(t, "ip link set eth"+n+" addrgenmode none")
		run(t, "ip link set peer"+n+" addrgenmode none")
		run(t, "ip link set peer"+n+" up")
		if n != "3" {
			run(t, "ip link set eth"+n+" up")
		}
	}
	for _, c := range []string{
		"ip link set eth2 mtu 9000",
		"ip addr add 10.0.0.1/24 dev eth0",
		"ip addr add 10.0.0.5/24 dev eth0",
		"ip addr add 10.1.0.1/24 dev eth1",
		"ip addr add fd01::dead/64 dev eth1 nodad preferred_lft 0",
		"ip addr add fd01::1/64 dev eth1 nodad",
		"ip addr add fe80::1/64 dev eth1 nodad",
		"ip addr add fd02::1/64 dev eth2 nodad",
		"ip addr add 169.254.7.7/16 dev eth2",
		"ip addr add 10.3.0.1/24 dev eth3",
		"ip link add weft.1 type vxlan id 1 dev eth0 local 10.0.0.1 dstport 8472",
		"ip addr add 10.42.1.0/32 dev weft.1",
		"ip link set weft.1 addrgenmode none",
		"ip link set weft.1 up",
		"ip link add other type vxlan id 77 dev eth0 dstport 4789",
		"ip link set other addrgenmode none",
		"ip addr add 10.77.0.1/32 dev other",
		"ip link set other up",
		"ip route add default via 10.1.0.9 metric 200",
		"ip route add default via 10.0.0.9 metric 100",
		"ip -6 route add default via fd01::9",
		"ip route add 192.0.2.0/24 via 10.1.0.9",
		"ip -6 route add 2001:db8::/32 via fd02::9",
		"ip route add blackhole 198.51.100.0/24",
	} {
		run(t, c)
	}
}

// TestFindUnderlays: which device and address each way of choosing leads to.
func TestFindUnderlays(t *testing.T) {
	underlayHost(t)
	eth0 := overlay.Underlay{Dev: "eth0", Addr: ip("10.0.0.1"), Net: prefix("10.0.0.0/24"), MTU: 1500}
	secondary := overlay.Underlay{Dev: "eth0", Addr: ip("10.0.0.5"), Net: prefix("10.0.0.0/24"), MTU: 1500}
	eth1 := overlay.Underlay{Dev: "eth1", Addr: ip("10.1.0.1"), Net: prefix("10.1.0.0/24"), MTU: 1500}
	eth1six := overlay.Underlay{Dev: "eth1", Addr: ip("fd01::1"), Net: prefix("fd01::/64"), MTU: 1500}
	eth2 := overlay.Underlay{Dev: "eth2", Addr: ip("fd02::1"), Net: prefix("fd02::/64"), MTU: 9000}
	addrs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, ip(a))
		}
		return out
	}
	for _, c := range []struct {
		name string
		spec UnderlaySpec
		want []overlay.Underlay
	}{
		{"default routes, each family its own", UnderlaySpec{}, []overlay.Underlay{eth0, eth1six}},
		{"name", UnderlaySpec{Ifaces: []string{"eth1"}}, []overlay.Underlay{eth1, eth1six}},
		{"name with one family", UnderlaySpec{Ifaces: []string{"eth0"}}, []overlay.Underlay{eth0}},
		{"names in order, each family the first that has it", UnderlaySpec{Ifaces: []string{"eth2", "eth0", "eth1"}}, []overlay.Underlay{eth0, eth2}},
		{"missing and down names are passed over", UnderlaySpec{Ifaces: []string{"eth9", "eth3", "lo", "eth1"}}, []overlay.Underlay{eth1, eth1six}},
		{"address", UnderlaySpec{Ifaces: []string{"10.1.0.1"}}, []overlay.Underlay{eth1, eth1six}},
		{"secondary address", UnderlaySpec{Ifaces: []string{"10.0.0.5"}}, []overlay.Underlay{secondary}},
		{"IPv6 address", UnderlaySpec{Ifaces: []string{"fd01::1"}}, []overlay.Underlay{eth1, eth1six}},
		{"deprecated address by name", UnderlaySpec{Ifaces: []string{"fd01::dead"}}, []overlay.Underlay{eth1, {Dev: "eth1", Addr: ip("fd01::dead"), Net: prefix("fd01::/64"), MTU: 1500}}},
		{"regex on addresses before names", UnderlaySpec{Regexes: []string{`eth0|^10\.1\.`}}, []overlay.Underlay{eth1, eth1six}},
		{"regex on names", UnderlaySpec{Regexes: []string{`^eth[02]$`}}, []overlay.Underlay{eth0, eth2}},
		{"regex picks the address", UnderlaySpec{Regexes: []string{`\.5$`}}, []overlay.Underlay{secondary}},
		{"regexes in order", UnderlaySpec{Regexes: []string{"nothing", "eth1", "eth0"}}, []overlay.Underlay{eth1, eth1six}},
		{"regex never means our own device", UnderlaySpec{Regexes: []string{`^10\.42\.`, "eth0"}}, []overlay.Underlay{eth0}},
		{"regex never means a VXLAN device", UnderlaySpec{Regexes: []string{`^10\.77\.`, "other", "eth0"}}, []overlay.Underlay{eth0}},
		{"a VXLAN device that is named", UnderlaySpec{Ifaces: []string{"other"}}, []overlay.Underlay{{Dev: "other", Addr: ip("10.77.0.1"), Net: prefix("10.77.0.1/32"), MTU: 1450}}},
		{"names before regexes", UnderlaySpec{Ifaces: []string{"eth0"}, Regexes: []string{"eth1"}}, []overlay.Underlay{eth0, eth1six}},
		{"can reach", UnderlaySpec{CanReach: addrs("192.0.2.1")}, []overlay.Underlay{eth1, eth1six}},
		{"can reach, both families", UnderlaySpec{CanReach: addrs("192.0.2.1", "2001:db8::1")}, []overlay.Underlay{eth1, eth2}},
		{"can reach, other order", UnderlaySpec{CanReach: addrs("2001:db8::1", "192.0.2.1")}, []overlay.Underlay{eth1, eth2}},
		{"cannot reach the first", UnderlaySpec{CanReach: addrs("198.51.100.1", "192.0.2.1")}, []overlay.Underlay{eth1, eth1six}},
		{"public address on a device", UnderlaySpec{PublicIPs: addrs("10.1.0.1")}, []overlay.Underlay{eth1, eth1six}},
		{"public address elsewhere (NAT)", UnderlaySpec{PublicIPs: addrs("203.0.113.1")}, []overlay.Underlay{eth0, eth1six}},
		{"public addresses of both families", UnderlaySpec{PublicIPs: addrs("10.0.0.1", "fd02::1")}, []overlay.Underlay{eth0, eth2}},
		{"the Node's addresses", UnderlaySpec{NodeAddrs: addrs("10.1.0.1", "fd02::1")}, []overlay.Underlay{eth1, eth2}},
		{"the Node's addresses, in their order", UnderlaySpec{NodeAddrs: addrs("203.0.113.1", "10.0.0.5", "10.0.0.1", "fd01::1")}, []overlay.Underlay{secondary, eth1six}},
		{"the Node has no address of a family", UnderlaySpec{NodeAddrs: addrs("10.1.0.1")}, []overlay.Underlay{eth1}},
		{"no address of the Node is here", UnderlaySpec{NodeAddrs: addrs("203.0.113.1", "10.42.0.1", "2001:db8::9")}, []overlay.Underlay{eth0, eth1six}},
		{"a public address beats the Node's", UnderlaySpec{PublicIPs: addrs("10.0.0.1"), NodeAddrs: addrs("10.1.0.1")}, []overlay.Underlay{eth0}},
		{"a name beats the Node's addresses", UnderlaySpec{Ifaces: []string{"eth0"}, NodeAddrs: addrs("10.1.0.1", "fd02::1")}, []overlay.Underlay{eth0}},
		{"public address does not beat a name", UnderlaySpec{Ifaces: []string{"eth0"}, PublicIPs: addrs("10.1.0.1")}, []overlay.Underlay{eth0}},
		{"public address picks among a device's", UnderlaySpec{Ifaces: []string{"eth0"}, PublicIPs: addrs("10.0.0.5")}, []overlay.Underlay{secondary}},
	} {
		c.spec.Skip = []string{"weft.1"}
		got, err := FindUnderlays(t.Context(), c.spec, families())
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
		// Families are found on their own, and in the order that was asked.
		slices.Reverse(c.want)
		got, err = FindUnderlays(t.Context(), c.spec, []subnet.Family{subnet.IPv6, subnet.IPv4})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s, reversed: %v, %v, want %v", c.name, got, err, c.want)
		}
		for _, u := range c.want {
			got, err := FindUnderlays(t.Context(), c.spec, []subnet.Family{subnet.FamilyOf(u.Addr)})
			if err != nil || len(got) != 1 || got[0] != u {
				t.Errorf("%s, one family: %v, %v, want %v", c.name, got, err, u)
			}
		}
	}
}

// TestTemporaryAddress: a temporary IPv6 address (RFC 8981) is not chosen,
// though the kernel lists it first.
func TestTemporaryAddress(t *testing.T) {
	n := nic{addrs: []nicAddr{{ip: ip("fd01::7777"), flags: 0x01}, {ip: ip("fd01::40"), flags: 0x40}, {ip: ip("fd01::8"), flags: 0x08}, {ip: ip("fd01::1"), flags: 0x80}}}
	if a, ok := n.address(subnet.IPv6, netip.Addr{}, nil, nil); !ok || a.ip != ip("fd01::1") {
		t.Errorf("picked %v, %v, want fd01::1", a, ok)
	}
	if a, ok := n.address(subnet.IPv6, ip("fd01::7777"), nil, nil); !ok || a.ip != ip("fd01::7777") {
		t.Errorf("named, but picked %v, %v", a, ok)
	}
	if a, ok := n.address(subnet.IPv6, ip("fd01::40"), nil, nil); !ok || a.ip != ip("fd01::1") {
		t.Errorf("tentative named, but picked %v, %v", a, ok)
	}
	only := nic{addrs: []nicAddr{{ip: ip("fd01::7777"), flags: 0x01}}}
	if a, ok := only.address(subnet.IPv6, netip.Addr{}, nil, nil); ok {
		t.Errorf("picked temporary %v", a)
	}
}

// TestVirtualAddress: an address that comes beside the one in use does not move
// the tunnel, and a virtual one is not chosen at first either.
func TestVirtualAddress(t *testing.T) {
	old, vip, other := ip("fd77::2"), ip("fd77::53"), ip("fd77::9")
	at := func(a netip.Addr, bits int) nicAddr { return nicAddr{ip: a, net: netip.PrefixFrom(a, bits).Masked()} }
	for _, c := range []struct {
		name  string
		addrs []nicAddr // the newest first
		keep  []netip.Addr
		want  netip.Addr
	}{
		{"a virtual address comes", []nicAddr{at(vip, 128), at(old, 64)}, nil, old},
		{"and was there first", []nicAddr{at(old, 64), at(vip, 128)}, nil, old},
		{"another address comes", []nicAddr{at(other, 64), at(old, 64)}, nil, old},
		{"the one in use is the newer", []nicAddr{at(other, 64), at(old, 64)}, []netip.Addr{other}, other},
		{"the one in use is gone", []nicAddr{at(other, 64)}, []netip.Addr{old}, other},
		{"the one in use is deprecated", []nicAddr{at(other, 64), {ip: old, net: at(old, 64).net, flags: unix.IFA_F_DEPRECATED}}, []netip.Addr{old}, other},
		{"nothing but a virtual address", []nicAddr{at(vip, 128)}, nil, vip},
		{"IPv4: secondary", []nicAddr{{ip: ip("10.0.0.9"), flags: unix.IFA_F_SECONDARY}, {ip: ip("10.0.0.1")}, {ip: ip("10.1.0.1")}}, nil, ip("10.0.0.1")},
		{"IPv4: the one in use", []nicAddr{{ip: ip("10.0.0.1")}, {ip: ip("10.1.0.1")}}, []netip.Addr{ip("10.1.0.1")}, ip("10.1.0.1")},
	} {
		if a, ok := (nic{addrs: c.addrs}).address(subnet.FamilyOf(c.want), netip.Addr{}, nil, c.keep); !ok || a.ip != c.want {
			t.Errorf("%s: picked %v, %v, want %v", c.name, a.ip, ok, c.want)
		}
	}
}

// TestNoUnderlay: the error says what was tried and what there is.
func TestNoUnderlay(t *testing.T) {
	underlayHost(t)
	for _, c := range []struct {
		name string
		spec UnderlaySpec
		want []subnet.Family
		says []string
	}{
		{"missing", UnderlaySpec{Ifaces: []string{"eth9", "10.9.9.9"}}, families(),
			[]string{"no underlay device for IPv4 or IPv6: tried interface eth9 (no such device), interface 10.9.9.9 (on no device)",
				"devices: lo (127.0.0.1 ::1, is loopback), ", "eth0 (10.0.0.1 10.0.0.5)", "peer0 (no address)", "weft.1 (10.42.1.0, is our own)"}},
		{"down", UnderlaySpec{Ifaces: []string{"eth3"}}, families(), []string{"interface eth3 (eth3 is down)", "eth3 (10.3.0.1, is down)"}},
		{"loopback", UnderlaySpec{Ifaces: []string{"lo"}}, families(), []string{"interface lo (lo is loopback)"}},
		{"own", UnderlaySpec{Ifaces: []string{"weft.1"}}, families(), []string{"interface weft.1 (weft.1 is our own)"}},
		{"link-local only", UnderlaySpec{Ifaces: []string{"eth2"}}, []subnet.Family{subnet.IPv4}, []string{"for IPv4: tried interface eth2 (eth2 has no usable IPv4 address)"}},
		{"regex", UnderlaySpec{Regexes: []string{"^bond"}}, families(), []string{"regular expression ^bond (matches no usable device)"}},
		{"unreachable", UnderlaySpec{CanReach: []netip.Addr{ip("198.51.100.1")}}, families(), []string{"route to 198.51.100.1 ("}},
	} {
		c.spec.Skip = []string{"weft.1"}
		got, err := FindUnderlays(t.Context(), c.spec, c.want)
		if !errors.Is(err, ErrNoUnderlay) {
			t.Errorf("%s: %v, %v, want ErrNoUnderlay", c.name, got, err)
			continue
		}
		wantErr(t, err, c.says...)
	}
	if _, err := FindUnderlays(t.Context(), UnderlaySpec{Regexes: []string{"("}}, families()); err == nil || errors.Is(err, ErrNoUnderlay) || !strings.Contains(err.Error(), `"("`) {
		t.Errorf("bad regular expression: %v", err)
	}
}

// TestNoDefaultRoute: a host without any route.
func TestNoDefaultRoute(t *testing.T) {
	enterNetns(t)
	_, err := FindUnderlays(t.Context(), UnderlaySpec{PublicIPs: []netip.Addr{ip("203.0.113.1")}}, families())
	wantErr(t, err, "public address 203.0.113.1 (on no device)", "IPv4 default route (there is none)", "IPv6 default route (there is none)")
}

// TestUnderlayNet: who is on the link, as the address of the device says: with
// a peer it is the peer alone.
func TestUnderlayNet(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	for _, c := range []struct{ add, addr, net string }{
		{"10.7.0.9/20", "10.7.0.9", "10.7.0.0/20"},
		{"10.8.0.9/32", "10.8.0.9", "10.8.0.9/32"},
		{"10.9.0.9 peer 10.9.1.1/32", "10.9.0.9", "10.9.1.1/32"},
		{"fd09::9/56 nodad", "fd09::9", "fd09::/56"},
		{"fd0a::9/128 nodad", "fd0a::9", "fd0a::9/128"},
	} {
		run(t, "ip addr add "+c.add+" dev u0")
		got, err := FindUnderlays(t.Context(), UnderlaySpec{Ifaces: []string{c.addr}}, []subnet.Family{subnet.FamilyOf(ip(c.addr))})
		if want := (overlay.Underlay{Dev: "u0", Addr: ip(c.addr), Net: prefix(c.net), MTU: 1500}); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, %v, want %v", c.add, got, err, want)
		}
	}
}

// TestLocalAddrs: every address that packets from elsewhere can be for.
func TestLocalAddrs(t *testing.T) {
	underlayHost(t)
	run(t, "ip addr add 10.99.0.1/32 dev lo")
	got, err := LocalAddrs(t.Context())
	var want []netip.Addr
	for _, a := range []string{"10.0.0.1", "10.0.0.5", "10.1.0.1", "10.3.0.1", "10.42.1.0", "10.77.0.1", "10.99.0.1", "fd01::1", "fd01::dead", "fd02::1"} {
		want = append(want, ip(a))
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

// TestOwnDevices: a device counts by its kind, its name and its VNI.
func TestOwnDevices(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	for _, c := range []string{
		"weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472", "weft6.1 type vxlan id 1 dev u0 local fd00::1 dstport 8472",
		"weft.20 type vxlan id 20 dev u0 local 10.0.0.1 dstport 8472", "flannel.3 type vxlan id 3 dev u0 local 10.0.0.1 dstport 8472",
		"weft.7 type vxlan id 8 dev u0 local 10.0.0.1 dstport 8472", "weft.09 type vxlan id 9 dev u0 local 10.0.0.1 dstport 8472",
		"weft.5 type bridge", "weft.x type bridge",
	} {
		run(t, "ip link add "+c)
	}
	got, err := OwnDevices(t.Context(), []string{"weft.", "weft6."})
	if want := []string{"weft.1", "weft.20", "weft6.1"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}
