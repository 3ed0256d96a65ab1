// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// byHand makes link(f) with iproute2, extra being further arguments of
// `type vxlan`, or what replaces one of the usual ones.
func byHand(t *testing.T, f subnet.Family, extra string) {
	t.Helper()
	l := link(f)
	args := []string{"id", "1", "dev", "u0", "local", l.Local.String(), "dstport", "8472", "nolearning"}
	x := strings.Fields(extra)
	if slices.Contains(x, "learning") {
		args = args[:len(args)-1]
	}
	if slices.Contains(x, "external") {
		args = args[2:]
	}
	if len(x) == 2 {
		if at := slices.Index(args, x[0]); at >= 0 {
			args[at+1], x = x[1], nil
		}
	}
	args = append(args, x...)
	run(t, "ip link add "+l.Name+" address "+l.MAC.String()+" mtu "+strconv.Itoa(l.MTU)+" type vxlan "+strings.Join(args, " "))
	sysctl(t, "net/ipv4/conf/"+l.Name+"/rp_filter", "2")
	run(t, "ip link set "+l.Name+" addrgenmode none")
	run(t, "ip link set "+l.Name+" up")
}

// drift is a device of ours that somebody made or changed, and what the dump
// must show of it.
type drift struct {
	name   string
	extra  string                // arguments of `ip link add ... type vxlan`
	then   []string              // commands afterwards
	family subnet.Family         // of the underlay; IPv4 when zero
	want   func(l *overlay.Link) // what differs from link(family)
	setup  func(t *testing.T)    // when no command can say it
}

func foreign(s string) func(*overlay.Link) { return func(l *overlay.Link) { l.Foreign = s } }

// createdWith lists attributes that are given when the device is made.
func createdWith() []drift {
	return []drift{
		{name: "vni", extra: "id 2", want: func(l *overlay.Link) { l.VNI = 2 }},
		{name: "port", extra: "dstport 4789", want: func(l *overlay.Link) { l.Port = 4789 }},
		{name: "underlay", extra: "dev u1", want: func(l *overlay.Link) { l.Underlay = "u1" }},
		{name: "local", extra: "local 10.0.0.9", want: func(l *overlay.Link) { l.Local = ip("10.0.0.9") }},
		{name: "local IPv6", extra: "local fd00::9", family: subnet.IPv6, want: func(l *overlay.Link) { l.Local = ip("fd00::9") }},
		{name: "learning", extra: "learning", want: func(l *overlay.Link) { l.Learning = true }},
		{name: "gbp", extra: "gbp", want: func(l *overlay.Link) { l.GBP = true }},
		{name: "remote", extra: "remote 10.0.0.7", want: foreign("remote 10.0.0.7")},
		{name: "remote IPv6", extra: "remote fd00::7", family: subnet.IPv6, want: foreign("remote fd00::7")},
		{name: "group", extra: "group 239.1.1.1", want: foreign("group 239.1.1.1")},
		{name: "proxy", extra: "proxy", want: foreign("proxy")},
		{name: "rsc", extra: "rsc", want: foreign("rsc")},
		{name: "l2miss", extra: "l2miss", want: foreign("l2miss")},
		{name: "l3miss", extra: "l3miss", want: foreign("l3miss")},
		{name: "ttl", extra: "ttl 7", want: foreign("ttl 7")},
		{name: "ttl inherit", extra: "ttl inherit", want: foreign("ttl inherit")},
		{name: "tos", extra: "tos 0x10", want: foreign("tos 16")},
		{name: "df", extra: "df set", want: foreign("df 1")},
		{name: "flowlabel", extra: "flowlabel 0x12", family: subnet.IPv6, want: foreign("flowlabel 18")},
		{name: "srcport", extra: "srcport 40000 50000", want: foreign("srcport 40000 50000")},
		{name: "maxaddr", extra: "maxaddress 5", want: foreign("maxaddr 5")},
		{name: "noudpcsum", extra: "noudpcsum", want: foreign("noudpcsum")},
		{name: "udp6zerocsumtx", extra: "udp6zerocsumtx", family: subnet.IPv6, want: foreign("udp6zerocsumtx")},
		{name: "udp6zerocsumrx", extra: "udp6zerocsumrx", family: subnet.IPv6, want: foreign("udp6zerocsumrx")},
		{name: "remcsumtx", extra: "remcsumtx", want: foreign("remcsumtx")},
		{name: "remcsumrx", extra: "remcsumrx", want: foreign("remcsumrx reserved_bits 0xf7dfffff00000000")},
		{name: "external", extra: "external", want: func(l *overlay.Link) { l.VNI, l.Foreign = 0, "external" }},
		{name: "vnifilter", extra: "external vnifilter", want: func(l *overlay.Link) { l.VNI, l.Foreign = 0, "external vnifilter" }},
		{name: "ageing with learning", extra: "learning ageing 60", want: func(l *overlay.Link) { l.Learning, l.Foreign = true, "ageing 60" }},
		{name: "two at once", extra: "l2miss ttl 9 rsc", want: foreign("rsc l2miss ttl 9")},
	}
}

