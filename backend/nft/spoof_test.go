// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/internal/nshost"
)

// Every lie is delivered without the elements, so that the test can fail, and
// none with them.
func TestSpoofedFramesAreRefused(t *testing.T) {
	const n = 1000
	y := newYard(t)
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	install(t, y.conn, Spoof(t))
	for _, f := range lies() {
		at, refused := y.deliver("a", f, n)
		if most := slices.Max(slices.Collect(maps.Values(at))); most != n || len(refused) > 0 {
			t.Errorf("%s, port not in the set: delivered %v of %d, refused %v", f.name, at, n, refused)
		}
	}
	install(t, y.conn, Spoof(t, yardPods()...))
	for _, f := range lies() {
		at, refused := y.deliver("a", f, n)
		if len(at) > 0 || refused[f.want] != n || len(refused) > 1 {
			t.Errorf("%s: delivered %v of %d, refused %v, want %s", f.name, at, n, refused, f.want)
		}
	}
	t.Logf("%d kinds, %d each", len(lies()), n)
	// What is no port of a pod may say all of this.
	for _, f := range lies()[:3] {
		if at, refused := y.deliver("d", f, 10); len(at) == 0 || len(refused) > 0 {
			t.Errorf("%s from an uplink: delivered %v of 10, refused %v", f.name, at, refused)
		}
	}
}

func TestOwnFramesPass(t *testing.T) {
	y := newYard(t)
	install(t, y.conn, Spoof(t, yardPods()...))
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	for _, f := range ownFrames() {
		at, refused := y.deliver("a", f, burst)
		if len(at) == 0 || slices.Max(slices.Collect(maps.Values(at))) != burst || len(refused) > 0 {
			t.Errorf("%s: delivered %v of %d, refused %v", f.name, at, burst, refused)
		}
		// And only from the port whose own they are.
		if at, refused := y.deliver("b", f, 10); len(at) > 0 || total(refused) != 10 {
			t.Errorf("%s from pod b: delivered %v of 10, refused %v", f.name, at, refused)
		}
	}
	t.Logf("%d kinds, %d each", len(ownFrames()), burst)
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// starts is how many pods TestPodStarts starts, and together how many.
const (
	starts   = 50
	together = 25
)

// Pods start as they always do: addresses are found to be free, and the first
// packet to the gateway and to another pod is answered.
// WEFT_TEST_POD_STARTS=500 makes it as many.
func TestPodStarts(t *testing.T) {
	n := starts
	if s := os.Getenv("WEFT_TEST_POD_STARTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("WEFT_TEST_POD_STARTS: %v", err)
		}
	}
	begin := time.Now()
	y := newYard(t)
	install(t, y.conn, Spoof(t, yardPods()...))
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	for from := 0; from < n; from += together {
		if !t.Run(fmt.Sprintf("%d", from), func(t *testing.T) { y.start(t, from, min(from+together, n)) }) {
			break
		}
	}
	if refused := y.refused(); len(refused) > 0 {
		t.Errorf("refused, and nobody lied: %v", refused)
	}
	t.Logf("%d pods in %v", n, time.Since(begin).Round(time.Second))
}

func (y *yard) start(t *testing.T, from, to int) {
	type pod struct {
		*nshost.Host
		SpoofPod
	}
	pods, want := []pod{}, yardPods()
	for i := from; i < to; i++ {
		p := pod{nshost.New(t), SpoofPod{
			Port:  fmt.Sprintf("veth%d", i),
			MAC:   net.HardwareAddr{2, 0, 0, 1, byte(i >> 8), byte(i)},
			Addrs: addrs(fmt.Sprintf("10.42.1.%d", 100+i%100), fmt.Sprintf("fd42:0:0:1::1:%x", i)),
		}}
		pods, want = append(pods, p), append(want, p.SpoofPod)
	}
	install(t, y.conn, Spoof(t, want...))
	for _, p := range pods {
		y.attach(p.Host, p.Port, p.MAC.String())
		p.Sysctl("1", "ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify") // as the bridge plugin does
		y.address(p.Host, p.Addrs[0].String(), p.Addrs[1].String())
	}
	for _, p := range pods {
		y.settled(p.Host)
		for _, to := range []string{gw6, b6, gw4, b4} {
			if out, err := p.Try("", "ping", "-c1", "-W5", to); err != nil {
				t.Errorf("%v: the first ping to %s: %v\n%s%v", p.Addrs, to, err, out, y.refused())
			}
		}
	}
	for _, p := range pods {
		y.node.Run("ip link del " + p.Port)
	}
}

