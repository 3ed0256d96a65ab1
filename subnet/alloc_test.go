// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// network returns the pod network that net-conf.json would give for p.
func network(t testing.TB, p string, length int) Network {
	t.Helper()
	prefix := netip.MustParsePrefix(p)
	key := map[Family]string{IPv4: "", IPv6: "IPv6"}[FamilyOf(prefix.Addr())]
	conf := fmt.Sprintf(`{"%sNetwork": %q, "%sSubnetLen": %d}`, key, p, key, length)
	c, err := ParseConfig([]byte(conf), "test", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return c.Networks[0]
}

// naiveFree lists the free subnets by walking the whole network and asking
// of each address in turn whether it is in anything taken. Slow and plain.
func naiveFree(n Network, taken []netip.Prefix) []netip.Prefix {
	var free []netip.Prefix
	for a := n.SubnetMin; n.Prefix.Contains(a) && !n.SubnetMax.Less(a); {
		p := netip.PrefixFrom(a, n.SubnetLen)
		isTaken := false
		for _, t := range taken {
			isTaken = isTaken || t.Contains(a) || p.Contains(t.Masked().Addr())
		}
		if !isTaken {
			free = append(free, p)
		}
		for a = a.Next(); a.IsValid() && p.Contains(a); {
			a = a.Next()
		}
	}
	return free
}

// genPool draws a network of at most 64 subnets of at most 16 addresses in
// either family, with bounds anywhere inside.
func genPool() *rapid.Generator[Network] {
	return rapid.Custom(func(t *rapid.T) Network {
		f := rapid.SampledFrom([]Family{IPv4, IPv6}).Draw(t, "family")
		hostBits := rapid.IntRange(2, 4).Draw(t, "host bits")
		cut := rapid.IntRange(2, 6).Draw(t, "subnet bits")
		length := f.bits() - hostBits
		base := rapid.SampledFrom(map[Family][]string{
			IPv4: {"10.0.0.0", "10.1.2.0", "255.255.252.0", "223.255.255.255"},
			IPv6: {"fd00::", "fd00::ffff:ffff:ffff:f000", "2001:db8::1:0:0", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		}[f]).Draw(t, "base")
		n := Network{Prefix: netip.PrefixFrom(netip.MustParseAddr(base), length-cut).Masked(), SubnetLen: length}
		low := rapid.IntRange(0, 1<<cut-1).Draw(t, "min")
		high := rapid.IntRange(low, 1<<cut-1).Draw(t, "max")
		n.SubnetMin, n.SubnetMax = n.at(n.Prefix.Addr(), uint64(low)), n.at(n.Prefix.Addr(), uint64(high))
		return n
	})
}

// genTaken draws prefixes inside, around and outside n, of any length.
func genTaken(n Network) *rapid.Generator[[]netip.Prefix] {
	one := rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
			return rapid.SampledFrom([]netip.Prefix{
				{}, netip.MustParsePrefix("10.255.0.0/16"), netip.MustParsePrefix("fd01::/16"),
				netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
				netip.MustParsePrefix("::ffff:10.0.0.0/104"),
			}).Draw(t, "outside")
		}
		count := 1 << (n.Prefix.Addr().BitLen() - n.Prefix.Bits())
		a := n.at(n.Prefix.Addr(), 0)
		for range rapid.IntRange(0, count-1).Draw(t, "offset") {
			a = a.Next()
		}
		bits := rapid.IntRange(n.Prefix.Bits(), a.BitLen()).Draw(t, "bits")
		return netip.PrefixFrom(a, bits) // host bits may be set
	})
	return rapid.SliceOfN(one, 0, 12)
}

// TestAllocateMatchesNaive: the free subnets are exactly those the plain
// walk finds, in the same order, for every number Pick can give.
func TestAllocateMatchesNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genPool().Draw(t, "network")
		taken := genTaken(n).Draw(t, "taken")
		want := naiveFree(n, taken)
		r := Request{Network: n, Taken: taken}
		if len(want) == 0 {
			if p, err := Allocate(r); !errors.Is(err, ErrExhausted) {
				t.Fatalf("%v, %v; want ErrExhausted", p, err)
			}
			return
		}
		for k := range want {
			r.Pick = func(free int) int {
				if free != len(want) {
					t.Fatalf("%d free; want %d: %v", free, len(want), want)
				}
				return k
			}
			p, err := Allocate(r)
			if err != nil || p != want[k] {
				t.Fatalf("number %d is %v, %v; want %v of %v", k, p, err, want[k], want)
			}
			if err := n.Holds(p); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestAllocatePrevious: the previous subnet comes back exactly when the
// plain walk lists it as free; otherwise the answer is as without it.
func TestAllocatePrevious(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genPool().Draw(t, "network")
		taken := genTaken(n).Draw(t, "taken")
		previous := rapid.OneOf(
			rapid.SampledFrom(append(genTaken(n).Draw(t, "previous"), netip.Prefix{})),
			rapid.SampledFrom(naiveFree(n, nil)),
		).Draw(t, "previous one")
		free := naiveFree(n, taken)
		p, err := Allocate(Request{Network: n, Taken: taken, Previous: previous})
		switch {
		case slices.Contains(free, previous):
			if err != nil || p != previous {
				t.Fatalf("%v, %v; want %v", p, err, previous)
			}
		case len(free) == 0:
			if !errors.Is(err, ErrExhausted) {
				t.Fatalf("%v, %v; want ErrExhausted", p, err)
			}
		case err != nil || p != free[0]:
			t.Fatalf("%v, %v; want %v", p, err, free[0])
		}
	})
}

