// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// A node switched from flannel by replacing the binary: flannel's flags with
// one dash, its keys, devices, files and CNI configuration, and a peer that
// flannel still runs.
func TestFlannelPreset(t *testing.T) {
	cfg := netlab.Config{
		Nodes: 3, Prefix: "/coreos.com/network",
		Network:   strings.Replace(roomForOthers, `"IPv6Network"`, `"EnableIPv6":true,"IPv6Network"`, 1),
		AgentArgs: []string{"--flannel-compat", "-iface=eth0", "-v", "4", "-subnet-lease-renew-margin", "60"},
	}
	inLab(t, cfg, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		n1, n2 := l.Node("n1"), l.Node("n2")
		for _, n := range []*netlab.Node{n1, n2} {
			must(t, n.StartAgent(ctx))
		}
		const mac = "0a:00:00:00:03:01"
		_, err := l.Client().Put(ctx, l.Prefix()+"/subnets/10.42.253.0-24", flannelLease("192.168.77.3", "", mac, ""))
		must(t, err)
		for _, n := range []*netlab.Node{n1, n2} {
			must(t, n.WaitReady(ctx))
			eventually(ctx, t, n.Name()+" has the peer on flannel.1", func() error {
				fdb, err := n.Run(ctx, "bridge", "fdb", "show", "dev", "flannel.1")
				if err == nil && !strings.Contains(fdb, mac+" dst 192.168.77.3") {
					err = fmt.Errorf("bridge fdb: %q", fdb)
				}
				return err
			})
			for _, dev := range []string{"flannel.1", "flannel-v6.1"} {
				if _, err := n.Run(ctx, "ip", "link", "show", dev); err != nil {
					t.Errorf("%s: %v", n, err)
				}
			}
			if _, err := n.Run(ctx, "ip", "link", "show", "weft.1"); err == nil {
				t.Errorf("%s has a weft.1 beside flannel's device", n)
			}
			env, err := subnet.ReadSubnetEnv(n.Path("/run/flannel/subnet.env"))
			must(t, err)
			if len(env.Subnets) != 2 || env.MTU != 1430 {
				t.Errorf("%s: subnet.env says %+v", n, env)
			}
			conf, err := n.Run(ctx, "cat", "/etc/cni/net.d/10-flannel.conflist")
			if err != nil || !strings.Contains(conf, `"cbr0"`) {
				t.Errorf("%s: CNI configuration %q, %v", n, conf, err)
			}
		}
		leases, err := l.Leases(ctx)
		must(t, err)
		for key, value := range leases {
			if key != "10.42.253.0-24" && (!strings.Contains(key, "-24&fd42:") || !strings.HasPrefix(value, `{"PublicIP":"192.168.77.`)) {
				t.Errorf("%s: %s is not what flannel writes", key, value)
			}
		}
		if len(leases) != 3 {
			t.Errorf("%d leases, want 3: %q", len(leases), leases)
		}
	})
}
