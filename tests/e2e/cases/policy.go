// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

const (
	windowRounds  = 3
	windowPods    = 12 // a round
	windowControl = 6  // pods without a policy
	// windowStays is how long pods send after the last of them runs.
	windowStays = 3 * time.Second
)

// Policies are the cases of NetworkPolicy beside Kubernetes' own specs.
func Policies() []Case {
	return []Case{
		{Name: fmt.Sprintf("%d pods under a policy that denies all send nothing, from their first packet on", windowRounds*windowPods), Run: window, Weft: true},
		{Name: "a pod cannot send in another's name", Run: spoof, Weft: true},
		{Name: "policy: the examples of docs/policy.md, Services, ranges of ports, nodes", Run: tryExamples, Weft: true, Long: true},
		{Name: "policy: probes reach a pod that nobody else does", Run: tryProbes, Weft: true, Long: true},
		{Name: "policy: a stream that is forbidden ends, another goes on", Run: revoke, Weft: true, Long: true},
		{Name: "policy: neighbours are found with cold caches", Run: coldCaches, Weft: true, Long: true},
		{Name: "policy: nft flush ruleset is undone at once", Run: flush, Weft: true, Long: true},
		{Name: fmt.Sprintf("policy: %d starts through the plugin, nothing passes either way", pluginStarts), Run: throughPlugin, Weft: true, Long: true},
		{Name: "policy: what the agent's word adds to a start", Run: costOfADD, Weft: true, Long: true},
		{Name: fmt.Sprintf("policy: %d kills of an agent under probes that are denied", agentKills), Run: killUnderDeny, Weft: true, Long: true},
	}
}

// windowManifest is a namespace with pods that send to every address of a list
// from their first instruction on.
func windowManifest(namespace, policy string, to []netip.Addr) string {
	var list []string
	for _, a := range to {
		list = append(list, a.String())
	}
	return `apiVersion: v1
kind: Namespace
metadata: {name: ` + namespace + `}
---
` + policy + `apiVersion: apps/v1
kind: Deployment
metadata: {name: sender, namespace: ` + namespace + `}
spec:
  replicas: 0
  selector: {matchLabels: {app: sender}}
  template:
    metadata: {labels: {app: sender}}
    spec:
      terminationGracePeriodSeconds: 0
      enableServiceLinks: false
      containers:
      - name: sender
        image: ` + parts.AgnhostImage + `
        imagePullPolicy: Never
        command: [sh, -c, "for a in ` + strings.Join(list, " ") + `; do ping -n -q -i 0.02 $a & done; wait"]
`
}

// denyAll isolates the pods of namespace shut.
const denyAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shut}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
`

// captureTable remembers who has sent an echo request. It comes before
// everything else that could drop it.
const captureTable = `table inet capture {
  set seen4 { type ipv4_addr; flags dynamic; size 65535; }
  set seen6 { type ipv6_addr; flags dynamic; size 65535; }
  chain arrivals {
    type filter hook input priority -300;
    icmp type echo-request add @seen4 { ip saddr }
    icmpv6 type echo-request add @seen6 { ip6 saddr }
  }
}
`

// window starts pods that send at once, to pods on their own node and on
// others, and looks at the receivers who has been heard. Pods without a policy
// are heard, or it would prove nothing.
func window(ctx context.Context, c *cluster.Cluster) (err error) {
	sites, err := web(ctx, c)
	if err != nil {
		return err
	}
	defer closeAll(sites)
	var to []netip.Addr
	for _, s := range sites {
		to = append(to, s.IPs...)
		cmd := c.Command(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(captureTable)
		if _, err := s.Network().RunCmd(ctx, cmd); err != nil {
			return err
		}
	}
	defer func() {
		for _, s := range sites {
			_, e := s.Network().Run(ctx, "nft", "delete", "table", "inet", "capture")
			err = errors.Join(err, e)
		}
		_, e := c.Kubectl(ctx, "delete", "namespace", "shut", "ajar", "--ignore-not-found", "--wait=true")
		err = errors.Join(err, e)
	}()
	if err := c.Apply(ctx, windowManifest("ajar", "", to)); err != nil {
		return err
	}
	if err := c.Apply(ctx, windowManifest("shut", denyAll, to)); err != nil {
		return err
	}
	started, heard, err := startSenders(ctx, c, sites, "ajar", windowControl)
	if err != nil {
		return err
	}
	if heard != started {
		return fmt.Errorf("of %d addresses without a policy %d were heard: the capture proves nothing", started, heard)
	}
	all := 0
	for range windowRounds {
		started, heard, err := startSenders(ctx, c, sites, "shut", windowPods)
		if err != nil {
			return err
		}
		if heard > 0 {
			return fmt.Errorf("of %d addresses that may send nothing %d were heard", started, heard)
		}
		all += started
	}
	c.Progress("  %d addresses that may send nothing were not heard; %d that may were", all, started)
	return nil
}

// startSenders starts n pods of a namespace, lets them send and stops them. It
// returns how many addresses they had, and how many of those were heard.
func startSenders(ctx context.Context, c *cluster.Cluster, sites []site, namespace string, n int) (started, heard int, err error) {
	for _, s := range sites { // a pod may get the address of one that was heard
		for _, set := range []string{"seen4", "seen6"} {
			if _, err := s.Network().Run(ctx, "nft", "flush", "set", "inet", "capture", set); err != nil {
				return 0, 0, err
			}
		}
	}
	if err := scaleSenders(ctx, c, namespace, n); err != nil {
		return 0, 0, err
	}
	if err := netlab.Pause(ctx, windowStays); err != nil {
		return 0, 0, err
	}
	pods, err := c.Pods(ctx, namespace, "app=sender")
	if err != nil {
		return 0, 0, err
	}
	seen := map[netip.Addr]bool{}
	for _, s := range sites {
		for _, set := range []string{"seen4", "seen6"} {
			out, err := s.Network().Run(ctx, "nft", "list", "set", "inet", "capture", set)
			if err != nil {
				return 0, 0, err
			}
			for _, word := range strings.FieldsFunc(out, func(r rune) bool { return strings.ContainsRune(" ,{}\n\t", r) }) {
				if a, err := netip.ParseAddr(word); err == nil {
					seen[a] = true
				}
			}
		}
	}
	for _, p := range pods {
		for _, a := range p.IPs {
			started++
			if seen[a] {
				heard++
			}
		}
	}
	return started, heard, scaleSenders(ctx, c, namespace, 0)
}

// scaleSenders makes a namespace have n senders that run, or that are gone.
func scaleSenders(ctx context.Context, c *cluster.Cluster, namespace string, n int) error {
	if _, err := c.Kubectl(ctx, "-n", namespace, "scale", "deployment/sender", fmt.Sprintf("--replicas=%d", n)); err != nil {
		return err
	}
	return eventually(ctx, 3*time.Minute, func(ctx context.Context) error {
		pods, err := c.Pods(ctx, namespace, "app=sender")
		if err != nil {
			return err
		}
		running := 0
		for _, p := range pods {
			if p.Phase == "Running" && len(p.IPs) == len(c.Config().Families()) {
				running++
			}
		}
		if running != n || len(pods) != n {
			return fmt.Errorf("%d of %d pods in %s, %d of them running", len(pods), n, namespace, running)
		}
		return nil
	})
}
