// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// publish tells the node that the network is there, once every peer of the
// first snapshot is in the kernel: the subnet file and the CNI configuration,
// in this order, then systemd. Pods start when the CNI configuration appears,
// so nothing is written before. After each pass the files are compared with
// what they should hold, so that one that was removed or altered comes back. A
// file that cannot be written (a full disk) is reported and tried again after
// the next pass; the data plane does not wait for it.
func (a *agent) publish(ctx context.Context, changed <-chan struct{}, r *overlay.Reconciler) error {
	lastErr, told := "", false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		st := r.Status()
		if a.o.Once && !st.InSync && !st.LastPass.IsZero() {
			return fmt.Errorf("not in sync: %s", st.Reason)
		}
		if !st.Synced || len(st.Lease.Paths) == 0 {
			continue
		}
		if err := a.writeFiles(a.subnetEnv(*a.network.Load(), st)); err != nil {
			if a.o.Once {
				return err
			}
			if why := err.Error(); lastErr != why {
				lastErr = why
				a.unwritten.Store(&why)
				a.log.WithField("err", err).Error("the node's pods cannot start")
			}
			a.published.Store(false)
			continue
		}
		lastErr = ""
		a.published.Store(true)
		if !told {
			told = true
			if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
				a.log.WithField("err", err).Warn("systemd was not told that weftd is ready")
			}
		}
		if a.o.Once && st.InSync {
			return nil
		}
	}
}

// subnetEnv is what pods on this node need to know: of the families that it has
// a subnet of. Of an open network that is this node's own part: a list of all
// leases would be another one whenever a node comes or goes, and pods that run
// would not hear of it. They reach the rest by their default route.
func (a *agent) subnetEnv(cfg subnet.Config, st overlay.Status) subnet.SubnetEnv {
	env := subnet.SubnetEnv{MTU: st.MTU, IPMasq: a.o.IPMasq}
	for _, p := range st.Lease.Paths {
		env.Subnets = append(env.Subnets, gateway(p))
		switch n, ok := cfg.Network(subnet.FamilyOf(p.Subnet.Addr())); {
		case ok && !n.Open():
			env.Networks = append(env.Networks, n.Prefix)
		default:
			env.Networks = append(env.Networks, p.Subnet)
		}
	}
	return env
}

func (a *agent) writeFiles(env subnet.SubnetEnv) error {
	have, err := os.ReadFile(a.o.SubnetFile)
	if err != nil || !bytes.Equal(have, env.Encode()) {
		if err := subnet.WriteSubnetEnv(a.o.SubnetFile, env); err != nil {
			return err
		}
	}
	if a.o.CNIConf == "" {
		return nil
	}
	kept, err := writeConflist(a.o)
	if kept != "" {
		a.log.WithField("dst", kept).Warnf("%s was no JSON document, so nothing could use it: it is kept under another name, and written anew", a.o.CNIConf)
	}
	return err
}