// changedLater lists attributes that somebody changes on a device.
func changedLater() []drift {
	return []drift{
		{name: "mac", then: []string{"ip link set weft.1 address 0a:58:00:00:00:99"}, want: func(l *overlay.Link) { l.MAC = mac(0x99) }},
		{name: "mtu", then: []string{"ip link set weft.1 mtu 1400"}, want: func(l *overlay.Link) { l.MTU = 1400 }},
		{name: "mtu too small for IPv6", then: []string{"ip link set weft.1 mtu 1000"}, want: func(l *overlay.Link) { l.MTU = 1000 }},
		{name: "down", then: []string{"ip link set weft.1 down"}, want: func(l *overlay.Link) { l.Up = false }},
		{name: "learning later", then: []string{"ip link set weft.1 type vxlan learning"}, want: func(l *overlay.Link) { l.Learning = true }},
		{name: "gro off", then: []string{"ethtool -K weft.1 gro off"}, want: func(l *overlay.Link) { l.NoGRO = true }},
		{name: "rp_filter strict", setup: func(t *testing.T) { sysctl(t, "net/ipv4/conf/weft.1/rp_filter", "1") }, want: func(l *overlay.Link) { l.RPFilter = 1 }},
		{name: "rp_filter off", setup: func(t *testing.T) { sysctl(t, "net/ipv4/conf/weft.1/rp_filter", "0") }, want: func(l *overlay.Link) { l.RPFilter = 0 }},
		{name: "addrgenmode eui64", then: []string{"ip link set weft.1 addrgenmode eui64"}, want: func(l *overlay.Link) { l.AddrGen = "eui64" }},
		{name: "addrgenmode random", then: []string{"ip link set weft.1 addrgenmode random"}, want: func(l *overlay.Link) { l.AddrGen = "random" }},
		{name: "addrgenmode stable", setup: func(t *testing.T) {
			sysctl(t, "net/ipv6/conf/weft.1/stable_secret", "2001:db8::1")
			run(t, "ip link set weft.1 addrgenmode stable_secret")
		}, want: func(l *overlay.Link) { l.AddrGen = "stable_secret" }},
		{name: "several at once", then: []string{"ip link set weft.1 down address 0a:58:00:00:00:99 mtu 1300", "ip link set weft.1 type vxlan learning"},
			want: func(l *overlay.Link) { l.Up, l.MAC, l.MTU, l.Learning = false, mac(0x99), 1300, true }},
		{name: "master", then: []string{"ip link add br9 type bridge", "ip link set weft.1 master br9"}, want: foreign("master br9")},
		{name: "arp off", then: []string{"ip link set weft.1 arp off"}, want: foreign("arp off")},
		{name: "protodown", then: []string{"ip link set weft.1 protodown on"}, want: foreign("protodown on")},
		{name: "remote later", then: []string{"ip link set weft.1 type vxlan remote 10.0.0.7"}, want: foreign("remote 10.0.0.7")},
		{name: "underlay renamed", then: []string{"ip link set u0 down", "ip link set u0 name v0"}, want: func(l *overlay.Link) { l.Underlay = "v0" }},
		{name: "nolocalbypass", setup: setVXLAN(unix.IFLA_VXLAN_LOCALBYPASS, []byte{0}), want: foreign("nolocalbypass")},
	}
}

