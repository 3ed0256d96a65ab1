// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"weft.dev/weft/tests/netlab"
)

// drift is somebody else's changes to what weft keeps in the kernel: what
// flannel never restores in VXLAN mode (T1, T2, T6, T7) and the promises of
// F5 to F7. Each is measured by event and by audit.
func drift() campaign {
	return campaign{
		Name: "drift", What: "somebody else changes what is weft's in the kernel", Nodes: 3, Pods: 1,
		Faults: slices.Concat(entryDrift(), deviceDrift(), tableDrift()),
	}
}

const (
	neverRoute  = "never restored: no audit in VXLAN mode"
	neverDevice = "device back without routes, neighbours and FDB, with a new MAC that nobody learns (#1155, #1795)"
)

func entryDrift() []fault {
	return []fault{
		{ID: "T1", Name: "peer's route deleted", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("route", func(l line) string {
			return "ip route del " + l.word("route") + " dev " + l.word("dev") + " metric " + l.word("metric")
		})},
		{ID: "F6", Name: "peer's route overwritten", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("route", func(l line) string {
			return "ip route replace " + l.word("route") + " via " + l.word("via") + "1 dev " + l.word("dev") + " onlink proto static metric " + l.word("metric")
		})},
		{ID: "F6", Name: "a foreign route in the place of a peer's", Flannel: neverRoute, Loses: true, Run: foreignRoute},
		{ID: "F6", Name: "peer's neighbour deleted", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("neigh", func(l line) string {
			return "ip neigh del " + l.word("neigh") + " dev " + l.word("dev")
		})},
		{ID: "F6", Name: "peer's neighbour overwritten", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("neigh", func(l line) string {
			return "ip neigh replace " + l.word("neigh") + " lladdr 0a:66:66:66:66:66 nud permanent dev " + l.word("dev")
		})},
		{ID: "F6", Name: "peer's neighbour demoted to a learned one", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("neigh", func(l line) string {
			return "ip neigh replace " + l.word("neigh") + " lladdr " + l.word("lladdr") + " nud stale dev " + l.word("dev")
		})},
		{ID: "F6", Name: "peer's forwarding entry deleted", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("fdb", func(l line) string {
			return "bridge fdb del " + l.word("fdb") + " dev " + l.word("dev") + " dst " + l.word("dst")
		})},
		{ID: "F6", Name: "peer's forwarding entry overwritten", Flannel: neverRoute, Loses: true, Deaf: true, Run: entry("fdb", func(l line) string {
			wrong := "192.168.77.250"
			if strings.Contains(l.word("dst"), ":") {
				wrong = "fd77::250"
			}
			return "bridge fdb replace " + l.word("fdb") + " dev " + l.word("dev") + " dst " + wrong + " self permanent"
		})},
		{ID: "F6", Name: "stale route, neighbour and forwarding entry added", Flannel: "stays for ever (#2554)", Deaf: true, Run: staleEntries},
		{ID: "F6", Name: "everything on a device flushed", Flannel: neverRoute, Loses: true, Deaf: true, Run: flushed},
		{ID: "T19", Name: "foreign routes, neighbours, devices and tables beside a flushed device", Flannel: "untouched", Loses: true, Run: canaries},
	}
}

