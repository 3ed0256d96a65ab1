// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// vandal is one random program against a node on the real kernel.
type vandal struct {
	t    *testing.T
	r    *rand.Rand
	k    *Kernel
	s    scenario
	did  []string // what it has done, in order
	hits int      // of it what the kernel did not refuse
}

// TestVandalPrograms lets random programs delete, alter and double what a node
// has: links, addresses, routes, neighbours, FDB entries, nftables objects and
// the underlay itself. Each program must be mended in at most two passes, and
// in no pass may anything change that is not weft's. WEFT_FULL=1 runs 500
// programs, otherwise 20; WEFT_SEED=n runs program n alone.
func TestVandalPrograms(t *testing.T) {
	t.Parallel()
	first, n := rand.Uint64N(1<<40), 20
	if os.Getenv("WEFT_FULL") == "1" {
		n = 500
	}
	if s := os.Getenv("WEFT_SEED"); s != "" {
		var err error
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("WEFT_SEED: %v", err)
		}
		n = 1
	}
	sum, passes := 0, map[int]int{}
	for i := range uint64(n) {
		t.Run(fmt.Sprintf("WEFT_SEED=%d", first+i), func(t *testing.T) {
			enterNetns(t)
			v := newVandal(t, first+i)
			v.program(passes)
			sum += v.hits
		})
	}
	t.Logf("%d programs, %d damages; rounds by passes: %v", n, sum, passes)
	if n > 1 && sum < 5*n {
		t.Errorf("%d damages are too few to prove anything", sum)
	}
}

// crowd is what else is on the node: the underlays u0 and w0, and devices,
// addresses, neighbours and routes of others, some of which look like ours.
const crowd = `
link add u0 type veth peer name u1
link add w0 type veth peer name w1
link add f0 type veth peer name f1
link add cni0 type bridge
link add br9 address 02:00:00:00:00:09 mtu 1500 type bridge
link set br9 mtu 1400
link set u0 addrgenmode none
link set u1 addrgenmode none
link set u1 up
link set w0 addrgenmode none
link set w1 addrgenmode none
link set w1 up
link set f0 addrgenmode none
link set f1 addrgenmode none
link set f1 up
link set cni0 addrgenmode none
link set cni0 up
addr add 10.0.0.1/24 dev u0
addr add fd00::1/64 dev u0 nodad
addr add 10.1.0.1/24 dev w0
addr add fd01::1/64 dev w0 nodad
addr add 10.9.0.1/24 dev f0
addr add fd09::1/64 dev f0 nodad
addr add 10.42.1.1/24 dev cni0
addr add fd42:0:0:1::1/64 dev cni0 nodad
link set u0 up
link set w0 up
link set f0 up
link add flannel.9 type vxlan id 9 dev f0 local 10.9.0.1 dstport 4789 nolearning
link set flannel.9 addrgenmode none
link set flannel.9 up
addr add 10.99.1.0/32 dev flannel.9
neigh add 10.99.2.0 lladdr 0a:58:00:00:00:77 dev flannel.9 nud permanent
neigh add 10.9.0.7 lladdr 0a:58:00:00:00:77 dev f0 nud permanent
neigh add fd09::7 lladdr 0a:58:00:00:00:77 dev f0 nud permanent
neigh add 10.0.0.77 lladdr 0a:58:00:00:00:77 dev u0 nud permanent
route add 10.99.2.0/24 via 10.99.2.0 dev flannel.9 onlink
route add 10.42.200.0/24 via 10.9.0.7
route add 10.42.201.0/24 via 10.9.0.7 proto static metric 7
route add 10.42.2.0/24 via 10.9.0.7 proto static metric 60000
route add blackhole 10.42.202.0/24
route add 10.42.2.0/24 via 10.9.0.7 table 7 proto 87
route add 192.0.2.0/24 via 10.0.0.77
route add default via 10.0.0.77
route add fd42:0:0:c8::/64 via fd09::7
route add fd42::/48 via fd09::7
route add ::/0 via fd00::77
rule add from 10.42.0.0/16 table 7
`

// crowdTables are the tables of others.
const crowdTables = `
table inet weft_not { set s { type ipv4_addr; elements = { 10.0.0.2 }; }; chain c { type filter hook input priority -7; ip saddr @s counter accept; }; }
table ip weft { chain c { type filter hook forward priority 0; policy accept; comment "same name"; }; }
table bridge other { chain c { ether type ip accept; }; }`

