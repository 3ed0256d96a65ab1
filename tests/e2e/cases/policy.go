// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"fmt"
)

// Policies are the cases of NetworkPolicy beside Kubernetes' own specs.
func Policies() []Case {
	return []Case{
		{Name: fmt.Sprintf("%d pods under a policy that denies all send and hear nothing, from their first instruction on", windowRounds*windowPods), Run: window, Weft: true},
		{Name: "a pod cannot send in another's name", Run: spoof, Weft: true},
		{Name: "policy: the examples of docs/policy.md, Services, ranges of ports, nodes", Run: tryExamples, Weft: true, Long: true},
		{Name: fmt.Sprintf("policy: %d new pods are let in on another node at once", newcomers), Run: welcome, Weft: true, Long: true},
		{Name: "policy: probes reach a pod that nobody else does", Run: tryProbes, Weft: true, Long: true},
		{Name: "policy: a stream that is forbidden ends, another goes on", Run: revoke, Weft: true, Long: true},
		{Name: "policy: neighbours are found with cold caches", Run: coldCaches, Weft: true, Long: true},
		{Name: "policy: nft flush ruleset is undone at once", Run: flush, Weft: true, Long: true},
		{Name: fmt.Sprintf("policy: %d starts through the plugin, nothing passes either way", pluginStarts), Run: throughPlugin, Weft: true, Long: true},
		{Name: "policy: what the agent's word adds to a start", Run: costOfADD, Weft: true, Long: true},
		{Name: fmt.Sprintf("policy: %d kills of an agent under probes that are denied", agentKills), Run: killUnderDeny, Weft: true, Long: true},
	}
}
