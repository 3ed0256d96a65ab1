// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"strings"
	"testing"
)

// The bridge's own switches are set whatever the namespace's sysctls are, and
// set again when somebody resets them.
func TestGuardBridge(t *testing.T) {
	ns := newNamespace(t)
	run := func() (found bool, err error) {
		ns.in(func() { found, err = GuardBridge(t.Context(), "br0") })
		return found, err
	}
	if found, err := run(); found || err != nil {
		t.Errorf("without a bridge: %t, %v", found, err)
	}
	ns.run("ip link add br0 type bridge")
	for _, before := range []string{"0", "1"} {
		ns.run("ip link set br0 type bridge nf_call_iptables " + before + " nf_call_ip6tables 0 no_linklocal_learn " + before)
		if found, err := run(); !found || err != nil {
			t.Fatalf("%t, %v", found, err)
		}
		shown := ns.run("ip -d link show br0")
		for _, want := range []string{"nf_call_iptables 1", "nf_call_ip6tables 1", "no_linklocal_learn 1"} {
			if !strings.Contains(shown, want) {
				t.Errorf("%s is missing in %s", want, shown)
			}
		}
	}
	ns.run("ip link del br0")
	ns.run("ip link add br0 type veth peer name br1")
	var foreign *ForeignDeviceError
	if _, err := run(); !errors.As(err, &foreign) {
		t.Errorf("a veth of that name: %v", err)
	}
}
