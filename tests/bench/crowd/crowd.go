// SPDX-License-Identifier: Apache-2.0

// Package crowd writes the leases of nodes that do not exist, as many as a
// network has room for, behind the default route of those that do.
package crowd

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

// Networks that leave 10.64.0.0 and up, and fd42:0:0:1000:: and up, to the
// crowd.
const (
	IPv4 = `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0","Backend":{"Type":"vxlan"}}`
	Dual = `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0",` +
		`"IPv6Network":"fd42::/48","IPv6SubnetMin":"fd42:0:0:1::","IPv6SubnetMax":"fd42:0:0:fff::","Backend":{"Type":"vxlan"}}`
)

// Most is how many a network has room for.
const Most = 0xf000

// Peer is a node that does not exist.
type Peer struct {
	N    int // from 0, less than Most
	Dual bool
	Move byte // changes its underlay address
}

func (p Peer) bytes() (hi, lo byte) { return byte(p.N >> 8), byte(p.N) }

// MAC is its VTEP of a family.
func (p Peer) MAC(f subnet.Family) subnet.MAC {
	hi, lo := p.bytes()
	return subnet.MAC{0x0a, 0x10, 0, byte(f), hi, lo}
}

// Underlay is where the peer's FDB entry of a family points to.
func (p Peer) Underlay(f subnet.Family) netip.Addr {
	hi, lo := p.bytes()
	if f == subnet.IPv4 {
		return netip.AddrFrom4([4]byte{172, 16 + p.Move, hi, lo})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0x78, 13: p.Move, 14: hi, 15: lo})
}

// Families are those of its pods.
func (p Peer) Families() []subnet.Family {
	both := subnet.Families()
	if p.Dual {
		return both[:]
	}
	return both[:1]
}

// Subnet is its pod subnet of a family.
func (p Peer) Subnet(f subnet.Family) netip.Prefix {
	hi, lo := p.bytes()
	if f == subnet.IPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + hi, lo, 0}), 24)
	}
	n := p.N + 0x1000
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x42, 6: byte(n >> 8), 7: byte(n)}), 64)
}

// Key is where its lease is, below an etcd prefix.
func (p Peer) Key(prefix string) string {
	var keys []string
	for _, f := range p.Families() {
		keys = append(keys, strings.ReplaceAll(p.Subnet(f).String(), "/", "-"))
	}
	return prefix + "/subnets/" + strings.Join(keys, "&")
}

// Value is the lease as an agent writes it.
func (p Peer) Value() string {
	backend := func(f subnet.Family) string {
		return fmt.Sprintf(`{"VNI":1,"VtepMAC":"%s"}`, p.MAC(f))
	}
	weft := fmt.Sprintf(`"Weft":{"Node":"peer-%d","Instance":"%032x"}`, p.N, p.N+1)
	if !p.Dual {
		return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":%s,%s}`, p.Underlay(subnet.IPv4), backend(subnet.IPv4), weft)
	}
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":"%s","BackendType":"vxlan","BackendData":%s,"BackendV6Data":%s,%s}`,
		p.Underlay(subnet.IPv4), p.Underlay(subnet.IPv6), backend(subnet.IPv4), backend(subnet.IPv6), weft)
}

// Enrol writes the leases of the first n peers below an etcd prefix.
func Enrol(ctx context.Context, c *clientv3.Client, prefix string, n int, dual bool) error {
	const part = 100 // etcd takes 128 operations in a transaction
	for first := 0; first < n; first += part {
		var ops []clientv3.Op
		for i := first; i < min(first+part, n); i++ {
			p := Peer{N: i, Dual: dual}
			ops = append(ops, clientv3.OpPut(p.Key(prefix), p.Value()))
		}
		if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("write leases from %d on: %w", first, err)
		}
	}
	return nil
}
