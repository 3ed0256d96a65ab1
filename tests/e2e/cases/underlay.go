// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
)

// A second network of a node, as virtual machines have one behind NAT: default
// routes lead there, and other nodes do not. strayEnd brings the node's own default
// route back; that of IPv6 has been behind the other one.
const (
	strayBegin = `set -e
ip link add nat0 type veth peer name nat1
ip addr add 10.0.2.15/24 dev nat0
ip addr add 2001:db8:2::15/64 dev nat0 nodad
ip link set nat1 up
ip link set nat0 up
ip -4 route show default >/run/default-route
ip route replace default via 10.0.2.2 dev nat0
ip -6 route add default via 2001:db8:2::2 dev nat0 metric 1`
	strayEnd = `set -e
ip link del nat0
read -r own </run/default-route || exit 0
rm /run/default-route
ip route replace $own`
)

// strayRoute sees that a node stays where kubelet says that it is.
func strayRoute(ctx context.Context, c *cluster.Cluster) error {
	n := c.Nodes()[1]
	before, err := published(ctx, c, n.Name())
	if err != nil {
		return err
	}
	return underTraffic(ctx, c, nil, func(ctx context.Context) error {
		if _, err := n.Run(ctx, "sh", "-c", strayBegin); err != nil {
			return err
		}
		err := stays(ctx, c, n, before)
		_, e := n.Run(ctx, "sh", "-c", strayEnd)
		if e == nil {
			// Its connection to the API may have been from an address that is gone, which
			// only pings find out, within 45 s.
			e = stays(ctx, c, n, before)
		}
		return errors.Join(err, e)
	})
}

// stays has the node's agent start anew, and compares what it publishes.
func stays(ctx context.Context, c *cluster.Cluster, n *cluster.Node, before map[string]string) error {
	was, err := agentOn(ctx, c, n.Name())
	if err != nil {
		return err
	}
	if err := signal(was, agentProgram, syscall.SIGKILL); err != nil {
		return err
	}
	return eventually(ctx, time.Minute, func(ctx context.Context) error {
		is, err := agentOn(ctx, c, n.Name())
		if err != nil {
			return err
		}
		if is.Restarts <= was.Restarts {
			return fmt.Errorf("the agent on %s has not been started again", n.Name())
		}
		after, err := published(ctx, c, n.Name())
		if err == nil && !maps.Equal(before, after) {
			err = fmt.Errorf("%s published %v, and now %v", n.Name(), before, after)
		}
		return err
	})
}
