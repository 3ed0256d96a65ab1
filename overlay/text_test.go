// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

// samples is one entry of each kind with every field set.
func samples() []Entry {
	return []Entry{
		Filter{
			Guard: GuardBind, Masquerade: true, Port: 8472, VNI: 1, Networks: [2]netip.Prefix{prefix("10.5.0.0/16"), prefix("fd00:5::/48")},
			Subnets: [2]netip.Prefix{pods(4, 1), pods(6, 1)}, Devices: [2]string{"weft.1", "weft6.1"}, Bridge: "cni0",
			Lengths: Lengths{}.WithLength(4, 24).WithLength(6, 64), Foreign: "chain input: no rule 2",
		},
		Node{Addr: addr("10.0.0.2"), Own: true},
		Source{Outer: addr("10.0.0.2"), Inner: prefix("10.5.2.0/24")},
		Pods{Subnet: prefix("10.5.2.0/24")},
		Link{
			Name: "weft.1", VNI: 1, Port: 8472, Local: addr("10.0.0.1"), Underlay: "eth0", MAC: mac(1), MTU: 1450,
			Learning: true, GBP: true, NoGRO: true, Up: true, RPFilter: 2, AddrGen: "none", Foreign: "ttl 5",
		},
		Addr{Dev: "weft.1", Prefix: prefix("10.5.1.0/32")},
		FDB{Dev: "weft.1", MAC: mac(2), Dst: addr("10.0.0.2")},
		Neigh{Dev: "weft.1", IP: addr("10.5.2.0"), MAC: mac(2)},
		Route{
			Dev: "weft.1", Dst: prefix("10.5.2.0/24"), Via: addr("10.5.2.0"), Src: addr("10.5.1.0"),
			Metric: 1100, Onlink: true, Proto: RouteProtocol,
		},
	}
}

// otherValue returns a value of v's type that differs from v.
func otherValue(t *testing.T, v reflect.Value) reflect.Value {
	t.Helper()
	switch x := v.Interface().(type) {
	case Guard:
		return reflect.ValueOf(GuardPeers)
	case Lengths:
		return reflect.ValueOf(x.WithLength(6, 128))
	case [2]netip.Prefix:
		return reflect.ValueOf([2]netip.Prefix{x[0], prefix("fd00:9::/48")})
	case [2]string:
		return reflect.ValueOf([2]string{x[0], x[1] + "x"})
	case netip.Addr:
		return reflect.ValueOf(addr("10.9.9.9"))
	case netip.Prefix:
		return reflect.ValueOf(prefix("10.9.9.0/24"))
	case subnet.MAC:
		return reflect.ValueOf(mac(999))
	case string:
		return reflect.ValueOf(x + "x")
	case bool:
		return reflect.ValueOf(!x)
	case int:
		return reflect.ValueOf(x + 1)
	case uint8:
		return reflect.ValueOf(x + 1)
	case uint16:
		return reflect.ValueOf(x + 1)
	case uint32:
		return reflect.ValueOf(x + 1)
	}
	t.Fatalf("no other value for a %s: add its type here", v.Type())
	return reflect.Value{}
}

// A field that is added to an entry and forgotten in Diff, in the order or in
// the text would make differences that nobody mends or sees.
func TestEveryFieldCounts(t *testing.T) {
	for _, e := range samples() {
		v := reflect.ValueOf(e)
		for i := range v.NumField() {
			name := v.Type().Name() + "." + v.Type().Field(i).Name
			changed := reflect.New(v.Type()).Elem()
			changed.Set(v)
			changed.Field(i).Set(otherValue(t, v.Field(i)))
			o := changed.Interface().(Entry)

			if v.Field(i).IsZero() {
				t.Errorf("%s is zero in the sample", name)
			}
			if e.String() == o.String() {
				t.Errorf("%s does not show: %s", name, e)
			}
			want, have := NewState(), NewState()
			want.Add(e)
			have.Add(o)
			if Diff(want, have).Empty() || Diff(have, want).Empty() || want.Equal(have) {
				t.Errorf("%s makes no difference", name)
			}
			if compareEntries(e, o) == 0 || compareEntries(e, o) != -compareEntries(o, e) {
				t.Errorf("%s is not part of the order", name)
			}
		}
	}
}