func TestAllocateCases(t *testing.T) {
	v4, v6 := network(t, "10.5.0.0/16", 24), network(t, "fd00:10:5::/48", 64)
	for _, v := range []struct {
		name string
		r    Request
		want string
	}{
		{"first free", Request{Network: v4}, "10.5.1.0/24"},
		{"first free, IPv6", Request{Network: v6}, "fd00:10:5:1::/64"},
		{"around a lease", Request{Network: v4, Taken: prefixes(t, "10.5.1.0/24", "10.5.3.0/24")}, "10.5.2.0/24"},
		{"a longer reservation", Request{Network: v4, Taken: prefixes(t, "10.5.1.128/25")}, "10.5.2.0/24"},
		{"a single address", Request{Network: v6, Taken: prefixes(t, "fd00:10:5:1::7/128")}, "fd00:10:5:2::/64"},
		{"a shorter reservation", Request{Network: v4, Taken: prefixes(t, "10.5.0.0/17")}, "10.5.128.0/24"},
		{"the other family", Request{Network: v4, Taken: prefixes(t, "fd00:10:5::/48", "::/0")}, "10.5.1.0/24"},
		{"previous", Request{Network: v4, Previous: netip.MustParsePrefix("10.5.77.0/24")}, "10.5.77.0/24"},
		{"previous, IPv6", Request{Network: v6, Previous: netip.MustParsePrefix("fd00:10:5:77::/64")}, "fd00:10:5:77::/64"},
		{"previous taken", Request{Network: v4, Previous: netip.MustParsePrefix("10.5.77.0/24"), Taken: prefixes(t, "10.5.77.0/24")}, "10.5.1.0/24"},
		{"previous overlapped", Request{Network: v4, Previous: netip.MustParsePrefix("10.5.77.0/24"), Taken: prefixes(t, "10.5.76.0/22")}, "10.5.1.0/24"},
		{"previous of another length", Request{Network: v4, Previous: netip.MustParsePrefix("10.5.77.0/25")}, "10.5.1.0/24"},
		{"previous of another network", Request{Network: v4, Previous: netip.MustParsePrefix("10.6.77.0/24")}, "10.5.1.0/24"},
		{"previous below SubnetMin", Request{Network: v4, Previous: netip.MustParsePrefix("10.5.0.0/24")}, "10.5.1.0/24"},
		{"previous of the other family", Request{Network: v4, Previous: netip.MustParsePrefix("fd00:10:5:77::/64")}, "10.5.1.0/24"},
		{"a number in the middle", Request{Network: v4, Taken: prefixes(t, "10.5.10.0/24"), Pick: func(n int) int { return n / 2 }}, "10.5.129.0/24"},
		{"the last number", Request{Network: v4, Pick: func(n int) int { return n - 1 }}, "10.5.255.0/24"},
	} {
		t.Run(v.name, func(t *testing.T) {
			p, err := Allocate(v.r)
			if err != nil || p.String() != v.want {
				t.Errorf("got %v, %v; want %s", p, err, v.want)
			}
		})
	}
}