// foreignRoute puts a route of somebody else where a peer's was: same prefix,
// same metric, another device. Weft must not remove what it did not make; it
// says so, and takes the place as soon as it is free.
func foreignRoute(ctx context.Context, s *scene) error {
	n := s.node()
	all, err := s.lines(n, "route")
	if err != nil {
		return err
	}
	l := pick(s, all)
	what := l.word("route") + " metric " + l.word("metric")
	s.notef("%s: blackhole %s", n, what)
	err = s.outage(func() error {
		if err := s.do(ctx, n.Place, "ip route replace blackhole "+what); err != nil {
			return err
		}
		if err := s.wait(ctx, "a report that names the route", func() error { return s.problem(ctx, n, l.word("route")) }); err != nil {
			return err
		}
		return s.do(ctx, n.Place, "ip route del blackhole "+what)
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

// A line of a state.
type line string

// word returns the word after key.
func (l line) word(key string) string {
	f := strings.Fields(string(l))
	if i := slices.Index(f, key); i >= 0 && i+1 < len(f) {
		return f[i+1]
	}
	return ""
}

// lines returns the node's lines of that kind when the lab was well.
func (s *scene) lines(n *netlab.Node, kind string) ([]line, error) {
	var out []line
	for _, l := range s.before[n.Name()] {
		if strings.HasPrefix(l, kind) {
			out = append(out, line(l))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no %s", n, kind)
	}
	return out, nil
}

// entry runs one command about one entry of a kind, both by chance.
func entry(kind string, command func(l line) string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		n := s.node()
		all, err := s.lines(n, kind)
		if err != nil {
			return err
		}
		cmd := command(pick(s, all))
		s.notef("%s: %s", n, cmd)
		if err := s.inject(func() error { return s.do(ctx, n.Place, cmd) }); err != nil {
			return err
		}
		return s.heals(ctx)
	}
}

// device picks one of weft's devices of a node.
func (s *scene) device(n *netlab.Node) (name string, is line, err error) {
	all, err := s.lines(n, "link")
	if err != nil {
		return "", "", err
	}
	l := pick(s, all)
	return l.word("link"), l, nil
}

// staleEntries puts what a peer that is gone would have left behind.
func staleEntries(ctx context.Context, s *scene) error {
	n := s.node()
	dev, _, err := s.device(n)
	if err != nil {
		return err
	}
	s.notef("%s, %s", n, dev)
	dst := "192.168.77.249"
	if strings.HasPrefix(dev, "weft6") {
		dst = "fd77::249"
	}
	err = s.inject(func() error {
		return s.do(ctx, n.Place, fmt.Sprintf(`ip neigh add 10.42.249.0 lladdr 0a:00:00:00:02:49 dev %[1]s nud permanent
			bridge fdb add 0a:00:00:00:02:49 dev %[1]s dst %[2]s self permanent
			bridge fdb append 00:00:00:00:00:00 dev %[1]s dst %[2]s self permanent
			ip route add 10.42.249.0/24 via 10.42.249.0 dev %[1]s onlink proto %[3]d
			ip route add fd42:0:0:249::/64 dev %[1]s proto %[3]d metric 77`, dev, dst, routeProtocol))
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

// flushed empties a device of routes, neighbours and forwarding entries.
func flushed(ctx context.Context, s *scene) error {
	n := s.node()
	dev, _, err := s.device(n)
	if err != nil {
		return err
	}
	fdb, err := s.lines(n, "fdb")
	if err != nil {
		return err
	}
	s.notef("%s, %s", n, dev)
	script := fmt.Sprintf("ip -4 route flush dev %[1]s proto %[2]d\nip -6 route flush dev %[1]s proto %[2]d\nip neigh flush dev %[1]s nud permanent\n", dev, routeProtocol)
	for _, l := range fdb {
		if l.word("dev") == dev {
			// The agent may be faster than this loop.
			script += "-bridge fdb del " + l.word("fdb") + " dev " + dev + " dst " + l.word("dst") + "\n"
		}
	}
	if err := s.inject(func() error { return s.do(ctx, n.Place, script) }); err != nil {
		return err
	}
	return s.heals(ctx)
}

// canaries puts foreign objects next to weft's, has the agents repair
// something, and looks whether the foreign ones are still there.
func canaries(ctx context.Context, s *scene) error {
	n := s.node()
	const count = 250
	var batch strings.Builder
	for i := range count {
		fmt.Fprintf(&batch, "route add 198.18.%d.0/24 via 192.168.77.254 dev eth0 proto static\n", i)
		fmt.Fprintf(&batch, "neigh add 198.19.1.%d lladdr 0a:ca:0a:ca:00:01 dev eth0 nud permanent\n", i)
	}
	// Without an address: those of the node are weft's business too.
	cmds := "ip link add weird type bridge\nip link set weird alias canary\nip link set weird up\n"
	if err := s.do(ctx, n.Place, cmds); err != nil {
		return err
	}
	path := n.Path("/run/canaries")
	if err := writeFile(path, batch.String()); err != nil {
		return err
	}
	if err := s.do(ctx, n.Place, "ip -batch /run/canaries"); err != nil {
		return err
	}
	if err := s.nft(ctx, n.Place, "table ip canary { set s { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } ; } ; chain c { type filter hook forward priority 0; ip saddr @s counter; } ; }"); err != nil {
		return err
	}
	foreign := func() (string, error) {
		var all []string
		for _, cmd := range []string{"ip -4 route show proto static", "ip neigh show dev eth0 nud permanent", "ip link show dev weird", "nft list table ip canary"} {
			out, err := n.Run(ctx, strings.Fields(cmd)...)
			if err != nil {
				return "", err
			}
			rows := strings.Split(strings.TrimSpace(out), "\n")
			slices.Sort(rows)
			all = append(all, rows...)
		}
		return strings.Join(all, "\n"), nil
	}
	before, err := foreign()
	if err != nil {
		return err
	}
	if err := s.inject(func() error { return flushed(ctx, s) }); err != nil {
		return err
	}
	after, err := foreign()
	if err != nil {
		return err
	}
	s.notef("%d foreign objects", strings.Count(before, "\n")+1)
	if before != after {
		return fmt.Errorf("foreign objects on %s changed:\n%s\nwere\n%s", n, after, before)
	}
	return s.do(ctx, n.Place, "ip link del weird\nip -4 route flush proto static\nip neigh flush dev eth0 nud permanent\nnft delete table ip canary")
}

// deviceDrift is damage to the VXLAN devices themselves.
func deviceDrift() []fault {
	return []fault{
		{ID: "T6", Name: "VXLAN device deleted", Flannel: neverDevice, Loses: true, Deaf: true, Run: onLink("ip link del %s")},
		{ID: "T7", Name: "VXLAN device set down and up", Flannel: "IPv4 routes gone for good: a link that goes down makes no route event", Loses: true, Deaf: true, Run: onLink("ip link set %[1]s down\nip link set %[1]s up")},
		{ID: "F5", Name: "VXLAN device set down", Flannel: "stays down", Loses: true, Deaf: true, Run: onLink("ip link set %s down")},
		{ID: "F5", Name: "VXLAN device's MAC rewritten", Flannel: "not noticed (#1155, #1795)", Loses: true, Deaf: true, Run: onLink("ip link set %s address 0a:66:66:66:66:66")},
		{ID: "F5", Name: "VXLAN device's addresses flushed", Flannel: "routes gone for good", Loses: true, Deaf: true, Run: onLink("ip addr flush dev %s")},
		{ID: "F5", Name: "VXLAN device's MTU lowered", Flannel: "not noticed", Loses: true, Deaf: true, Run: onLink("ip link set %s mtu 1300")},
		{ID: "F5", Name: "VXLAN device's rp_filter made strict", Flannel: "not noticed", Silent: true, Run: silentSetting},
		{ID: "F5", Name: "VXLAN device re-created with another VNI", Flannel: "not noticed", Loses: true, Deaf: true, Run: otherVNI},
		{ID: "F5", Name: "a foreign device with our device's name", Flannel: "not noticed", Loses: true, Run: foreignDevice},
	}
}

// onLink runs a script with the name of one of the devices.
func onLink(format string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		n := s.node()
		dev, _, err := s.device(n)
		if err != nil {
			return err
		}
		s.notef("%s, %s", n, dev)
		script := fmt.Sprintf(format, dev)
		if err := s.inject(func() error { return s.do(ctx, n.Place, script) }); err != nil {
			return err
		}
		return s.heals(ctx) // the MAC is part of the state that has to be as before
	}
}

// silentSetting changes a setting through /proc/sys: the kernel makes no
// event of it that anybody subscribes to, so the audit finds it.
func silentSetting(ctx context.Context, s *scene) error {
	n := s.node()
	dev, _, err := s.device(n)
	if err != nil {
		return err
	}
	s.notef("%s, %s", n, dev)
	err = s.inject(func() error {
		// A dot in a name is a separator to everybody but the file system.
		return n.Do(func() error { return writeFile("/proc/sys/net/ipv4/conf/"+dev+"/rp_filter", "1") })
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

// otherVNI replaces a device by one that looks like it and carries another
// network.
func otherVNI(ctx context.Context, s *scene) error {
	n := s.node()
	dev, l, err := s.device(n)
	if err != nil {
		return err
	}
	s.notef("%s, %s", n, dev)
	err = s.inject(func() error {
		// One batch: the agent must not be quicker with its own device.
		path := n.Path("/run/othervni")
		if err := writeFile(path, fmt.Sprintf("link del %[1]s\nlink add %[1]s address %[2]s type vxlan id 4242 local %[3]s dev eth0 dstport 8472 nolearning\n",
			dev, l.word("address"), l.word("local"))); err != nil {
			return err
		}
		return s.do(ctx, n.Place, "-ip -batch /run/othervni")
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

// foreignDevice puts a device of another kind in the place of ours. Weft must
// not delete what it did not make; it says so, and takes the name back as soon
// as it is free.
func foreignDevice(ctx context.Context, s *scene) error {
	n := s.node()
	dev, _, err := s.device(n)
	if err != nil {
		return err
	}
	s.notef("%s, %s", n, dev)
	squat := func() error {
		path := n.Path("/run/squatter")
		if err := writeFile(path, fmt.Sprintf("link add squatter type bridge\nlink del %[1]s\nlink set squatter name %[1]s\n", dev)); err != nil {
			return err
		}
		return s.do(ctx, n.Place, "-ip -batch /run/squatter\n-ip link del squatter")
	}
	kind := func() (string, error) {
		return n.Run(ctx, "ip", "-d", "link", "show", "dev", dev)
	}
	err = s.outage(func() error {
		for range 20 { // the agent is mostly quicker with its own device
			if err := squat(); err != nil {
				return err
			}
			if out, err := kind(); err == nil && strings.Contains(out, "bridge forward_delay") {
				break
			}
		}
		if err := s.wait(ctx, "a problem that names the device", func() error { return s.problem(ctx, n, dev) }); err != nil {
			return err
		}
		out, err := kind()
		if err != nil || !strings.Contains(out, "bridge forward_delay") {
			return fmt.Errorf("the foreign device %s on %s is gone: %q, %v", dev, n, out, err)
		}
		return s.do(ctx, n.Place, "ip link del "+dev)
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}
