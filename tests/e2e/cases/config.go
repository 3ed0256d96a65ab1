// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
)

// Configurations of the network that followConfig gives the agents.
const (
	wrongConfig  = `{"Backend": {"Type": "vxlam"}}`
	directConfig = `{"Backend": {"Type": "vxlan", "DirectRouting": true}}`
)

// followConfig edits the ConfigMap while agents run: one that is wrong, one that
// makes other routes, and the one that was there.
func followConfig(ctx context.Context, c *cluster.Cluster) error {
	before, err := c.Kubectl(ctx, "-n", agentSystem, "get", "configmap", "weft", "-o", `jsonpath={.data.net-conf\.json}`)
	if err != nil {
		return err
	}
	err = underTraffic(ctx, c, nil, func(ctx context.Context) error {
		for _, step := range []struct {
			conf    string
			invalid bool   // agents say so
			through string // the device of routes to peers
		}{
			{wrongConfig, true, "weft"}, // the last good one stays
			{directConfig, false, "eth0"},
			{before, false, "weft"},
		} {
			if err := configure(ctx, c, step.conf); err != nil {
				return err
			}
			err := eventually(ctx, time.Minute, func(ctx context.Context) error {
				return errors.Join(complaints(ctx, c, step.invalid), routesThrough(ctx, c, step.through))
			})
			if err != nil {
				return fmt.Errorf("with ConfigMap weft %s: %w", strings.Join(strings.Fields(step.conf), " "), err)
			}
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, configure(ctx, c, before))
	}
	return nil
}

// configure writes the ConfigMap. kubelet looks at it about once a minute, and
// whenever something about the pod changes, such as an annotation.
func configure(ctx context.Context, c *cluster.Cluster, conf string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"net-conf.json": conf}})
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "-n", agentSystem, "patch", "configmap", "weft", "--type=merge", "-p", string(patch)); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "-n", agentSystem, "annotate", "pods", "-l", agentLabel, "--overwrite",
		fmt.Sprintf("e2e.weft.dev/configured=%d", time.Now().UnixNano()))
	return err
}

// complaints returns nil if all agents say that the configuration is invalid, or
// none does.
func complaints(ctx context.Context, c *cluster.Cluster, want bool) error {
	pods, err := agents(ctx, c)
	if err != nil {
		return err
	}
	for _, p := range pods {
		status, err := c.Kubectl(ctx, "-n", agentSystem, "exec", p.Name, "-c", "weft", "--", "weft", "status")
		if err != nil {
			return err
		}
		if strings.Contains(status, "ConfigInvalid") != want {
			return fmt.Errorf("agent on %s says ConfigInvalid: %t, want %t", p.Node, !want, want)
		}
	}
	return nil
}

// routesThrough returns nil if each node's routes to the others' pods are through
// a device whose name begins so.
func routesThrough(ctx context.Context, c *cluster.Cluster, device string) error {
	states, err := c.NodeStates(ctx)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes() {
		for _, s := range states {
			if s.Name == n.Name() {
				continue
			}
			for _, cidr := range s.PodCIDRs {
				subnet, err := netip.ParsePrefix(cidr)
				if err != nil {
					return err
				}
				route, err := n.Run(ctx, "ip", "route", "get", subnet.Addr().Next().Next().String())
				if err != nil {
					return err
				}
				if !strings.Contains(route, " dev "+device) {
					return fmt.Errorf("%s reaches pods of %s by %s, want device %s", n.Name(), s.Name, strings.TrimSpace(route), device)
				}
			}
		}
	}
	return nil
}
