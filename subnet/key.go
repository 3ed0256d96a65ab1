// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Longest prefixes a key can carry: flannel reads the length into 5 bits for
// IPv4 and 7 for IPv6 (pkg/subnet/subnet.go, v0.28).
const (
	maxKeyLen4 = 31
	maxKeyLen6 = 127
)

// FormatKey returns the name under which the lease of subnets stands in
// etcd, without any path: "10.5.52.0-24" for one IPv4 subnet and
// "10.5.52.0-24&fd00:10:5::-64" for one of each family, in either order, as
// flannel v0.28 writes them (pkg/subnet/subnet.go).
//
// flannel cannot express a lease with an IPv6 subnet alone: its pattern
// begins with a dotted quad, and to it the key is junk. weft writes
// "fd00:10:5::-64", the second half of the dual-stack form; such leases do
// not belong under a prefix that flannel nodes watch.
//
// It fails when subnets is empty, holds two of a family, or holds a prefix
// that is unmasked, not unicast or too long (/31 for IPv4, /127 for IPv6).
func FormatKey(subnets []netip.Prefix) (string, error) {
	byFamily := make(map[Family]netip.Prefix, 2)
	for _, p := range subnets {
		if err := checkSubnet(p); err != nil {
			return "", err
		}
		f := FamilyOf(p.Addr())
		if have, ok := byFamily[f]; ok {
			return "", fmt.Errorf("subnets %v and %v: want at most one %v subnet", have, p, f)
		}
		byFamily[f] = p
	}
	var parts []string
	for _, f := range Families() {
		if p, ok := byFamily[f]; ok {
			parts = append(parts, fmt.Sprintf("%v-%d", p.Addr(), p.Bits()))
		}
	}
	if len(parts) == 0 {
		return "", errors.New("no subnet to make an etcd key of")
	}
	return strings.Join(parts, "&"), nil
}

// ParseKey reads what FormatKey writes and returns the subnets, IPv4 first.
// Any path before the last slash is ignored. It fails on everything else,
// naming the key.
func ParseKey(s string) ([]netip.Prefix, error) {
	name := s[strings.LastIndexByte(s, '/')+1:]
	var subnets []netip.Prefix
	for part := range strings.SplitSeq(name, "&") {
		addr, bits, _ := strings.Cut(part, "-")
		p, err := netip.ParsePrefix(addr + "/" + bits)
		if err != nil {
			return nil, fmt.Errorf("key %q: want a name like 10.5.52.0-24, 10.5.52.0-24&fd00:10:5::-64 or fd00:10:5::-64", clip(s))
		}
		if err := checkSubnet(p); err != nil {
			return nil, fmt.Errorf("key %q: %w", clip(s), err)
		}
		subnets = append(subnets, p)
	}
	switch {
	case len(subnets) == 1:
		return subnets, nil
	case len(subnets) == 2 && subnets[0].Addr().Is4() && subnets[1].Addr().Is6():
		return subnets, nil
	}
	return nil, fmt.Errorf("key %q: want one IPv4 subnet, one IPv6 subnet, or both in this order", clip(s))
}

// checkSubnet reports why p cannot be a node's pod subnet.
func checkSubnet(p netip.Prefix) error {
	if err := checkPods(p); err != nil {
		return fmt.Errorf("subnet %w", err)
	}
	most := maxKeyLen4
	if FamilyOf(p.Addr()) == IPv6 {
		most = maxKeyLen6
	}
	if p.Bits() > most {
		return fmt.Errorf("subnet %v: want a prefix length of at most %d", p, most)
	}
	return nil
}