func compareEntries(a, b Entry) int {
	return int(reflect.ValueOf(compareMethod(a)).Call([]reflect.Value{reflect.ValueOf(b)})[0].Int())
}

func compareMethod(e Entry) any {
	switch e := e.(type) {
	case Filter:
		return e.compare
	case Node:
		return e.compare
	case Source:
		return e.compare
	case Pods:
		return e.compare
	case Link:
		return e.compare
	case Addr:
		return e.compare
	case FDB:
		return e.compare
	case Neigh:
		return e.compare
	case Route:
		return e.compare
	}
	return nil
}

// The same for the sets of a State.
func TestEverySetCounts(t *testing.T) {
	if n := reflect.TypeFor[State]().NumField(); n != len(samples()) || n != reflect.TypeFor[Counts]().NumField() {
		t.Fatalf("State has %d sets, Counts %d, and there are %d kinds of entry", n, reflect.TypeFor[Counts]().NumField(), len(samples()))
	}
	for i, e := range samples() {
		s, empty := NewState(), NewState()
		s.Add(e)
		if reflect.ValueOf(s).Field(i).Len() != 1 {
			t.Errorf("Add puts %T into another set than %s", e, reflect.TypeFor[State]().Field(i).Name)
		}
		c := s.Clone()
		if !c.Equal(s) || s.Equal(empty) || empty.Equal(s) {
			t.Errorf("Clone or Equal misses %T", e)
		}
		reflect.ValueOf(c).Field(i).Clear()
		if !c.Equal(empty) || s.Equal(empty) {
			t.Errorf("Clone shares its %T", e)
		}
		if got := s.Counts(); got.Total() != 1 || reflect.ValueOf(got).Field(i).Int() != 1 {
			t.Errorf("Counts misses %T: %s", e, got)
		}
		if !strings.Contains(s.String(), e.String()) {
			t.Errorf("String misses %T: %s", e, s)
		}
		if Diff(s, empty).Empty() || Diff(empty, s).Empty() {
			t.Errorf("Diff misses %T", e)
		}
	}
}

// The zero State, as an embedder might pass it, is an empty one.
func TestZeroStateIsEmpty(t *testing.T) {
	s := NewState()
	s.Add(samples()[0])
	if !Diff(State{}, State{}).Empty() || len(Diff(s, State{})) != 1 || len(Diff(State{}, s)) != 1 || !(State{}).Equal(NewState()) {
		t.Error("the zero State is not an empty one")
	}
}

func TestChangeAsJSON(t *testing.T) {
	b, err := json.Marshal(Changes{{Op: Replace, Entry: samples()[7]}})
	want := `[{"op":"replace","kind":"neigh","text":"ip neigh replace 10.5.2.0 lladdr 0a:00:00:00:00:02 dev weft.1 nud permanent"}]`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
}

// A shell must not mistake what stands in a Filter for a command, nor a line
// of it for another line.
func TestFilterIsAComment(t *testing.T) {
	f := samples()[0].(Filter)
	f.Foreign = "rule 1:\nreboot"
	for _, op := range []Op{Add, Replace, Delete} {
		if got := (Change{Op: op, Entry: f}).String(); !strings.HasPrefix(got, "# "+op.String()+" filter inet weft guard bind ") || strings.Contains(got, "\n") {
			t.Errorf("%q", got)
		}
	}
}

