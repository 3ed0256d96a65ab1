// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"net/netip"
	"testing"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// What this process changes itself is no news; what somebody else does to the
// same entries is, also right after.
func TestMonitorIgnoresOwnChanges(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning")
	run(t, "ip link set weft.1 up")
	run(t, "ip addr add 10.42.1.0/32 dev weft.1")
	k := newKernel(t, "weft.1")
	m, err := k.Monitor()
	if err != nil {
		t.Fatal(err)
	}
	h := listen(t, m)
	run(t, "ip route add 10.99.0.0/24 via 10.42.9.0 dev weft.1 onlink") // heard last, so all before has been
	await(t, h.own, "the device")
	quiet(t, h)

	mac := subnet.MAC{2, 0, 0, 0, 0, 2}
	gateway := netip.MustParseAddr("10.42.2.0")
	peer := []overlay.Entry{
		overlay.FDB{Dev: "weft.1", MAC: mac, Dst: netip.MustParseAddr("10.0.0.2")},
		overlay.Neigh{Dev: "weft.1", IP: gateway, MAC: mac},
		overlay.Route{Dev: "weft.1", Dst: netip.MustParsePrefix("10.42.2.0/24"), Via: gateway, Metric: 4711, Onlink: true, Proto: overlay.RouteProtocol},
	}
	for round, op := range []overlay.Op{overlay.Add, overlay.Delete, overlay.Add, overlay.Delete, overlay.Add} {
		var changes overlay.Changes
		for _, e := range peer {
			changes = append(changes, overlay.Change{Op: op, Entry: e})
		}
		if err := k.Apply(t.Context(), changes); err != nil {
			t.Fatal(err)
		}
		if n := settled(t, h); n != 1 {
			t.Errorf("round %d, op %v: %d pokes, 1 wanted: the one of the test's own change", round, op, n)
		}
	}
	for _, c := range []string{
		"bridge fdb del 02:00:00:00:00:02 dev weft.1",
		"ip neigh del 10.42.2.0 dev weft.1",
		"ip route del 10.42.2.0/24 dev weft.1 metric 4711",
	} {
		run(t, c)
		await(t, h.own, c)
	}
}

// settled makes one change that is heard of and returns how many pokes there
// were up to it.
func settled(t *testing.T, h *heard) int {
	t.Helper()
	run(t, "ip rule add pref 4711 lookup main")
	await(t, h.own, "a rule")
	n := 1 + drain(h.own)
	run(t, "ip rule del pref 4711")
	await(t, h.own, "a rule's end")
	return n + drain(h.own)
}

// quiet waits until nothing more is heard.
func quiet(t *testing.T, h *heard) {
	t.Helper()
	settled(t, h)
	drain(h.host)
}

func TestEchoIsHeardOnce(t *testing.T) {
	var s echoes
	e := echo{dev: 3, mac: subnet.MAC{2}, addr: netip.MustParseAddr("10.0.0.2")}
	if s.hear(e) {
		t.Error("heard before it was expected")
	}
	s.expect(e)
	if other := (echo{dev: 3, mac: subnet.MAC{2}, addr: e.addr, gone: true}); s.hear(other) {
		t.Error("the deletion of an entry passed for the echo of its addition")
	}
	if !s.hear(e) || s.hear(e) {
		t.Error("not heard exactly once")
	}
	s.expect(e)
	s.turned = s.turned.Add(-echoTime - 1)
	s.turn()
	if !s.hear(e) {
		t.Error("forgotten too early")
	}
	s.expect(e)
	s.turned = s.turned.Add(-2*echoTime - 1)
	if s.hear(e) {
		t.Error("expected for too long")
	}
}
