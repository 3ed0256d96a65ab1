// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"weft.dev/weft/cni-shim/ledger"
)

// lockWait bounds how long a call waits for an earlier one of the same
// attachment: a runtime that lost patience has killed the plugin but not the
// delegate, which goes on.
const lockWait = 30 * time.Second

// attachment is one interface of a container in the ledger. Two attachments of
// one container (Multus) have two states.
type attachment struct {
	dir   string
	key   ledger.Key
	state ledger.State
}

// attachmentOf names the state of an interface of a container. It fails for
// ids that cannot be a file name, with code 4.
func attachmentOf(dir, containerID, ifName string) (attachment, error) {
	k := ledger.Key{ContainerID: containerID, IfName: ifName}
	state, err := ledger.StateOf(dir, k)
	if err != nil {
		return attachment{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID and CNI_IFNAME: "+err.Error(), "")
	}
	return attachment{dir, k, state}, nil
}

// lock takes the attachment's lock, for itself and every delegate that it
// starts.
func (a attachment) lock(ctx context.Context) (*ledger.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	lock, err := ledger.LockAttachment(ctx, a.dir, a.key)
	switch {
	case errors.Is(err, ledger.ErrBusy):
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("an earlier call for %s is still at work after %s", a.key, lockWait), err.Error())
	case err != nil:
		return nil, types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	return lock, nil
}

// load returns the delegate's configuration and what is known of the
// attachment; stamped is false when that is nothing. It fails with
// fs.ErrNotExist when there is no state, and also when the content is not a
// configuration.
func (a attachment) load() (conf []byte, stamp ledger.Stamp, stamped bool, err error) {
	data, err := a.state.Load()
	if err != nil {
		return nil, ledger.Stamp{}, false, err
	}
	conf, stamp, stamped, err = ledger.Decode(data)
	if err != nil || delegateType(conf) == "" {
		return nil, ledger.Stamp{}, false, fmt.Errorf("load state: %s holds no delegate configuration", a.state.Path())
	}
	return conf, stamp, stamped, nil
}

// save stores the delegate's configuration and the stamp.
func (a attachment) save(conf []byte, s ledger.Stamp) error {
	data, err := ledger.Encode(conf, s)
	if err == nil {
		err = a.state.Save(data)
	}
	if err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	return nil
}

// remove forgets the attachment.
func (a attachment) remove() error {
	if err := a.state.Remove(); err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	return nil
}

// begin stamps an attachment whose ADD begins. again is true when one of the
// same name is there already, which the delegate is to refuse: its state is
// left as it is, since it is what keeps the other's addresses.
func (a attachment) begin(conf []byte, netns string, pod *ledger.Pod) (s ledger.Stamp, again bool, err error) {
	boot, err := ledger.BootID("")
	if err != nil {
		return s, false, types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	if _, old, stamped, err := a.load(); err == nil && stamped && old.Boot == boot && old.Phase == ledger.Added {
		again = true
	}
	s = ledger.Stamp{Phase: ledger.Adding, Boot: boot, Netns: netns, NetnsInode: inode(netns), Time: time.Now().Round(0), Pod: pod}
	if id, err := netnsID(netns); err == nil {
		s.NetnsID = &id
	} // else a kernel that cannot tell; what is left of a killed ADD is found by address alone
	if again {
		return s, true, nil
	}
	return s, false, a.save(conf, s)
}

// added completes a stamp with what the delegate answered.
func added(s ledger.Stamp, conf []byte, result types.Result) (ledger.Stamp, error) {
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return s, types.NewError(types.ErrInternal, fmt.Sprintf("delegate's result: %v", err), "")
	}
	s.Phase = ledger.Added
	for _, ip := range r.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			s.Addrs = append(s.Addrs, addr.Unmap())
		}
	}
	bridge := bridgeOf(conf)
	for _, i := range r.Interfaces {
		if i.Sandbox != "" && s.MAC == "" {
			s.MAC = i.Mac
		}
		if bridge != "" && i.Sandbox == "" && i.Name != bridge {
			s.Ports = append(s.Ports, i.Name)
		}
	}
	return s, nil
}

// podOf returns who CNI_ARGS says is attached, nil where they name no pod of
// Kubernetes. The names are those that its runtimes use (containerd 2.4,
// internal/cri/server/sandbox_run.go; CRI-O the same).
func podOf(cniArgs string) (*ledger.Pod, error) {
	var k struct {
		types.CommonArgs
		//lint:ignore ST1003 LoadArgs finds fields by the names that CNI_ARGS has
		K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID types.UnmarshallableString
	}
	k.IgnoreUnknown = true
	if err := types.LoadArgs(cniArgs, &k); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS %.200q: %v", cniArgs, err), "")
	}
	if k.K8S_POD_NAMESPACE == "" || k.K8S_POD_NAME == "" {
		return nil, nil
	}
	return &ledger.Pod{Namespace: string(k.K8S_POD_NAMESPACE), Name: string(k.K8S_POD_NAME), UID: string(k.K8S_POD_UID)}, nil
}
