// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// hasRoute returns nil if the node's having a route to prefix is as wanted.
func hasRoute(n *netlab.Node, prefix string, want bool) error {
	routes, err := n.Routes()
	if err != nil {
		return err
	}
	if got := slices.Contains(routes, netip.MustParsePrefix(prefix)); got != want {
		return fmt.Errorf("%s: route to %s: %t, want %t", n, prefix, got, want)
	}
	return nil
}

// entries returns the permanent neighbours "IP MAC" and forwarding entries
// "MAC dst IP" of the node's VXLAN devices, as iproute2 sees them.
func entries(ctx context.Context, n *netlab.Node) ([]string, error) {
	var out []string
	for _, dev := range []string{"weft.1", "weft6.1"} {
		text, err := n.Run(ctx, "ip", "-j", "neigh", "show", "dev", dev, "nud", "permanent")
		if err != nil {
			return nil, err
		}
		var neighs []struct{ Dst, Lladdr string }
		if err := json.Unmarshal([]byte(text), &neighs); err != nil {
			return nil, fmt.Errorf("ip neigh on %s: %w", n, err)
		}
		for _, e := range neighs {
			out = append(out, e.Dst+" "+e.Lladdr)
		}
		if text, err = n.Run(ctx, "bridge", "-j", "fdb", "show", "dev", dev); err != nil {
			return nil, err
		}
		var fdb []struct{ MAC, Dst string }
		if err := json.Unmarshal([]byte(text), &fdb); err != nil {
			return nil, fmt.Errorf("bridge fdb on %s: %w", n, err)
		}
		for _, e := range fdb {
			if e.Dst != "" {
				out = append(out, e.MAC+" dst "+e.Dst)
			}
		}
	}
	return out, nil
}

// mentions returns nil if every one of texts, whole words, is part of some
// entry of the node (want), or none of them is part of any (!want).
func mentions(ctx context.Context, n *netlab.Node, want bool, texts ...string) error {
	have, err := entries(ctx, n)
	if err != nil {
		return err
	}
	for _, s := range texts {
		found := slices.ContainsFunc(have, func(e string) bool { return strings.Contains(" "+e+" ", " "+s+" ") })
		if found != want {
			return fmt.Errorf("%s: an entry with %q: %t, want %t; there are %q", n, s, found, want, have)
		}
	}
	return nil
}

// pingable returns nil if one pod reaches the other in all families.
func pingable(ctx context.Context, from, to *netlab.Pod) error {
	for _, a := range to.Addrs() {
		if err := from.Ping(ctx, a, 1); err != nil {
			return err
		}
	}
	return nil
}

// A node fails and its lease is deleted: the others remove every entry of it.
// A new node comes: they add its. Pods of the nodes that stay lose nothing.
func TestPeerLeavesAndJoins(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 3}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		up(ctx, t, l, 1)
		n1, n2, n3 := l.Node("n1"), l.Node("n2"), l.Node("n3")
		gone, err := n3.Subnets()
		must(t, err)
		leaseOf := keyOf(ctx, t, l, n3)
		must(t, mentions(ctx, n1, true, addresses(gone, n3.Underlay())...))
		must(t, l.RemoveNode(n3))
		w := startWatch(ctx, t, l) // n1 and n2 only

		_, err = l.Client().Delete(ctx, leaseOf)
		must(t, err)
		for _, n := range []*netlab.Node{n1, n2} {
			eventually(ctx, t, n.Name()+" forgets n3", func() error {
				err := mentions(ctx, n, false, addresses(gone, n3.Underlay())...)
				for _, s := range gone {
					err = errors.Join(err, hasRoute(n, s.String(), false))
				}
				return err
			})
		}
		n4, err := l.AddNode(ctx)
		must(t, err)
		restart(ctx, t, n4)
		must(t, l.WaitConverged(ctx))
		came, err := n4.Subnets()
		must(t, err)
		must(t, mentions(ctx, n1, true, addresses(came, n4.Underlay())...))
		must(t, mentions(ctx, n2, true, addresses(came, n4.Underlay())...))
		w.atLeast(ctx, t, sample(1000, 200))
		w.noneLost(t)
		pod, err := n4.AddPod(ctx, "n4-p1")
		must(t, err)
		must(t, l.Settle(ctx))
		must(t, pingable(ctx, pod, n1.Pods()[0]))
		must(t, pingable(ctx, n2.Pods()[0], pod))
		must(t, pod.Delete(ctx))
	})
}