func TestModifyOfAnUnknownLinkSetsEverything(t *testing.T) {
	got := Change{Op: Modify, Entry: samples()[4]}.String()
	want := "sysctl -qw net.ipv4.conf.weft/1.rp_filter=2 && ip link set weft.1 addrgenmode none && " +
		"ip link set weft.1 type vxlan id 1 learning && ethtool -K weft.1 gro off && ip link set weft.1 address 0a:00:00:00:00:01 mtu 1450 up"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What we print is what an operator can run: the changes of every scenario, in
// a network namespace of its own, lead to what Desired says, and those of an
// uninstallation leave nothing. The table itself is made here.
func TestChangesRunInAShell(t *testing.T) {
	for _, s := range scenarios() {
		if len(s.self.Underlays) == 0 {
			continue // nothing to put on
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for the kernel
			have := NewState()
			if s.before != nil {
				have = s.before(&s)
			}
			want, _ := Desired(s.self, s.config(), s.leases, have)
			out := runShell(t, script(Diff(have, NewState()))+script(Diff(want, have))+showScript)
			expect := want.Clone()
			expect.Links, expect.Filters = nil, nil // the entries show that they are there
			if got, want := sortLines(out), sortLines(plain(expect.String())); got != want {
				t.Errorf("the kernel shows\n%s\nwant\n%s", got, want)
			}
			if out := runShell(t, script(Diff(want, NewState()))+script(Diff(NewState(), want))+showScript); out != "" {
				t.Errorf("left after the uninstallation:\n%s", out)
			}
		})
	}
}

// script is what c prints, with a table that has the sets of a Filter where
// that is only told.
func script(c Changes) string {
	var b strings.Builder
	for _, ch := range c {
		b.WriteString(ch.String() + "\n")
		f, ok := ch.Entry.(Filter)
		if !ok {
			continue
		}
		if ch.Op != Add {
			b.WriteString("nft delete table inet weft\n")
		}
		if ch.Op != Delete {
			b.WriteString("nft -f - <<EOF\n" + table(f) + "EOF\n")
		}
	}
	return b.String()
}

func table(f Filter) string {
	kind := map[subnet.Family]string{4: "ipv4_addr", 6: "ipv6_addr"}
	outerField := map[subnet.Family]string{4: "ip saddr", 6: "ip6 saddr"}
	innerField := map[subnet.Family]string{4: "@th,336,32", 6: "@th,304,128"} // as backend/nft has them
	var b strings.Builder
	b.WriteString("table inet weft {\n")
	for _, outer := range subnet.Families() {
		fmt.Fprintf(&b, "set peers%d { type %s; }\nset own%d { type %s; }\n", outer, kind[outer], outer, kind[outer])
		for family, n := range f.Lengths.All() {
			if family == outer && f.open(int(outer)/6) {
				fmt.Fprintf(&b, "set pods%d_%d { type %s; }\n", family, n, kind[family])
			}
		}
		if f.Guard != GuardBind {
			continue
		}
		for inner, n := range f.Lengths.WithLength(4, 32).WithLength(6, 128).All() {
			fmt.Fprintf(&b, "set bind%d_inner%d_%d { typeof %s . %s; }\n", outer, inner, n, outerField[outer], innerField[inner])
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// showScript prints what is there the way State does.
const showScript = `
bridge fdb show | grep 'dst .* self permanent' | sed 's/^/fdb /'
ip neigh show nud permanent | awk '{ print "neigh", $1, "lladdr", $5, "dev", $3, "nud permanent" }'
(ip route show; ip -6 route show) | grep 'proto 87' | sed 's/ pref medium//; s/^/route /'
ip -o addr show | awk '$2 ~ /weft|flannel/ { print "addr", $4, "dev", $2 }'
ip -o link show type vxlan | awk '$9 != "UNKNOWN"'
nft list ruleset | tr -d '\n\t' | sed 's/set /\n/g' | sed -n 's/^\([a-z0-9_]*\) {.*elements = { \([^}]*\) }.*/\1,\2/p' |
	awk -F ', *' '{ for (i = 2; i <= NF; i++) print ($1 ~ /bind/ ? "source" : $1 ~ /pods/ ? "pods" : "node"), "inet weft", $1, "{", $i, "}" }'
`

// plain leaves out the comments after elements, which nft does not keep.
func plain(s string) string {
	return regexp.MustCompile(`(?m)^(source .*) # .*$`).ReplaceAllString(s, "$1")
}

func runShell(t *testing.T, script string) string {
	t.Helper()
	script = `set -e
ip link add eth0 mtu 9100 type veth peer name far
ip link set lo up; ip link set far up; ip link set eth0 up
ip addr add 10.0.0.1/16 dev eth0; ip addr add fd01::1/64 dev eth0 nodad
` + script
	out, err := exec.CommandContext(t.Context(), "unshare", "-n", "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\nscript:\n%s", err, out, script)
	}
	return string(out)
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
