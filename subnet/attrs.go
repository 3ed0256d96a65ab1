// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// leaseJSON is the value of a lease in etcd: flannel's LeaseAttrs
// (pkg/lease/lease.go, v0.28), whose order of fields and use of null are
// kept byte for byte, and one object of ours at the end, which flannel
// ignores and drops when it rewrites its own key.
type leaseJSON struct {
	PublicIP      string
	PublicIPv6    *string
	BackendType   BackendType     `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
	Weft          *weftJSON       `json:",omitempty"`
}

// weftJSON says who holds the lease, and where else its packets come from.
type weftJSON struct {
	Node     string
	Instance string
	Sources  []string `json:",omitempty"`
}

// vxlanJSON is flannel's vxlanLeaseAttrs (pkg/backend/vxlan). flannel's VNI
// has 16 bits, and a reader of it refuses a larger one together with the
// whole lease; hence maxDataVNI. VtepMAC stays last and the only string:
// flannel finds its own MAC again by cutting the text at `:"`.
type vxlanJSON struct {
	VNI     uint32 `json:",omitempty"`
	VtepMAC MAC
}

// maxDataVNI is the largest VNI that is published; a larger one is left out,
// which readers take for "as your own".
const maxDataVNI = 1<<16 - 1

// maxVNI is the largest VXLAN network identifier (RFC 7348, section 5).
const maxVNI = 1<<24 - 1

// wireguardJSON is flannel's wireguardLeaseAttrs (pkg/backend/wireguard).
// Port is missing in leases of flannel before v0.27.
type wireguardJSON struct {
	PublicKey string
	Port      uint16 `json:",omitempty"`
}

// noAddr is what flannel publishes when a node has no IPv4 underlay.
const noAddr = "0.0.0.0"

// EncodeLease returns the key (without any path) and the value that publish
// l in etcd. It fails when l is not one that DecodeLease could give back: it
// needs one or two Paths of different subnet families, each with a unicast
// underlay and what its backend needs (a unicast MAC, or a WireGuard key).
//
// The format holds one tunnel endpoint an underlay family. A subnet uses the
// endpoint of its own family when there is one and the other one otherwise;
// a lease that crosses both families cannot be written. Sources need a Node;
// they are written in order and each once. What the backend has no use for (a
// MAC with host-gw) is left out.
func EncodeLease(l Lease) (key string, value []byte, err error) {
	subnets := make([]netip.Prefix, len(l.Paths))
	for i, p := range l.Paths {
		subnets[i] = p.Subnet
	}
	if key, err = FormatKey(subnets); err != nil {
		return "", nil, fmt.Errorf("encode lease of node %q: %w", clip(l.Node), err)
	}
	if value, err = encodeAttrs(l); err != nil {
		return "", nil, fmt.Errorf("encode lease %s of node %q: %w", key, clip(l.Node), err)
	}
	return key, value, nil
}

func encodeAttrs(l Lease) ([]byte, error) {
	eps, err := endpoints(l)
	if err != nil {
		return nil, err
	}
	out := leaseJSON{PublicIP: noAddr, BackendType: l.Backend}
	if ep, ok := eps[IPv4]; ok {
		out.PublicIP, out.BackendData = ep.addr.String(), ep.data
	}
	if ep, ok := eps[IPv6]; ok {
		s := ep.addr.String()
		out.PublicIPv6, out.BackendV6Data = &s, ep.data
	}
	switch {
	case l.Node != "":
		out.Weft = &weftJSON{Node: l.Node, Instance: l.Instance}
		if err := out.Weft.check(); err != nil {
			return nil, err
		}
		if out.Weft.Sources, err = sourceTexts(l.Sources); err != nil {
			return nil, err
		}
	case l.Instance != "":
		return nil, fmt.Errorf("instance %q without a node name", clip(l.Instance))
	case len(l.Sources) > 0:
		return nil, fmt.Errorf("sources %v without a node name", l.Sources[0])
	}
	return json.Marshal(out)
}

// check judges the names.
func (w weftJSON) check() error {
	if err := checkName("node", w.Node); err != nil {
		return err
	}
	if w.Instance == "" {
		return nil
	}
	return checkName("instance", w.Instance)
}

// DecodeLease reads the lease that stands under key (with or without a path)
// as value, and trusts nothing in it: subnets are masked unicast prefixes,
// underlays and sources unicast addresses, MACs unicast, the VNI has at most
// 24 bits, and there are at most 16 sources. Missing VNI and WireGuard port give 0; unknown fields are ignored; a value
// above 64 KiB is refused. Backend types weft does not know keep their name
// and have no MAC or key. The error names the key.
func DecodeLease(key string, value []byte) (Lease, error) {
	subnets, err := ParseKey(key)
	if err != nil {
		return Lease{}, err
	}
	l, err := decodeAttrs(subnets, value)
	if err != nil {
		return Lease{}, fmt.Errorf("lease %q: %w", clip(key), err)
	}
	return l, nil
}

func decodeAttrs(subnets []netip.Prefix, value []byte) (Lease, error) {
	in, plain := plainLease(value)
	if !plain {
		in = leaseJSON{}
		if err := decodeJSON(value, &in); err != nil {
			return Lease{}, err
		}
	}
	return leaseFrom(subnets, in)
}

// leaseFrom checks what was read.
func leaseFrom(subnets []netip.Prefix, in leaseJSON) (Lease, error) {
	l := Lease{Backend: in.BackendType.known()}
	if in.BackendType != "" {
		if err := checkName("BackendType", string(in.BackendType)); err != nil {
			return Lease{}, err
		}
	}
	if in.Weft != nil && in.Weft.Node != "" {
		if err := in.Weft.check(); err != nil {
			return Lease{}, fmt.Errorf("Weft: %w", err)
		}
		l.Node, l.Instance = in.Weft.Node, in.Weft.Instance
		var err error
		if l.Sources, err = parseSources(in.Weft.Sources); err != nil {
			return Lease{}, fmt.Errorf("Weft: %w", err)
		}
	}
	pub := endsOf(
		published{addr: in.PublicIP, data: in.BackendData, addrName: "PublicIP", dataName: "BackendData"},
		published{data: in.BackendV6Data, addrName: "PublicIPv6", dataName: "BackendV6Data"})
	if in.PublicIPv6 != nil {
		pub.of(IPv6).addr = *in.PublicIPv6
	}
	paths, err := joinPaths(l.Backend, subnets, &pub)
	if err != nil {
		return Lease{}, err
	}
	l.Paths = paths
	return l, nil
}

// known returns b, and a name that weft knows without the memory that b was
// read into: there may be thousands of leases.
func (b BackendType) known() BackendType {
	for _, k := range []BackendType{BackendVXLAN, BackendHostGW, BackendWireGuard} {
		if b == k {
			return k
		}
	}
	return b
}

// endpoint is one tunnel endpoint as a codec publishes it.
type endpoint struct {
	addr netip.Addr
	data json.RawMessage // nil when the backend has none
}

// endpoints folds l's paths into one endpoint an underlay family.
func endpoints(l Lease) (map[Family]endpoint, error) {
	eps := make(map[Family]endpoint, 2)
	first := make(map[Family]Path, 2)
	if l.Backend != "" {
		if err := checkName("backend type", string(l.Backend)); err != nil {
			return nil, err
		}
	}
	for _, p := range l.Paths {
		if err := checkUnderlay(p.Underlay); err != nil {
			return nil, fmt.Errorf("subnet %v: %w", p.Subnet, err)
		}
		data, err := encodeData(l.Backend, p)
		if err != nil {
			return nil, fmt.Errorf("subnet %v: %w", p.Subnet, err)
		}
		f := FamilyOf(p.Underlay)
		have, ok := eps[f]
		if ok && (have.addr != p.Underlay || string(have.data) != string(data)) {
			return nil, fmt.Errorf("subnets %v and %v: want one tunnel endpoint on the %v underlay, have two",
				first[f].Subnet, p.Subnet, f)
		}
		eps[f], first[f] = endpoint{addr: p.Underlay, data: data}, p
	}
	for _, p := range l.Paths {
		f := FamilyOf(p.Subnet.Addr())
		if _, ok := eps[f]; ok && FamilyOf(p.Underlay) != f {
			return nil, fmt.Errorf("subnet %v: want underlay %v, the node's %v endpoint, not %v",
				p.Subnet, eps[f].addr, f, p.Underlay)
		}
	}
	return eps, nil
}

// published is one endpoint as read, not yet believed.
type published struct {
	addr, addrName string
	data           json.RawMessage
	dataName       string
}

// ends are a lease's endpoints as read, one of each underlay family.
type ends [2]published

func endsOf(ipv4, ipv6 published) ends { return ends{ipv4, ipv6} }

func (e *ends) of(f Family) *published {
	if f == IPv6 {
		return &e[1]
	}
	return &e[0]
}

// joinPaths is the inverse of endpoints: it gives each subnet the endpoint
// of its own family, or else the other one. Only endpoints that a subnet
// needs must be valid.
func joinPaths(b BackendType, subnets []netip.Prefix, pub *ends) ([]Path, error) {
	paths := make([]Path, 0, len(subnets))
	for _, s := range subnets {
		f := FamilyOf(s.Addr())
		if pub.of(f).absent() {
			f = f.Other()
		}
		p, err := pub.of(f).path(b, f)
		if err != nil {
			return nil, err
		}
		p.Subnet = s
		paths = append(paths, p)
	}
	return paths, nil
}

// absent reports whether the writer has no endpoint of this family.
func (p *published) absent() bool { return p.addr == "" || p.addr == noAddr || p.addr == "::" }

// path checks the endpoint and returns it as a Path without a Subnet.
func (p *published) path(b BackendType, f Family) (Path, error) {
	if p.absent() {
		return Path{}, errors.New("no underlay address of either family")
	}
	a, err := netip.ParseAddr(p.addr)
	if err != nil || FamilyOf(a) != f {
		return Path{}, fmt.Errorf("%s %q: want an %v address", p.addrName, clip(p.addr), f)
	}
	if err := checkUnderlay(a); err != nil {
		return Path{}, fmt.Errorf("%s: %w", p.addrName, err)
	}
	path, err := decodeData(b, p.data)
	if err != nil {
		return Path{}, fmt.Errorf("%s: %w", p.dataName, err)
	}
	path.Underlay = a
	return path, nil
}

// encodeData renders what backend b publishes of p, or nil.
func encodeData(b BackendType, p Path) (json.RawMessage, error) {
	switch b {
	case BackendVXLAN:
		d := vxlanJSON{VNI: p.VNI, VtepMAC: p.MAC}
		if err := d.check(); err != nil {
			return nil, err
		}
		if d.VNI > maxDataVNI {
			d.VNI = 0
		}
		return json.Marshal(d)
	case BackendWireGuard:
		d := wireguardJSON{PublicKey: p.Key, Port: p.Port}
		if err := d.check(); err != nil {
			return nil, err
		}
		return json.Marshal(d)
	}
	return nil, nil
}

// decodeData is the inverse of encodeData.
func decodeData(b BackendType, data json.RawMessage) (Path, error) {
	switch b {
	case BackendVXLAN:
		d, plain := plainVXLAN(data)
		if !plain {
			d = vxlanJSON{}
			if err := decodePresent(data, &d); err != nil {
				return Path{}, err
			}
		}
		return Path{MAC: d.VtepMAC, VNI: d.VNI}, d.check()
	case BackendWireGuard:
		var d wireguardJSON
		if err := decodePresent(data, &d); err != nil {
			return Path{}, err
		}
		return Path{Key: d.PublicKey, Port: d.Port}, d.check()
	}
	return Path{}, nil
}

func decodePresent(data json.RawMessage, v any) error {
	if len(data) == 0 || string(data) == "null" {
		return errors.New("missing")
	}
	return decodeJSON(data, v)
}

func (d vxlanJSON) check() error {
	switch {
	case d.VNI > maxVNI:
		return fmt.Errorf("VNI %d: want 0 to %d", d.VNI, maxVNI)
	case !d.VtepMAC.IsUnicast():
		return fmt.Errorf("VtepMAC %v: want a unicast address", d.VtepMAC)
	}
	return nil
}

func (d wireguardJSON) check() error {
	// A Curve25519 public key has 32 bytes (RFC 7748, section 5).
	raw, err := base64.StdEncoding.Strict().DecodeString(d.PublicKey)
	if err != nil || len(raw) != 32 {
		return fmt.Errorf("PublicKey %q: want 32 bytes in base64", clip(d.PublicKey))
	}
	return nil
}
