// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft.dev/weft/subnet"
)

// pick returns one of list.
func pick[T any](c *campaign, list ...T) T { return list[c.rng.IntN(len(list))] }

// victim returns a good peer and its key.
func (c *campaign) victim() (string, subnet.Lease) {
	key := slices.Sorted(maps.Keys(c.good))[c.rng.IntN(len(c.good))]
	return key, c.good[key]
}

// mutant returns one entry that no agent would write, and what kind it is of.
// A good peer's own key is only ever overwritten with what is no lease.
func (c *campaign) mutant() (key, value, kind string) {
	for {
		key, value, kind = c.draw()
		_, err := subnet.DecodeLease(key, []byte(value))
		if _, good := c.good[key]; !good || err != nil {
			return key, value, kind
		}
	}
}

func (c *campaign) draw() (key, value, kind string) {
	victim, l := c.victim()
	switch n := c.rng.IntN(100); {
	case n < 5:
		return victim, c.junkValue(l), "junk over a good peer"
	case n < 15:
		return c.e.key(c.junkKey()), c.e.value(l), "junk key"
	case n < 25:
		return c.e.key(c.freeKey()), c.junkValue(l), "junk value"
	case n < 50:
		return c.e.key(c.flip(strings.TrimPrefix(victim, c.e.key("")))), c.flip(c.e.value(l)), "flipped bytes"
	case n < 60:
		return c.e.key(c.flip(strings.TrimPrefix(victim, c.e.key("")))), c.e.value(l), "flipped key"
	}
	key, value = c.hostile(l)
	return c.e.key(key), value, "hostile"
}

// flip changes up to four bytes of text.
func (c *campaign) flip(text string) string {
	b := []byte(text)
	for range 1 + c.rng.IntN(4) {
		switch i := c.rng.IntN(len(b)); c.rng.IntN(4) {
		case 0:
			b[i] ^= 1 << c.rng.IntN(8)
		case 1:
			b[i] = byte('0' + c.rng.IntN(10)) // stays a number, often
		case 2:
			b[i] = byte(c.rng.IntN(256))
		default:
			b = slices.Delete(b, i, i+1)
			if len(b) == 0 {
				return "x"
			}
		}
	}
	return string(b)
}

// freeKey spells subnets that no good peer has.
func (c *campaign) freeKey() string {
	i := 101 + c.rng.IntN(150)
	return pick(c, fmt.Sprintf("10.42.%d.0-24", i), fmt.Sprintf("10.42.%d.0-24&fd42:0:0:%x::-64", i, i), fmt.Sprintf("fd42:0:0:%x::-64", i))
}

func (c *campaign) junkKey() string {
	return fmt.Sprintf("%s#%d", pick(c, "garbage", "../config", "10.42.1.0", "0.0.0.0-0", "10.42.1.0-32", "a/b", "", "fe80::-64",
		"10.42.1.1-24", "999.1.1.0-24", "\xff\xfe\x00", "10.42.1.0-24&10.42.2.0-24", "fd42::-64&10.42.1.0-24", strings.Repeat("k", 5000)), c.rng.Uint32())
}

// junkValue returns a value that is no lease.
func (c *campaign) junkValue(l subnet.Lease) string {
	good := c.e.value(l)
	switch c.rng.IntN(8) {
	case 0:
		return good[:c.rng.IntN(len(good))]
	case 1:
		return good + pick(c, "}", "{}", "x", "\x00")
	case 2:
		if c.rng.IntN(10) == 0 {
			return pick(c, strings.Repeat("A", 1<<20), `"`+strings.Repeat("\xff", 1<<20)+`"`, good+strings.Repeat(" ", 1<<20), strings.Repeat("[", 1<<20))
		}
	case 3:
		return strings.Repeat(pick(c, "[", `{"Weft":`, `{"BackendData":`), 1+c.rng.IntN(20000))
	}
	return pick(c, "", "x", "{", "null", "[]", "0", "true", `"x"`, "{}", "\xff\xfe\x00", "\ufeff"+good,
		`{"PublicIP":7}`, `{"PublicIP":["192.168.0.1"]}`, `{"PublicIP":"224.0.0.1"}`, `{"PublicIP":"0.0.0.0"}`, `{"PublicIP":"127.0.0.1"}`,
		`{"PublicIP":"192.168.0.1","BackendType":{}}`, `{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":"x"}`,
		`{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VNI":-1,"VtepMAC":"02:00:00:00:00:01"}}`,
		`{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VNI":1e99,"VtepMAC":"02:00:00:00:00:01"}}`,
		`{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"00:00:00:00:00:00"}}`,
		`{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}`,
		`{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"ff:ff:ff:ff:ff:ff"}}`,
		`{"PublicIP":"192.168.0.1","Weft":{"Node":"\u0000","Instance":7}}`, `{"PublicIP":"192.168.0.1","Weft":{"Node":"../../x"}}`)
}

// hostile returns what somebody would write who can write to the store and
// means harm: leases that parse, and claim what is another's.
func (c *campaign) hostile(l subnet.Lease) (key, value string) {
	return c.hostileKey(l), c.hostileValue(l)
}

