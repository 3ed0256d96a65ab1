// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// host is faults of the node that weft runs on: the agent's death, events
// that the kernel had no room for, the underlay.
func host() campaign {
	const converge = 5 * time.Second
	return campaign{
		Name: "host", What: "the agent, the node and its underlay", Nodes: 3, Pods: 1,
		Faults: []fault{
			{ID: "T3", Name: "agent killed and started again", Flannel: "0 of 120 pings lost", Limit: converge, Run: agentEnds((*netlab.Node).KillAgent)},
			{ID: "F1", Name: "agent ended with SIGTERM and started again", Flannel: "masquerading is gone until it is back (#2237)", Limit: converge, Run: agentEnds((*netlab.Node).TermAgent)},
			{ID: "F1", Name: "drift while the agent is dead", Flannel: "never restored", Loses: true, Limit: converge, Run: driftWhileDead},
			{ID: "T10", Name: "event sockets overrun", Flannel: "SIGSEGV in watchVXLANDevice", Loses: true, Tells: true, Limit: 2 * time.Second, Run: overrun},
			{ID: "T11", Name: "the node's IPv4 address changes", Flannel: "not noticed (#1052)", Loses: true, Limit: converge, Run: readdress(subnet.IPv4)},
			{ID: "F17", Name: "the node's IPv6 address changes", Flannel: "not noticed; a change of one family is dropped when the other is the same (B7)", Loses: true, Limit: converge, Run: readdress(subnet.IPv6)},
			{ID: "T12", Name: "underlay MTU 1500 to 1400", Flannel: "not noticed: outer packets are fragmented", Limit: converge, Run: narrower},
			{ID: "F18", Name: "underlay down and up, ten times", Flannel: "passes (#877, #1348, #1434)", Loses: true, Limit: byEvent, Run: flap},
			{ID: "T18", Name: "underlay renamed and named back", Flannel: "passes (#1070)", Loses: true, Limit: byEvent, Run: renamed},
			{ID: "F18", Name: "underlay device deleted and back", Flannel: "VXLAN device gone until restart", Loses: true, Limit: converge, Run: replugged},
			{ID: "F4", Name: "node reboots", Flannel: "another MAC, which peers may miss (#1828, k3s #9957)", Loses: true, Limit: converge, Run: reboot},
		},
	}
}

// agentEnds ends an agent, leaves it dead for up to a second and starts it.
func agentEnds(end func(*netlab.Node) error) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		n := s.node()
		s.notef("%s", n)
		return s.restarts(ctx, n, end, func() error { return netlab.Pause(ctx, s.chance(time.Second)) })
	}
}

// restarts ends the node's agent, does what is to be done while it is dead,
// starts it, and waits until it is ready and all is as before.
func (s *scene) restarts(ctx context.Context, n *netlab.Node, end func(*netlab.Node) error, meanwhile func() error) error {
	err := s.outage(func() error {
		if err := end(n); err != nil {
			return err
		}
		return meanwhile()
	})
	if err != nil {
		return err
	}
	if err := n.StartAgent(ctx); err != nil {
		return err
	}
	return s.until(ctx, "agents ready and the kernel as before", func() error {
		return errors.Join(s.agents(ctx), s.asBefore(ctx))
	})
}

// chance returns a time up to most.
func (s *scene) chance(most time.Duration) time.Duration {
	return time.Duration(s.rng.Int64N(int64(most)))
}

func driftWhileDead(ctx context.Context, s *scene) error {
	n := s.node()
	dev, _, err := s.device(n)
	if err != nil {
		return err
	}
	all, err := s.lines(n, "neigh")
	if err != nil {
		return err
	}
	l := pick(s, all)
	s.notef("%s, %s", n, dev)
	return s.restarts(ctx, n, (*netlab.Node).KillAgent, func() error {
		return s.do(ctx, n.Place, fmt.Sprintf("ip neigh del %s dev %s\nip link set %[3]s down\nip link set %[3]s up", l.word("neigh"), l.word("dev"), dev))
	})
}

