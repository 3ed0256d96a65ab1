// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/overlay"
)

// Probes look at what is known: first nothing, then the network, then what
// this node is; at underlays only where peers' packets come without a tunnel.
func TestProbesLookAtWhatIsKnown(t *testing.T) {
	a, _ := bare(t)
	if s := a.probeSpec(); s.Bridge != "cni0" || s.Networks != nil || s.Devices != nil {
		t.Errorf("before all: %+v", s)
	}
	self := overlay.Self{Lease: leaseOf("n1", "id", "10.0.0.1", "10.42.1.0/24"), Underlays: underlays("10.0.0.1")}
	for backend, direct := range map[string]bool{
		`{}`: false, `{"DirectRouting":true}`: true, `{"Type":"host-gw"}`: true,
	} {
		cfg := config(t, `{"Network":"10.42.0.0/16","Backend":`+backend+`}`)
		a.network.Store(&cfg)
		a.self.Store(nil)
		if s := a.probeSpec(); fmt.Sprint(s.Networks, s.Devices, s.Own) != "[10.42.0.0/16] [weft.1 weft6.1] []" {
			t.Errorf("%s, before the lease: %+v", backend, s)
		}
		a.self.Store(&self)
		if s := a.probeSpec(); fmt.Sprint(s.Own) != "[10.42.1.0/24]" || (len(s.Underlays) == 1) != direct {
			t.Errorf("%s: %+v", backend, s)
		}
	}
}

// What a sweep cannot mend is a Problem as long as it is so: one for each
// subnet that pods are left from, by which the Node's condition names it too.
func TestSweepsAreTold(t *testing.T) {
	a, _ := bare(t)
	lease := []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24")}
	var outside []ledger.Entry
	for i := range mostNamed + 3 {
		outside = append(outside, ledger.Entry{
			Key:   ledger.Key{ContainerID: fmt.Sprintf("0123456789%03d", i), IfName: "eth0"},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 1, byte(5 + i)}), netip.MustParseAddr("fd42:0:0:1::5")},
		})
	}
	a.swept(ledger.Report{Outside: outside}, lease, errors.New("disk gone"))
	problems := a.problems.all()
	if len(problems) != 3 || problems[0].Kind != "SweepFailed" || !strings.Contains(problems[0].Detail, "disk gone") {
		t.Fatalf("%v", problems)
	}
	for i, object := range []string{"10.42.1.0/24", "fd42:0:0:1::/64"} {
		if p := problems[i+1]; p.Kind != "PodOutsideLease" || p.Object != object || !strings.HasPrefix(p.Detail, "pods of "+object+" still run") {
			t.Errorf("%v, want one about %s", p, object)
		}
	}
	for _, want := range []string{"restart them: 10.42.1.10 (012345678900), ", " and 3 more"} {
		if !strings.Contains(problems[1].Detail, want) {
			t.Errorf("%q does not say %q", problems[1].Detail, want)
		}
	}
	if text := degraded(a.brief()); !strings.Contains(text, "PodOutsideLease 10.42.1.0/24") {
		t.Errorf("the Node's condition says %q", text)
	}
	a.swept(ledger.Report{Freed: outside[:1]}, lease, nil)
	if left := a.problems.all(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// However many subnets pods are left from, the list of Problems is short.
func TestProblemsOfManyFormerSubnetsAreBounded(t *testing.T) {
	var outside []ledger.Entry
	for i := range 100 {
		outside = append(outside, ledger.Entry{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(i), 5})}})
	}
	list := outsideLease(outside, nil)
	if len(list) != mostNamed+1 || !strings.Contains(list[mostNamed].Detail, "95 more") {
		t.Errorf("%v", list)
	}
}
