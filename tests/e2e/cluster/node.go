// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// stateDir is where a cluster keeps things, on the lab's tmpfs. Nodes do not
// see it.
const stateDir = "/run/e2e"

// AdminConfig is the path of the administrator's kubeconfig, in the fabric.
const AdminConfig = stateDir + "/admin.conf"

// Devices of the fabric, one Ethernet segment.
const (
	fabricBridge = "fabric"
	underlayDev  = "eth0"
)

// A Node is a host of the cluster. Commands run in its namespaces (Run,
// Start). Its daemons may be stopped and started.
type Node struct {
	*netlab.Place
	Containerd, Kubelet, Proxy *Daemon

	cluster *Cluster
	number  int
	dir     string // its files: run, lib, log, cni, cnibin, ...
	holder  *os.Process
}

// Addrs returns the node's addresses in the order of the cluster's families.
func (n *Node) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, f := range n.cluster.cfg.Families() {
		out = append(out, fabricAddr(f, n.number))
	}
	return out
}

// Path returns where a file of the node, say /etc/cni/net.d, is for the
// control process. Only what is below /run, /var/lib, /var/log, /etc/cni and
// /opt/cni/bin is the node's own.
func (n *Node) Path(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.holder.Pid), path)
}

// newNode makes a node's namespaces and plugs it in. Nothing runs on it yet.
func (c *Cluster) newNode(number int) (*Node, error) {
	name := fmt.Sprintf("n%d", number)
	n := &Node{cluster: c, number: number, dir: filepath.Join(stateDir, "nodes", name)}
	if err := makeCgroup(c.cgroup, name); err != nil {
		return nil, err
	}
	var err error
	if n.holder, err = startHolder(holdSpec{Name: name, Dir: n.dir}); err != nil {
		return nil, err
	}
	if n.Place, err = netlab.PlaceOf(name, n.holder.Pid); err != nil {
		return nil, err
	}
	if err := n.settings(); err != nil {
		return nil, err
	}
	if err := n.Plug(); err != nil {
		return nil, err
	}
	return n, n.prepareDaemons()
}

// settings are what a node's administrator provides (kubeadm asks for them).
func (n *Node) settings() error {
	for _, s := range [][2]string{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "2"}, // as systemd ships it
	} {
		if err := n.SetSysctl(s[0], s[1]); err != nil {
			return fmt.Errorf("node %s: %w", n.Name(), err)
		}
	}
	return n.Netlink(func(h *netlink.Handle) error { return setUp(h, "lo") })
}

func setUp(h *netlink.Handle, name string) error {
	dev, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(dev)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// buildFabric makes the segment in the lab's own network namespace, which is a
// host of it. It does not lead anywhere else.
func (c *Cluster) buildFabric() error {
	return c.fabric.Netlink(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fabricBridge
		snoop := false // without a querier, snooping can lose neighbour solicitations
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
			return fmt.Errorf("add bridge %s: %w", fabricBridge, err)
		}
		for _, f := range c.cfg.Families() {
			if err := addAddr(h, fabricBridge, netip.PrefixFrom(fabricAddr(f, fabricHost), fabricPrefix(f).Bits())); err != nil {
				return err
			}
		}
		if err := setUp(h, fabricBridge); err != nil {
			return err
		}
		return setUp(h, "lo")
	})
}

// Plug connects the node to the fabric, with its addresses and default routes.
func (n *Node) Plug() error {
	peer, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.holder.Pid))
	if err != nil {
		return fmt.Errorf("plug node %s in: %w", n.Name(), err)
	}
	defer peer.Close()
	err = n.cluster.fabric.Netlink(func(h *netlink.Handle) error {
		br, err := h.LinkByName(fabricBridge)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = n.Name(), 1500, br.Attrs().Index, net.FlagUp
		return h.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: underlayDev, PeerNamespace: netlink.NsFd(peer.Fd()),
			// As burnt in; locally administered (IEEE 802-2014, 8.4).
			PeerHardwareAddr: net.HardwareAddr{0x02, 0x77, 0, 0, 0, byte(n.number)},
		})
	})
	if err == nil {
		err = n.Netlink(n.configure)
	}
	if err != nil {
		return fmt.Errorf("plug node %s in: %w", n.Name(), err)
	}
	return nil
}

// configure gives the node's device what belongs to it.
func (n *Node) configure(h *netlink.Handle) error {
	if err := setUp(h, underlayDev); err != nil {
		return err
	}
	dev, err := h.LinkByName(underlayDev)
	if err != nil {
		return err
	}
	for _, a := range n.Addrs() {
		f := subnet.FamilyOf(a)
		if err := addAddr(h, underlayDev, netip.PrefixFrom(a, fabricPrefix(f).Bits())); err != nil {
			return err
		}
		gw := fabricAddr(f, fabricHost)
		if err := h.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("add the default route via %s: %w", gw, err)
		}
	}
	return nil
}

// Unplug takes the node's cable away, and all devices on it.
func (n *Node) Unplug() error {
	err := n.cluster.fabric.Netlink(func(h *netlink.Handle) error {
		dev, err := h.LinkByName(n.Name())
		if err != nil {
			return err
		}
		return h.LinkDel(dev)
	})
	if err != nil {
		return fmt.Errorf("unplug node %s: %w", n.Name(), err)
	}
	return nil
}

// addAddr adds an address, without the second that IPv6 spends on looking for
// duplicates.
func addAddr(h *netlink.Handle, device string, p netip.Prefix) error {
	dev, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	a := &netlink.Addr{IPNet: kernelNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(dev, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", p, device, err)
	}
	return nil
}

func kernelNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Restart ends one of the node's daemons with a signal and starts it again.
func (n *Node) Restart(ctx context.Context, d *Daemon, sig syscall.Signal) error {
	if err := d.Stop(ctx, sig); err != nil {
		return err
	}
	return d.Start(ctx)
}