// addresses returns what identifies a node in its peers' tables: the base
// addresses of its subnets and its underlay addresses.
func addresses(subnets []netip.Prefix, underlay []netip.Addr) []string {
	var out []string
	for _, s := range subnets {
		out = append(out, s.Addr().String()) // of a neighbour
	}
	for _, a := range underlay {
		out = append(out, "dst "+a.String())
	}
	return out
}

// keyOf returns the whole etcd key of the node's lease.
func keyOf(ctx context.Context, t *testing.T, l *netlab.Lab, n *netlab.Node) string {
	t.Helper()
	leases, err := l.Leases(ctx)
	must(t, err)
	for key, value := range leases {
		if strings.Contains(value, `"Node":"`+n.Name()+`"`) {
			return l.Prefix() + "/subnets/" + key
		}
	}
	t.Fatalf("no lease of %s among %q", n, leases)
	return ""
}

// An agent is killed and stays away. Its lease is still in etcd, bound to an
// etcd lease that runs, so its peers keep every entry and its pods keep their
// network; new pods find their peers as before.
func TestLeaseOutlivesAgent(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 3}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		up(ctx, t, l, 1)
		n1, n3 := l.Node("n1"), l.Node("n3")
		key := keyOf(ctx, t, l, n3)
		before, err := entries(ctx, n1)
		must(t, err)
		must(t, n3.KillAgent())
		w := startWatch(ctx, t, l)
		w.atLeast(ctx, t, sample(1000, 300))
		w.noneLost(t)

		got, err := l.Client().Get(ctx, key)
		must(t, err)
		if len(got.Kvs) != 1 {
			t.Fatalf("key %s is gone with the agent", key)
		}
		ttl, err := l.Client().TimeToLive(ctx, clientv3.LeaseID(got.Kvs[0].Lease))
		must(t, err)
		if ttl.TTL <= 0 {
			t.Errorf("key %s: etcd lease %x has %d s left", key, got.Kvs[0].Lease, ttl.TTL)
		}
		after, err := entries(ctx, n1)
		must(t, err)
		slices.Sort(before)
		slices.Sort(after)
		if !slices.Equal(before, after) {
			t.Errorf("n1 had\n%q\nand has\n%q", before, after)
		}
	})
}

// A node's underlay addresses change, once under its running agent and once
// while that is down: it publishes them, keeps its subnets, and the others
// send there and nowhere else.
func TestPeerAddressChanges(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 3}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		up(ctx, t, l, 1)
		before := subnetsOf(t, l)
		n3 := l.Node("n3")
		move(t, n3, "192.168.77.3", "192.168.77.33")
		move(t, n3, "fd77::3", "fd77::33")
		follows(ctx, t, l, n3, "192.168.77.3", "fd77::3")
		must(t, n3.TermAgent())
		move(t, n3, "192.168.77.33", "192.168.77.43")
		move(t, n3, "fd77::33", "fd77::43")
		restart(ctx, t, n3)
		follows(ctx, t, l, n3, "192.168.77.33", "fd77::33")
		sameSubnets(t, before, subnetsOf(t, l))
	})
}

func move(t *testing.T, n *netlab.Node, was, is string) {
	t.Helper()
	must(t, n.SetUnderlay(netip.MustParseAddr(was), netip.MustParseAddr(is)))
}

// follows fails unless all other nodes come to send to the underlay addresses
// that n has now, and not to the old ones, and their pods reach each other.
func follows(ctx context.Context, t *testing.T, l *netlab.Lab, n *netlab.Node, old ...string) {
	t.Helper()
	for _, o := range l.Nodes() {
		if o == n {
			continue
		}
		eventually(ctx, t, o.Name()+" sends to the new addresses of "+n.Name(), func() error {
			return errors.Join(mentions(ctx, o, true, addresses(nil, n.Underlay())...), mentions(ctx, o, false, old...))
		})
		eventually(ctx, t, "pods of "+o.Name()+" and "+n.Name()+" reach each other", func() error {
			return errors.Join(pingable(ctx, o.Pods()[0], n.Pods()[0]), pingable(ctx, n.Pods()[0], o.Pods()[0]))
		})
	}
}