// Who has cold caches asks and is answered, everybody by everybody.
func TestColdPings(t *testing.T) {
	y := newYard(t)
	install(t, y.conn, Spoof(t, yardPods()...))
	names := []string{"a", "b", "c"}
	for _, n := range names {
		y.settled(y.pods[n])
	}
	v4, v6 := map[string]string{"a": a4, "b": b4, "c": c4}, map[string]string{"a": a6, "b": b6, "c": c6}
	for _, from := range names {
		for _, to := range append([]string{gw4, gw6, linkGateway + "%eth0"}, v4["a"], v6["a"], v4["b"], v6["b"], v4["c"], v6["c"]) {
			for n, h := range y.pods {
				h.Run("ip neigh flush all")
				y.node.Run("ip link set port-" + n + " type bridge_slave fdb_flush")
			}
			y.node.Run("ip neigh flush all")
			size := "-s4000" // which comes in fragments
			if out, err := y.pods[from].Try("", "ping", size, "-c1", "-W5", to); err != nil {
				t.Errorf("%s to %s: %v\n%s", from, to, err, out)
			}
		}
	}
	for _, to := range []string{a4, a6} {
		if out, err := y.node.Try("", "ping", "-c1", "-W5", to); err != nil {
			t.Errorf("node to %s: %v\n%s", to, err, out)
		}
	}
	if refused := y.refused(); len(refused) > 0 {
		t.Errorf("refused, and nobody lied: %v", refused)
	}
}

// Frames to addresses of the bridge group teach the bridge without meeting the
// table, and with no_linklocal_learn do not. Should the first half fail one day,
// SpoofTable's comment is wrong.
func TestBridgeLearnsFromLinkLocalFrames(t *testing.T) {
	y := newYard(t)
	install(t, y.conn, Spoof(t, yardPods()...))
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	lldp := frame{bytes: ethernet("\x01\x80\xc2\x00\x00\x0e", macB, 0x88cc, []byte("in the name of pod b, to draw its frames"))}
	where := func() string {
		for line := range strings.Lines(y.node.Run("bridge fdb show br br0")) {
			if strings.HasPrefix(line, "02:00:00:00:01:0b dev") && !strings.Contains(line, "permanent") {
				return strings.Fields(line)[2]
			}
		}
		return ""
	}
	ping := func() { y.pods["b"].Run("ping -c1 -W5 " + gw4) }
	tell := func() {
		for range 10 {
			y.send("a", lldp)
		}
	}
	ping()
	if at := where(); at != "port-b" {
		t.Fatalf("the bridge knows pod b at %q", at)
	}
	nshost.Eventually(t, "the bridge to be misled", func() bool { tell(); return where() == "port-a" })
	y.node.Run("ip link set br0 type bridge no_linklocal_learn 1")
	ping()
	tell()
	f := ownFrames()[0]
	if at, _ := y.deliver("a", f, 1); at["c"] != 1 { // sent after them
		t.Errorf("delivered %v", at)
	}
	if at := where(); at != "port-b" {
		t.Errorf("with no_linklocal_learn the bridge knows pod b at %q", at)
	}
}

func TestSpoofTableListsAndLoads(t *testing.T) {
	y := newYard(t)
	y.settled(y.pods["a"], y.pods["b"], y.pods["c"])
	want := Spoof(t, yardPods()...)
	install(t, y.conn, want)
	for _, cmd := range []string{"nft list ruleset", "nft -j list ruleset", "nft list tables", "nft -a list table bridge weft_guard"} {
		out := y.node.Run(cmd)
		if strings.Contains(out, "rror") || !strings.Contains(out, "weft_guard") || !strings.Contains(out, "port-a") && !strings.Contains(cmd, "tables") {
			t.Errorf("%s:\n%s", cmd, out)
		}
	}
	listing := y.node.Run("nft list ruleset")
	y.node.NFT("flush ruleset\n" + listing)
	if again := y.node.Run("nft list ruleset"); again != listing {
		t.Errorf("loaded again:\n%s\nwas\n%s", again, listing)
	}
	have := mustDump(t, y.conn, want.Table)
	if !maps.Equal(have.Elements, want.Content().Elements) {
		t.Errorf("loaded again, %d elements are %d", len(want.Elements), len(have.Elements))
	}
	for _, f := range lies() {
		if at, refused := y.deliver("a", f, 5); len(at) > 0 || refused[f.want] != 5 {
			t.Errorf("loaded again: %s: delivered %v of 5, refused %v, want %s", f.name, at, refused, f.want)
		}
	}
	for _, f := range ownFrames() {
		if at, refused := y.deliver("a", f, 5); len(refused) > 0 {
			t.Errorf("loaded again: %s: delivered %v of 5, refused %v", f.name, at, refused)
		}
	}
	install(t, y.conn, want)
}
