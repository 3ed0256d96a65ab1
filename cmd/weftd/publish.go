// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/renameio/v2"

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
func (a *agent) publish(ctx context.Context, changed <-chan struct{}, cfg subnet.Config, r *overlay.Reconciler) error {
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
		if err := a.writeFiles(subnetEnv(cfg, st)); err != nil {
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

// subnetEnv is what pods on this node need to know. The MTU is that of the
// smallest device, so that one value is right for every pod and family.
func subnetEnv(cfg subnet.Config, st overlay.Status) subnet.SubnetEnv {
	env := subnet.SubnetEnv{}
	for _, n := range cfg.Networks {
		env.Networks = append(env.Networks, n.Prefix)
	}
	for _, p := range st.Lease.Paths {
		env.Subnets = append(env.Subnets, gateway(p))
	}
	for _, l := range st.Links {
		if env.MTU == 0 || l.MTU < env.MTU {
			env.MTU = l.MTU
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
	return writeConflist(a.o)
}

// writeConflist installs the CNI configuration unless the same is there. An
// operator's own edits are kept: the file is only written when it is missing
// or is one that weftd wrote (it carries our name).
func writeConflist(o *options) error {
	want := conflist(o)
	have, err := os.ReadFile(o.CNIConf)
	switch {
	case err == nil && bytes.Equal(have, want):
		return nil
	case err == nil && !generated(have):
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("read the CNI configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(o.CNIConf), 0o755); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	if err := renameio.WriteFile(o.CNIConf, want, 0o644); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	return nil
}

// marker is the key by which weftd knows a conflist as its own. CNI ignores
// keys it does not know.
const marker = "weft.generated"

func generated(conf []byte) bool {
	var c map[string]json.RawMessage
	return json.Unmarshal(conf, &c) == nil && c[marker] != nil
}

// conflist is the CNI configuration: network weft (flannel: cbr0),
// bridge cni0, no masquerading by the bridge, because inside the network
// every pod sees every other's own address.
// The bridge takes a new gateway address if the node had to take another
// subnet (forceAddress).
func conflist(o *options) []byte {
	name, dataDir := "weft", "/var/lib/cni/weft"
	if o.FlannelCompat {
		name, dataDir = "cbr0", "/var/lib/cni/flannel"
	}
	type object map[string]any
	b, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0", "cniVersions": []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"},
		"name": name, marker: "edit freely after removing this line",
		"plugins": []object{
			{
				"type": "weft", "subnetFile": o.SubnetFile, "agentSocket": o.Socket, "dataDir": dataDir,
				"delegate": object{"bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "forceAddress": true},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		panic("bug: a constant document does not encode: " + err.Error())
	}
	return append(b, '\n')
}