// roomForOthers is a network whose agents lease none of 10.42.200.0/24 and up:
// these are for the peers that a test makes by hand.
const roomForOthers = `{"Network":"10.42.0.0/16","SubnetMax":"10.42.199.0","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}`

// flannelLease returns the value that flannel v0.28 writes for a VXLAN node.
// The empty MAC leaves a family out.
func flannelLease(ip, ip6, mac, mac6 string) string {
	data := func(mac string) string {
		if mac == "" {
			return "null"
		}
		return `{"VNI":1,"VtepMAC":"` + mac + `"}`
	}
	public6 := "null"
	if ip6 != "" {
		public6 = `"` + ip6 + `"`
	}
	out := `{"PublicIP":"` + ip + `","PublicIPv6":` + public6 + `,"BackendType":"vxlan","BackendData":` + data(mac)
	if mac6 != "" {
		out += `,"BackendV6Data":` + data(mac6)
	}
	return out + "}"
}

// A node that flannel runs is a peer: here its devices and its lease are made
// by hand, as flannel makes them. When its MAC changes, the others replace the
// old one in every table, and pods reach it again.
func TestPeerMACChanges(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 3, Network: roomForOthers}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		peer := l.Node("n3")
		n1, n2 := l.Node("n1"), l.Node("n2")
		must(t, l.StartAgents(ctx, n1, n2))
		from, err := n1.AddPod(ctx, "n1-p1")
		must(t, err)
		addr := netip.MustParseAddr("10.42.253.0")
		old := ""
		for i, mac := range []string{"0a:00:00:00:03:01", "0a:00:00:00:03:02", "0a:00:00:00:03:03"} {
			flannelNode(ctx, t, l, peer, mac)
			_, err := l.Client().Put(ctx, l.Prefix()+"/subnets/10.42.253.0-24", flannelLease("192.168.77.3", "", mac, ""))
			must(t, err)
			for _, n := range []*netlab.Node{n1, n2} {
				eventually(ctx, t, fmt.Sprintf("%s frames to MAC %d of n3", n, i+1), func() error {
					err := mentions(ctx, n, true, "10.42.253.0 "+mac, mac+" dst 192.168.77.3")
					if old != "" {
						err = errors.Join(err, mentions(ctx, n, false, old))
					}
					return err
				})
			}
			eventually(ctx, t, from.Name()+" reaches n3", func() error { return from.Ping(ctx, addr, 1) })
			old = mac
		}
	})
}

// flannelNode makes the node's VXLAN device what flannel would make it: with
// that MAC, an address, and the way to every pod subnet in etcd.
func flannelNode(ctx context.Context, t *testing.T, l *netlab.Lab, n *netlab.Node, mac string) {
	t.Helper()
	do := func(args ...string) {
		t.Helper()
		_, err := n.Run(ctx, args...)
		must(t, err)
	}
	if _, err := n.Run(ctx, "ip", "link", "show", "flannel.1"); err == nil {
		do("ip", "link", "del", "flannel.1")
	}
	do("ip", "link", "add", "flannel.1", "address", mac, "mtu", "1450", "type", "vxlan", "id", "1",
		"local", n.Underlay()[0].String(), "dev", "eth0", "dstport", "8472", "nolearning")
	do("ip", "addr", "add", "10.42.253.0/32", "dev", "flannel.1")
	do("ip", "link", "set", "flannel.1", "up")
	for _, o := range l.Nodes() {
		if o == n {
			continue
		}
		subnets, err := o.Subnets()
		must(t, err)
		text, err := o.Run(ctx, "cat", "/sys/class/net/weft.1/address")
		must(t, err)
		hw, base := strings.TrimSpace(text), subnets[0].Addr().String()
		if subnet.FamilyOf(subnets[0].Addr()) != subnet.IPv4 {
			t.Fatalf("first subnet of %s is %s, want IPv4", o, subnets[0])
		}
		do("bridge", "fdb", "add", hw, "dev", "flannel.1", "dst", o.Underlay()[0].String())
		do("ip", "neigh", "add", base, "lladdr", hw, "dev", "flannel.1", "nud", "permanent")
		do("ip", "route", "add", subnets[0].String(), "via", base, "dev", "flannel.1", "onlink")
	}
}
