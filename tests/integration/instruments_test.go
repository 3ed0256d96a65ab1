// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// What measures has to be measured: the pinger counts what a cut cable costs.
func TestPingerSeesLoss(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 2}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		n1, n2 := l.Node("n1"), l.Node("n2")
		for _, to := range n2.Underlay() {
			must(t, n1.Ping(ctx, to, 1))
			p, err := n1.StartPing(ctx, to, pingEvery)
			must(t, err)
			for p.Count().Sent < 100 {
				must(t, wait(ctx, pingEvery))
			}
			cable := func(state string) {
				_, err := l.Fabric().Run(ctx, "ip", "link", "set", "n2", state)
				must(t, err)
			}
			from := p.Count().Sent
			cable("down")
			for p.Count().Sent < from+50 {
				must(t, wait(ctx, pingEvery))
			}
			until := p.Count().Sent
			cable("up")
			for p.Count().Lost >= until && p.Count().Sent < until+1000 {
				must(t, wait(ctx, pingEvery))
			}
			must(t, wait(ctx, time.Second))
			c := p.Stop()
			t.Log(c)
			if c.Lost < 40 || c.Lost >= c.Sent {
				t.Errorf("about %d requests were sent while the cable was cut, and %d of %d count as lost", until-from, c.Lost, c.Sent)
			}
			if c.Twice != 0 {
				t.Errorf("%d answers came twice", c.Twice)
			}
		}
	})
}

// The address check sees a node that translates its pods' addresses, and the
// size check sees a path that is narrower or wider than the pods' MTU.
func TestChecksSeeFaults(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 2}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		up(ctx, t, l, 1)
		a, b := l.Node("n1").Pods()[0], l.Node("n2").Pods()[0]
		must(t, b.ServeAddress(ctx))
		do := func(p *netlab.Place, args ...string) {
			t.Helper()
			_, err := p.Run(ctx, args...)
			must(t, err)
		}
		for _, to := range b.Addrs() {
			seen, own, err := a.AskAddress(ctx, to)
			must(t, err)
			if self, _ := a.Addr(subnet.FamilyOf(to)); seen != self || own != self {
				t.Errorf("%s sees %s, the client sees %s, want %s", b, seen, own, self)
			}
			must(t, a.PingSize(ctx, to, a.MTU()))
			must(t, a.PingTooLong(ctx, to, a.MTU()+1))
			if a.PingTooLong(ctx, to, a.MTU()) == nil {
				t.Error("a packet of the MTU counts as too long")
			}
		}
		n1 := l.Node("n1").Place
		do(n1, "nft", "add table inet lab; add chain inet lab post { type nat hook postrouting priority srcnat; }; add rule inet lab post masquerade")
		for _, to := range b.Addrs() {
			if seen, own, err := a.AskAddress(ctx, to); err != nil || seen == own {
				t.Errorf("%s sees %s, the client sees %s, %v: the translation on n1 is not noticed", b, seen, own, err)
			}
		}
		do(n1, "nft", "delete table inet lab")

		do(a.Place, "ip", "link", "set", "eth0", "mtu", "1500")
		do(n1, "ip", "link", "set", "eth0", "mtu", "1400") // narrower than the pods believe
		for _, to := range b.Addrs() {
			if a.PingSize(ctx, to, a.MTU()) == nil {
				t.Errorf("a packet of %d bytes passes an underlay of 1400 unnoticed", a.MTU())
			}
		}
	})
}

// The fabric is where nodes meet, and there is no way out of it.
func TestNoWayOut(t *testing.T) {
	inLab(t, netlab.Config{Nodes: 2}, func(ctx context.Context, t *testing.T, l *netlab.Lab) {
		n1 := l.Node("n1")
		for _, to := range l.Node("n2").Underlay() {
			must(t, n1.Ping(ctx, to, 1))
		}
		for _, to := range []string{"198.51.100.1", "2001:db8::1"} { // RFC 5737, RFC 3849
			if err := n1.Ping(ctx, netip.MustParseAddr(to), 1); err == nil {
				t.Errorf("%s answers", to)
			}
		}
		links, err := l.Fabric().Run(ctx, "ip", "-br", "link")
		must(t, err)
		t.Log(links)
	})
}
