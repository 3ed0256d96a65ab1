// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// entryCase is one kind of entry in one family: e, and the entry with the
// same kernel key that replaces it.
type entryCase struct {
	name    string
	e, twin overlay.Entry
}

// entryCases covers every kind of entry in both pod families on dev, whose
// underlay is of family f.
func entryCases(f subnet.Family, dev string) []entryCase {
	peer, other := ip("10.0.0.2"), ip("10.0.0.3")
	if f == subnet.IPv6 {
		peer, other = ip("fd00::2"), ip("fd00::3")
	}
	route := func(dst, via, src string) overlay.Route {
		r := overlay.Route{Dev: dev, Dst: prefix(dst), Via: ip(via), Metric: 4711, Onlink: true, Proto: overlay.RouteProtocol}
		if src != "" {
			r.Src = ip(src)
		}
		return r
	}
	direct := overlay.Route{Dev: dev, Dst: prefix("10.9.0.0/24"), Metric: 5, Proto: overlay.RouteProtocol}
	directTwin := direct
	directTwin.Proto = 4
	return []entryCase{
		{"addr IPv4", overlay.Addr{Dev: dev, Prefix: prefix("10.42.1.0/32")}, nil},
		{"addr IPv6", overlay.Addr{Dev: dev, Prefix: prefix("fd42:0:0:1::/128")}, nil},
		{"fdb", overlay.FDB{Dev: dev, MAC: mac(2), Dst: peer}, overlay.FDB{Dev: dev, MAC: mac(2), Dst: other}},
		{"neigh IPv4", overlay.Neigh{Dev: dev, IP: ip("10.42.2.0"), MAC: mac(2)}, overlay.Neigh{Dev: dev, IP: ip("10.42.2.0"), MAC: mac(3)}},
		{"neigh IPv6", overlay.Neigh{Dev: dev, IP: ip("fd42:0:0:2::"), MAC: mac(2)}, overlay.Neigh{Dev: dev, IP: ip("fd42:0:0:2::"), MAC: mac(3)}},
		{"route IPv4", route("10.42.2.0/24", "10.42.2.0", ""), route("10.42.2.0/24", "10.42.2.9", "10.0.0.1")},
		{"route IPv6", route("fd42:0:0:2::/64", "fd42:0:0:2::", ""), route("fd42:0:0:2::/64", "fd42:0:0:2::9", "fd00::1")},
		{"route IPv4 without gateway", direct, directTwin},
	}
}

// TestEntries takes each kind of entry, in both pod families over both
// underlays, through add, add again, replace, replace back, delete and delete
// again, and compares the dump after each.
func TestEntries(t *testing.T) {
	for _, f := range subnet.Families() {
		l := link(f)
		for _, c := range entryCases(f, l.Name) {
			t.Run(c.name+" over "+f.String(), func(t *testing.T) {
				t.Parallel()
				enterNetns(t)
				addUnderlay(t)
				k := newKernel(t, l.Name)
				mustApply(t, k, add(l))
				wantState(t, k, state(l))
				for range 2 {
					mustApply(t, k, add(c.e))
					wantState(t, k, state(l, c.e))
				}
				if c.twin != nil {
					for range 2 {
						mustApply(t, k, replace(c.e, c.twin))
						wantState(t, k, state(l, c.twin))
					}
					mustApply(t, k, replace(c.twin, c.e))
					wantState(t, k, state(l, c.e))
				}
				for range 2 {
					mustApply(t, k, del(c.e))
					wantState(t, k, state(l))
				}
				mustApply(t, k, del(l), del(c.e), del(l))
				wantState(t, k, state())
			})
		}
	}
}

// TestAddOverTwin: an Add that meets an entry with the same kernel key, which
// appeared after the dump, takes its place.
func TestAddOverTwin(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	k := newKernel(t, l.Name)
	mustApply(t, k, add(l))
	for _, c := range entryCases(subnet.IPv4, l.Name) {
		if c.twin == nil {
			continue
		}
		mustApply(t, k, add(c.twin), add(c.e))
		wantState(t, k, state(l, c.e))
		mustApply(t, k, del(c.e))
	}
}

