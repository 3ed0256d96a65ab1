// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"bytes"
	_ "embed" // for configSchema
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

//go:embed net-conf.schema.json
var configSchema string

// ConfigSchema returns the JSON schema (draft 2020-12) of net-conf.json. It
// knows the keys in flannel's spelling alone, and cannot say what relates
// two values, such as SubnetLen to Network, nor that a network must be given
// where Defaults.Open is not set; the rest is as in ParseConfig.
func ConfigSchema() []byte { return []byte(configSchema) }

// Defaults selects what an absent key means.
type Defaults struct {
	// Flannel takes flannel's defaults: EnableIPv4 is true and EnableIPv6
	// false. Otherwise a family is enabled when its network is given.
	Flannel bool
	// Open takes a family whose network is not given for one that is enabled,
	// whatever network it has, unless it is switched off: where subnets come
	// with the node. Without it, such a family is off, or an error.
	Open bool
}

// Defaults and ranges of the Backend object. 8472 is the port of Linux
// (drivers/net/vxlan/vxlan_core.c), older than IANA's 4789.
const (
	defaultVNI  = 1
	defaultPort = 8472
	// Every IPv4 host accepts packets of 576 bytes (RFC 791, section 3.1);
	// below that no underlay is sane and a value is a typing mistake. That
	// IPv6 pods need 1280 (RFC 8200, section 5) on top of the overhead
	// depends on the underlay and is reported at run time, not refused here.
	minUnderlayMTU = 576
)

// confJSON holds the keys of net-conf.json that weft reads. The names are
// flannel's (pkg/subnet/config.go, v0.28) and matched without regard to case.
type confJSON struct {
	EnableIPv4, EnableIPv6   json.RawMessage
	Network, IPv6Network     json.RawMessage
	SubnetLen, IPv6SubnetLen json.RawMessage
	SubnetMin, IPv6SubnetMin json.RawMessage
	SubnetMax, IPv6SubnetMax json.RawMessage
	Backend                  json.RawMessage
}

// backendJSON holds the keys of its Backend object.
type backendJSON struct {
	Type, VNI, Port, MTU         json.RawMessage
	Learning, GBP, DirectRouting json.RawMessage
}

// ParseConfig reads net-conf.json with flannel's keys, fills in defaults and
// checks everything that Config promises. Keys are matched without regard to
// case and unknown ones are ignored, as flannel does. Values of a family
// that is off are checked for their type and range alone. source says where
// data came from, e.g. "etcd key /weft/network/config"; every error names
// it, the key, the value and what is allowed.
func ParseConfig(data []byte, source string, d Defaults) (Config, error) {
	c, err := parseConfig(data, d)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", source, err)
	}
	return c, nil
}

// ErrNoNetwork says that a configuration enables no pod network.
var ErrNoNetwork = errors.New("no pod network is enabled: want Network, IPv6Network or both")

func parseConfig(data []byte, d Defaults) (Config, error) {
	var in confJSON
	if err := decodeJSON(data, &in); err != nil {
		return Config{}, err
	}
	if !present(bytes.TrimSpace(data)) {
		return Config{}, errors.New("JSON null: want a JSON object")
	}
	var c Config
	for _, k := range []familyKeys{
		{f: IPv4, prefix: "", enable: in.EnableIPv4, network: in.Network,
			length: in.SubnetLen, low: in.SubnetMin, high: in.SubnetMax},
		{f: IPv6, prefix: "IPv6", enable: in.EnableIPv6, network: in.IPv6Network,
			length: in.IPv6SubnetLen, low: in.IPv6SubnetMin, high: in.IPv6SubnetMax},
	} {
		n, on, err := k.parse(d)
		if err != nil {
			return Config{}, err
		}
		if on {
			c.Networks = append(c.Networks, n)
		}
	}
	if len(c.Networks) == 0 {
		return Config{}, ErrNoNetwork
	}
	var err error
	c.Backend, err = parseBackend(in.Backend)
	return c, err
}

// familyKeys are the keys that describe one family's network.
type familyKeys struct {
	f                                  Family
	prefix                             string // of the keys' names
	enable, network, length, low, high json.RawMessage
}

