// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// netConf leaves 10.64.0.0 and up, and fd42:0:0:1000:: and up, to peers.
const netConf = `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0",` +
	`"IPv6Network":"fd42::/48","IPv6SubnetMin":"fd42:0:0:1::","IPv6SubnetMax":"fd42:0:0:fff::","Backend":{"Type":"vxlan"}}`

const netConf4 = `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0","Backend":{"Type":"vxlan"}}`

// maxPeers is how many a network has room for, with those of a storm.
const maxPeers = 0xf000

// peer is a node that does not exist, behind the default route.
type peer struct {
	n    int
	dual bool
	move byte // changes its underlay address
}

func (p peer) bytes() (hi, lo byte) { return byte(p.n >> 8), byte(p.n) }

func (p peer) mac(f subnet.Family) subnet.MAC {
	hi, lo := p.bytes()
	return subnet.MAC{0x0a, 0x10, 0, byte(f), hi, lo}
}

// dst is where the peer's FDB entry of a family points to.
func (p peer) dst(f subnet.Family) netip.Addr {
	hi, lo := p.bytes()
	if f == subnet.IPv4 {
		return netip.AddrFrom4([4]byte{172, 16 + p.move, hi, lo})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0x78, 13: p.move, 14: hi, 15: lo})
}

func (p peer) key(l *netlab.Lab) string {
	hi, lo := p.bytes()
	k := fmt.Sprintf("%s/subnets/10.%d.%d.0-24", l.Prefix(), 64+int(hi), lo)
	if p.dual {
		k += fmt.Sprintf("&fd42:0:0:%x::-64", 0x1000+p.n)
	}
	return k
}

// value is the lease as an agent writes it.
func (p peer) value() string {
	backend := func(f subnet.Family) string {
		return fmt.Sprintf(`{"VNI":1,"VtepMAC":"%s"}`, p.mac(f))
	}
	weft := fmt.Sprintf(`"Weft":{"Node":"peer-%d","Instance":"%032x"}`, p.n, p.n+1)
	if !p.dual {
		return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":%s,%s}`, p.dst(subnet.IPv4), backend(subnet.IPv4), weft)
	}
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":"%s","BackendType":"vxlan","BackendData":%s,"BackendV6Data":%s,%s}`,
		p.dst(subnet.IPv4), p.dst(subnet.IPv6), backend(subnet.IPv4), backend(subnet.IPv6), weft)
}

// enrol writes the leases of n peers.
func enrol(ctx context.Context, l *netlab.Lab, n int, dual bool) error {
	const part = 100 // etcd takes 128 operations in a transaction
	for first := 0; first < n; first += part {
		var ops []clientv3.Op
		for i := first; i < min(first+part, n); i++ {
			p := peer{n: i, dual: dual}
			ops = append(ops, clientv3.OpPut(p.key(l), p.value()))
		}
		if _, err := l.Client().Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("write leases from %d on: %w", first, err)
		}
	}
	return nil
}