func newVandal(t *testing.T, seed uint64) *vandal {
	t.Helper()
	batch(t, crowd)
	run(t, "ip -6 rule add from fd42::/48 table 7")
	run(t, "bridge fdb add 0a:58:00:00:00:77 dev flannel.9 dst 10.9.0.7 self permanent")
	nftScript(t, crowdTables)
	v := &vandal{t: t, r: rand.New(rand.NewPCG(seed, 0)), k: newKernel(t, walkDevices()...)}
	v.settle()
	return v
}

// batch feeds commands to ip.
func batch(t testing.TB, commands string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "ip", "-batch", "-")
	c.Stdin = strings.NewReader(commands)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// settle waits until the kernel has done what it does after a device comes up.
func (v *vandal) settle() {
	v.t.Helper()
	pending := regexp.MustCompile(`(?m)^.*[<,]UP[,>].* state (DOWN|LOWERLAYERDOWN|NOTPRESENT) .*$`)
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, late := run(v.t, "ip -o link show type veth"), run(v.t, "ip -6 route show table local type local")
		if !pending.MatchString(out) && strings.Contains(late, "fd00::1 ") && strings.Contains(late, "fd01::1 ") {
			return
		}
		if time.Now().After(deadline) {
			v.t.Fatalf("not up: %s\n%s", pending.FindString(out), late)
		}
	}
}

// program does one to three rounds of damage, with a pass in the middle of one
// now and then, and with other wishes for half of them.
func (v *vandal) program(passes map[int]int) {
	v.t.Helper()
	defer func() {
		if v.t.Failed() {
			v.t.Logf("it did\n\t%s", strings.Join(v.did, "\n\t"))
		}
	}()
	v.wish()
	v.mend(3) // from nothing; not what is tested here
	for range 1 + v.r.IntN(3) {
		for range 1 + v.r.IntN(8) {
			v.damage()
			if v.r.IntN(8) == 0 {
				v.pass()
			}
		}
		if v.r.IntN(2) == 0 {
			v.wish()
		}
		v.restore()
		passes[v.mend(2)]++
		if v.t.Failed() {
			return
		}
	}
}

// wish draws what is desired.
func (v *vandal) wish() {
	states, modes := walkStates()[1:], guards()
	s, g := states[v.r.IntN(len(states))], modes[v.r.IntN(len(modes))]
	routing := []string{"VXLAN", "DirectRouting", "host-gw"}[v.r.IntN(3)]
	v.did = append(v.did, fmt.Sprintf("# wanted: %s, %s, %s", s.name, g.name, routing))
	v.s = named{s.name, append(slices.Clone(s.edits), g.edits...)}.scenario()
	switch routing {
	case "DirectRouting":
		v.s.cfg.Backend.DirectRouting = true
	case "host-gw":
		for _, p := range v.s.self.Lease.Paths { // only where families agree
			if subnet.FamilyOf(p.Subnet.Addr()) != subnet.FamilyOf(p.Underlay) || s.name == "underlay moved" || s.name == "peer address changed" {
				return
			}
		}
		v.s.cfg.Backend.Type = subnet.BackendHostGW
	}
}

// look finds the underlays anew, as the agent does after each event: by their
// addresses. One that is not there is kept.
func (v *vandal) look() {
	for i, u := range v.s.self.Underlays {
		found, err := FindUnderlays(v.t.Context(), UnderlaySpec{Ifaces: []string{u.Addr.String()}}, []subnet.Family{subnet.FamilyOf(u.Addr)})
		if err == nil {
			v.s.self.Underlays[i] = found[0]
		}
	}
}

// pass makes one pass and returns what it did. Nothing of others may change.
func (v *vandal) pass() overlay.Changes {
	v.t.Helper()
	v.look()
	have := mustDump(v.t, v.k)
	want, problems := overlay.Desired(v.s.self, v.s.cfg, v.s.leases, have)
	for _, p := range problems {
		if p.Kind != "MTUTooSmall" && p.Kind != "MTUTooLarge" { // which are the vandal's doing
			v.t.Fatalf("problem: %s", p)
		}
	}
	changes := overlay.Diff(want, have)
	v.did = append(v.did, fmt.Sprintf("# a pass: %d changes", len(changes)))
	if changes.Empty() {
		return nil
	}
	before := v.others(want)
	if err := v.k.Apply(v.t.Context(), changes); err != nil {
		v.did = append(v.did, "# "+strings.ReplaceAll(err.Error(), "\n", "\n\t# "))
	}
	if after := v.others(want); after != before {
		v.t.Fatalf("what is others' changed\n%s\nin a pass of %d changes", difference(before, after), len(changes))
	}
	return changes
}

