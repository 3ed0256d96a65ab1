// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

const stranger = "n4" // a host on the fabric without an agent

// guard is VXLAN packets that no peer has sent, each kind shown to be
// delivered with the guard off before it is shown to be refused.
func guard() campaign {
	return campaign{
		Name: "guard", Counted: true, What: "forged VXLAN packets, and those that must not be refused", Nodes: 4, Pods: 2, Conf: roomForOthers,
		Agents: []string{"n1", "n2", "n3"},
		Faults: append(attacks(), legitimate()...),
	}
}

// An attack is one kind of forged packet, sent to n1.
type attack struct {
	id, name string
	flannel  string
	from     string // the place that it is sent from
	outer    string // the node whose address it carries as outer source; empty for the sender's own
	inner    string // the pod whose address it carries as inner source
	cut      int    // bytes of the first fragment; 0 for none
	toNode   bool   // to a socket of the node itself, with the broadcast MAC
	socket   bool   // through an ordinary UDP socket: what the sender may do without privilege
	pod      bool   // it is the sender's own node, n2, that has to stop it
	bare     bool   // nothing on the node uses conntrack, which would reassemble IPv6 before the guard
}

func attacks() []fault {
	const delivered = "delivered"
	var out []fault
	for _, a := range []attack{
		{id: "A1", name: "a stranger as a remote pod", from: stranger, inner: "n2-p1", flannel: delivered},
		{id: "A2", name: "a stranger as a local pod", from: stranger, inner: "n1-p2", flannel: delivered},
		{id: "A3", name: "a stranger with a peer's address, as another's pod", from: stranger, outer: "n2", inner: "n3-p1", flannel: delivered},
		{id: "A4", name: "a pod through its own node", from: "n2-p1", inner: "n2-p1", socket: true, pod: true, flannel: delivered + ": masquerading gives it the node's address"},
		{id: "A4", name: "a pod posing as a peer, through its own node", from: "n2-p1", outer: "n3", inner: "n3-p1", pod: true, flannel: delivered},
		{id: "A5", name: "a compromised node as another's pod", from: "n2", inner: "n3-p1", socket: true, flannel: delivered},
		{id: "A6", name: "a stranger to the node itself, by broadcast MAC", from: stranger, inner: "n2-p1", toNode: true, flannel: delivered},
		{id: "A1", name: "a stranger, first fragment of 8 bytes", from: stranger, inner: "n2-p1", cut: 8, flannel: delivered},
		{id: "A1", name: "a stranger, first fragment of 16 bytes", from: stranger, inner: "n2-p1", cut: 16, flannel: delivered},
		{id: "A1", name: "a stranger, first fragment of 8 bytes, no conntrack", from: stranger, inner: "n2-p1", cut: 8, bare: true, flannel: delivered},
		{id: "A5", name: "a stranger with a peer's address as another's pod, first fragment of 8 bytes", from: stranger, outer: "n2", inner: "n3-p1", cut: 8, flannel: delivered},
	} {
		out = append(out, fault{ID: a.id, Name: a.name, Flannel: a.flannel, Seeds: 1, Tells: true, Run: a.run})
	}
	return append(out,
		fault{ID: "A1", Name: "a stranger while the agent is dead and while it starts", Flannel: delivered, Seeds: 1, Tells: true, Limit: 5 * time.Second, Run: attackRestarts},
		fault{ID: "A3", Name: "a stranger with a peer's address, as that peer's pod: the limit of the method", Flannel: delivered, Seeds: 1, Tells: true, Run: limit},
	)
}

// count is how many packets of an attack are sent.
func (s *scene) count() int {
	if s.full {
		return 1000
	}
	return 200
}

// run sends the attack in every mix of families, with the guard off and on.
func (a attack) run(ctx context.Context, s *scene) error {
	victim, guarded := s.Node("n1"), s.Node("n1")
	if a.pod {
		guarded = s.Node("n2")
	}
	if err := s.open(ctx, guarded, a.bare); err != nil {
		return err
	}
	if a.pod { // its own node has to stop it: the victim's guard would stop some
		if err := s.open(ctx, victim, false); err != nil {
			return err
		}
	}
	mixes, off, err := a.everyMix(ctx, s, victim)
	if err != nil {
		return err
	}
	for i, n := range off {
		if n != s.count() {
			return fmt.Errorf("%s: %d of %d delivered with the guard off: the attack does not work", mixes[i], n, s.count())
		}
	}
	if err := s.shut(ctx, guarded, a.bare); err != nil {
		return err
	}
	if err := a.none(ctx, s, victim, guarded); err != nil {
		return err
	}
	if a.bare {
		if err := s.restart(ctx, guarded); err != nil {
			return err
		}
	}
	if a.pod {
		if err := s.shut(ctx, victim, false); err != nil {
			return err
		}
	}
	s.injected = time.Now()
	return s.heals(ctx)
}