// hostileKey spells subnets: free ones, a good peer's in other words, wider,
// narrower, beside, ours, and outside the network.
func (c *campaign) hostileKey(l subnet.Lease) string {
	p := l.Paths[c.rng.IntN(len(l.Paths))].Subnet
	bits := p.Bits() + c.rng.IntN(17) - 8
	if p.Addr().Is4() {
		bits = min(bits, 31)
	}
	q := netip.PrefixFrom(p.Addr(), bits).Masked()
	six := p.Addr().StringExpanded() + fmt.Sprintf("-%d", p.Bits())
	switch c.rng.IntN(6) {
	case 0:
		return fmt.Sprintf("%v-%d", q.Addr(), q.Bits())
	case 1:
		if p.Addr().Is6() {
			return six
		}
		return fmt.Sprintf("%v-%d&fd42:0:0:%x::-64", p.Addr(), p.Bits(), 200+c.rng.IntN(50))
	case 2:
		return pick(c, "10.42.100.0-24", "10.42.100.128-25", "10.42.0.0-17", "fd42:0:0:64::-64", "fd42:0:0:60::-60",
			"10.42.100.0-24&fd42:0:0:64::-64", "10.42.100.0-24&fd42:0:0:65::-64")
	case 3:
		return pick(c, "10.43.1.0-24", "10.0.0.0-8", "192.168.0.0-16", "192.168.0.0-24", "172.16.0.0-24", "128.0.0.0-1", "fd01::-64", "fd00::-8", "8000::-1", "10.42.0.0-16", "fd42::-48",
			"10.7.7.0-24", "10.7.7.6-31")
	}
	return c.freeKey()
}

// hostileValue claims addresses, MACs, names and sources of good peers and of
// this node.
func (c *campaign) hostileValue(l subnet.Lease) string {
	own, other := c.self.Lease, l
	if c.rng.IntN(3) == 0 {
		_, other = c.victim()
	}
	other4, other6 := other.Paths[0], other.Paths[len(other.Paths)-1]
	addr4 := pick(c, other4.Underlay.String(), "192.168.0.0", "1.2.3.4", "10.7.7.7", own.Paths[0].Underlay.String(), "192.168.9.9", "192.168.9.9",
		fmt.Sprintf("172.16.0.%d", 1+c.rng.IntN(goodPeers)), "10.42.3.3", "10.42.100.5", "10.42.99.99", "255.255.255.254", "240.0.0.1", "169.254.1.1", "0.0.0.0")
	addr6 := pick(c, other6.Underlay.String(), "fd01::", own.Paths[1].Underlay.String(), "2001:db8::9", "fd42:0:0:3::3", "fd42:0:0:64::5",
		fmt.Sprintf("fd09::%x", 1+c.rng.IntN(goodPeers)), "::", "2000::")
	mac := func(p subnet.Path) string {
		return pick(c, p.MAC.String(), p.MAC.String(), own.Paths[0].MAC.String(), own.Paths[1].MAC.String(), "02:aa:aa:aa:aa:aa", fmt.Sprintf("02:bb:00:00:00:%02x", c.rng.IntN(256)))
	}
	type object map[string]any
	v := object{"PublicIP": addr4, "PublicIPv6": nil, "BackendType": pick(c, "vxlan", "vxlan", "vxlan", "vxlan", "vxlan", "vxlan", "host-gw", "wireguard", "ipip", "", "VXLAN")}
	v["BackendData"] = object{"VNI": pick(c, 1, 1, 1, 1, 0, 2, 65537, 16777215), "VtepMAC": mac(other4)}
	if c.rng.IntN(2) == 0 {
		v["PublicIPv6"], v["BackendV6Data"] = addr6, object{"VNI": 1, "VtepMAC": mac(other6)}
	}
	if c.rng.IntN(3) > 0 {
		w := object{"Node": pick(c, fmt.Sprint("evil", c.rng.IntN(1000)), fmt.Sprint("evil", c.rng.IntN(1000)), other.Node, own.Node, strings.Repeat("n", 253)),
			"Instance": pick(c, "x", "", other.Instance, own.Instance)}
		if c.rng.IntN(2) == 0 {
			w["Sources"] = c.hostileSources(other)
		}
		v["Weft"] = w
	}
	text, err := json.Marshal(v)
	if err != nil {
		c.e.Fatal(err)
	}
	return string(text)
}

func (c *campaign) hostileSources(l subnet.Lease) any {
	all := []string{"10.7.7.7", "10.42.100.1", "fd42:0:0:64::1", "172.16.0.2", "172.16.0.7", "192.168.0.1", "192.168.0.5", "10.42.5.5", "255.255.255.254", "169.254.0.1",
		c.self.Lease.Paths[0].Underlay.String(), c.self.Lease.Paths[1].Underlay.String(), l.Paths[0].Underlay.String(), "fd09::2", "fd01::5", "1.1.1.1"}
	switch c.rng.IntN(8) {
	case 0:
		return pick[any](c, "10.0.0.1", 7, []int{1}, []string{""}, []string{"x"}, []string{"0.0.0.0"}, []string{"224.0.0.1"}, []string{"fe80::1%eth0"},
			[]string{"::ffff:10.0.0.1"}, slices.Repeat([]string{"10.0.0.1"}, 5000), map[string]int{})
	case 1:
		return all
	}
	return []string{pick(c, all...), pick(c, all...), pick(c, all...)}
}
