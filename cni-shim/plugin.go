// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/subnet"
)

// plugin answers the CNI commands. Its methods have the form that skel calls;
// they wait for the delegate as long as the runtime lets them live, since
// cutting a delegate short would leave half of its work behind.
type plugin struct{}

// add attaches a container. The rendered configuration is on disk before the
// delegate starts, so that DEL knows it even when ADD was killed half way; and
// the attachment is marked as added before the runtime hears of it, so that
// whoever sweeps never takes one for half done that a runtime counts on.
func (plugin) add(args *skel.CmdArgs) error {
	ctx := context.Background()
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	a, err := attachmentOf(conf.DataDir, args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	rendered, err := prepare(ctx, conf, types.ErrTryAgainLater)
	if err != nil {
		return err
	}
	name := delegateType(rendered)
	// A state commits DEL to its delegate, so one that cannot be run has none.
	if _, err := invoke.FindInPath(name, filepath.SplitList(args.Path)); err != nil {
		return delegateError(name, err)
	}
	lock, err := a.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := a.mayAttach(args.Netns); err != nil {
		return err
	}
	pod, err := podOf(args.Args)
	if err != nil {
		return err
	}
	stamp, again, err := a.begin(rendered, args.Netns, pod)
	if err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(ctx, name, rendered, nil)
	if err != nil && again {
		return delegateError(name, err)
	}
	if err != nil {
		a.undo(ctx, name, rendered)
		return delegateError(name, err)
	}
	if stamp, err = added(stamp, rendered, result); err == nil {
		err = inLease(conf, rendered, stamp.Addrs)
	}
	if err == nil {
		err = a.save(rendered, stamp)
	}
	if err == nil {
		err = admit(ctx, conf, a.key)
	}
	if err != nil {
		a.undo(ctx, name, rendered)
		return err
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// mayAttach refuses to attach to a namespace where the interface is already
// and we know nothing of it: the delegate would refuse it too, but then undo
// would delete what somebody else has attached. The namespace that this plugin
// runs in is a node's, never a pod's.
func (a attachment) mayAttach(netns string) error {
	if isOwnNetns(netns) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %s is the network namespace that the plugin runs in: want a pod's", netns), "")
	}
	if _, _, stamped, err := a.load(); err == nil && stamped {
		return nil // ours, done or half done
	}
	taken, err := hasInterface(netns, a.key.IfName)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EINVAL):
		return nil // no namespace: the delegate says better what is wrong with the path
	case err != nil:
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	case taken:
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_IFNAME %s: network namespace %s has that interface already, and it is no attachment of container %s", a.key.IfName, netns, a.key.ContainerID), "")
	}
	return nil
}

// undo detaches what an ADD that fails has attached (CNI specification 1.1.0,
// section 4). What it cannot undo stays marked as half done: the runtime's DEL
// or a sweep goes on from there, so its own failure is not told.
func (a attachment) undo(ctx context.Context, name string, rendered []byte) {
	if invoke.DelegateDel(ctx, name, rendered, nil) == nil {
		_ = a.remove()
	}
}

// del detaches a container. It reaches the delegate whatever is missing or
// broken on our side, because only the delegate knows what there is to free.
func (plugin) del(args *skel.CmdArgs) error {
	ctx := context.Background()
	conf, _ := parseNetConf(args.StdinData) // ADD reports what is wrong with it
	// ADD refuses ids that cannot be a file name, so nothing is stored
	// under them.
	a, err := attachmentOf(conf.DataDir, args.ContainerID, args.IfName)
	if err != nil {
		rendered, err := renderForDel(conf)
		if err != nil {
			return err
		}
		return runDel(ctx, rendered, nil)
	}
	if isOwnNetns(args.Netns) { // the delegate would delete an interface of the node's
		return a.detach(ctx, conf, &invoke.Args{Command: "DEL", ContainerID: args.ContainerID, IfName: args.IfName, Path: args.Path})
	}
	return a.detach(ctx, conf, nil)
}

// detach runs the delegate's DEL and forgets the attachment. args are those of
// this process when nil.
func (a attachment) detach(ctx context.Context, conf netConf, args *invoke.Args) error {
	lock, err := a.lock(ctx)
	if err == nil {
		defer lock.Unlock()
	} else if isCode(err, types.ErrTryAgainLater) {
		return err
	}
	rendered, stamp, _, err := a.load()
	if err == nil {
		a.markDeleting(rendered, stamp)
		rendered, err = withPrevResult(rendered, conf.PrevResult)
	}
	if err != nil {
		rendered, err = renderForDel(conf)
	}
	if err != nil {
		return err
	}
	if err := runDel(ctx, rendered, args); err != nil {
		return err
	}
	return a.remove()
}

