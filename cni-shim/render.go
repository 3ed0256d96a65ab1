// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/subnet"
)

// render returns the delegate's configuration for a network on a node that
// holds the lease env. It is a pure function, with the rules of flannel's CNI
// plugin v1.9.1:
//
//   - conf.Delegate is the base. It may not hold name and ipam, and defaults
//     to type bridge, isGateway true (bridge only), the lease's MTU, and
//     ipMasq when the agent does not masquerade;
//   - name, cniVersion and runtimeConfig are the network's;
//   - ipam is conf.IPAM with type host-local by default, the lease's
//     subnets as its only ranges, and the network's routes after the user's.
//
// Beyond flannel, dns and args reach the delegate unless it sets its own, and
// prevResult always does.
//
// An error is a *types.Error of code 7 that names field, value and what is
// allowed, or of code 11 for a lease without a subnet.
func render(conf netConf, env subnet.SubnetEnv) ([]byte, error) {
	d := object{}
	maps.Copy(d, conf.Delegate)
	if v := d.get("name"); v != nil {
		return nil, confError("delegate.name", v, "the delegate takes the network's own name; remove it")
	}
	if v := d.get("ipam"); v != nil {
		return nil, confError("delegate.ipam", v, "the delegate's ipam comes from the network's ipam object; move it there")
	}
	plugin, err := pluginName(d, "delegate.type", "bridge")
	if err != nil {
		return nil, err
	}
	if plugin == conf.Type {
		return nil, confError("delegate.type", d.get("type"), "a plugin cannot delegate to itself")
	}
	ipam, err := renderIPAM(conf.IPAM, env)
	if err != nil {
		return nil, err
	}
	d.put("type", quote(plugin))
	d.put("name", quote(conf.Name))
	d.put("cniVersion", quote(conf.CNIVersion))
	d.put("ipam", ipam)
	d.fill("ipMasq", json.RawMessage(strconv.FormatBool(!env.IPMasq)))
	d.fill("mtu", json.RawMessage(strconv.Itoa(env.MTU)))
	if plugin == "bridge" {
		d.fill("isGateway", json.RawMessage("true"))
	}
	d.fill("dns", conf.DNS)
	d.fill("args", conf.Args)
	if conf.RuntimeConfig != nil {
		d.put("runtimeConfig", conf.RuntimeConfig)
	}
	if conf.PrevResult != nil {
		d.put("prevResult", conf.PrevResult)
	}
	return marshal(d)
}

// renderIPAM returns the ipam object: the user's, bound to the lease.
func renderIPAM(user object, env subnet.SubnetEnv) (json.RawMessage, error) {
	ipam := object{}
	maps.Copy(ipam, user)
	plugin, err := pluginName(ipam, "ipam.type", "host-local")
	if err != nil {
		return nil, err
	}
	// host-local would take a single range of the older form in addition to
	// ours, and hand out addresses that belong to other nodes.
	if v := ipam.get("subnet"); v != nil && plugin == "host-local" {
		return nil, confError("ipam.subnet", v, "addresses come from the node's lease alone; remove it")
	}
	type addrRange struct {
		Subnet netip.Prefix `json:"subnet"`
	}
	var ranges [][]addrRange
	for _, p := range byFamily(env.Subnets) {
		ranges = append(ranges, []addrRange{{Subnet: p.Masked()}})
	}
	if len(ranges) == 0 {
		return nil, types.NewError(types.ErrTryAgainLater, "weftd has not written a usable lease: it holds no subnet", "")
	}
	routes, err := renderRoutes(ipam.get("routes"), env)
	if err != nil {
		return nil, err
	}
	ipam.put("type", quote(plugin))
	ipam.put("routes", routes)
	rendered, err := marshal(ranges)
	if err != nil {
		return nil, err
	}
	ipam.put("ranges", rendered)
	return marshal(ipam)
}

// renderRoutes returns the user's routes, as they are, and one to each pod
// network for which the user has no route of the same destination.
func renderRoutes(user json.RawMessage, env subnet.SubnetEnv) (json.RawMessage, error) {
	var routes, parsed []json.RawMessage
	if user != nil && json.Unmarshal(user, &parsed) != nil {
		return nil, confError("ipam.routes", user, `want an array, for example [{"dst": "192.0.2.0/24"}]`)
	}
	have := map[string]bool{}
	for i, raw := range parsed {
		var r types.Route
		if err := json.Unmarshal(raw, &r); err != nil || r.Dst.IP == nil {
			return nil, confError(fmt.Sprintf("ipam.routes[%d]", i), raw, `want an object with a prefix, for example {"dst": "192.0.2.0/24"}`)
		}
		have[r.Dst.String()] = true
		routes = append(routes, raw)
	}
	for _, p := range byFamily(env.Networks) {
		if have[p.Masked().String()] {
			continue // the user's own route, with a gateway or metric perhaps, wins
		}
		routes = append(routes, json.RawMessage(`{"dst":"`+p.Masked().String()+`"}`))
	}
	if routes == nil {
		return json.RawMessage("[]"), nil
	}
	return marshal(routes)
}

// byFamily returns the prefixes with IPv4 before IPv6, otherwise in order.
func byFamily(prefixes []netip.Prefix) []netip.Prefix {
	var sorted []netip.Prefix
	for _, f := range subnet.Families() {
		for _, p := range prefixes {
			if subnet.FamilyOf(p.Addr()) == f {
				sorted = append(sorted, p)
			}
		}
	}
	return sorted
}

// pluginName returns o's type, or fallback when it has none. field names it
// in the error.
func pluginName(o object, field, fallback string) (string, error) {
	raw := o.get("type")
	if raw == nil {
		return fallback, nil
	}
	var name string
	if json.Unmarshal(raw, &name) != nil || name == "" || strings.ContainsAny(name, "/\x00") {
		return "", confError(field, raw, fmt.Sprintf("want the file name of a CNI plugin, for example %q", fallback))
	}
	return name, nil
}

// quote returns s as a JSON string.
func quote(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil { // impossible: every string has a JSON form
		return json.RawMessage(`""`)
	}
	return b
}

// marshal is json.Marshal with the failure, which only a bug can cause, as a
// *types.Error.
func marshal(v any) (json.RawMessage, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, types.NewError(types.ErrInternal, fmt.Sprintf("render delegate configuration: %v", err), "")
	}
	return b, nil
}
