// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/overlay"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/guard"
	"weft.dev/weft/policy/rules"
)

// policed makes both tables, as an agent with policies leaves them.
func policed(t *testing.T) {
	t.Helper()
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := rules.NewProgrammer(conn, rules.Params{}).Sync(t.Context(), &policy.Table{}, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	pods := []nft.SpoofPod{{Port: "veth1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	if _, err := guard.New(conn).Update(t.Context(), pods, nil, true); err != nil {
		t.Fatal(err)
	}
}

// What an agent does not enforce any more is gone; what it does stays as it is
// until it knows better.
func TestTablesOfFormerSettings(t *testing.T) {
	const policies, guards = "table inet weft_policy", "table bridge weft_guard"
	for name, c := range map[string]struct {
		set  func(*options)
		want []string
	}{
		"all":         {func(*options) {}, []string{policies, guards}},
		"no guard":    {func(o *options) { o.SpoofGuard = false }, []string{policies, guards}}, // whose pods the enforcer takes out
		"no policies": {func(o *options) { o.NetworkPolicy = false }, nil},
		"etcd":        {func(o *options) { o.Store = storeEtcd }, nil},
		"others":      {func(o *options) { o.Store, o.IPMasq, o.Guard = storeEtcd, false, overlay.GuardOff }, []string{policies, guards}}, // may be another agent's
	} {
		t.Run(name, func(t *testing.T) {
			inNetns(t, func() {
				policed(t)
				log := logrus.New()
				log.SetOutput(t.Output())
				var o options
				o.Store, o.NetworkPolicy, o.SpoofGuard, o.IPMasq, o.Guard = storeKube, true, true, true, overlay.GuardBind
				o.Kubeconfig = "/dev/null" // none is asked
				c.set(&o)
				p, err := (&agent{o: &o, log: log}).newPolicies(t.Context())
				if err == nil {
					p.close()
				} else if !o.enforces() {
					t.Error(err)
				}
				got := strings.TrimSpace(sh(t, "nft list tables"))
				if got != strings.Join(c.want, "\n") {
					t.Errorf("left %q, want %q", got, c.want)
				}
			})
		})
	}
}
