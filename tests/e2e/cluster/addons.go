// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/vishvananda/netlink"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

//go:embed coredns.yaml
var corednsManifest string

// InstallDNS gives the cluster its DNS and waits until it answers. The nodes
// have a network by then.
func (c *Cluster) InstallDNS(ctx context.Context) error {
	var addrs []netip.Addr
	for _, f := range c.cfg.Families() {
		addrs = append(addrs, serviceAddr(f, 10))
	}
	policy := "SingleStack"
	if len(addrs) > 1 {
		policy = "RequireDualStack"
	}
	t, err := template.New("coredns").Parse(corednsManifest)
	if err != nil {
		return fmt.Errorf("manifest of CoreDNS: %w", err)
	}
	var text strings.Builder
	err = t.Execute(&text, map[string]any{"Image": parts.CoreDNSImage, "Policy": policy, "Addresses": addrs})
	if err != nil {
		return fmt.Errorf("manifest of CoreDNS: %w", err)
	}
	if err := c.Apply(ctx, text.String()); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
	return err
}

// StaticNetwork gives the pods a network without an agent: a bridge on each
// node, and routes by hand. It proves the cluster, and tells what a spec does
// on this machine whatever weft does. plugins holds the CNI plugins.
func (c *Cluster) StaticNetwork(ctx context.Context, plugins string) error {
	subnets, err := c.podCIDRs(ctx)
	if err != nil {
		return err
	}
	places := map[*netlab.Place]string{}
	for _, n := range c.nodes {
		places[n.Place] = n.Name()
		if err := n.staticCNI(subnets[n.Name()], plugins); err != nil {
			return err
		}
	}
	for place, name := range places {
		for _, to := range c.nodes {
			if to.Name() == name {
				continue
			}
			if err := routeTo(place, to, subnets[to.Name()]); err != nil {
				return err
			}
		}
	}
	return nil
}

// podCIDRs waits until all nodes have one of each family.
func (c *Cluster) podCIDRs(ctx context.Context) (map[string][]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		states, err := c.NodeStates(ctx)
		if err != nil {
			return nil, err
		}
		out := map[string][]netip.Prefix{}
		missing := len(c.nodes)
		for _, s := range states {
			for _, text := range s.PodCIDRs {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return nil, fmt.Errorf("podCIDRs of node %s: %w", s.Name, err)
				}
				out[s.Name] = append(out[s.Name], p)
			}
			if len(s.PodCIDRs) == len(c.cfg.Families()) {
				missing--
			}
		}
		if missing == 0 {
			return out, nil
		}
		if err := netlab.Pause(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("%d nodes without podCIDRs: %w\n%s", missing, err, tailFile(c.Controllers.log, 10))
		}
	}
}

// staticCNI installs plugins and a configuration for them.
func (n *Node) staticCNI(subnets []netip.Prefix, plugins string) error {
	for _, p := range []string{"bridge", "host-local", "loopback", "portmap"} {
		b, err := os.ReadFile(filepath.Join(plugins, p))
		if err == nil {
			err = os.WriteFile(n.Path("/opt/cni/bin/"+p), b, 0o755)
		}
		if err != nil {
			return fmt.Errorf("install CNI plugin %s on %s: %w", p, n.Name(), err)
		}
	}
	type object map[string]any
	var ranges [][]object
	var routes []object
	for _, s := range subnets {
		ranges = append(ranges, []object{{"subnet": s}})
		everywhere, err := s.Addr().Prefix(0)
		if err != nil {
			return fmt.Errorf("default route beside %s: %w", s, err)
		}
		routes = append(routes, object{"dst": everywhere})
	}
	conf, err := json.Marshal(object{
		"cniVersion": "1.0.0", "name": "static", "plugins": []object{
			{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": object{"type": "host-local", "ranges": ranges, "routes": routes}},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "snat": true},
		},
	})
	if err == nil {
		err = os.MkdirAll(n.Path("/etc/cni/net.d"), 0o755)
	}
	if err == nil {
		err = os.WriteFile(n.Path("/etc/cni/net.d/10-static.conflist"), conf, 0o644)
	}
	if err != nil {
		return fmt.Errorf("configure CNI on %s: %w", n.Name(), err)
	}
	return nil
}

// routeTo adds routes to a node's pods.
func routeTo(from *netlab.Place, to *Node, subnets []netip.Prefix) error {
	return from.Netlink(func(h *netlink.Handle) error {
		for _, s := range subnets {
			gw := fabricAddr(subnet.FamilyOf(s.Addr()), to.number)
			if err := h.RouteReplace(&netlink.Route{Dst: kernelNet(s), Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("route to %s via %s on %s: %w", s, gw, from.Name(), err)
			}
		}
		return nil
	})
}
