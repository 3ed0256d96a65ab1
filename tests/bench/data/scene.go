// SPDX-License-Identifier: Apache-2.0

package data

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/bench/crowd"
	"weft.dev/weft/tests/netlab"
)

// The pairs of nodes, each on a wire of its own: a cable, no bridge.
const (
	few       = iota // weft, two peers
	hand             // by hand
	many             // weft, as many peers as asked for
	plain            // weft, two peers, devices that do not merge packets
	unguarded        // weft, two peers, no ingress guard
	twin             // as few
	pairs
)

const (
	wireDev = "wire0"
	wireMTU = 1500
)

// prefixes are where the leases of the others than the few are.
func prefixes() map[int]string {
	return map[int]string{many: "/weft/many", plain: "/weft/plain", unguarded: "/weft/unguarded", twin: "/weft/twin"}
}

// settings are the flags that make the difference.
func settings() map[int][]string {
	return map[int][]string{plain: {"--device-gro=false"}, unguarded: {"--ingress-guard=off"}}
}

// wireAddr is the address of node i on the wire of a pair.
func wireAddr(f subnet.Family, pair, i int) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix(fmt.Sprintf("192.168.%d.%d/24", 100+pair, 1+i))
	}
	return netip.MustParsePrefix(fmt.Sprintf("fd79:0:0:%d::%d/64", pair, 1+i))
}

// scene is the lab.
type scene struct {
	q     Request
	lab   *netlab.Lab
	nodes [pairs][2]*netlab.Node
	pods  [pairs][2]*netlab.Pod
}

// build sets the scene up.
func (q Request) build(ctx context.Context, l *netlab.Lab) (*scene, error) {
	s := &scene{q: q, lab: l}
	for p := range pairs {
		copy(s.nodes[p][:], l.Nodes()[2*p:])
		if err := s.wire(p); err != nil {
			return nil, err
		}
		for _, n := range s.nodes[p] {
			if err := bridgeCalls(n.Place, true); err != nil {
				return nil, err
			}
		}
	}
	if err := s.agents(ctx); err != nil {
		return nil, err
	}
	for _, p := range []int{few, many, plain, unguarded, twin, hand} {
		if err := s.attach(ctx, p); err != nil {
			return nil, err
		}
	}
	return s, l.Settle(ctx)
}

// bridgeCalls has bridges of the node's namespace show their IP packets to
// the rules for IP, or not. flannel does not start on a node that cannot.
func bridgeCalls(p *netlab.Place, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		err := p.SetSysctl("net.bridge.bridge-nf-call-"+name, value)
		if err != nil && !(errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// wire connects the nodes of a pair.
func (s *scene) wire(pair int) error {
	var far *os.File
	err := s.nodes[pair][1].Do(func() (err error) {
		far, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return err
	}
	defer far.Close()
	for i, n := range s.nodes[pair] {
		err := n.Netlink(func(h *netlink.Handle) error {
			if i == 0 {
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.MTU, attrs.Flags = wireDev, wireMTU, net.FlagUp
				v := &netlink.Veth{LinkAttrs: attrs, PeerName: wireDev, PeerMTU: wireMTU, PeerNamespace: netlink.NsFd(far.Fd())}
				if err := h.LinkAdd(v); err != nil {
					return err
				}
			}
			dev, err := h.LinkByName(wireDev)
			if err == nil {
				err = h.LinkSetUp(dev)
			}
			for _, f := range subnet.Families() {
				a := wireAddr(f, pair, i)
				addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
				if f == subnet.IPv6 {
					addr.Flags = unix.IFA_F_NODAD
				}
				if err == nil {
					err = h.AddrAdd(dev, addr)
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("wire of %s: %w", n, err)
		}
	}
	return nil
}

// agents writes the leases of peers that do not exist and starts every weftd.
func (s *scene) agents(ctx context.Context) error {
	if err := crowd.Enrol(ctx, s.lab.Client(), s.lab.Prefix(), 1, true); err != nil {
		return err
	}
	if err := s.lab.StartAgents(ctx, s.nodes[few][:]...); err != nil {
		return err
	}
	peers := map[int]int{few: 2, many: s.q.Peers, plain: 2, unguarded: 2, twin: 2}
	for p, prefix := range prefixes() {
		if _, err := s.lab.Client().Put(ctx, prefix+"/config", crowd.Dual); err != nil {
			return err
		}
		if err := crowd.Enrol(ctx, s.lab.Client(), prefix, peers[p]-1, true); err != nil {
			return err
		}
		for _, n := range s.nodes[p] {
			if err := n.StartAgent(ctx, append(settings()[p], "--etcd-prefix="+prefix)...); err != nil {
				return err
			}
			if err := n.WaitReady(ctx); err != nil {
				return err
			}
		}
	}
	for p, want := range peers {
		for _, n := range s.nodes[p] {
			if err := s.awaitPeers(ctx, n, want); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitPeers waits for the routes of so many peers, in both families.
func (s *scene) awaitPeers(ctx context.Context, n *netlab.Node, peers int) error {
	for range 600 {
		routes, err := n.Routes()
		if err != nil {
			return err
		}
		if len(routes) >= 2*peers {
			return nil
		}
		if err := netlab.Pause(ctx, 50e6); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s has not the routes of %d peers", n, peers)
}

// attach gives both nodes of a pair a pod.
func (s *scene) attach(ctx context.Context, pair int) error {
	for i, n := range s.nodes[pair] {
		if pair == hand {
			if err := byHand(ctx, n, pair, i, s.pods[few][0].MTU()); err != nil {
				return err
			}
		}
		pod, err := n.AddPod(ctx, n.Name()+"-p1")
		if err != nil {
			return err
		}
		s.pods[pair][i] = pod
	}
	return nil
}