// setVXLAN alters an attribute that this machine's iproute2 has no word for.
func setVXLAN(attr int, value []byte) func(t *testing.T) {
	return func(t *testing.T) {
		k := newKernel(t, "weft.1")
		l, found, err := k.ownLink(t.Context(), "weft.1")
		if err != nil || !found {
			t.Fatalf("weft.1: found %v, %v", found, err)
		}
		h := nl.NewIfInfomsg(unix.AF_UNSPEC)
		h.Index = int32(l.index)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kindVXLAN))
		info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(attr, value)
		if err := k.conn.change(t.Context(), request(unix.RTM_NEWLINK, 0, h, info)); err != nil {
			t.Fatalf("set VXLAN attribute %d: %v", attr, err)
		}
	}
}

// TestLinkDrift: the dump shows each attribute that differs, and nothing
// else; Diff and Apply mend it in one pass, in place exactly where overlay
// says that is enough.
func TestLinkDrift(t *testing.T) {
	for _, d := range slices.Concat([]drift{{name: "none"}, {name: "none IPv6", family: subnet.IPv6}}, createdWith(), changedLater()) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			enterNetns(t)
			addUnderlay(t)
			if d.family == 0 {
				d.family = subnet.IPv4
			}
			want := link(d.family)
			k := newKernel(t, want.Name)
			byHand(t, d.family, d.extra)
			for _, c := range d.then {
				run(t, c)
			}
			if d.setup != nil {
				d.setup(t)
			}
			have := want
			if d.want != nil {
				d.want(&have)
			}
			got := mustDump(t, k)
			if !got.Links.Has(have) || len(got.Links) != 1 {
				t.Fatalf("the kernel holds\n%swant link %s", got, have)
			}
			if have.Underlay == "v0" {
				return // its name is all that is wrong, and Self follows it
			}
			index := ifindex(t, want.Name)
			mustApply(t, k, overlay.Diff(state(want), got)...)
			wantState(t, k, state(want))
			if same := ifindex(t, want.Name) == index; same != inPlace(have, want) {
				t.Errorf("the device stayed: %v, want %v", same, inPlace(have, want))
			}
		})
	}
}

