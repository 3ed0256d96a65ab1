// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/subnet"
)

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

// ipamType returns the name of the IPAM plugin of a rendered configuration.
func ipamType(rendered []byte) string {
	var d types.PluginConf
	if json.Unmarshal(rendered, &d) != nil {
		return ""
	}
	return d.IPAM.Type
}

// bridgeOf returns the bridge that a rendered configuration attaches to, ""
// when its plugin is another one.
func bridgeOf(rendered []byte) string {
	d := struct{ Type, Bridge string }{Bridge: ledger.DefaultBridge}
	if json.Unmarshal(rendered, &d) != nil || d.Type != "bridge" {
		return ""
	}
	return d.Bridge
}

// addressesOf returns the addresses of a result, in the form of CNI 0.3.1 and
// later. What is no result has none.
func addressesOf(result json.RawMessage) []netip.Addr {
	var r struct {
		IPs []struct{ Address netip.Prefix }
	}
	if json.Unmarshal(result, &r) != nil {
		return nil
	}
	var all []netip.Addr
	for _, ip := range r.IPs {
		all = append(all, ip.Address.Addr().Unmap())
	}
	return all
}

// isCode reports whether err is a CNI error of a code.
func isCode(err error, code uint) bool {
	var e *types.Error
	return errors.As(err, &e) && e.Code == code
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