// TestFailuresAreCollected: one entry that the kernel refuses stops no other,
// and the error names each.
func TestFailuresAreCollected(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	k := newKernel(t, l.Name, "weft6.1")
	good := overlay.Neigh{Dev: l.Name, IP: ip("10.42.2.0"), MAC: mac(2)}
	err := k.Apply(t.Context(), overlay.Changes{
		add(l),
		add(overlay.FDB{Dev: "weft6.1", MAC: mac(2), Dst: ip("fd00::2")}),
		add(overlay.FDB{Dev: l.Name, MAC: mac(2), Dst: ip("fd00::2")}), // wrong family
		add(overlay.Neigh{Dev: "u0", IP: ip("10.0.0.2"), MAC: mac(2)}),
		add(good),
	})
	wantErr(t, err,
		"add fdb 0a:58:00:00:00:02 dev weft6.1 dst fd00::2 self permanent: no such device",
		"add fdb 0a:58:00:00:00:02 dev weft.1 dst fd00::2 self permanent: address family not supported",
		"add neigh 10.0.0.2 lladdr 0a:58:00:00:00:02 dev u0 nud permanent: device u0 is not one that weft was told to look after")
	wantState(t, k, state(l, good))
}

// TestForeignRoutes: a route of the same prefix and metric that is not on our
// device is neither replaced nor dumped, and the error names its device.
func TestForeignRoutes(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	k := newKernel(t, l.Name)
	mustApply(t, k, add(l))
	for _, c := range []struct{ add, dst, via, show string }{
		{"ip route add 10.42.2.0/24 via 10.0.0.9 metric 7", "10.42.2.0/24", "10.42.2.0", "ip route show 10.42.2.0/24"},
		{"ip route add blackhole 10.42.3.0/24 metric 7", "10.42.3.0/24", "10.42.3.0", "ip route show 10.42.3.0/24"},
		{"ip -6 route add blackhole fd42:0:0:2::/64 metric 7", "fd42:0:0:2::/64", "fd42:0:0:2::", "ip -6 route show fd42:0:0:2::/64"},
	} {
		run(t, c.add)
		before := run(t, c.show)
		r := overlay.Route{Dev: l.Name, Dst: prefix(c.dst), Via: ip(c.via), Metric: 7, Onlink: true, Proto: 87}
		for _, op := range []overlay.Op{overlay.Add, overlay.Replace} {
			err := k.Apply(t.Context(), overlay.Changes{{Op: op, Entry: r}})
			wantErr(t, err, op.String()+" route "+c.dst, "is not ours")
		}
		mustApply(t, k, del(r))
		if after := run(t, c.show); after != before {
			t.Errorf("route was %q, is %q", before, after)
		}
		r.Metric = 8 // another metric is no conflict
		mustApply(t, k, add(r))
		wantState(t, k, state(l, r))
		mustApply(t, k, del(r))
	}
}

// TestGatewayElsewhere: the kernel refuses an IPv6 onlink route whose gateway
// another route already leads to another device. A route to a VTEP is added
// all the same; where the gateway is outside of the prefix, the error says
// which.
func TestGatewayElsewhere(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	k := newKernel(t, l.Name)
	mustApply(t, k, add(l))
	run(t, "ip -6 route add fd42::/48 via fd00::9")
	r := overlay.Route{Dev: l.Name, Dst: prefix("fd42:0:0:2::/64"), Via: ip("fd42:0:0:2::"), Metric: 7, Onlink: true, Proto: 87}
	mustApply(t, k, add(r))
	foreign := overlay.Route{Dev: "u0", Dst: prefix("fd42::/48"), Via: ip("fd00::9"), Metric: 1024, Proto: 3}
	wantState(t, k, state(l, r, foreign)) // it looks as if flannel had left it
	r.Dst, r.Via = prefix("fd43::/64"), ip("fd42:0:0:3::")
	wantErr(t, k.Apply(t.Context(), overlay.Changes{add(r)}), "add route fd43::/64", "gateway fd42:0:0:3:: to u0", "invalid argument")
}

// TestRouteChangesDevice moves routes of both families between two devices
// of ours.
func TestRouteChangesDevice(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	one, two := link(subnet.IPv4), link(subnet.IPv6)
	k := newKernel(t, one.Name, two.Name)
	mustApply(t, k, add(one), add(two))
	for _, p := range []string{"10.42.2.0/24", "fd42:0:0:2::/64"} {
		was := overlay.Route{Dev: one.Name, Dst: prefix(p), Via: prefix(p).Addr(), Metric: 7, Onlink: true, Proto: 87}
		is := was
		is.Dev = two.Name
		mustApply(t, k, add(was))
		mustApply(t, k, replace(was, is))
		wantState(t, k, state(one, two, is))
		mustApply(t, k, del(is))
	}
}

