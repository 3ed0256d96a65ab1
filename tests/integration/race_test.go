// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"weft.dev/weft/tests/netlab"
)

// sixteen is a network with exactly 16 subnets of each family.
const sixteen = `{"Network":"10.42.0.0/16","SubnetLen":24,"SubnetMin":"10.42.16.0","SubnetMax":"10.42.31.0",
"IPv6Network":"fd42::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd42:0:0:10::","IPv6SubnetMax":"fd42:0:0:1f::",
"Backend":{"Type":"vxlan"}}`

// A promise: 16 agents that start at the same time share 16
// subnets. The 17th stays, not ready, and says why.
func TestSixteenAgentsRaceForSixteenSubnets(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 16, Network: sixteen}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		must(t, l.StartAgents(ctx))
		held := subnetsOf(t, l) // fails the test if two are the same
		for n, s := range held {
			if len(strings.Fields(s)) != 2 {
				t.Errorf("%s holds%s, want a subnet of each family", n, s)
			}
		}
		leases, err := l.Leases(ctx)
		must(t, err)
		if len(leases) != 16 {
			t.Errorf("etcd holds %d leases, want 16: %q", len(leases), leases)
		}
		late, err := l.AddNode(ctx)
		must(t, err)
		must(t, late.StartAgent(ctx))
		eventually(ctx, t, "the 17th agent says that no subnet is left", func() error {
			code, body, err := late.HTTP(ctx, "/readyz?verbose")
			if err != nil {
				return err
			}
			if code != http.StatusServiceUnavailable || !strings.Contains(body, "subnet") {
				return fmt.Errorf("/readyz answers %d %q", code, body)
			}
			return nil
		})
		must(t, late.KillAgent())
		must(t, l.RemoveNode(late))
		sameSubnets(t, held, subnetsOf(t, l))
	})
}