// parse returns the family's network, and whether the family is enabled.
func (k familyKeys) parse(d Defaults) (n Network, on bool, err error) {
	given := present(k.network)
	on = given || d.Open
	if d.Flannel {
		on = k.f == IPv4
	}
	enableKey := "Enable" + k.f.String()
	if on, err = boolValue(enableKey, k.enable, on); err != nil {
		return n, on, err
	}
	if n.Prefix, err = k.prefixValue(); err != nil {
		return n, on, err
	}
	most := k.f.bits() - 2 // a subnet holds its base, a gateway and a pod
	length, err := intValue(k.prefix+"SubnetLen", k.length, 0, 0, most)
	if err != nil {
		return n, on, err
	}
	n.SubnetLen = length
	if n.SubnetMin, err = k.addrValue("SubnetMin", k.low); err != nil {
		return n, on, err
	}
	if n.SubnetMax, err = k.addrValue("SubnetMax", k.high); err != nil {
		return n, on, err
	}
	switch {
	case !on:
		return Network{}, false, nil
	case !given && d.Open:
		return OpenNetwork(k.f, length), true, nil
	case !given:
		return n, on, fmt.Errorf("%sNetwork is missing: want an %v prefix, or %s false", k.prefix, k.f, enableKey)
	}
	err = k.complete(&n)
	return n, on, err
}

// NetworkOf returns network p with the defaults of ParseConfig, as if p stood
// there; where it can be cut into subnets of that prefix length, into these. The
// error says why p can be no pod network.
func NetworkOf(p netip.Prefix, length int) (Network, error) {
	k := familyKeys{f: FamilyOf(p.Addr())}
	n := Network{Prefix: p.Masked()}
	if length >= p.Bits()+2 && length <= k.f.bits()-2 {
		n.SubnetLen = length
	}
	return n, k.complete(&n)
}

// bits is the length of an address of family f.
func (f Family) bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// complete fills in the defaults of n and checks how its values fit.
func (k familyKeys) complete(n *Network) error {
	if err := checkPods(n.Prefix); err != nil {
		return fmt.Errorf("%sNetwork %w", k.prefix, err)
	}
	bits, least := n.Prefix.Bits(), n.Prefix.Bits()+2
	// Four subnets of four addresses: the first subnet is not handed out,
	// and a smaller one has no room for a gateway and a pod.
	if most := k.f.bits() - 4; bits > most {
		return fmt.Errorf("%sNetwork %v: want a prefix length of at most %d, room for four subnets of four addresses",
			k.prefix, n.Prefix, most)
	}
	if n.SubnetLen == 0 {
		n.SubnetLen = max(k.usualLen(), least)
	}
	if n.SubnetLen < least {
		return fmt.Errorf("%sSubnetLen %d: want %d to %d, so that %v holds at least four subnets",
			k.prefix, n.SubnetLen, least, k.f.bits()-2, n.Prefix)
	}
	return k.bounds(n)
}

// usualLen is the subnet length for networks that are large enough.
func (k familyKeys) usualLen() int {
	if k.f == IPv4 {
		return 24
	}
	return 64
}

// bounds fills in and checks SubnetMin and SubnetMax.
func (k familyKeys) bounds(n *Network) error {
	if !n.SubnetMin.IsValid() {
		// Like flannel, skip the first subnet: its base is the network's.
		n.SubnetMin = n.at(n.Prefix.Addr(), 1)
	}
	if !n.SubnetMax.IsValid() {
		n.SubnetMax = netip.PrefixFrom(lastAddr(n.Prefix), n.SubnetLen).Masked().Addr()
	}
	for _, b := range []struct {
		key  string
		addr netip.Addr
	}{{"SubnetMin", n.SubnetMin}, {"SubnetMax", n.SubnetMax}} {
		base := netip.PrefixFrom(b.addr, n.SubnetLen).Masked().Addr()
		switch {
		case !n.Prefix.Contains(b.addr):
			return fmt.Errorf("%s%s %v: want an address inside %sNetwork %v", k.prefix, b.key, b.addr, k.prefix, n.Prefix)
		case b.addr != base:
			return fmt.Errorf("%s%s %v: want the base of a /%d subnet, like %v", k.prefix, b.key, b.addr, n.SubnetLen, base)
		}
	}
	if n.SubnetMax.Less(n.SubnetMin) {
		return fmt.Errorf("%sSubnetMax %v: want at least %sSubnetMin %v", k.prefix, n.SubnetMax, k.prefix, n.SubnetMin)
	}
	return nil
}