// TestNotOurs: what the kernel or a learning device puts there by itself is
// not dumped.
func TestNotOurs(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	l := link(subnet.IPv4)
	l.Learning = true
	k := newKernel(t, l.Name)
	a := overlay.Addr{Dev: l.Name, Prefix: prefix("10.42.1.0/24")}
	mustApply(t, k, add(l), add(a)) // brings a route of protocol kernel
	for _, c := range []string{
		"ip addr add fe80::5/64 dev weft.1 nodad",
		"ip neigh add 10.42.1.7 lladdr 0a:58:00:00:00:07 dev weft.1 nud stale",
		"ip neigh add 10.42.1.8 lladdr 0a:58:00:00:00:08 dev weft.1 nud noarp",
		"bridge fdb add 0a:58:00:00:00:07 dev weft.1 dst 10.0.0.7 self dynamic",
		"ip route add 10.7.0.0/16 dev weft.1 table 100",
		"ip route add local 10.8.0.1 dev weft.1",
		"ip neigh add proxy 10.42.1.9 dev weft.1",
	} {
		run(t, c)
	}
	wantState(t, k, state(l, a))
	// A device that must not learn has no business with such an entry.
	was := l
	l.Learning = false
	mustApply(t, k, modify(was, l))
	wantState(t, k, state(l, a, overlay.FDB{Dev: l.Name, MAC: mac(7)}))
}

// oddCase is an entry that overlay's types cannot say in full: it must differ
// from want, and Diff must mend it in at most two passes.
type oddCase struct {
	name  string
	setup []string
	want  overlay.Entry // nil: nothing is wanted there
}

func oddCases() []oddCase {
	fdb := overlay.FDB{Dev: "weft.1", MAC: mac(2), Dst: ip("10.0.0.2")}
	route := overlay.Route{Dev: "weft.1", Dst: prefix("10.42.2.0/24"), Via: ip("10.42.2.0"), Metric: 7, Onlink: true, Proto: 87}
	route6 := overlay.Route{Dev: "weft.1", Dst: prefix("fd42:0:0:2::/64"), Via: ip("fd42:0:0:2::"), Metric: 7, Onlink: true, Proto: 87}
	addr := overlay.Addr{Dev: "weft.1", Prefix: prefix("10.42.1.0/32")}
	const f = "bridge fdb add 0a:58:00:00:00:02 dev weft.1 self "
	const r = "ip route add 10.42.2.0/24 metric 7 proto 87 "
	const r6 = "ip -6 route add fd42:0:0:2::/64 metric 7 proto 87 "
	return []oddCase{
		{"fdb port", []string{f + "dst 10.0.0.2 port 99 permanent"}, fdb},
		{"fdb vni", []string{f + "dst 10.0.0.2 vni 99 permanent"}, fdb},
		{"fdb via", []string{f + "dst 10.0.0.2 via u1 permanent"}, fdb},
		{"fdb dynamic", []string{f + "dst 10.0.0.2 dynamic"}, fdb},
		{"fdb nexthop group", []string{"ip nexthop add id 1 via 10.0.0.2 fdb", "ip nexthop add id 10 group 1 fdb", f + "nhid 10 permanent"}, fdb},
		{"fdb zero mac", []string{"bridge fdb append 00:00:00:00:00:00 dev weft.1 dst 10.0.0.2 self permanent"}, nil},
		{"fdb multicast mac", []string{"bridge fdb append 01:00:5e:00:00:01 dev weft.1 dst 10.0.0.2 self permanent", "bridge fdb append 01:00:5e:00:00:01 dev weft.1 dst 10.0.0.3 self permanent"}, nil},
		{"route mtu", []string{r + "via 10.42.2.0 dev weft.1 onlink mtu 1000"}, route},
		{"route mtu beside", []string{r + "via 10.42.2.0 dev weft.1 onlink", "ip route append 10.42.2.0/24 metric 7 proto 87 via 10.42.2.0 dev weft.1 onlink mtu 1000"}, route},
		{"route tos", []string{r + "via 10.42.2.0 dev weft.1 onlink tos 0x10"}, route},
		{"route not onlink", []string{r + "dev weft.1"}, route},
		{"route multipath", []string{r + "nexthop via 10.0.0.2 dev u0 nexthop via 10.42.2.0 dev weft.1 onlink"}, route},
		{"route nexthop object", []string{"ip nexthop add id 5 via 10.42.2.0 dev weft.1 onlink", r + "nhid 5"}, route},
		{"route via other family", []string{r + "via inet6 fd77::9 dev weft.1 onlink"}, route},
		{"route IPv6 mtu", []string{r6 + "via fd42:0:0:2:: dev weft.1 onlink mtu 1300"}, route6},
		{"route IPv6 expires", []string{r6 + "via fd42:0:0:2:: dev weft.1 onlink expires 1000"}, route6},
		{"route IPv6 multipath", []string{r6 + "nexthop via fd42:0:0:2:: dev weft.1 onlink nexthop via fd00::9 dev u0"}, route6},
		{"route IPv6 nexthop object", []string{"ip nexthop add id 6 via fd42:0:0:2:: dev weft.1 onlink", r6 + "nhid 6"}, route6},
		{"addr with peer", []string{"ip addr add 10.42.1.0 peer 10.42.9.9/32 dev weft.1"}, addr},
		{"addr prefix length", []string{"ip addr add 10.42.1.0/24 dev weft.1"}, addr},
	}
}