// none sends the attack with the guard on. Nothing may be delivered, and the
// guard must have refused all of it: what came to nothing for another reason
// proves nothing.
func (a attack) none(ctx context.Context, s *scene, victim, guarded *netlab.Node) error {
	before, _, err := refused(ctx, guarded)
	if err != nil {
		return err
	}
	mixes, on, err := a.everyMix(ctx, s, victim)
	if err != nil {
		return err
	}
	after, reasons, err := refused(ctx, guarded)
	if err != nil {
		return err
	}
	delivered, sent := 0, s.count()*len(mixes)
	for _, n := range on {
		delivered += n
	}
	s.notef("guard off: %d of %d delivered; on: %d of %d (%s; refused for: %s)", sent, sent, delivered, sent, strings.Join(mixes, ", "), reasons)
	if delivered != 0 {
		return fmt.Errorf("%d of %d packets were delivered with the guard on", delivered, sent)
	}
	if after-before < sent {
		return fmt.Errorf("%d of %d packets were refused by the guard: the others came to nothing for another reason", after-before, sent)
	}
	return nil
}

// open makes a node what it is without weft's table: no guard, and pods
// masqueraded by somebody else's rules unless it is to be bare.
func (s *scene) open(ctx context.Context, n *netlab.Node, bare bool) error {
	if err := s.restart(ctx, n, "--ingress-guard=off", "--ip-masq=false"); err != nil {
		return err
	}
	if bare {
		return s.nft(ctx, n.Place, "table inet others { }")
	}
	return s.nft(ctx, n.Place, "table inet others { chain post { type nat hook postrouting priority srcnat; "+
		"ip saddr 10.42.0.0/16 ip daddr != 10.42.0.0/16 masquerade; ip6 saddr fd42::/48 ip6 daddr != fd42::/48 masquerade; } ; }")
}

// shut is the opposite of open; bare leaves masquerading out.
func (s *scene) shut(ctx context.Context, n *netlab.Node, bare bool) error {
	if err := s.nft(ctx, n.Place, "delete table inet others"); err != nil {
		return err
	}
	if bare {
		return s.restart(ctx, n, "--ip-masq=false")
	}
	return s.restart(ctx, n)
}

// everyMix sends the attack over every underlay family with every inner
// family, and returns how many of each arrived. IPv4 inside IPv6 is left out:
// where IPv4 pods are reached over IPv4 the device on IPv6 has no IPv4
// address, and the kernel itself refuses what comes in there (rp_filter,
// net/ipv4/fib_frontend.c).
func (a attack) everyMix(ctx context.Context, s *scene, victim *netlab.Node) (mixes []string, arrived []int, err error) {
	for _, outer := range subnet.Families() {
		for _, inner := range subnet.Families() {
			if outer == subnet.IPv6 && inner == subnet.IPv4 {
				continue
			}
			n, err := a.send(ctx, s, victim, outer, inner)
			if err != nil {
				return nil, nil, err
			}
			mixes = append(mixes, fmt.Sprintf("%s in %s", inner, outer))
			arrived = append(arrived, n)
		}
	}
	return mixes, arrived, nil
}

// target is where an attack's packets go, and what they look like.
type target struct {
	outer, node netip.Addr // of the outer packet
	inner, pod  netip.Addr // of the inner one
	vtep        net.HardwareAddr
	at          *netlab.Place // where they arrive
}

func (a attack) aim(s *scene, victim *netlab.Node, outer, inner subnet.Family) (target, error) {
	var t target
	for _, u := range victim.Underlay() {
		if subnet.FamilyOf(u) == outer {
			t.node = u
		}
	}
	sender := a.outer
	if sender == "" {
		sender = a.from
	}
	if n := s.Node(sender); n != nil {
		t.outer = underlayOf(n, t.node)
	}
	t.inner, _ = s.pod(a.inner).Addr(inner)
	t.at = victim.Pods()[0].Place
	t.pod, _ = victim.Pods()[0].Addr(inner)
	dev := "weft.1"
	if outer == subnet.IPv6 {
		dev = "weft6.1"
	}
	var err error
	t.vtep, err = hardware(victim.Place, dev)
	if a.toNode && err == nil {
		t.at, t.vtep = victim.Place, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		subnets, serr := victim.Subnets()
		if serr != nil {
			return t, serr
		}
		for _, p := range subnets {
			if subnet.FamilyOf(p.Addr()) == inner {
				t.pod = p.Addr() // of the VXLAN device
			}
		}
	}
	return t, err
}

func (s *scene) pod(name string) *netlab.Pod {
	for _, p := range s.Pods() {
		if p.Name() == name {
			return p
		}
	}
	return nil
}