// prefixValue reads the network; host bits are cleared, as flannel does.
func (k familyKeys) prefixValue() (netip.Prefix, error) {
	if !present(k.network) {
		return netip.Prefix{}, nil
	}
	s, err := stringValue(k.prefix+"Network", k.network)
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := parsePrefix(k.f, s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%sNetwork %q: %w", k.prefix, clip(s), err)
	}
	return p.Masked(), nil
}

// addrValue reads an address of the family. The unspecified address means
// absent, as in flannel.
func (k familyKeys) addrValue(name string, raw json.RawMessage) (netip.Addr, error) {
	if !present(raw) {
		return netip.Addr{}, nil
	}
	s, err := stringValue(k.prefix+name, raw)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || FamilyOf(a) != k.f {
		return netip.Addr{}, fmt.Errorf("%s%s %q: want an %v address", k.prefix, name, clip(s), k.f)
	}
	if a.IsUnspecified() {
		return netip.Addr{}, nil
	}
	return a, nil
}

// parseBackend reads the Backend object; an absent one means VXLAN.
func parseBackend(raw json.RawMessage) (b BackendConfig, err error) {
	var in backendJSON
	if present(raw) {
		if err := decodeJSON(raw, &in); err != nil {
			return b, fmt.Errorf("Backend: %w", err)
		}
	}
	if b.Type, err = backendType(in.Type); err != nil {
		return b, err
	}
	vni, err := intValue("Backend.VNI", in.VNI, defaultVNI, 1, maxVNI)
	if err != nil {
		return b, err
	}
	port, err := intValue("Backend.Port", in.Port, 0, 0, math.MaxUint16)
	if err != nil {
		return b, err
	}
	if port == 0 { // flannel's "let the kernel choose"
		port = defaultPort
	}
	b.VNI, b.Port = uint32(vni), uint16(port)
	if b.MTU, err = intValue("Backend.MTU", in.MTU, 0, 0, maxMTU); err != nil {
		return b, err
	}
	if b.MTU != 0 && b.MTU < minUnderlayMTU {
		return b, fmt.Errorf("Backend.MTU %d: want 0 (follow the device) or %d to %d", b.MTU, minUnderlayMTU, maxMTU)
	}
	if b.Learning, err = boolValue("Backend.Learning", in.Learning, false); err != nil {
		return b, err
	}
	if b.GBP, err = boolValue("Backend.GBP", in.GBP, false); err != nil {
		return b, err
	}
	b.DirectRouting, err = boolValue("Backend.DirectRouting", in.DirectRouting, false)
	return b, err
}

// backendType reads Backend.Type, in any case like flannel.
func backendType(raw json.RawMessage) (BackendType, error) {
	if !present(raw) {
		return BackendVXLAN, nil
	}
	s, err := stringValue("Backend.Type", raw)
	if err != nil {
		return "", err
	}
	switch t := BackendType(strings.ToLower(s)); t {
	case BackendVXLAN, BackendHostGW:
		return t, nil
	}
	return "", fmt.Errorf("Backend.Type %q: want %s or %s", clip(s), BackendVXLAN, BackendHostGW)
}

// present reports whether a key was there with a value other than null.
func present(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

func boolValue(key string, raw json.RawMessage, absent bool) (bool, error) {
	v := absent
	if err := json.Unmarshal(orNull(raw), &v); err != nil {
		return false, fmt.Errorf("%s %s: want true or false", key, clip(string(raw)))
	}
	return v, nil
}

func stringValue(key string, raw json.RawMessage) (string, error) {
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", fmt.Errorf("%s %s: want a string", key, clip(string(raw)))
	}
	return v, nil
}

// intValue reads an integer from least to most. Like flannel it refuses
// 24.0, so that what weft accepts can be given back to flannel.
func intValue(key string, raw json.RawMessage, absent, least, most int) (int, error) {
	v := absent
	if err := json.Unmarshal(orNull(raw), &v); err != nil || v < least || v > most {
		return 0, fmt.Errorf("%s %s: want an integer from %d to %d", key, clip(string(raw)), least, most)
	}
	return v, nil
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}
