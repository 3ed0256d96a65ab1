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

// What a sweep cannot mend is a Problem as long as it is so.
func TestSweepsAreTold(t *testing.T) {
	a, _ := bare(t)
	var outside []ledger.Entry
	for i := range mostNamed + 3 {
		outside = append(outside, ledger.Entry{
			Key: ledger.Key{ContainerID: fmt.Sprint("pod", i), IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("10.42.9.5")},
		})
	}
	a.swept(ledger.Report{Outside: outside}, errors.New("disk gone"))
	problems := a.problems.all()
	if len(problems) != mostNamed+2 || problems[0].Kind != "SweepFailed" || !strings.Contains(problems[0].Detail, "disk gone") {
		t.Errorf("%v", problems)
	}
	last := problems[len(problems)-1]
	if p := problems[1]; p.Kind != "PodOutsideLease" || p.Object != "pod0:eth0" || !strings.Contains(p.Detail, "10.42.9.5") || !strings.HasPrefix(last.Detail, "3 more pods") {
		t.Errorf("%v, last %v", p, last)
	}
	a.swept(ledger.Report{Freed: outside[:1]}, nil)
	if left := a.problems.all(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