// mend makes passes until there is nothing to do and returns how many it took.
func (v *vandal) mend(most int) int {
	v.t.Helper()
	var changes overlay.Changes
	for n := range most + 1 {
		if changes = v.pass(); changes.Empty() {
			return n
		}
	}
	v.t.Errorf("%d passes left\n%s", most, changes)
	return most + 1
}

// others prints everything in the namespace that is not weft's, without what
// changes by itself, and without routes of the kind that flannel leaves in the
// place of one that is wanted.
func (v *vandal) others(want overlay.State) string {
	v.t.Helper()
	script := `ip -d -o link; ip -o addr; ip -o route show table all; ip -o -6 route show table all; ip rule; ip -6 rule
ip neigh show nud permanent; bridge fdb show; bridge link show
cat /proc/sys/net/ipv4/conf/cni0/rp_filter /proc/sys/net/ipv4/conf/f0/rp_filter /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/rp_filter
echo NFT; nft -a list ruleset`
	out, err := exec.CommandContext(v.t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		v.t.Fatalf("%v: %s", err, out[max(0, len(out)-500):])
	}
	head, ruleset, _ := strings.Cut(string(out), "NFT\n")
	// Not ours to change either, but the kernel's, some time after a link
	// went: what is at the wires' far ends, and multicast routes.
	ours := regexp.MustCompile(`\bweft6?\.\d|proto 87\b|(dev|\d:) [uw]1\b|^multicast ff00::/8`)
	noise := regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|state \S+|linkdown|qdisc \S+|\w+_timer +\S+|tentative|dadfailed`)
	taken := map[string]bool{}
	for r := range want.Routes {
		taken[fmt.Sprintf("%s via %s dev %s", r.Dst, r.Via, r.Dev)] = true
	}
	flannels := regexp.MustCompile(`^(\S+ via \S+ dev \S+)( metric 1024 pref medium)? ?\n$`)
	var lines []string
	for line := range strings.Lines(head) {
		if m := flannels.FindStringSubmatch(line); m != nil && taken[m[1]] {
			continue
		}
		if !ours.MatchString(line) || strings.Contains(line, "table 7") {
			lines = append(lines, noise.ReplaceAllString(line, ""))
		}
	}
	slices.Sort(lines) // the kernel's hash tables have an order of their own
	var b strings.Builder
	b.WriteString(strings.Join(lines, ""))
	skip := false
	for line := range strings.Lines(ruleset) {
		skip = skip || strings.HasPrefix(line, "table inet weft {")
		if !skip {
			b.WriteString(line)
		}
		skip = skip && !strings.HasPrefix(line, "}")
	}
	return b.String()
}

// difference shows the lines that only one of two texts has.
func difference(a, b string) string {
	var out []string
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range la {
		if !slices.Contains(lb, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			out = append(out, "+ "+l)
		}
	}
	if out == nil {
		return "the order of lines"
	}
	return strings.Join(out, "\n")
}

// restore brings the underlays back that are wanted: somebody does, in the
// end.
func (v *vandal) restore() {
	v.t.Helper()
	for _, c := range []struct{ dev, four, six string }{{"u0", "10.0.0.1/24", "fd00::1/64"}, {"w0", "10.1.0.1/24", "fd01::1/64"}} {
		peer := strings.Replace(c.dev, "0", "1", 1)
		renamed := "r" + c.dev
		if _, err := try("ip link show " + renamed); err != nil {
			if _, err := try("ip link show " + c.dev); err != nil {
				batch(v.t, fmt.Sprintf("link add %s type veth peer name %s\nlink set %s addrgenmode none\nlink set %s addrgenmode none\n", c.dev, peer, c.dev, peer))
			}
			renamed = c.dev
		}
		batch(v.t, fmt.Sprintf("link set %s up\nlink set %s up\naddr replace %s dev %s\naddr replace %s dev %s nodad\n", peer, renamed, c.four, renamed, c.six, renamed))
	}
	v.settle()
}
