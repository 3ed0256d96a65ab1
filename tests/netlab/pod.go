// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// What a runtime passes to the CNI plugins, and where it finds them.
const (
	podDev   = "eth0"
	cniConf  = "/etc/cni/net.d/05-weft.conflist"
	cniBin   = "/opt/cni/bin"
	cniCache = "/var/lib/cni/cache"
)

// A Pod is a network namespace that the node's CNI chain has attached.
// Commands run in that namespace, with the node's files.
type Pod struct {
	*Place
	node  *Node
	addrs []netip.Addr
	mtu   int
}

// AddPod makes a network namespace, mounts it at /run/netns/NAME as container
// runtimes do, and has libcni attach it on the node with the configuration
// that weftd wrote.
func (n *Node) AddPod(ctx context.Context, name string) (*Pod, error) {
	p := &Pod{node: n, Place: &Place{name: name, mnt: n.mnt, uts: n.uts}}
	if err := p.makeNamespace(); err != nil {
		return nil, err
	}
	result, err := p.cni(ctx, "ADD")
	if err == nil {
		err = p.learn(result)
	}
	if err != nil {
		return nil, errors.Join(err, p.unmount())
	}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	n.lab.pods = append(n.lab.pods, p)
	slices.SortFunc(n.lab.pods, func(a, b *Pod) int {
		if a.node != b.node {
			return a.node.number - b.node.number
		}
		return strings.Compare(a.name, b.name)
	})
	return p, nil
}

// Node returns the node that the pod runs on.
func (p *Pod) Node() *Node { return p.node }

// Addr returns the pod's address of family f, as the CNI result says.
func (p *Pod) Addr(f subnet.Family) (netip.Addr, bool) {
	for _, a := range p.addrs {
		if subnet.FamilyOf(a) == f {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Addrs returns the pod's addresses as the CNI result has them.
func (p *Pod) Addrs() []netip.Addr { return slices.Clone(p.addrs) }

// MTU returns the MTU of the pod's device, bytes.
func (p *Pod) MTU() int { return p.mtu }

// Delete detaches the pod with CNI DEL and removes its namespace.
func (p *Pod) Delete(ctx context.Context) error {
	if _, err := p.cni(ctx, "DEL"); err != nil {
		return err
	}
	return p.forget()
}

// forget removes the namespace and the lab's memory of the pod.
func (p *Pod) forget() error {
	l := p.node.lab
	l.mu.Lock()
	l.pods = slices.DeleteFunc(l.pods, func(o *Pod) bool { return o == p })
	l.mu.Unlock()
	return p.unmount()
}

func (p *Pod) path() string { return filepath.Join(netnsDir, p.name) }

// makeNamespace makes the namespace on a thread that ends with it.
func (p *Pod) makeNamespace() error {
	f, err := os.OpenFile(p.path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make pod %s: %w", p.name, err)
	}
	f.Close()
	err = p.node.lab.fabric.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", p.path(), "", unix.MS_BIND, "")
	})
	if err == nil {
		p.net, err = os.Open(p.path())
	}
	if err != nil {
		return fmt.Errorf("make pod %s: %w", p.name, err)
	}
	return p.Netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("set lo up in pod %s: %w", p.name, err)
		}
		return nil
	})
}

func (p *Pod) unmount() error {
	p.net.Close()
	if err := unix.Unmount(p.path(), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount pod %s: %w", p.name, err)
	}
	if err := os.Remove(p.path()); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.name, err)
	}
	return nil
}

// learn takes addresses from the CNI result and the MTU from the device.
func (p *Pod) learn(result []byte) error {
	var r types100.Result
	if err := json.Unmarshal(result, &r); err != nil {
		return fmt.Errorf("CNI result for pod %s: %w", p.name, err)
	}
	for _, ip := range r.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("CNI result for pod %s: address %v", p.name, ip.Address)
		}
		p.addrs = append(p.addrs, a.Unmap())
	}
	return p.Netlink(func(h *netlink.Handle) error {
		dev, err := h.LinkByName(podDev)
		if err != nil {
			return fmt.Errorf("find %s of pod %s: %w", podDev, p.name, err)
		}
		p.mtu = dev.Attrs().MTU
		return nil
	})
}

// cni runs libcni on the pod's node, in a process of its own, as a container
// runtime is, and returns what it printed.
func (p *Pod) cni(ctx context.Context, op string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := self(stageCNI, op, p.node.lab.id+"-"+p.name, p.path(), podDev)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.node.Start(cmd); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("CNI %s of pod %s: %w: %s", op, p.name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// runCNI is the container runtime's part: libcni with the configuration list
// in /etc/cni/net.d and the plugins in /opt/cni/bin. It prints the result of
// an ADD.
func runCNI(args []string) error {
	op, id, netns, dev := args[0], args[1], args[2], args[3]
	ctx := context.Background() // the caller kills this process
	list, err := libcni.ConfListFromFile(cniConf)
	if err != nil {
		return fmt.Errorf("read %s: %w", cniConf, err)
	}
	c := libcni.NewCNIConfigWithCacheDir([]string{cniBin}, cniCache, nil)
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: dev}
	switch op {
	case "DEL":
		return c.DelNetworkList(ctx, list, rt)
	case "ADD":
		result, err := c.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		r, err := types100.GetResult(result)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return fmt.Errorf("CNI operation %q: want ADD or DEL", op)
}

// Settle waits until no IPv6 address on any node or pod is tentative any
// more (RFC 4862 section 5.4), which takes up to two seconds after a device
// came up. Until then a node cannot solicit its new pods: neighbour
// solicitations for forwarded packets come from the bridge's link-local
// address (ndisc_solicit, net/ipv6/ndisc.c).
func (l *Lab) Settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var places []*Place
	for _, n := range l.Nodes() {
		places = append(places, n.Place)
	}
	for _, p := range l.Pods() {
		places = append(places, p.Place)
	}
	for _, p := range places {
		for {
			tentative, err := p.tentative()
			if err != nil {
				return err
			}
			if len(tentative) == 0 {
				break
			}
			if err := Pause(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("addresses on %s stay tentative: %v", p.name, tentative)
			}
		}
	}
	return nil
}

// tentative returns the place's addresses that are not checked for duplicates
// yet.
func (p *Place) tentative() ([]string, error) {
	var out []string
	err := p.Netlink(func(h *netlink.Handle) error {
		addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("list addresses on %s: %w", p.name, err)
		}
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				out = append(out, a.IPNet.String())
			}
		}
		return nil
	})
	return out, err
}
