// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// probeSpec is node 1 of a dual-stack network.
func probeSpec() ProbeSpec {
	return ProbeSpec{
		Networks: []netip.Prefix{prefix("10.42.0.0/16"), prefix("fd42::/48")},
		Own:      []netip.Prefix{prefix("10.42.1.0/24"), prefix("fd42:0:0:1::/64")},
		Devices:  []string{"weft.1", "weft6.1"}, Bridge: "cni0",
	}
}

// found returns the problems of a kind.
func found(t *testing.T, spec ProbeSpec, kind string) (out []subnet.Problem) {
	t.Helper()
	all, err := Probe(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Kind == kind {
			out = append(out, p)
		}
	}
	return out
}

// obey runs the commands that a problem's detail gives, as somebody would who
// pastes them into a shell.
func obey(t *testing.T, p subnet.Problem) {
	t.Helper()
	parts := strings.Split(p.Detail, "run `")
	if len(parts) != 2 {
		t.Fatalf("%s: names %d commands, want 1", p, len(parts)-1)
	}
	command, _, _ := strings.Cut(parts[1], "`")
	if out, err := exec.CommandContext(t.Context(), "sh", "-ec", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	t.Logf("%s: %s", p.Object, command)
}

// pings reports whether an answer comes.
func pings(from *namespace, to string) bool {
	return from.command("ping -c 1 -W 1 -q "+to).Run() == nil
}

// gets is pings, where there must be an answer: on a busy machine one echo may
// take longer than ping waits.
func gets(from *namespace, to string) bool {
	return slices.ContainsFunc(make([]bool, 5), func(bool) bool { return pings(from, to) })
}

// forwardLab makes this namespace a router between a pod on cni0, 10.42.1.5
// and fd42:0:0:1::5, and another node's pod, .2.5 and :2::5, behind weft.1.
func forwardLab(t *testing.T) (pod *namespace) {
	t.Helper()
	enterNetns(t)
	run(t, "ip link add cni0 type bridge")
	run(t, "ip link set cni0 addrgenmode none up")
	run(t, "ip addr add 10.42.1.1/24 dev cni0")
	run(t, "ip addr add fd42:0:0:1::1/64 dev cni0 nodad")
	pod = addPod(t, "veth1", "10.42.1.5/24", "fd42:0:0:1::5/64", "fe80::5/64")
	run(t, "ip addr add fe80::1/64 dev cni0 nodad") // neighbour discovery needs one
	pod.run("ip route add default via 10.42.1.1")
	pod.run("ip -6 route add default via fd42:0:0:1::1")
	other := newNamespace(t)
	run(t, "ip link add u0 type veth peer name u0 netns "+other.path())
	for _, c := range []string{"ip link set u0 addrgenmode none up", "ip addr add 10.42.2.1/24 dev u0", "ip addr add fd42:0:0:2::1/64 dev u0 nodad", "ip addr add fe80::1/64 dev u0 nodad"} {
		run(t, c)
	}
	for _, c := range []string{"ip link set u0 addrgenmode none up", "ip addr add 10.42.2.5/24 dev u0", "ip addr add fd42:0:0:2::5/64 dev u0 nodad", "ip addr add fe80::5/64 dev u0 nodad",
		"ip route add default via 10.42.2.1", "ip -6 route add default via fd42:0:0:2::1"} {
		other.run(c)
	}
	sysctl(t, "net/ipv4/ip_forward", "1")
	sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	eventually(t, "the pods to reach each other", func() bool { return pings(pod, "10.42.2.5") && pings(pod, "fd42:0:0:2::5") })
	return pod
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestForwardDropped: another's chain that drops what is forwarded is named
// with a command; before it nothing passes, after it everything does, and the
// problem is gone. Docker makes such a chain, in the first form.
func TestForwardDropped(t *testing.T) {
	pod := forwardLab(t)
	for _, c := range []struct {
		name, table string
		blocked     []string
	}{
		{"nft chain ip filter FORWARD", "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; iifname \"docker0\" accept; }; }", []string{"10.42.2.5"}},
		{"nft chain ip6 filter FORWARD", "table ip6 filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }", []string{"fd42:0:0:2::5"}},
		{"nft chain inet my-wall for-ward.1", "table inet my-wall { chain for-ward.1 { type filter hook forward priority 7; policy drop; ct state established,related accept comment \"other\"; }; }",
			[]string{"10.42.2.5", "fd42:0:0:2::5"}},
	} {
		run(t, "nft flush ruleset")
		if got := found(t, probeSpec(), "ForwardDropped"); len(got) > 0 {
			t.Fatalf("without any table: %v", got)
		}
		nftScript(t, c.table)
		for _, to := range c.blocked {
			if pings(pod, to) {
				t.Fatalf("%s: not dropped: %s", c.name, to)
			}
		}
		got := found(t, probeSpec(), "ForwardDropped")
		if len(got) != 1 || got[0].Object != c.name {
			t.Fatalf("%v, want one about %s", got, c.name)
		}
		before := run(t, "nft list ruleset")
		obey(t, got[0])
		for _, to := range c.blocked {
			if !gets(pod, to) {
				t.Errorf("%s: still no answer from %s\n%s", c.name, to, run(t, "nft list ruleset"))
			}
		}
		if got := found(t, probeSpec(), "ForwardDropped"); len(got) > 0 {
			t.Errorf("after the command: %v", got)
		}
		for line := range strings.Lines(before) { // and what was there is there
			if !strings.Contains(run(t, "nft list ruleset"), strings.TrimSpace(line)) {
				t.Errorf("%s: %q is missing", c.name, line)
			}
		}
	}
}

// TestBridgeForwardDropped: the same for frames between pods of one node.
func TestBridgeForwardDropped(t *testing.T) {
	pod := forwardLab(t)
	addPod(t, "veth2", "10.42.1.6/24", "fd42:0:0:1::6/64", "fe80::6/64")
	reach := func() bool { return pings(pod, "10.42.1.6") && pings(pod, "fd42:0:0:1::6") }
	eventually(t, "the pods to reach each other", reach)
	pod.run("ip neigh flush all")
	nftScript(t, "table bridge wall { chain forward { type filter hook forward priority 0; policy drop; }; }")
	if pings(pod, "10.42.1.6") || pings(pod, "fd42:0:0:1::6") {
		t.Fatal("not dropped")
	}
	spec := probeSpec()
	got := found(t, spec, "ForwardDropped")
	if len(got) != 1 || got[0].Object != "nft chain bridge wall forward" {
		t.Fatal(got)
	}
	obey(t, got[0])
	eventually(t, "the pods to reach each other again", reach)
	if got := found(t, spec, "ForwardDropped"); len(got) > 0 {
		t.Error(got)
	}
}

// TestForwardNotDropped: chains that are none of this problem.
func TestForwardNotDropped(t *testing.T) {
	enterNetns(t)
	for _, table := range []string{
		"table inet a { chain forward { type filter hook forward priority 0; policy accept; }; }",
		"table inet b { chain input { type filter hook input priority 0; policy drop; }; }",
		"table inet c { chain forward { }; }",
		"table inet d { flags dormant; chain forward { type filter hook forward priority 0; policy drop; }; }",
		"table inet weft { chain forward { type filter hook forward priority 0; policy drop; }; }",
		"table inet e { chain forward { type filter hook forward priority 0; policy drop; accept comment \"weft: mine\"; }; }",
		"table bridge f { chain forward { type filter hook forward priority 0; policy drop; }; }",
	} {
		nftScript(t, table)
	}
	spec := probeSpec()
	spec.Bridge = ""
	if got := found(t, spec, "ForwardDropped"); len(got) > 0 {
		t.Error(got)
	}
	nftScript(t, "table ip6 g { chain forward { type filter hook forward priority 0; policy drop; }; }")
	spec.Networks = spec.Networks[:1] // IPv4 alone
	if got := found(t, spec, "ForwardDropped"); len(got) > 0 {
		t.Error(got)
	}
}

func nftScript(t *testing.T, script string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "nft", "-f", "-")
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// TestNames: what stands in a name runs no command.
func TestNames(t *testing.T) {
	for name, want := range map[string]string{"filter": "filter", "for-ward.1": "for-ward.1", "a;b": `"a;b"`, "1st": `"1st"`} {
		if got := nftName(name); got != want {
			t.Errorf("nftName(%q) = %s, want %s", name, got, want)
		}
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+quote("a'b; $(echo c)`echo d`")).Output()
	if err != nil || string(out) != "a'b; $(echo c)`echo d`" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestRouteShadowed: a route of another inside a pod network is named with the
// command that takes it away, and after it packets go weft's way.
func TestRouteShadowed(t *testing.T) {
	enterNetns(t)
	one, two, _ := twoNodes(t)
	converge(t, one, node(1, 2, false))
	converge(t, two, node(2, 1, false))
	spec := probeSpec()
	if got := found(t, spec, "RouteShadowed"); len(got) > 0 {
		t.Fatalf("weft's own routes: %v", got)
	}
	for _, c := range []struct{ add, object, dst string }{
		{"ip route add 10.42.2.0/25 via 10.0.0.77", "10.42.2.0/25", "10.42.2.5"},
		{"ip route add 10.42.2.0/24 via 10.0.0.77 proto static", "10.42.2.0/24", "10.42.2.5"},
		{"ip route add 10.42.2.5/32 dev u0 metric 77", "10.42.2.5/32", "10.42.2.5"},
		{"ip route add blackhole 10.42.2.5", "10.42.2.5/32", "10.42.2.5"},
		{"ip -6 route add fd42:0:0:2::/65 via fd00::77", "fd42:0:0:2::/65", "fd42:0:0:2::5"},
		{"ip -6 route add unreachable fd42:0:0:2::/65 metric 5", "fd42:0:0:2::/65", "fd42:0:0:2::5"},
		{"ip addr add 10.42.2.130/25 dev u0", "10.42.2.128/25", "10.42.2.200"},
		{"ip addr add fd42:0:0:2::77/112 dev u0 nodad", "fd42:0:0:2::/112", "fd42:0:0:2::5"},
	} {
		run(t, c.add)
		if out, _ := try("ip route get " + c.dst); strings.Contains(out, "dev weft") {
			t.Fatalf("%s does not shadow: %s", c.add, out)
		}
		got := found(t, spec, "RouteShadowed")
		if len(got) != 1 || got[0].Object != c.object {
			t.Fatalf("%s: %v", c.add, got)
		}
		obey(t, got[0])
		if out := run(t, "ip route get "+c.dst); !strings.Contains(out, "dev weft") {
			t.Errorf("%s: after the command: %s", c.add, out)
		}
		if got := found(t, spec, "RouteShadowed"); len(got) > 0 {
			t.Errorf("%s: after the command: %v", c.add, got)
		}
	}
}

// TestRouteNotShadowed: routes that take nothing from weft.
func TestRouteNotShadowed(t *testing.T) {
	enterNetns(t)
	one, _, _ := twoNodes(t)
	converge(t, one, node(1, 2, true)) // direct: our own routes on the underlay
	run(t, "ip link add cni0 type bridge")
	run(t, "ip link set cni0 up")
	run(t, "ip link add veth1 type veth peer name p1")
	run(t, "ip link set veth1 up")
	for _, c := range []string{
		"ip addr add 10.42.1.1/24 dev cni0", "ip addr add fd42:0:0:1::1/64 dev cni0 nodad", // the bridge's
		"ip route add 10.42.1.7/32 dev veth1",                       // a pod of ours without the bridge
		"ip route add 10.42.0.0/16 via 10.0.0.77",                   // everything that is more specific wins
		"ip route add blackhole 10.0.0.0/8",                         //
		"ip route add default via 10.0.0.77",                        //
		"ip route add 10.43.0.0/24 via 10.0.0.77",                   // another network
		"ip route add 10.42.2.0/24 via 10.0.0.77 metric 60000",      // loses to ours
		"ip route add 10.42.2.0/26 via 10.0.0.77 table 7",           // another table
		"ip route add 10.42.3.0/24 via 10.42.3.0 dev weft.1 onlink", // on our device: Diff's business
	} {
		run(t, c)
	}
	if got := found(t, probeSpec(), "RouteShadowed"); len(got) > 0 {
		t.Error(got)
	}
	run(t, "ip addr add 10.42.9.1/24 dev cni0") // of a subnet that nobody has now
	early := probeSpec()                        // of an agent that starts and knows no lease yet
	early.Own = nil
	for name, spec := range map[string]ProbeSpec{"": probeSpec(), "early: ": early} {
		for _, p := range found(t, spec, "RouteShadowed") {
			if strings.Contains(p.Detail, "dev cni0") {
				t.Error(name, p)
			}
		}
	}
}

// TestFormerSubnetShadows: what the bridge has of a subnet that this node had
// once takes what is sent to whoever has it now.
func TestFormerSubnetShadows(t *testing.T) {
	enterNetns(t)
	one, _, _ := twoNodes(t)
	converge(t, one, node(1, 2, false))
	run(t, "ip link add cni0 type bridge")
	run(t, "ip link set cni0 up")
	for _, a := range []string{"10.42.1.1/24 dev cni0", "10.42.2.1/24 dev cni0", "fd42:0:0:2::1/64 dev cni0 nodad"} {
		run(t, "ip addr add "+a)
	}
	got := found(t, probeSpec(), "RouteShadowed")
	if len(got) != 2 || !strings.Contains(got[0].Detail, "ip addr del 10.42.2.1/24 dev cni0") || !strings.Contains(got[1].Detail, "ip addr del fd42:0:0:2::1/64 dev cni0") {
		t.Fatalf("%v, want one for each family, with the command", got)
	}
	for _, p := range got {
		obey(t, p)
	}
	if got := found(t, probeSpec(), "RouteShadowed"); len(got) > 0 {
		t.Errorf("after the commands: %v", got)
	}
}

// TestReversePathFilter: a strict filter drops what comes from a peer directly
// while the way back is VXLAN. The command lets it pass.
func TestReversePathFilter(t *testing.T) {
	enterNetns(t)
	one, two, other := twoNodes(t)
	converge(t, one, node(1, 2, false))
	converge(t, two, node(2, 1, true)) // the other sends directly
	spec := probeSpec()
	spec.Underlays = []overlay.Underlay{{Dev: "u0", Addr: ip("10.0.0.1")}, {Dev: "u0", Addr: ip("fd00::1")}}
	const echo = "-I 10.42.2.5 10.42.1.5"
	reaches := func() bool { return pings(other, echo) }
	for _, c := range []struct{ all, dev string }{{"0", "1"}, {"1", "0"}, {"1", "1"}} {
		sysctl(t, "net/ipv4/conf/all/rp_filter", c.all)
		sysctl(t, "net/ipv4/conf/u0/rp_filter", c.dev)
		if reaches() {
			t.Fatalf("all %s, device %s: not dropped", c.all, c.dev)
		}
		got := found(t, spec, "ReversePathFilter")
		if len(got) != 1 || got[0].Object != "u0" {
			t.Fatalf("all %s, device %s: %v", c.all, c.dev, got)
		}
		obey(t, got[0])
		if !gets(other, echo) {
			t.Errorf("all %s, device %s: still dropped", c.all, c.dev)
		}
		if got := found(t, spec, "ReversePathFilter"); len(got) > 0 {
			t.Error(got)
		}
	}
	for _, c := range []struct{ all, dev string }{{"0", "0"}, {"2", "1"}, {"1", "2"}} {
		sysctl(t, "net/ipv4/conf/all/rp_filter", c.all)
		sysctl(t, "net/ipv4/conf/u0/rp_filter", c.dev)
		if got := found(t, spec, "ReversePathFilter"); len(got) > 0 || !gets(other, echo) {
			t.Errorf("all %s, device %s: %v", c.all, c.dev, got)
		}
	}
	sysctl(t, "net/ipv4/conf/u0/rp_filter", "1")
	sysctl(t, "net/ipv4/conf/all/rp_filter", "1")
	for _, spec := range []ProbeSpec{probeSpec(), {Underlays: []overlay.Underlay{{Dev: "gone", Addr: ip("fd00::1")}}}} {
		if got := found(t, spec, "ReversePathFilter"); len(got) > 0 { // nobody sends directly
			t.Error(got)
		}
	}
	run(t, "ip link add u0.5 type veth peer name p5")
	spec.Underlays = []overlay.Underlay{{Dev: "u0.5", Addr: ip("10.0.0.1")}}
	if got := found(t, spec, "ReversePathFilter"); len(got) != 1 { // a dot in the name
		t.Error(got)
	} else {
		obey(t, got[0])
	}
	if got := found(t, spec, "ReversePathFilter"); len(got) > 0 {
		t.Error(got)
	}
}

// TestProbeLeavesAllAsItIs: also with everything to look at.
func TestProbeLeavesAllAsItIs(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	nftScript(t, "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }")
	run(t, "ip route add 10.42.2.0/25 via 10.0.0.77")
	sysctl(t, "net/ipv4/conf/u0/rp_filter", "1")
	spec := probeSpec()
	spec.Underlays = []overlay.Underlay{{Dev: "u0", Addr: ip("10.0.0.1")}}
	m, before := newMonitor(t), run(t, "nft list ruleset")
	got, err := Probe(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if heard := m.drain(); len(heard) > 0 || run(t, "nft list ruleset") != before {
		t.Errorf("the probe changed something: %q", heard)
	}
	for _, kind := range []string{"ForwardDropped", "RouteShadowed", "ReversePathFilter"} {
		if !slices.ContainsFunc(got, func(p subnet.Problem) bool { return p.Kind == kind }) {
			t.Errorf("no %s in %s", kind, fmt.Sprint(got))
		}
	}
}