// inside is the VXLAN payload number i.
func (t target) inside(i int) []byte {
	number := binary.BigEndian.AppendUint64(nil, uint64(i))
	ip := udp(t.inner, t.pod, 40000, receivePort, number).bytes()
	return vxlan(1, ethernet(t.vtep, []byte{0x0a, 0x66, 0, 0, 0, 1}, t.inner, ip))
}

// send sends the packets and returns how many arrived.
func (a attack) send(ctx context.Context, s *scene, victim *netlab.Node, outer, inner subnet.Family) (int, error) {
	t, err := a.aim(s, victim, outer, inner)
	if err != nil {
		return 0, err
	}
	r, err := listen(ctx, t.at)
	if err != nil {
		return 0, err
	}
	defer r.conn.Close()
	if a.socket {
		err = a.sendSocket(ctx, s, t)
	} else {
		err = a.sendRaw(ctx, s, t)
	}
	if err != nil {
		return 0, err
	}
	// The last has a moment to arrive; all of them end it.
	end := time.Now().Add(200 * time.Millisecond)
	for r.count() < s.count() && time.Now().Before(end) {
		if err := netlab.Pause(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return r.count(), nil
}

// place returns a node or a pod.
func (s *scene) place(name string) *netlab.Place {
	if n := s.Node(name); n != nil {
		return n.Place
	}
	return s.pod(name).Place
}

func (a attack) sendRaw(ctx context.Context, s *scene, t target) error {
	from := s.place(a.from)
	fd, err := rawSocket(from)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to, err := hardware(s.Node("n1").Place, "eth0")
	if a.pod { // its own node takes it for its gateway's
		to, err = hardware(s.Node("n2").Place, "cni0")
	}
	if err != nil {
		return err
	}
	mac, err := hardware(from, "eth0")
	if err != nil {
		return err
	}
	for i := range s.count() {
		whole := udp(t.outer, t.node, 50000+i%1000, vxlanPort, t.inside(i))
		parts := []packet{whole}
		if a.cut > 0 {
			parts = whole.split(a.cut, uint32(s.rng.Uint32()))
		}
		for _, p := range parts {
			if _, err := unix.Write(fd, ethernet(to, mac, t.outer, p.bytes())); err != nil {
				return fmt.Errorf("send from %s: %w", from, err)
			}
		}
		if err := pace(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (a attack) sendSocket(ctx context.Context, s *scene, t target) error {
	c, err := s.place(a.from).Dial(ctx, "udp", netip.AddrPortFrom(t.node, vxlanPort).String())
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range s.count() {
		if _, err := c.Write(t.inside(i)); err != nil {
			return fmt.Errorf("send from %s: %w", a.from, err)
		}
		if err := pace(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// restart starts the node's agent anew with further arguments, and waits until
// it is ready and its table is as it says.
func (s *scene) restart(ctx context.Context, n *netlab.Node, args ...string) error {
	if err := n.KillAgent(); err != nil {
		return err
	}
	if err := n.StartAgent(ctx, args...); err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

// attackRestarts attacks without pause while the agent is killed and started
// several times: the kernel refuses on its own.
func attackRestarts(ctx context.Context, s *scene) error {
	a := attack{from: stranger, inner: "n2-p1"}
	victim := s.Node("n1")
	t, err := a.aim(s, victim, subnet.IPv4, subnet.IPv4)
	if err != nil {
		return err
	}
	r, err := listen(ctx, t.at)
	if err != nil {
		return err
	}
	defer r.conn.Close()
	attacking, stop := context.WithCancel(ctx)
	defer stop()
	rounds := make(chan int, 1)
	go func() {
		n := 0
		for a.sendRaw(attacking, s, t) == nil {
			n++
		}
		rounds <- n
	}()
	s.injected = time.Now()
	for range 5 {
		if err := victim.KillAgent(); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		s.injected = time.Now()
		if err := victim.StartAgent(ctx); err != nil {
			return err
		}
		if err := victim.WaitReady(ctx); err != nil {
			return err
		}
	}
	stop()
	sent := <-rounds * s.count()
	s.notef("5 restarts, 0 of more than %d packets expected; %d delivered", sent, r.count())
	if r.count() > 0 || sent == 0 {
		return fmt.Errorf("%d packets of more than %d were delivered", r.count(), sent)
	}
	return s.heals(ctx)
}

// limit shows what the guard cannot know: who forges a peer's outer address
// and an inner address of that same peer looks like the peer.
func limit(ctx context.Context, s *scene) error {
	a := attack{from: stranger, outer: "n2", inner: "n2-p1"}
	mixes, arrived, err := a.everyMix(ctx, s, s.Node("n1"))
	if err != nil {
		return err
	}
	var each []string
	for i, n := range arrived {
		each = append(each, fmt.Sprintf("%s %d of %d", mixes[i], n, s.count()))
	}
	s.notef("delivered with the guard on too: %s; whoever can forge both addresses is stopped by encryption only", strings.Join(each, ", "))
	return s.heals(ctx)
}
