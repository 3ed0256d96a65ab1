// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"weft.dev/weft/subnet"
)

// followConfig follows the network's configuration in the store. What may
// change under running pods is handed to apply; what may not, and what is not
// valid, is a Problem, and the configuration in force stays as it is.
func (a *agent) followConfig(ctx context.Context, start subnet.Config, apply func(subnet.Config)) error {
	return a.store.WatchConfig(ctx, start, func(next subnet.Config, err error) {
		a.judgeConfig(next, err, apply)
	})
}

func (a *agent) judgeConfig(next subnet.Config, err error, apply func(subnet.Config)) {
	key := a.o.configText()
	running := *a.network.Load()
	if err != nil {
		a.problems.set(partConfig, subnet.Problem{Kind: "ConfigInvalid", Object: key,
			Detail: err.Error() + "; this node goes on with the last valid one"})
		return
	}
	if fixed := fixedChanges(running, next); len(fixed) > 0 {
		a.problems.set(partConfig, subnet.Problem{Kind: "ConfigChanged", Object: key,
			Detail: fmt.Sprintf("%s cannot change under running pods, so nothing of the new configuration applies on this node until weftd is restarted", strings.Join(fixed, ", "))})
		return
	}
	a.problems.set(partConfig)
	if next.Backend == running.Backend {
		return
	}
	a.log.Infof("the network configuration has changed: backend %+v, before %+v", next.Backend, running.Backend)
	a.network.Store(&next)
	apply(next)
}

// fixedChanges names what differs between two configurations and needs a
// restart: subnets in use would not fit any more, or peers not find this node.
func fixedChanges(running, next subnet.Config) []string {
	var out []string
	for _, f := range subnet.Families() {
		was, had := running.Network(f)
		is, has := next.Network(f)
		switch {
		case had != has || was.Prefix != is.Prefix:
			out = append(out, fmt.Sprintf("the %v network (%s, now %s)", f, networkText(was), networkText(is)))
		case was != is:
			out = append(out, fmt.Sprintf("the %v subnets (/%d from %s to %s, now /%d from %s to %s)", f,
				was.SubnetLen, was.SubnetMin, was.SubnetMax, is.SubnetLen, is.SubnetMin, is.SubnetMax))
		}
	}
	if running.Backend.VNI != next.Backend.VNI {
		out = append(out, fmt.Sprintf("the VNI (%d, now %d)", running.Backend.VNI, next.Backend.VNI))
	}
	if running.Backend.Port != next.Backend.Port {
		out = append(out, fmt.Sprintf("the port (%d, now %d)", running.Backend.Port, next.Backend.Port))
	}
	return out
}

func networkText(n subnet.Network) string {
	if !n.Prefix.IsValid() {
		return "none"
	}
	return n.Prefix.String()
}
