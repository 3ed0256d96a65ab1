// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// openConfig is what a store makes of a configuration in which text's networks
// stand and the other families are open.
func openConfig(t *testing.T, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text), "test", subnet.Defaults{Open: true})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func leased(node string, subnets ...string) subnet.Lease {
	l := subnet.Lease{Node: node, Backend: subnet.BackendVXLAN}
	for _, s := range subnets {
		l.Paths = append(l.Paths, subnet.Path{Subnet: netip.MustParsePrefix(s)})
	}
	return l
}

// Where subnets come with the node, a network is only the bound of where pods
// are: it may come, go and change under them, as long as it does not leave out
// a subnet that is in use. That is a Problem which names both.
func TestANetworkComesAndGoes(t *testing.T) {
	const none = `{"EnableIPv6":false}`
	network := func(p string) string { return `{"EnableIPv6":false,"Network":"` + p + `"}` }
	for name, c := range map[string]struct {
		was, next string
		problem   string
		text      []string
	}{
		"the same":                 {was: none, next: none},
		"a network comes":          {was: none, next: network("10.42.0.0/16")},
		"a network goes":           {was: network("10.42.0.0/16"), next: none},
		"a wider one":              {was: network("10.42.0.0/16"), next: network("10.0.0.0/8")},
		"not this node's":          {was: none, next: network("10.43.0.0/16"), problem: "ConfigInvalid", text: []string{"10.43.0.0/16", "10.42.1.0/24", "this node"}},
		"not another node's":       {was: none, next: network("10.42.0.0/22"), problem: "ConfigInvalid", text: []string{"10.42.0.0/22", "10.42.9.0/24", "node n2"}},
		"narrower, of those in it": {was: network("10.42.0.0/20"), next: network("10.42.0.0/21"), problem: "ConfigInvalid", text: []string{"10.42.9.0/24"}},
		"a stranger stays outside": {was: network("10.42.0.0/17"), next: network("10.42.0.0/18")},
		"another family":           {was: none, next: `{}`, problem: "ConfigChanged", text: []string{"IPv6 network (none, now IPv6 as leased)"}},
	} {
		a, _ := bare(t)
		a.o.Store = storeKube
		was, next := openConfig(t, c.was), openConfig(t, c.next)
		a.network.Store(&was)
		a.self.Store(&overlay.Self{Lease: leased("n1", "10.42.1.0/24")})
		a.snapshot.Store(&subnet.Snapshot{Leases: subnet.LeasesOf(leased("n1", "10.42.1.0/24"), leased("n2", "10.42.9.0/24"), leased("far", "10.42.200.0/24"))})
		if strings.Contains(c.was, "/20") { // then nobody has let it in
			a.snapshot.Load().Leases = subnet.LeasesOf(leased("n2", "10.42.9.0/24"))
		}
		if name == "a stranger stays outside" {
			a.snapshot.Load().Leases = subnet.LeasesOf(leased("far", "10.42.200.0/24"))
		}
		var applied []subnet.Config
		a.judgeConfig(next, nil, func(cfg subnet.Config) { applied = append(applied, cfg) })
		problems := a.problems.all()
		if c.problem == "" {
			changes := !slices.Equal(was.Networks, next.Networks)
			if len(problems) != 0 || (len(applied) == 1) != changes || !slices.Equal(a.network.Load().Networks, next.Networks) {
				t.Errorf("%s: %v, applied %v, in force %+v", name, problems, applied, a.network.Load())
			}
			continue
		}
		if len(problems) != 1 || problems[0].Kind != c.problem || len(applied) != 0 || !slices.Equal(a.network.Load().Networks, was.Networks) {
			t.Errorf("%s: %v, applied %v, in force %+v", name, problems, applied, a.network.Load())
			continue
		}
		for _, text := range c.text {
			if !strings.Contains(problems[0].Detail, text) {
				t.Errorf("%s: %q lacks %q", name, problems[0].Detail, text)
			}
		}
	}
}

// subnet.env names the network, or this node's own part of one that is open, for
// each family that the node has a subnet of.
func TestSubnetEnvOfOpenNetworks(t *testing.T) {
	for name, c := range map[string]struct{ conf, want string }{
		"known":      {`{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`, "10.42.0.0/16 fd42::/48"},
		"open":       {`{}`, "10.42.1.0/24 fd42:0:0:1::/64"},
		"one of two": {`{"Network":"10.42.0.0/16"}`, "10.42.0.0/16 fd42:0:0:1::/64"},
	} {
		a, _ := bare(t)
		env := a.subnetEnv(openConfig(t, c.conf), overlay.Status{MTU: 1450, Lease: leased("n1", "10.42.1.0/24", "fd42:0:0:1::/64")})
		if got := strings.Trim(fmt.Sprint(env.Networks), "[]"); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if _, err := subnet.ParseSubnetEnv(env.Encode(), name); err != nil {
			t.Error(err)
		}
	}
	a, _ := bare(t)
	env := a.subnetEnv(openConfig(t, `{"IPv6Network":"fd42::/48"}`), overlay.Status{MTU: 1450, Lease: leased("n1", "10.42.1.0/24")})
	if _, err := subnet.ParseSubnetEnv(env.Encode(), "a family that is waited for"); err != nil {
		t.Error(err)
	}
}

// What the host must let through and keep free is, in an open network, what is
// leased.
func TestProbeOfOpenNetworks(t *testing.T) {
	a, _ := bare(t)
	cfg := openConfig(t, `{"IPv6Network":"fd42::/48"}`)
	a.network.Store(&cfg)
	own := leased("n1", "10.42.1.0/24", "fd42:0:0:1::/64")
	a.self.Store(&overlay.Self{Lease: own})
	a.snapshot.Store(&subnet.Snapshot{Leases: subnet.LeasesOf(own, leased("n2", "10.42.2.0/24", "fd42:0:0:2::/64"))})
	if s := a.probeSpec(); fmt.Sprint(s.Networks, s.Leased) != "[fd42::/48 10.42.1.0/24] [10.42.2.0/24]" {
		t.Errorf("networks %v, leased %v", s.Networks, s.Leased)
	}
}