// overrun stops an agent, makes more events than its sockets have room for,
// deletes a route meanwhile, and lets it go on. At full length it does so 25
// times; the slowest counts.
func overrun(ctx context.Context, s *scene) error {
	times := 1
	if s.full {
		times = 25
	}
	worst, dropped := time.Duration(0), 0
	for range times {
		n := s.node()
		s.recorded = false
		more, err := overrunOnce(ctx, s, n)
		if err != nil {
			return err
		}
		dropped += more
		worst = max(worst, s.took)
	}
	s.took = worst
	s.notef("%d overruns, %d events had no room, the slowest audit was done after %s", times, dropped, round(worst))
	return nil
}

func overrunOnce(ctx context.Context, s *scene, n *netlab.Node) (dropped int, err error) {
	pid := n.AgentPID()
	routes, err := s.lines(n, "route")
	if err != nil {
		return 0, err
	}
	route := pick(s, routes)
	err = s.outage(func() error {
		if err := n.SignalAgent(syscall.SIGSTOP); err != nil {
			return err
		}
		defer n.SignalAgent(syscall.SIGCONT) // fails only for an agent that has ended, which is seen below
		if dropped, err = flood(ctx, s, n); err != nil {
			return err
		}
		return s.do(ctx, n.Place, fmt.Sprintf("ip route del %s dev %s metric %s", route.word("route"), route.word("dev"), route.word("metric")))
	})
	if err != nil {
		return 0, err
	}
	if err := s.heals(ctx); err != nil {
		return 0, err
	}
	if n.AgentPID() != pid {
		return 0, fmt.Errorf("weftd on %s is another process after the overrun", n)
	}
	return dropped, nil
}

// flood changes links until the agent's sockets have lost events, and returns
// how many.
func flood(ctx context.Context, s *scene, n *netlab.Node) (int, error) {
	before, err := overruns(n)
	if err != nil {
		return 0, err
	}
	// A device that is down makes no event of a new alias.
	batch := "link add flood type bridge\nlink set flood up\n" + strings.Repeat("link set flood alias a\nlink set flood alias b\n", 1500) + "link del flood\n"
	if err := writeFile(n.Path("/run/flood"), batch); err != nil {
		return 0, err
	}
	for range 20 {
		if err := s.do(ctx, n.Place, "ip -batch /run/flood"); err != nil {
			return 0, err
		}
		now, err := overruns(n)
		if err != nil {
			return 0, err
		}
		if now > before {
			return now - before, nil
		}
	}
	return 0, fmt.Errorf("60,000 link changes overran no socket of weftd on %s", n)
}