// 64 nodes take 64 subnets, whatever they pick; the 65th is told.
func TestAllocateFillsThePool(t *testing.T) {
	for _, conf := range []string{
		`{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.64.0","SubnetMax":"10.5.127.0"}`,
		`{"IPv6Network":"fd00:10:5::/48","IPv6SubnetLen":54,"IPv6SubnetMin":"fd00:10:5::","IPv6SubnetMax":"fd00:10:5:fc00::"}`,
	} {
		c, err := ParseConfig([]byte(conf), "test", Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		var taken []netip.Prefix
		for range 64 {
			p, err := Allocate(Request{Network: c.Networks[0], Taken: taken, Pick: random.IntN})
			if err != nil {
				t.Fatalf("seed %d, %d taken: %v", seed, len(taken), err)
			}
			for _, other := range taken {
				if other.Overlaps(p) {
					t.Fatalf("seed %d: %v overlaps %v", seed, p, other)
				}
			}
			taken = append(taken, p)
		}
		_, err = Allocate(Request{Network: c.Networks[0], Taken: taken, Pick: random.IntN})
		if !errors.Is(err, ErrExhausted) {
			t.Fatalf("seed %d: %v, want ErrExhausted", seed, err)
		}
		wantError(t, err, c.Networks[0].Prefix.String(), c.Networks[0].SubnetMin.String(), c.Networks[0].SubnetMax.String())
	}
}

// Pools that nobody can enumerate: 2^32 and 2^116 subnets.
func TestAllocateInHugeNetworks(t *testing.T) {
	n := network(t, "2001:db8::/32", 64)
	taken := prefixes(t, "2001:db8::/33", "2001:db8:8000::/64", "2001:db8:ffff:ffff::/64", "2001:db8:c000::/48")
	r := Request{Network: n, Taken: taken, Pick: func(free int) int {
		// Half of all, less the subnet at 8000::, the last one and 65536.
		if want := 1<<31 - 2 - 1<<16; free != want {
			t.Errorf("%d free, want %d", free, want)
		}
		return free - 1
	}}
	if p, err := Allocate(r); err != nil || p.String() != "2001:db8:ffff:fffe::/64" {
		t.Errorf("the last one is %v, %v", p, err)
	}
	r.Pick = nil
	if p, err := Allocate(r); err != nil || p.String() != "2001:db8:8000:1::/64" {
		t.Errorf("the first one is %v, %v", p, err)
	}

	vast := network(t, "fd00::/10", 126)
	r = Request{Network: vast, Taken: prefixes(t, "fd00::/32"), Previous: netip.MustParsePrefix("fd3f::/126")}
	if p, err := Allocate(r); err != nil || p != r.Previous {
		t.Errorf("previous subnet beyond 2^63: %v, %v", p, err)
	}
	r = Request{Network: vast, Pick: func(free int) int {
		if free != math.MaxInt64 {
			t.Errorf("%d free, want the cap", free)
		}
		return free - 1
	}}
	if p, err := Allocate(r); err != nil || vast.Holds(p) != nil {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestAllocateRejects(t *testing.T) {
	n := network(t, "10.5.0.0/16", 24)
	for _, k := range []int{-1, 255} {
		_, err := Allocate(Request{Network: n, Pick: func(int) int { return k }})
		wantError(t, err, "10.5.0.0/16", fmt.Sprint(k))
	}
	for _, edit := range []func(*Network){
		func(n *Network) { *n = Network{} },
		func(n *Network) { n.SubnetLen = 33 },
		func(n *Network) { n.SubnetLen = 15 },
		func(n *Network) { n.SubnetMin = netip.Addr{} },
		func(n *Network) { n.SubnetMin = netip.MustParseAddr("fd00::") },
		func(n *Network) { n.SubnetMax = netip.MustParseAddr("10.5.0.1") },
		func(n *Network) { n.SubnetMax = netip.MustParseAddr("10.6.0.0") },
		func(n *Network) { n.SubnetMin, n.SubnetMax = n.SubnetMax, n.SubnetMin },
	} {
		bad := n
		edit(&bad)
		if p, err := Allocate(Request{Network: bad}); err == nil {
			t.Errorf("%+v gives %v, want an error", bad, p)
		}
	}
}

func TestNetworkHolds(t *testing.T) {
	n := network(t, "10.5.0.0/16", 24)
	n.SubnetMax = netip.MustParseAddr("10.5.100.0")
	for p, want := range map[string]string{
		"10.5.1.0/24":         "",
		"10.5.100.0/24":       "",
		"10.5.0.0/24":         "want 10.5.1.0/24 to 10.5.100.0/24",
		"10.5.101.0/24":       "want 10.5.1.0/24 to 10.5.100.0/24",
		"10.6.1.0/24":         "want 10.5.1.0/24 to 10.5.100.0/24",
		"10.5.1.0/25":         "prefix length of 24",
		"10.5.1.1/24":         "host bits set: want 10.5.1.0/24",
		"fd00::/24":           "want one of 10.5.0.0/16",
		"::ffff:10.5.1.0/120": "want one of 10.5.0.0/16",
	} {
		err := n.Holds(netip.MustParsePrefix(p))
		if want == "" && err != nil {
			t.Errorf("%s: %v", p, err)
		} else if want != "" {
			wantError(t, err, p, want)
		}
	}
	wantError(t, n.Holds(netip.Prefix{}), "no subnet")
}

// The time grows with the leases, not with the network.
func BenchmarkAllocate(b *testing.B) {
	for _, v := range []struct {
		prefix string
		length int
		taken  int
	}{{"10.0.0.0/8", 24, 0}, {"10.0.0.0/8", 24, 10000}, {"fd00::/32", 64, 10000}} {
		n := network(b, v.prefix, v.length)
		random := rand.New(rand.NewPCG(1, 2))
		var taken []netip.Prefix
		for range v.taken {
			p, err := Allocate(Request{Network: n, Pick: random.IntN})
			if err != nil {
				b.Fatal(err)
			}
			taken = append(taken, p)
		}
		b.Run(fmt.Sprintf("%s-%d-taken%d", v.prefix, v.length, v.taken), func(b *testing.B) {
			for b.Loop() {
				if _, err := Allocate(Request{Network: n, Taken: taken, Pick: random.IntN}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