func ifindex(t testing.TB, name string) int {
	t.Helper()
	out := run(t, "ip -o link show "+name)
	n, err := strconv.Atoi(out[:strings.Index(out, ":")])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReservedBits covers the one attribute whose default depends on another.
func TestReservedBits(t *testing.T) {
	for _, gbp := range []bool{false, true} {
		enterNetns(t)
		addUnderlay(t)
		l := link(subnet.IPv4)
		l.GBP = gbp
		k := newKernel(t, l.Name)
		mustApply(t, k, add(l))
		raw, _, err := k.ownLink(t.Context(), l.Name)
		if err != nil {
			t.Fatal(err)
		}
		bits, ok := attr(raw.data, iflaVXLANReservedBits)
		if !ok {
			t.Fatal("no reserved bits in the dump")
		}
		if string(bits) != string(reservedBits(gbp)) {
			t.Errorf("gbp %v: kernel says %x, we take %x for its default", gbp, bits, reservedBits(gbp))
		}
		wantState(t, k, state(l))
	}
	seen := map[uint16][]byte{iflaVXLANReservedBits: binary.BigEndian.AppendUint64(nil, 0xff)}
	if got := foreignVXLAN(seen, vxlan{}); len(got) != 1 || got[0] != "reserved_bits 0x00000000000000ff" {
		t.Errorf("other reserved bits are shown as %q", got)
	}
}

// TestMovedUnderlay: a device whose underlay is in another network namespace
// is replaced, because its ifindex says nothing here.
func TestMovedUnderlay(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	enterNetns(t) // the underlay of the device is here
	addUnderlay(t)
	byHand(t, subnet.IPv4, "")
	run(t, fmt.Sprintf("ip link set weft.1 netns /proc/%d/fd/%d", os.Getpid(), here.Fd()))
	if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	l := link(subnet.IPv4)
	k := newKernel(t, l.Name)
	got := mustDump(t, k)
	for have := range got.Links {
		if have.Underlay != "" || have.Foreign != "link-netns other" {
			t.Errorf("underlay %q, foreign %q", have.Underlay, have.Foreign)
		}
	}
	mustApply(t, k, overlay.Diff(state(l), got)...)
	wantState(t, k, state(l))
}

// TestForeignDevice: a device that has our name and is no VXLAN device is
// neither read, changed nor deleted, whatever is asked.
func TestForeignDevice(t *testing.T) {
	for _, c := range []struct{ kind, make, says string }{
		{"bridge", "ip link add weft.1 type bridge", "device weft.1 is a bridge, not ours: delete or rename it"},
		{"veth", "ip link add weft.1 type veth peer name p1", "device weft.1 is a veth, not ours"},
		{"alternative name", "ip link property add dev u0 altname weft.1", "device weft.1 is a veth called u0 with that alternative name, not ours"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel()
			enterNetns(t)
			addUnderlay(t)
			run(t, c.make)
			l := link(subnet.IPv4)
			k := newKernel(t, l.Name, "weft6.1")
			look := func() string { // without operational state and timers, which the kernel changes later
				raw, _, err := k.link(t.Context(), l.Name, 0)
				return fmt.Sprintf("%s(%d) %s %s mtu %d flags %#x %v\n%s", raw.name, raw.index, raw.kind, raw.mac, raw.mtu,
					raw.flags&(unix.IFF_UP|unix.IFF_NOARP), err, run(t, "ip -o addr show"))
			}
			before := look()
			_, err := k.Dump(t.Context(), overlay.Digest{})
			var f *ForeignDeviceError
			if !errors.As(err, &f) || f.Dev != "weft.1" {
				t.Errorf("Dump: %v, want a ForeignDeviceError for weft.1", err)
			}
			wantErr(t, err, c.says)
			for _, ch := range []overlay.Change{
				add(l), replace(l, l), modify(l, l), del(l),
				add(overlay.Addr{Dev: l.Name, Prefix: prefix("10.42.1.0/32")}),
				del(overlay.Addr{Dev: l.Name, Prefix: prefix("10.0.0.1/24")}),
				add(overlay.Neigh{Dev: l.Name, IP: ip("10.42.2.0"), MAC: mac(2)}),
			} {
				err := k.Apply(t.Context(), overlay.Changes{ch})
				if !errors.As(err, &f) {
					t.Errorf("%s: %v, want a ForeignDeviceError", title(ch), err)
				}
			}
			if after := look(); after != before {
				t.Errorf("was\n%sis\n%s", before, after)
			}
		})
	}
}