// readdress gives a node another underlay address of one family, under its
// running agent, and the old one back.
func readdress(f subnet.Family) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		n := s.node()
		was := n.Underlay()[0]
		if f == subnet.IPv6 {
			was = n.Underlay()[1]
		}
		// In both families a host's number reads the same in its last part.
		is := netip.MustParseAddr(strings.TrimSuffix(was.String(), n.Name()[1:]) + "10" + n.Name()[1:])
		s.notef("%s: %s to %s", n, was, is)
		if err := s.inject(func() error { return n.SetUnderlay(was, is) }); err != nil {
			return err
		}
		err := s.until(ctx, "peers that send to the new address", func() error {
			for _, o := range s.others(n) {
				now, err := stateOf(ctx, o)
				if err != nil {
					return err
				}
				if !now.has("fdb", "dst "+is.String()) || now.has("fdb", "dst "+was.String()) {
					return fmt.Errorf("%s does not send to %s, or still to %s", o, is, was)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := n.SetUnderlay(is, was); err != nil {
			return err
		}
		return s.heals(ctx)
	}
}

// narrower lowers the underlay's MTU on a node. The overlay has to follow, a
// packet of its MTU has to pass whole, and one byte more must be refused.
func narrower(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	if err := s.inject(func() error { return s.do(ctx, n.Place, "ip link set eth0 mtu 1400") }); err != nil {
		return err
	}
	// Overheads of RFC 7348: 50 bytes over IPv4, 70 over IPv6.
	err := s.until(ctx, "devices with the new MTU", func() error {
		now, err := stateOf(ctx, n)
		if err == nil && !(now.has("link weft.1 vxlan mtu 1350") && now.has("link weft6.1 vxlan mtu 1330")) {
			err = fmt.Errorf("%s: %q", n, now)
		}
		return err
	})
	if err != nil {
		return err
	}
	from, to := n.Pods()[0], s.others(n)[0].Pods()[0]
	for f, fits := range map[subnet.Family]int{subnet.IPv4: 1350, subnet.IPv6: 1330} {
		a, _ := to.Addr(f)
		// The first that is too long tells the pod the path's MTU.
		if err := from.PingSize(ctx, a, fits+1); err == nil {
			return fmt.Errorf("a packet of %d bytes passes from %s to %s", fits+1, from, a)
		}
		if err := from.PingSize(ctx, a, fits); err != nil {
			return err
		}
	}
	if err := s.do(ctx, n.Place, "ip link set eth0 mtu 1500"); err != nil {
		return err
	}
	if err := s.heals(ctx); err != nil {
		return err
	}
	return s.do(ctx, from.Place, "ip -4 route flush cache\nip -6 route flush cache")
}

// restoreUnderlay puts back what the kernel takes from a device that goes down: IPv6 addresses,
// and the default routes.
func restoreUnderlay(n *netlab.Node, addrs []netip.Addr) error {
	for _, a := range addrs {
		if err := n.SetUnderlay(netip.Addr{}, a); err != nil {
			return err
		}
	}
	return nil
}

func flap(ctx context.Context, s *scene) error {
	n := s.node()
	addrs := n.Underlay()
	s.notef("%s", n)
	err := s.outage(func() error {
		for range 10 {
			if err := s.do(ctx, n.Place, "ip link set eth0 down"); err != nil {
				return err
			}
			if err := netlab.Pause(ctx, s.chance(30*time.Millisecond)); err != nil {
				return err
			}
			if err := restoreUnderlay(n, addrs); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

func renamed(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	err := s.outage(func() error {
		if err := s.do(ctx, n.Place, "ip link set eth0 name uplink9"); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, 500*time.Millisecond+s.chance(time.Second)); err != nil {
			return err
		}
		return s.do(ctx, n.Place, "ip link set uplink9 name eth0")
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

func replugged(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	err := s.outage(func() error {
		if err := n.Unplug(); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, s.chance(time.Second)); err != nil {
			return err
		}
		return n.Plug()
	})
	if err != nil {
		return err
	}
	return s.heals(ctx)
}

// reboot takes the power from a node and gives it back. Its disk is what is
// left: it has to come back with the same subnets and MACs, so that the other
// nodes have nothing to change.
func reboot(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	s.traffic.stop() // its pods are gone for good
	err := s.outage(func() error {
		if err := n.Reboot(ctx); err != nil {
			return err
		}
		_, err := os.Stat(n.Path("/run/weft"))
		if !os.IsNotExist(err) {
			return fmt.Errorf("%s came back with a /run of before: %v", n, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := n.StartAgent(ctx); err != nil {
		return err
	}
	err = s.until(ctx, "the node as before", func() error { return errors.Join(s.agents(ctx), s.asBefore(ctx)) })
	if err != nil {
		return err
	}
	if _, err := n.AddPod(ctx, fmt.Sprintf("%s-p%d", n, s.seed+100)); err != nil {
		return err
	}
	if err := s.Settle(ctx); err != nil {
		return err
	}
	return s.retell()
}