// TestOddEntries: what only looks like a wanted entry does not pass for it,
// and is mended whether the entry is wanted or not.
func TestOddEntries(t *testing.T) {
	for _, c := range oddCases() {
		for _, wanted := range []bool{true, false} {
			if wanted && c.want == nil {
				continue
			}
			name := c.name + " unwanted"
			if wanted {
				name = c.name + " wanted"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				enterNetns(t)
				addUnderlay(t)
				l := link(subnet.IPv4)
				k := newKernel(t, l.Name)
				mustApply(t, k, add(l))
				for _, s := range c.setup {
					run(t, s)
				}
				want := state(l)
				if wanted {
					want.Add(c.want)
				}
				reconcile(t, k, want, 3)
			})
		}
	}
}

// reconcile brings the kernel to want in at most passes rounds of dump, diff
// and apply, and fails if the first finds nothing to do.
func reconcile(t *testing.T, k *Kernel, want overlay.State, passes int) {
	t.Helper()
	for i := range passes + 1 {
		have := mustDump(t, k)
		changes := overlay.Diff(want, have)
		switch {
		case changes.Empty() && i == 0:
			t.Fatalf("the kernel passes for\n%s", want)
		case changes.Empty():
			wantState(t, k, want)
			return
		case i == passes:
			t.Fatalf("still out of sync after %d passes: have\n%swant\n%schanges\n%s", i, have, want, changes)
		}
		t.Logf("pass %d:\n%s", i+1, changes)
		mustApply(t, k, changes...)
	}
}

// TestDecodeStates pins which neighbour states count as permanent.
func TestDecodeStates(t *testing.T) {
	for _, s := range []uint16{unix.NUD_REACHABLE, unix.NUD_STALE, unix.NUD_NOARP, unix.NUD_FAILED, unix.NUD_PERMANENT} {
		msg := ndmsg{family: unix.AF_INET, index: 3, state: s}.Serialize()
		msg = append(msg, 8, 0, unix.NDA_DST, 0, 10, 0, 0, 1)
		if _, _, ok := decodeNeigh(msg); ok != (s == unix.NUD_PERMANENT) {
			t.Errorf("state %#x: dumped is %v", s, ok)
		}
	}
}

// TestFailedDump: when a dump fails, the kernel says why in another form than
// when another request does. vishvananda/netlink panics on it (v1.3.1).
func TestFailedDump(t *testing.T) {
	enterNetns(t)
	k := newKernel(t)
	_, err := k.conn.dump(t.Context(), func() *nl.NetlinkRequest {
		return request(unix.RTM_GETADDR, 0, ifaddrmsg{family: afInet}, nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(77)))
	})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v, want EINVAL", err)
	}
	wantErr(t, err, "invalid argument: ", "network namespace id")
	_, err = k.conn.do(t.Context(), request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC)))
	wantErr(t, err, "invalid argument")
	if nics, err := k.nics(t.Context()); err != nil || len(nics) != 1 {
		t.Errorf("and after it: %v, %v", nics, err)
	}
}
