// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/cni-shim/ledger"
)

// validKey is the field of GC's configuration with the attachments to keep.
const validKey = "cni.dev/valid-attachments"

// gc frees every attachment of the network that the runtime does not name, and
// hands the call on to the delegate. Attachments of other networks and those
// with a call at work are left alone. One that cannot be freed does not stop
// the others; the error names them all.
func (plugin) gc(args *skel.CmdArgs) error {
	ctx := context.Background()
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	valid, err := parseValid(args.StdinData)
	if err != nil {
		return err
	}
	errs := []error{collect(ctx, conf, valid, args.Path), forwardGC(ctx, conf, args.StdinData)}
	if err := errors.Join(errs...); err != nil {
		return types.NewError(types.ErrInternal, fmt.Sprintf("GC of network %s: %v", conf.Name, err), "")
	}
	return nil
}

// parseValid reads the list of attachments to keep. A configuration without
// one is refused: taken for an empty list it would cost every pod its network.
// null is how a runtime in Go says that there are none.
func parseValid(data []byte) (map[ledger.Key]bool, error) {
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(data, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("network configuration: %v", err), "")
	}
	raw, ok := conf[validKey]
	if !ok {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "network configuration: "+validKey+" is missing: want an array of the attachments to keep", "")
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, confError(validKey, raw, `want an array, for example [{"containerID": "c1", "ifname": "eth0"}]`)
	}
	valid := map[ledger.Key]bool{}
	for _, a := range list {
		valid[ledger.Key{ContainerID: a.ContainerID, IfName: a.IfName}] = true
		valid[ledger.Key{ContainerID: a.ContainerID}] = true // old host-local wrote no interface
	}
	return valid, nil
}

// collect frees what is in the network's ledger and not valid.
func collect(ctx context.Context, conf netConf, valid map[ledger.Key]bool, path string) error {
	l, err := ledger.Open(ledger.Options{Network: conf.Name, StateDir: conf.DataDir, AllocDir: allocDir(conf.IPAM)})
	if err != nil {
		return err
	}
	records, err := l.Records(ctx)
	if err != nil {
		return err
	}
	free := func(records []ledger.Record) (failed []ledger.Record, errs []error) {
		for _, r := range records {
			if r.Key == (ledger.Key{}) || r.Busy || valid[r.Key] {
				continue
			}
			a := &invoke.Args{Command: "DEL", ContainerID: r.Key.ContainerID, IfName: r.Key.IfName, NetNS: netnsOf(r.Stamp), Path: path}
			if err := collectOne(ctx, conf, r, a); err != nil {
				failed, errs = append(failed, r), append(errs, fmt.Errorf("%s: %w", r.Key, err))
			}
		}
		return failed, errs
	}
	// Interfaces of one pod share a chain where bridge masquerades by iptables,
	// and only with the last of them bridge v1.9 can delete it: those before
	// fail, and succeed afterwards.
	failed, errs := free(records)
	if len(errs) > 0 {
		_, errs = free(failed)
	}
	if err := l.ReleaseTorn(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func collectOne(ctx context.Context, conf netConf, r ledger.Record, args *invoke.Args) error {
	if r.Key.IfName == "" {
		rendered, err := renderForDel(conf)
		if err != nil {
			return err
		}
		// host-local then frees by container alone.
		args.IfName = "eth0"
		return runDel(ctx, rendered, args)
	}
	a, err := attachmentOf(conf.DataDir, r.Key.ContainerID, r.Key.IfName)
	if err != nil {
		return err
	}
	return a.detach(ctx, conf, args)
}

// netnsOf returns the path of an attachment's namespace if it still leads
// there, else "", with which a delegate frees all but the namespace's content.
func netnsOf(s ledger.Stamp) string {
	if s.Netns == "" || s.NetnsInode == 0 || inode(s.Netns) != s.NetnsInode {
		return ""
	}
	return s.Netns
}

// allocDir returns host-local's directory in an ipam object, "" for its own
// default.
func allocDir(ipam object) string {
	var dir string
	if json.Unmarshal(ipam.get("dataDir"), &dir) != nil || !filepath.IsAbs(dir) {
		return ""
	}
	return dir
}

// forwardGC hands the call on, as the CNI specification 1.1.0 asks for
// (section 2, GC). The reference bridge plugin does nothing with it.
func forwardGC(ctx context.Context, conf netConf, stdin []byte) error {
	rendered, err := renderForDel(conf)
	if err != nil {
		return err
	}
	var from, to object
	if err := errors.Join(json.Unmarshal(stdin, &from), json.Unmarshal(rendered, &to)); err != nil {
		return err
	}
	to[validKey] = from[validKey]
	if rendered, err = json.Marshal(to); err != nil {
		return err
	}
	name := delegateType(rendered)
	if err := invoke.DelegateGC(ctx, name, rendered, nil); err != nil {
		return delegateError(name, err)
	}
	return nil
}