// markDeleting notes that the runtime wants the attachment gone, so that a
// sweep may finish what a killed DEL began. DEL itself goes on without.
func (a attachment) markDeleting(conf []byte, s ledger.Stamp) {
	boot, err := ledger.BootID("")
	if err != nil || s.Boot != "" && s.Boot != boot {
		return // of another boot: dead already
	}
	s.Phase, s.Boot = ledger.Deleting, boot
	_ = a.save(conf, s)
}

// runDel calls the delegate's DEL, with this process's arguments when args is
// nil.
func runDel(ctx context.Context, rendered []byte, args *invoke.Args) error {
	name := delegateType(rendered)
	var err error
	if args == nil {
		err = invoke.DelegateDel(ctx, name, rendered, nil)
	} else {
		var file string
		if file, err = invoke.FindInPath(name, filepath.SplitList(args.Path)); err == nil {
			err = invoke.ExecPluginWithoutResult(ctx, file, rendered, args, nil)
		}
	}
	if err != nil {
		return delegateError(name, err)
	}
	return nil
}

// check replays what ADD saved as the delegate's CHECK, and sees that the
// attachment is of this boot and its addresses are of this node's lease.
func (plugin) check(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	a, err := attachmentOf(conf.DataDir, args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	saved, stamp, stamped, err := a.load()
	rendered := saved
	if err == nil {
		rendered, err = withPrevResult(saved, conf.PrevResult)
	}
	if err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("cannot tell what ADD attached: %v", err), "")
	}
	if stamped {
		if err := checkStamp(a, stamp); err != nil {
			return err
		}
	} else {
		stamp.Addrs = addressesOf(conf.PrevResult)
	}
	name := delegateType(rendered)
	if err := invoke.DelegateCheck(context.Background(), name, rendered, nil); err != nil {
		return delegateError(name, err)
	}
	return inLease(conf, saved, stamp.Addrs)
}

// checkStamp fails unless ADD has finished, since this machine was started,
// and no DEL has begun.
func checkStamp(a attachment, s ledger.Stamp) error {
	boot, err := ledger.BootID("")
	switch {
	case err != nil:
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	case s.Boot != boot:
		return types.NewError(types.ErrInternal, fmt.Sprintf("%s was attached before this machine was last started", a.key), "")
	case s.Phase == ledger.Adding:
		return types.NewError(types.ErrInternal, fmt.Sprintf("the ADD of %s has not finished", a.key), "")
	case s.Phase == ledger.Deleting:
		return types.NewError(types.ErrInternal, fmt.Sprintf("a DEL of %s has begun", a.key), "")
	}
	return nil
}

// inLease fails with code 11 unless the addresses are this node's to give out
// now: the lease can change while the delegate works, and afterwards. It asks
// only for addresses of host-local; who takes them elsewhere has his reasons.
func inLease(conf netConf, rendered []byte, addrs []netip.Addr) error {
	if ipamType(rendered) != "host-local" {
		return nil
	}
	env, err := subnet.ReadSubnetEnv(conf.SubnetFile)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, "this node's lease cannot be read: "+err.Error(), "")
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(env.Subnets, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
			return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("address %s is outside this node's subnets %v (%s): the lease has changed", a, byFamily(env.Subnets), conf.SubnetFile), "")
		}
	}
	return nil
}

// status says whether an ADD would be served now, as code 50 when not. When
// there is a lease, but the agent says that this node's data plane is not what
// it should be or that another node has the lease now, it is code 51. An agent
// that is down, or has only just started, does not matter here, as it does not
// for ADD: what it programmed stays.
func (plugin) status(args *skel.CmdArgs) error {
	ctx := context.Background()
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	rendered, err := prepare(ctx, conf, types.ErrPluginNotAvailable)
	if err != nil {
		return err
	}
	name := delegateType(rendered)
	if err := invoke.DelegateStatus(ctx, name, rendered, nil); err != nil {
		return delegateError(name, err)
	}
	if why := whyLimited(ctx, conf.AgentSocket); why != "" {
		return types.NewError(types.ErrLimitedConnectivity, why, "")
	}
	return nil
}

// prepare renders the delegate's configuration from the node's lease. While
// there is no usable lease the error has code notReady and the true cause.
func prepare(ctx context.Context, conf netConf, notReady uint) ([]byte, error) {
	env, err := subnet.ReadSubnetEnv(conf.SubnetFile)
	if errors.As(err, new(*fs.PathError)) {
		return nil, types.NewError(notReady, whyNotReady(ctx, conf.AgentSocket), err.Error())
	}
	if err != nil {
		return nil, types.NewError(notReady, "weftd has not written a usable lease: "+err.Error(), "")
	}
	return render(conf, env)
}