// TestCreate: the new device's MAC counts as set by hand, so that udev leaves
// it (NET_ADDR_SET is 3), and no link-local address ever appears.
func TestCreate(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	k := newKernel(t, l.Name)
	m := newMonitor(t)
	mustApply(t, k, add(l))
	for _, event := range m.drain() {
		if strings.HasPrefix(event, "type "+strconv.Itoa(unix.RTM_NEWADDR)) {
			t.Errorf("an address appeared: %s", event)
		}
	}
	mount := t.TempDir()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("sysfs", mount, "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mount, unix.MNT_DETACH)
	b, err := os.ReadFile(filepath.Join(mount, "class/net/weft.1/addr_assign_type"))
	if err != nil || strings.TrimSpace(string(b)) != "3" {
		t.Errorf("addr_assign_type is %q (%v), want 3", b, err)
	}
}

// TestLinkErrors: what stops the device is named.
func TestLinkErrors(t *testing.T) {
	base := link(subnet.IPv4)
	for _, c := range []struct {
		name  string
		setup []string
		edit  func(*overlay.Link)
		op    overlay.Op
		says  []string
	}{
		{"same VNI and port", []string{"ip link add flannel.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472"}, nil, overlay.Add,
			[]string{"add link weft.1: device flannel.1 holds VNI 1 on UDP port 8472 over IPv4", "file exists"}},
		{"same VNI and port over IPv6", []string{"ip link add flannel-v6.1 type vxlan id 1 dev u0 local fd00::1 dstport 8472"},
			func(l *overlay.Link) { l.Local = ip("fd00::1") }, overlay.Add,
			[]string{"device flannel-v6.1 holds VNI 1 on UDP port 8472 over IPv6"}},
		{"port with other flags", []string{"ip link add other type vxlan id 9 dev u0 local 10.0.0.1 dstport 8472 gbp", "ip link set other up"}, nil, overlay.Add,
			[]string{"add link weft.1: set up true: UDP port 8472 is held by device other", "address already in use"}},
		{"no underlay", nil, func(l *overlay.Link) { l.Underlay = "eth9" }, overlay.Add, []string{"add link weft.1: underlay eth9: no such device"}},
		{"modify what is gone", nil, nil, overlay.Modify, []string{"modify link weft.1: no such device"}},
		{"modify the VNI", []string{"ip link add weft.1 type vxlan id 5 dev u0 local 10.0.0.1 dstport 8472"}, nil, overlay.Modify,
			[]string{"modify link weft.1: only MAC, MTU, learning, gro, rp_filter, addrgenmode and up can change in place", "vxlan id 5", "vxlan id 1"}},
		{"not on the list", nil, func(l *overlay.Link) { l.Name = "other" }, overlay.Add, []string{"add link other: device other is not one that weft was told to look after"}},
		{"unknown mode", nil, func(l *overlay.Link) { l.AddrGen = "magic" }, overlay.Add, []string{`addrgenmode "magic"`, "stable_secret"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			enterNetns(t)
			addUnderlay(t)
			for _, s := range c.setup {
				run(t, s)
			}
			l := base
			if c.edit != nil {
				c.edit(&l)
			}
			k := newKernel(t, "weft.1")
			wantErr(t, k.Apply(t.Context(), overlay.Changes{{Op: c.op, Entry: l}}), c.says...)
		})
	}
}

// TestMTUTooLarge: the kernel reduces the MTU of a new device in silence, so
// the dump differs and the next pass says why.
func TestMTUTooLarge(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	l.MTU = 9000
	k := newKernel(t, l.Name)
	mustApply(t, k, add(l))
	changes := overlay.Diff(state(l), mustDump(t, k))
	wantErr(t, k.Apply(t.Context(), changes), "modify link weft.1: set mtu 9000", "underlay u0 has MTU 1500", "invalid argument")
	got := l
	got.MTU = 1450
	wantState(t, k, state(got))
}

// TestAddOverLink: an Add that finds the device there, which appeared after
// the dump, keeps it where it can.
func TestAddOverLink(t *testing.T) {
	for _, c := range []struct {
		extra string
		stays bool
	}{{"", true}, {"learning", true}, {"l2miss", false}, {"dstport 4789", false}} {
		t.Run(c.extra, func(t *testing.T) {
			t.Parallel()
			enterNetns(t)
			addUnderlay(t)
			byHand(t, subnet.IPv4, c.extra)
			before := ifindex(t, "weft.1")
			l := link(subnet.IPv4)
			k := newKernel(t, l.Name)
			mustApply(t, k, add(l))
			wantState(t, k, state(l))
			if stays := ifindex(t, "weft.1") == before; stays != c.stays {
				t.Errorf("the device stayed: %v, want %v", stays, c.stays)
			}
		})
	}
}
