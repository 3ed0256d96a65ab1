// SPDX-License-Identifier: Apache-2.0

package data

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/backend"
	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/guard"
	"weft.dev/weft/policy/rules"
	"weft.dev/weft/tests/netlab"
)

// Numbers of policies that select the pods.
const (
	fewPolicies  = 10
	manyPolicies = 5000
)

// policySettle is the pause after policies came into force or went: the kernel
// frees what a transaction has replaced some time later, on either CPU.
const policySettle = 300 * time.Millisecond

// podBridge is the bridge of weft's pods.
const podBridge = "cni0"

// police is what keeps policies on one node of the few.
type police struct {
	node    *netlab.Node
	conn    *nft.Conn
	rules   *rules.Programmer
	guard   *guard.Guard
	subnets []netip.Prefix
	tables  map[int]*policy.Table // by number of policies
	pod     nft.SpoofPod
}

// polices prepares both nodes of the few; nothing is in force yet.
func (st *stageSet) polices(ctx context.Context) error {
	for i, n := range st.nodes[few] {
		p := &police{node: n, tables: map[int]*policy.Table{}}
		if err := n.Do(func() (err error) { p.conn, err = nft.Dial(); return err }); err != nil {
			return err
		}
		p.rules, p.guard = rules.NewProgrammer(p.conn, rules.Params{LogGroup: rules.DefaultLogGroup}), guard.New(p.conn)
		st.police[i] = p
		var err error
		if p.subnets, err = n.Subnets(); err != nil {
			return err
		}
		for _, count := range []int{fewPolicies, manyPolicies} {
			table := policy.Compile(st.town(count), fmt.Sprint("node", i))
			if len(table.TooLarge) > 0 {
				return fmt.Errorf("%d policies are too many: %v", count, table.TooLarge)
			}
			p.tables[count] = table
		}
		if p.pod, err = linkOf(st.pods[few][i]); err != nil {
			return err
		}
		if err := n.Do(func() error { _, err := backend.GuardBridge(ctx, podBridge); return err }); err != nil {
			return err
		}
	}
	return nil
}

// town is the two pods of the few in a namespace with so many policies, all of
// which select both: one lets them reach each other, the others let in and out
// a pod, a block and a port each.
func (st *stageSet) town(count int) *policy.Cluster {
	c := &policy.Cluster{Namespaces: map[string]*policy.Labels{"n": policy.NewLabels(nil)}}
	app := func(i int) map[string]string { return map[string]string{"app": fmt.Sprint(i)} }
	for i, p := range st.pods[few] {
		c.Pods = append(c.Pods, &policy.Pod{Namespace: "n", Name: fmt.Sprint("pod", i), UID: fmt.Sprint("pod", i), Node: fmt.Sprint("node", i), Labels: policy.NewLabels(app(0)), Addrs: p.Addrs()})
	}
	for i := range count {
		rule := policy.Rule{Peers: []policy.Peer{{Pods: labels.SelectorFromSet(app(i))}}}
		if i > 0 {
			rule.Peers = append(rule.Peers, policy.Peer{Block: &policy.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 24)}})
			rule.Ports = []policy.Port{{Proto: policy.TCP, From: uint16(1000 + i), To: uint16(1000 + i)}, {Proto: policy.UDP, From: 2000, To: 9000}}
			c.Pods = append(c.Pods, &policy.Pod{Namespace: "n", Name: fmt.Sprint("far", i), UID: fmt.Sprint("far", i), Node: "far", Labels: policy.NewLabels(app(i)),
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 0x99, 14: byte(i >> 8), 15: byte(i)})}})
		}
		c.Policies = append(c.Policies, &policy.Policy{Namespace: "n", Name: fmt.Sprint("p", i), Subject: labels.Everything(), Isolates: [2]bool{true, true},
			Rules: [2][]policy.Rule{{rule}, {rule}}})
	}
	return c
}

// linkOf is what the guard has to know of a pod.
func linkOf(p *netlab.Pod) (out nft.SpoofPod, err error) {
	out.Addrs = p.Addrs()
	peer := 0
	err = p.Netlink(func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		if err == nil {
			out.MAC, peer = net.HardwareAddr(l.Attrs().HardwareAddr), l.Attrs().ParentIndex
		}
		return err
	})
	if err == nil {
		err = p.Node().Netlink(func(h *netlink.Handle) error {
			l, err := h.LinkByIndex(peer)
			if err == nil {
				out.Port = l.Attrs().Name
			}
			return err
		})
	}
	if err != nil {
		err = fmt.Errorf("link of %s: %w", p.Name(), err)
	}
	return out, err
}

// enforce brings so many policies into force on both nodes of the few, with the
// guard if asked for; lift takes all of it away.
func (st *stageSet) enforce(ctx context.Context, count int, guarded bool) error {
	for _, p := range st.police {
		if _, err := p.rules.Sync(ctx, p.tables[count], p.subnets); err != nil {
			return err
		}
		if !guarded {
			continue
		}
		left, err := p.guard.Update(ctx, []nft.SpoofPod{p.pod}, nil, true)
		if err := errors.Join(append(left, err)...); err != nil {
			return err
		}
	}
	return nil
}

func (st *stageSet) lift(ctx context.Context) error {
	var errs []error
	for _, p := range st.police {
		_, err := p.guard.Remove(ctx)
		errs = append(errs, p.rules.Remove(ctx), err)
	}
	return errors.Join(append(errs, netlab.Pause(ctx, policySettle))...)
}
