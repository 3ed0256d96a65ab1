// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"weft.dev/weft/internal/nshost"
)

func TestSpoofGolden(t *testing.T) {
	nshost.Golden(t, "spoof.golden", Diff(Spoof(t, yardPods()[0]), Content{}).String())
	// A pod that goes and one that comes are elements, and nothing else.
	plan := Diff(Spoof(t, yardPods()[1:]...), Spoof(t, yardPods()[:2]...).Content())
	if plan.Replace {
		t.Errorf("pods changed the rules: %q", plan.Why)
	}
	nshost.Golden(t, "spoof-delta.golden", plan.String())
}

func TestSpoofDecodingInvertsEncoding(t *testing.T) {
	want := Spoof(t, yardPods()...)
	got, err := messages(want.Table, Diff(want, Content{}).batch())
	if err != nil || !reflect.DeepEqual(got, want.Content()) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want.Content())
	}
}

func TestSpoofElements(t *testing.T) {
	good := func() SpoofPod {
		return SpoofPod{Port: "veth0", MAC: net.HardwareAddr(macA), Addrs: addrs(a4, a6)}
	}
	count := func(p SpoofPod) map[string]int {
		list, err := SpoofElements(p)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]int{}
		for _, e := range list {
			out[e.Set]++
		}
		if len(Desired{Elements: list}.Content().Elements) != len(list) {
			t.Errorf("%+v: the same element twice in %v", p, list)
		}
		return out
	}
	for name, c := range map[string]struct {
		change       func(*SpoofPod)
		source4, six int
	}{
		"dual stack":         {func(*SpoofPod) {}, 1, 2},
		"no addresses":       {func(p *SpoofPod) { p.Addrs = nil }, 0, 1},
		"link-local given":   {func(p *SpoofPod) { p.Addrs = addrs(linkA) }, 0, 1},
		"another link-local": {func(p *SpoofPod) { p.Addrs = addrs("fe80::1") }, 0, 2},
		"one twice":          {func(p *SpoofPod) { p.Addrs = addrs("192.0.2.1", "192.0.2.0", "192.0.2.1", a4) }, 3, 1},
	} {
		p := good()
		c.change(&p)
		got := count(p)
		if got["source4"] != c.source4 || got["source6"] != c.six || got["targets6"] != c.six || got["ports"]+got["macs"]+got["options6"] != 3 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSpoofElementsRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*SpoofPod)
		want   string
	}{
		"no port":               {func(p *SpoofPod) { p.Port = "" }, `port ""`},
		"long port":             {func(p *SpoofPod) { p.Port = "0123456789abcdef" }, `port "0123456789abcdef"`},
		"port with a NUL":       {func(p *SpoofPod) { p.Port = "a\x00b" }, `want 1 to 15 bytes`},
		"no MAC":                {func(p *SpoofPod) { p.MAC = nil }, `of port veth0: want 6 bytes`},
		"zero MAC":              {func(p *SpoofPod) { p.MAC = make([]byte, 6) }, `MAC "00:00:00:00:00:00"`},
		"group MAC":             {func(p *SpoofPod) { p.MAC = net.HardwareAddr(toAll) }, `MAC "ff:ff:ff:ff:ff:ff"`},
		"InfiniBand's":          {func(p *SpoofPod) { p.MAC = make([]byte, 20) }, "want 6 bytes"},
		"unspecified":           {func(p *SpoofPod) { p.Addrs = addrs("0.0.0.0") }, "address 0.0.0.0"},
		"unspecified IPv6":      {func(p *SpoofPod) { p.Addrs = addrs("::") }, "address ::"},
		"extra unspecified":     {func(p *SpoofPod) { p.Addrs = addrs("0.0.0.0") }, "address 0.0.0.0"},
		"multicast":             {func(p *SpoofPod) { p.Addrs = addrs("224.0.0.1") }, "address 224.0.0.1"},
		"loopback":              {func(p *SpoofPod) { p.Addrs = addrs("::1") }, "address ::1"},
		"broadcast":             {func(p *SpoofPod) { p.Addrs = addrs("255.255.255.255") }, "want one of a single host"},
		"mapped":                {func(p *SpoofPod) { p.Addrs = addrs("::ffff:10.0.0.1") }, "without zone"},
		"zone":                  {func(p *SpoofPod) { p.Addrs = addrs("fe80::1%eth0") }, "without zone"},
		"invalid":               {func(p *SpoofPod) { p.Addrs = []netip.Addr{{}} }, "port veth0"},
		"end of the space":      {func(p *SpoofPod) { p.Addrs = addrs("255.255.255.255") }, "want one of a single host"},
		"end of IPv6 addresses": {func(p *SpoofPod) { p.Addrs = addrs("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") }, "want one of a single host"},
	} {
		p := SpoofPod{Port: "veth0", MAC: net.HardwareAddr(macA), Addrs: addrs(a4, a6)}
		c.change(&p)
		if list, err := SpoofElements(p); err == nil || !strings.Contains(err.Error(), c.want) || list != nil {
			t.Errorf("%s: %d elements, error %v, want %q", name, len(list), err, c.want)
		}
	}
}
