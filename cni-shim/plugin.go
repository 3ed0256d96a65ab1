// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/subnet"
)

// plugin answers the CNI commands. Its methods have the form that skel calls;
// they wait for the delegate as long as the runtime lets them live, since
// cutting a delegate short would leave half of its work behind.
type plugin struct{}

// add attaches a container. The rendered configuration is on disk before the
// delegate starts, so that DEL knows it even when ADD was killed half way.
func (plugin) add(args *skel.CmdArgs) error {
	ctx := context.Background()
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	rendered, err := prepare(ctx, conf, types.ErrTryAgainLater)
	if err != nil {
		return err
	}
	state, err := stateOf(conf.DataDir, args.ContainerID, args.IfName)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
	}
	name := delegateType(rendered)
	// A state commits DEL to its delegate, so one that cannot be run has none.
	if _, err := invoke.FindInPath(name, filepath.SplitList(args.Path)); err != nil {
		return delegateError(name, err)
	}
	if err := state.save(rendered); err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	result, err := invoke.DelegateAdd(ctx, name, rendered, nil)
	if err != nil {
		return delegateError(name, err)
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// del detaches a container. It reaches the delegate whatever is missing or
// broken on our side, because only the delegate knows what there is to free.
func (plugin) del(args *skel.CmdArgs) error {
	ctx := context.Background()
	conf, _ := parseNetConf(args.StdinData) // ADD reports what is wrong with it
	// ADD refuses ids that cannot be a file name, so nothing is stored
	// under them, and the zero state holds nothing.
	state, stateErr := stateOf(conf.DataDir, args.ContainerID, args.IfName)
	rendered, err := state.load()
	if err == nil {
		rendered, err = withPrevResult(rendered, conf.PrevResult)
	}
	if err != nil {
		rendered, err = renderForDel(conf)
	}
	if err != nil {
		return err
	}
	name := delegateType(rendered)
	if err := invoke.DelegateDel(ctx, name, rendered, nil); err != nil {
		return delegateError(name, err)
	}
	if stateErr != nil {
		return nil
	}
	if err := state.remove(); err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	return nil
}

// check replays what ADD saved as the delegate's CHECK.
func (plugin) check(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	state, err := stateOf(conf.DataDir, args.ContainerID, args.IfName)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, err.Error(), "")
	}
	rendered, err := state.load()
	if err == nil {
		rendered, err = withPrevResult(rendered, conf.PrevResult)
	}
	if err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("cannot tell what ADD attached: %v", err), "")
	}
	name := delegateType(rendered)
	if err := invoke.DelegateCheck(context.Background(), name, rendered, nil); err != nil {
		return delegateError(name, err)
	}
	return nil
}

// status says whether an ADD would be served now, as code 50 when not. An
// agent that is down does not matter here, as it does not for ADD.
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
	return nil
}

// gc answers that there is no GC here: skel would answer success on its own.
func (plugin) gc(*skel.CmdArgs) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND GC is not implemented by the weft plugin", "")
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

// renderForDel stands in for a saved state that is missing or torn. Each
// candidate keeps less of the configuration; the last is the default delegate
// under the network's name, which is enough to free by container id.
func renderForDel(conf netConf) ([]byte, error) {
	env, err := subnet.ReadSubnetEnv(conf.SubnetFile)
	if err != nil {
		env = placeholderEnv()
	}
	bare := netConf{CNIVersion: conf.CNIVersion, Name: conf.Name}
	withIPAM := bare
	withIPAM.IPAM = conf.IPAM
	for _, c := range []netConf{conf, withIPAM} {
		if rendered, err := render(c, env); err == nil {
			return rendered, nil
		}
	}
	return render(bare, env)
}

// placeholderEnv is a lease for a DEL that does not know the real one.
// host-local wants a range even to free addresses, which it finds by container
// and interface whatever the range is; so these are documentation prefixes
// (RFC 5737, RFC 3849). Masquerading counts as the delegate's, so that
// its rules, if any, go too.
func placeholderEnv() subnet.SubnetEnv {
	return subnet.SubnetEnv{
		Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
		MTU:     1280,
	}
}

// withPrevResult replaces the previous result in a saved configuration by the
// one that the runtime passed now: ADD saved the state before it had a result.
func withPrevResult(saved []byte, prev json.RawMessage) ([]byte, error) {
	var d object
	if err := json.Unmarshal(saved, &d); err != nil {
		return nil, fmt.Errorf("saved state: %w", err)
	}
	if prev == nil {
		d.remove("prevResult")
	} else {
		d.put("prevResult", prev)
	}
	return json.Marshal(d)
}

// delegateType returns the name of the plugin that a rendered configuration
// is for; "" when it names none, which the delegation itself refuses.
func delegateType(rendered []byte) string {
	var d types.PluginConf
	if json.Unmarshal(rendered, &d) != nil {
		return ""
	}
	return d.Type
}

// delegateError says that the failure is the delegate's, and keeps its code.
func delegateError(name string, err error) error {
	var e *types.Error
	if !errors.As(err, &e) {
		return types.NewError(types.ErrInternal, fmt.Sprintf("delegate %q: %v", name, err), "")
	}
	code := e.Code
	if code == types.ErrUnknown {
		code = types.ErrInternal // it died without an error of its own
	}
	return types.NewError(code, fmt.Sprintf("delegate %q: %s", name, e.Msg), e.Details)
}
