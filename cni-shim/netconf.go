// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// Defaults of the configuration fields that name files.
const (
	defaultSubnetFile  = "/run/weft/subnet.env"
	defaultDataDir     = "/var/lib/cni/weft"
	defaultAgentSocket = "/run/weft/weftd.sock"
)

// maxSocketPath is the longest path of a unix socket, in bytes: sun_path of
// struct sockaddr_un (linux/un.h) without its terminating zero.
const maxSocketPath = 107

// netConf is a CNI network configuration for weft. Fields that only travel
// through to the delegate stay as they came; nil means absent.
type netConf struct {
	CNIVersion  string
	Name        string
	Type        string // this plugin's own file name
	SubnetFile  string // absolute path of subnet.env
	DataDir     string // absolute path of the directory for saved states
	AgentSocket string // absolute path of weftd's socket
	// OnAgentDown says that the agent enforces policies, and what becomes of a
	// pod that it cannot be told of: Deny or Open. Empty: it enforces none.
	OnAgentDown onAgentDown
	Delegate    object // overrides of the delegate's configuration
	IPAM        object // overrides of the delegate's ipam object

	RuntimeConfig, DNS, Args, PrevResult json.RawMessage
}

// parseNetConf reads a configuration from a runtime and fills the defaults in.
// Unknown fields are left alone: runtimes add their own. An error is a
// *types.Error of code 6 (not JSON) or 7 that names the first wrong field, its
// value and what is allowed. What else is right is there with an error too,
// for DEL, and a wrong field has its default.
func parseNetConf(data []byte) (netConf, error) {
	type configuration struct { // has a name for the error's sake
		CNIVersion, Name, Type               json.RawMessage
		SubnetFile, DataDir, AgentSocket     json.RawMessage
		OnAgentDown                          json.RawMessage
		Delegate, IPAM                       json.RawMessage
		RuntimeConfig, DNS, Args, PrevResult json.RawMessage
	}
	var raw configuration
	if err := json.Unmarshal(data, &raw); err != nil {
		return netConf{}, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("network configuration: %v", err), "")
	}
	var c netConf
	var first error
	wrong := func(field string, value []byte, want string) {
		if first == nil {
			first = confError(field, value, want)
		}
	}
	for _, f := range []struct {
		name  string
		raw   json.RawMessage
		parse func(json.RawMessage) error
	}{
		{"cniVersion", raw.CNIVersion, text(&c.CNIVersion, "")},
		{"name", raw.Name, text(&c.Name, "")},
		{"type", raw.Type, text(&c.Type, "weft")},
		{"subnetFile", raw.SubnetFile, path(&c.SubnetFile, defaultSubnetFile)},
		{"dataDir", raw.DataDir, path(&c.DataDir, defaultDataDir)},
		{"agentSocket", raw.AgentSocket, path(&c.AgentSocket, defaultAgentSocket)},
		{"onAgentDown", raw.OnAgentDown, oneOf(&c.OnAgentDown, deny, open)},
		{"delegate", raw.Delegate, fields(&c.Delegate)},
		{"ipam", raw.IPAM, fields(&c.IPAM)},
		{"runtimeConfig", raw.RuntimeConfig, verbatim(&c.RuntimeConfig)},
		{"dns", raw.DNS, verbatim(&c.DNS)},
		{"args", raw.Args, verbatim(&c.Args)},
		{"prevResult", raw.PrevResult, verbatim(&c.PrevResult)},
	} {
		if err := f.parse(f.raw); err != nil {
			wrong(f.name, f.raw, err.Error())
		}
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		wrong("name", raw.Name, "want a name of letters, digits, '_', '.' and '-' that starts with a letter or digit")
	}
	if len(c.AgentSocket) > maxSocketPath {
		wrong("agentSocket", raw.AgentSocket, fmt.Sprintf("the path has %d bytes, want at most %d", len(c.AgentSocket), maxSocketPath))
	}
	return c, first
}

// confError reports a field of the network configuration: its value and
// what is allowed instead.
func confError(field string, value []byte, want string) *types.Error {
	const most = 80 // bytes of the value to show
	shown := string(value)
	if len(shown) > most {
		shown = strings.ToValidUTF8(shown[:most], "") + "..."
	}
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("network configuration: %s is %s: %s", field, shown, want), "")
}

func absent(raw json.RawMessage) bool { return raw == nil || string(raw) == "null" }

// text, oneOf, path, fields and verbatim return parsers of one field into dst.
// An absent field gives the fallback, or nil, and so does a wrong one. Their
// errors say what is allowed.
func text(dst *string, fallback string) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		*dst = fallback
		if !absent(raw) && json.Unmarshal(raw, dst) != nil {
			return errors.New("want a string")
		}
		return nil
	}
}

func oneOf[S ~string](dst *S, allowed ...S) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var s S
		if !absent(raw) && (json.Unmarshal(raw, &s) != nil || !slices.Contains(allowed, s)) {
			return fmt.Errorf("want one of %q", allowed)
		}
		*dst = s
		return nil
	}
}

func path(dst *string, fallback string) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if text(dst, fallback)(raw) != nil || !filepath.IsAbs(*dst) || strings.ContainsRune(*dst, 0) {
			*dst = fallback
			return fmt.Errorf("want an absolute path, for example %q", fallback)
		}
		return nil
	}
}

func fields(dst *object) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if json.Unmarshal(raw, dst) != nil && raw != nil {
			return errors.New("want an object")
		}
		return nil
	}
}

func verbatim(dst *json.RawMessage) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if absent(raw) {
			return nil
		}
		if raw[0] != '{' {
			return errors.New("want an object")
		}
		*dst = raw
		return nil
	}
}

// object is a JSON object whose values nobody here needs to understand.
// Names match as encoding/json matches them, and so as the reference plugins
// do: exactly or else regardless of case. A null value counts as absent.
type object map[string]json.RawMessage

// get returns the value of name, or nil.
func (o object) get(name string) json.RawMessage {
	if v := o[name]; !absent(v) {
		return v
	}
	for k, v := range o {
		if strings.EqualFold(k, name) && !absent(v) {
			return v
		}
	}
	return nil
}

// remove deletes name in every spelling.
func (o object) remove(name string) {
	maps.DeleteFunc(o, func(k string, _ json.RawMessage) bool { return strings.EqualFold(k, name) })
}

// put makes v the only value of name.
func (o object) put(name string, v json.RawMessage) {
	o.remove(name)
	o[name] = v
}

// fill sets name to v unless it has a value or v is nil.
func (o object) fill(name string, v json.RawMessage) {
	if v != nil && o.get(name) == nil {
		o.put(name, v)
	}
}
