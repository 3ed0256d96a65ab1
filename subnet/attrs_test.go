// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// leaseVector is a lease and the exact bytes that stand for it in etcd.
type leaseVector struct {
	name  string
	lease Lease
	key   string
	value string
}

const (
	wgKey4 = "7oRJ1nBBTBKUTgXUGJPmSoxfmAXL9YZ0Nhb6OYl2nHI="
	wgKey6 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

func leaseVectors() []leaseVector {
	v4, v6 := netip.MustParsePrefix("10.5.52.0/24"), netip.MustParsePrefix("fd00:10:5::/64")
	u4, u6 := netip.MustParseAddr("192.168.10.2"), netip.MustParseAddr("2001:db8:a::2")
	mac4, mac6 := MAC{0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, MAC{0x0a, 0x58, 0, 1, 2, 3}
	return []leaseVector{
		{"IPv4 vxlan, flannel",
			Lease{Backend: BackendVXLAN, Paths: []Path{{Subnet: v4, Underlay: u4, MAC: mac4, VNI: 1}}},
			"10.5.52.0-24",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}`},
		{"dual vxlan, flannel",
			Lease{Backend: BackendVXLAN, Paths: []Path{{Subnet: v4, Underlay: u4, MAC: mac4, VNI: 4096}, {Subnet: v6, Underlay: u6, MAC: mac6, VNI: 4096}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":"2001:db8:a::2","BackendType":"vxlan","BackendData":{"VNI":4096,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"BackendV6Data":{"VNI":4096,"VtepMAC":"0a:58:00:01:02:03"}}`},
		{"IPv4 host-gw, flannel",
			Lease{Backend: BackendHostGW, Paths: []Path{{Subnet: v4, Underlay: u4}}},
			"10.5.52.0-24",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"host-gw"}`},
		{"dual host-gw, flannel",
			Lease{Backend: BackendHostGW, Paths: []Path{{Subnet: v4, Underlay: u4}, {Subnet: v6, Underlay: u6}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":"2001:db8:a::2","BackendType":"host-gw"}`},
		{"IPv4 wireguard, flannel",
			Lease{Backend: BackendWireGuard, Paths: []Path{{Subnet: v4, Underlay: u4, Key: wgKey4, Port: 51820}}},
			"10.5.52.0-24",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"` + wgKey4 + `","Port":51820}}`},
		{"dual wireguard, flannel",
			Lease{Backend: BackendWireGuard, Paths: []Path{{Subnet: v4, Underlay: u4, Key: wgKey4, Port: 51820}, {Subnet: v6, Underlay: u6, Key: wgKey6, Port: 51821}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":"2001:db8:a::2","BackendType":"wireguard","BackendData":{"PublicKey":"` + wgKey4 + `","Port":51820},"BackendV6Data":{"PublicKey":"` + wgKey6 + `","Port":51821}}`},
		{"reservation by hand",
			Lease{Paths: []Path{{Subnet: v4, Underlay: u4}}},
			"10.5.52.0-24",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null}`},
		{"dual vxlan of weft",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendVXLAN, Paths: []Path{{Subnet: v4, Underlay: u4, MAC: mac4, VNI: 1}, {Subnet: v6, Underlay: u6, MAC: mac6, VNI: 1}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":"2001:db8:a::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:58:00:01:02:03"},"Weft":{"Node":"node-1","Instance":"5f0c"}}`},
		{"IPv4 vxlan of weft, with sources",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendVXLAN, Sources: addrs("10.0.0.9", "2001:db8::9"),
				Paths: []Path{{Subnet: v4, Underlay: u4, MAC: mac4, VNI: 1}}},
			"10.5.52.0-24",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"Weft":{"Node":"node-1","Instance":"5f0c","Sources":["10.0.0.9","2001:db8::9"]}}`},
		{"dual host-gw of weft",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendHostGW, Paths: []Path{{Subnet: v4, Underlay: u4}, {Subnet: v6, Underlay: u6}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":"2001:db8:a::2","BackendType":"host-gw","Weft":{"Node":"node-1","Instance":"5f0c"}}`},
		{"both subnets over an IPv4 underlay",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendVXLAN, Paths: []Path{{Subnet: v4, Underlay: u4, MAC: mac4, VNI: 1}, {Subnet: v6, Underlay: u4, MAC: mac4, VNI: 1}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"Weft":{"Node":"node-1","Instance":"5f0c"}}`},
		{"both subnets over an IPv6 underlay",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendVXLAN, Paths: []Path{{Subnet: v4, Underlay: u6, MAC: mac6, VNI: 1}, {Subnet: v6, Underlay: u6, MAC: mac6, VNI: 1}}},
			"10.5.52.0-24&fd00:10:5::-64",
			`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8:a::2","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0a:58:00:01:02:03"},"Weft":{"Node":"node-1","Instance":"5f0c"}}`},
		{"IPv4 subnet over an IPv6 underlay",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendVXLAN, Paths: []Path{{Subnet: v4, Underlay: u6, MAC: mac6, VNI: 1}}},
			"10.5.52.0-24",
			`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8:a::2","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0a:58:00:01:02:03"},"Weft":{"Node":"node-1","Instance":"5f0c"}}`},
		{"IPv6 subnet over an IPv4 underlay",
			Lease{Node: "node-1", Instance: "", Backend: BackendVXLAN, Paths: []Path{{Subnet: v6, Underlay: u4, MAC: mac4, VNI: 1}}},
			"fd00:10:5::-64",
			`{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"Weft":{"Node":"node-1","Instance":""}}`},
		{"IPv6 alone",
			Lease{Node: "node-1", Instance: "5f0c", Backend: BackendVXLAN, Paths: []Path{{Subnet: v6, Underlay: u6, MAC: mac6, VNI: 1}}},
			"fd00:10:5::-64",
			`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8:a::2","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0a:58:00:01:02:03"},"Weft":{"Node":"node-1","Instance":"5f0c"}}`},
	}
}

func TestLeaseVectors(t *testing.T) {
	for _, v := range leaseVectors() {
		t.Run(v.name, func(t *testing.T) {
			key, value, err := EncodeLease(v.lease)
			if err != nil || key != v.key || string(value) != v.value {
				t.Errorf("encoded as\n%s %s, %v; want\n%s %s", key, value, err, v.key, v.value)
			}
			got, err := DecodeLease("/weft/network/subnets/"+v.key, []byte(v.value))
			if err != nil || !got.Equal(v.lease) {
				t.Errorf("decoded as\n%+v, %v; want\n%+v", got, err, v.lease)
			}
		})
	}
}

// What flannel of other versions, other tools and operators write.
func TestDecodeLeaseTolerates(t *testing.T) {
	base := leaseVectors()[0]
	noVNI, other := base.lease.Clone(), base.lease.Clone()
	noVNI.Paths[0].VNI = 0
	other.Backend = "ipip"
	other.Paths[0].MAC, other.Paths[0].VNI = MAC{}, 0
	bare := other.Clone()
	bare.Backend = ""
	linkLocal := bare.Clone()
	linkLocal.Paths[0].Underlay = netip.MustParseAddr("169.254.7.1")
	hostGW := bare.Clone()
	hostGW.Backend = BackendHostGW
	sources := hostGW.Clone()
	sources.Node, sources.Sources = "n", addrs("10.0.0.9", "2001:db8::9")
	noPort := leaseVectors()[4].lease.Clone()
	noPort.Paths[0].Port = 0
	for _, v := range []struct {
		name, value string
		want        Lease
	}{
		{"no VNI, as old flannel", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"}}`, noVNI},
		{"no WireGuard port, as old flannel", `{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"` + wgKey4 + `"}}`, noPort},
		{"host-gw with null data", `{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"host-gw","BackendData":null}`, hostGW},
		{"sources in any order", `{"PublicIP":"192.168.10.2","BackendType":"host-gw","Weft":{"Node":"n","Sources":["2001:db8::9","10.0.0.9","10.0.0.9"]}}`, sources},
		{"sources of nobody", `{"PublicIP":"192.168.10.2","BackendType":"host-gw","Weft":{"Sources":["junk"]}}`, hostGW},
		{"unknown fields", `{"PublicIP":"192.168.10.2","PublicIPv6":null,"New":[1],"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff","GBP":{}},"Weft":{"Node":"","Instance":"orphan"}}`, base.lease},
		{"other case and spaces", "{\n \"publicip\": \"192.168.10.2\", \"backendtype\": \"vxlan\", \"BACKENDDATA\": {\"vni\": 1, \"vtepmac\": \"AA:BB:CC:DD:EE:FF\"} }\n", base.lease},
		{"an unused broken IPv6 half", `{"PublicIP":"192.168.10.2","PublicIPv6":"fe80::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"BackendV6Data":null}`, base.lease},
		{"a backend weft does not know", `{"PublicIP":"192.168.10.2","PublicIPv6":null,"BackendType":"ipip","BackendData":"anything"}`, other},
		{"an IPv4 link-local underlay, which needs no zone", `{"PublicIP":"169.254.7.1"}`, linkLocal},
		{"the shortest reservation", `{"PublicIP":"192.168.10.2"}`, bare},
	} {
		t.Run(v.name, func(t *testing.T) {
			got, err := DecodeLease(base.key, []byte(v.value))
			if err != nil || !got.Equal(v.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, v.want)
			}
		})
	}
}

func TestDecodeLeaseRejects(t *testing.T) {
	const ok4 = `"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}`
	for _, v := range []struct{ name, key, value, want string }{
		{"empty", "", ``, "empty"},
		{"not JSON", "", `x`, "line 1 column 1"},
		{"torn JSON", "", `{"PublicIP":"192.168.`, "unexpected end"},
		{"trailing data", "", `{"PublicIP":"192.168.10.2"} {}`, "column 29"},
		{"not an object", "", `[1]`, "want a JSON object"},
		{"null", "", `null`, "no underlay"},
		{"no address", "", `{` + ok4, "no underlay"},
		{"unspecified address", "", `{"PublicIP":"0.0.0.0","PublicIPv6":"::",` + ok4, "no underlay"},
		{"number for an address", "", `{"PublicIP":1,` + ok4, "PublicIP holds a JSON number: want a string"},
		{"IPv6 in PublicIP", "", `{"PublicIP":"2001:db8::1",` + ok4, `PublicIP "2001:db8::1": want an IPv4 address`},
		{"no address text", "", `{"PublicIP":"host",` + ok4, `PublicIP "host": want an IPv4 address`},
		{"loopback", "", `{"PublicIP":"127.0.0.1",` + ok4, "loopback"},
		{"multicast", "", `{"PublicIP":"239.1.1.1",` + ok4, "multicast"},
		{"broadcast", "", `{"PublicIP":"255.255.255.255",` + ok4, "broadcast"},
		{"zero network", "", `{"PublicIP":"0.1.2.3",` + ok4, "this network"},
		{"mapped", "", `{"PublicIP":"::ffff:10.0.0.1",` + ok4, "IPv4-mapped"},
		{"link-local with zone", "fd00::-64", `{"PublicIP":"0.0.0.0","PublicIPv6":"fe80::1%eth0","BackendType":"host-gw"}`, "zone"},
		{"link-local", "fd00::-64", `{"PublicIP":"0.0.0.0","PublicIPv6":"fe80::1","BackendType":"host-gw"}`, "link-local"},
		{"IPv6 loopback", "fd00::-64", `{"PublicIPv6":"::1","BackendType":"host-gw"}`, "loopback"},
		{"IPv6 multicast", "fd00::-64", `{"PublicIPv6":"ff02::1","BackendType":"host-gw"}`, "multicast"},
		{"no backend data", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan"}`, "BackendData: missing"},
		{"null backend data", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":null}`, "BackendData: missing"},
		{"IPv6 data missing", "10.5.52.0-24&fd00::-64", `{"PublicIP":"192.168.10.2","PublicIPv6":"2001:db8::1",` + ok4, "BackendV6Data: missing"},
		{"no MAC", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VNI":1}}`, "VtepMAC 00:00:00:00:00:00: want a unicast"},
		{"group MAC", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}`, "want a unicast"},
		{"long MAC", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:5e:00:00:01:02:03"}}`, "want 6"},
		{"number MAC", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VtepMAC":5}}`, "VtepMAC holds a JSON number: want a string"},
		{"25-bit VNI", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VNI":16777216,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}`, "VNI 16777216: want 0 to 16777215"},
		{"negative VNI", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VNI":-1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}`, "VNI holds"},
		{"data of another type", "", `{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":"x"}`, "BackendData: JSON string: want a JSON object"},
		{"short key", "", `{"PublicIP":"192.168.10.2","BackendType":"wireguard","BackendData":{"PublicKey":"AAAA"}}`, "want 32 bytes in base64"},
		{"key with stray bits", "", `{"PublicIP":"192.168.10.2","BackendType":"wireguard","BackendData":{"PublicKey":"` + wgKey4[:42] + `J="}}`, "want 32 bytes in base64"},
		{"bad port", "", `{"PublicIP":"192.168.10.2","BackendType":"wireguard","BackendData":{"PublicKey":"` + wgKey4 + `","Port":70000}}`, "Port holds"},
		{"escape codes in the node name", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"\u001b[31m"}}`, "Weft: node"},
		{"path as an instance", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Instance":"../x"}}`, "Weft: instance"},
		{"Weft of another type", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":"a"}`, "Weft holds a JSON string: want an object"},
		{"source that is no address", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Sources":["10.0.0.0/8"]}}`, `Weft: source "10.0.0.0/8": want an IP address`},
		{"empty source", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Sources":[""]}}`, `source ""`},
		{"source 0.0.0.0", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Sources":["10.0.0.1","0.0.0.0"]}}`, "underlay address 0.0.0.0"},
		{"mapped source", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Sources":["::ffff:10.0.0.1"]}}`, "IPv4-mapped"},
		{"17 sources", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Sources":[` + strings.Repeat(`"10.0.0.1",`, 16) + `"10.0.0.1"]}}`, "17 source addresses: want at most 16"},
		{"source for a list", "", `{"PublicIP":"192.168.10.2",` + ok4[:len(ok4)-1] + `,"Weft":{"Node":"a","Sources":"10.0.0.1"}}`, "Weft.Sources holds a JSON string: want a list of strings"},
		{"odd backend type", "", `{"PublicIP":"192.168.10.2","BackendType":"a b"}`, "BackendType"},
		{"junk key", "foo", `{"PublicIP":"192.168.10.2",` + ok4, "want a name like"},
	} {
		t.Run(v.name, func(t *testing.T) {
			key := v.key
			if key == "" {
				key = "10.5.52.0-24"
			}
			l, err := DecodeLease(key, []byte(v.value))
			wantError(t, err, key, v.want)
			if len(l.Paths) > 0 {
				t.Errorf("an error comes with the paths %v", l.Paths)
			}
		})
	}
}

func TestDecodeLeaseRefusesLargeValues(t *testing.T) {
	v := leaseVectors()[0]
	value := v.value + strings.Repeat(" ", maxDocument-len(v.value))
	if _, err := DecodeLease(v.key, []byte(value)); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	_, err := DecodeLease(v.key, []byte(value+" "))
	wantError(t, err, "65537 bytes", "at most 65536")
}

func TestEncodeLeaseRejects(t *testing.T) {
	dual := leaseVectors()[1].lease
	for _, v := range []struct {
		name string
		edit func(*Lease)
		want string
	}{
		{"no path", func(l *Lease) { l.Paths = nil }, "no subnet"},
		{"two subnets of a family", func(l *Lease) { l.Paths[1].Subnet = netip.MustParsePrefix("10.5.53.0/24") }, "at most one IPv4"},
		{"host bits", func(l *Lease) { l.Paths[0].Subnet = netip.MustParsePrefix("10.5.52.1/24") }, "host bits"},
		{"no underlay", func(l *Lease) { l.Paths[0].Underlay = netip.Addr{} }, "no underlay"},
		{"loopback underlay", func(l *Lease) { l.Paths[0].Underlay = netip.MustParseAddr("127.0.0.1") }, "loopback"},
		{"no MAC", func(l *Lease) { l.Paths[1].MAC = MAC{} }, "want a unicast"},
		{"VNI beyond 24 bits", func(l *Lease) { l.Paths[1].VNI = maxVNI + 1 }, "want 0 to 16777215"},
		{"crossed families", func(l *Lease) {
			l.Paths[0].Underlay, l.Paths[1].Underlay = l.Paths[1].Underlay, l.Paths[0].Underlay
		}, "want underlay"},
		{"two endpoints on one underlay", func(l *Lease) { l.Paths[1].Underlay = l.Paths[0].Underlay }, "want one tunnel endpoint on the IPv4 underlay"},
		{"instance without node", func(l *Lease) { l.Instance = "5f0c" }, "without a node name"},
		{"space in the node name", func(l *Lease) { l.Node = "a b" }, `node "a b"`},
		{"long node name", func(l *Lease) { l.Node = strings.Repeat("a", 254) }, "254 bytes"},
		{"odd instance", func(l *Lease) { l.Node, l.Instance = "a", "\n" }, "instance"},
		{"sources without node", func(l *Lease) { l.Sources = addrs("10.0.0.1") }, "without a node name"},
		{"loopback source", func(l *Lease) { l.Node, l.Sources = "a", addrs("127.0.0.1") }, "loopback"},
		{"no source", func(l *Lease) { l.Node, l.Sources = "a", []netip.Addr{{}} }, "no underlay address given"},
		{"many sources", func(l *Lease) {
			l.Node = "a"
			for a := l.Paths[0].Underlay; len(l.Sources) <= maxSources; a = a.Next() {
				l.Sources = append(l.Sources, a)
			}
		}, "17 source addresses"},
		{"odd backend", func(l *Lease) { l.Backend = "a b" }, "backend type"},
		{"no WireGuard key", func(l *Lease) { l.Backend = BackendWireGuard }, "PublicKey"},
	} {
		t.Run(v.name, func(t *testing.T) {
			l := dual.Clone()
			v.edit(&l)
			_, _, err := EncodeLease(l)
			wantError(t, err, v.want)
		})
	}
}

// flannel reads a VNI into 16 bits and drops the whole lease when it does
// not fit, so a larger one is left out; flannel accepts that.
func TestEncodeLeaseLeavesOutLargeVNI(t *testing.T) {
	l := leaseVectors()[0].lease.Clone()
	l.Paths[0].VNI = 70000
	key, value, err := EncodeLease(l)
	if err != nil || strings.Contains(string(value), "VNI") {
		t.Fatalf("encoded as %s, %v; want no VNI", value, err)
	}
	var flannel struct{ BackendData struct{ VNI uint16 } }
	if err := json.Unmarshal(value, &flannel); err != nil {
		t.Errorf("flannel cannot read %s: %v", value, err)
	}
	got, err := DecodeLease(key, value)
	if err != nil || got.Paths[0].VNI != 0 || got.Paths[0].MAC != l.Paths[0].MAC {
		t.Errorf("got %+v, %v", got, err)
	}
}

// withoutLargeVNI is what is left of l after it was written.
func withoutLargeVNI(l Lease) Lease {
	l = l.Clone()
	for i := range l.Paths {
		if l.Paths[i].VNI > maxDataVNI {
			l.Paths[i].VNI = 0
		}
	}
	return l
}

// leaseRoundTrip is the law decode(encode(x)) = x.
func leaseRoundTrip(t *rapid.T) {
	want := genLease().Draw(t, "lease")
	key, value, err := EncodeLease(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeLease(key, value)
	if err != nil || !got.Equal(want) {
		t.Fatalf("%s %s gives\n%+v, %v; want\n%+v", key, value, got, err, want)
	}
}

func TestLeaseRoundTrip(t *testing.T) { rapid.Check(t, leaseRoundTrip) }
func FuzzEncodeLease(f *testing.F)    { f.Fuzz(rapid.MakeFuzz(leaseRoundTrip)) }

// FuzzDecodeLease: what decodes keeps its promises, and encodes to something
// that decodes to the same.
func FuzzDecodeLease(f *testing.F) {
	for _, v := range leaseVectors() {
		f.Add(v.key, []byte(v.value))
	}
	f.Add("10.5.52.0-24", []byte(`{"PublicIP":"192.168.10.2","BackendType":"vxlan","BackendData":{"VNI":70000,"VtepMAC":"aa-bb-cc-dd-ee-ff"}}`))
	f.Add("10.5.52.0-24", []byte(`{"PublicIP":"192.168.10.2","BackendType":"host-gw","BackendData":null,"Weft":{"Node":"n","Sources":["2001:db8::9","10.0.0.9"]}}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		l, err := DecodeLease(key, value)
		if err != nil {
			return
		}
		checkDecoded(t, l)
		k, v, err := EncodeLease(l)
		if err != nil {
			t.Fatalf("%q %q decodes to %+v, which does not encode: %v", key, value, l, err)
		}
		again, err := DecodeLease(k, v)
		if want := withoutLargeVNI(l); err != nil || !again.Equal(want) {
			t.Fatalf("%q %q decodes to\n%+v, but %s %s to\n%+v, %v", key, value, want, k, v, again, err)
		}
	})
}

// checkDecoded says in other words what a decoded lease promises.
func checkDecoded(t *testing.T, l Lease) {
	t.Helper()
	if n := len(l.Paths); n < 1 || n > 2 {
		t.Fatalf("%d paths", n)
	}
	for _, p := range l.Paths {
		s, u := p.Subnet, p.Underlay
		switch {
		case s != s.Masked() || s.Bits() == 0 || !s.Addr().IsGlobalUnicast():
			t.Fatalf("subnet %v", s)
		case u.IsUnspecified() || u.IsLoopback() || u.IsMulticast() || u.Zone() != "" || u.Is4In6():
			t.Fatalf("underlay %v", u)
		case l.Backend == BackendVXLAN && (p.MAC == MAC{} || p.MAC[0]&1 != 0 || p.VNI >= 1<<24):
			t.Fatalf("MAC %v VNI %d", p.MAC, p.VNI)
		case l.Backend == BackendWireGuard && len(p.Key) != 44:
			t.Fatalf("key %q", p.Key)
		}
	}
	if len(l.Sources) > maxSources || !slices.IsSortedFunc(l.Sources, netip.Addr.Compare) || len(slices.Compact(slices.Clone(l.Sources))) != len(l.Sources) {
		t.Fatalf("sources %v", l.Sources)
	}
	for _, a := range l.Sources {
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
			t.Fatalf("source %v", a)
		}
	}
	for _, r := range l.Node + l.Instance {
		if r <= ' ' || r > '~' {
			t.Fatalf("node %q instance %q", l.Node, l.Instance)
		}
	}
}

// What is read without encoding/json is what encoding/json reads, and it is
// what EncodeLease and flannel write.
func TestPlainLeasesAreReadAsJSON(t *testing.T) {
	same := func(t rapid.TB, value string, plain bool) {
		t.Helper()
		got, ok := plainLease([]byte(value))
		var want leaseJSON
		if err := json.Unmarshal([]byte(value), &want); ok && (err != nil || !reflect.DeepEqual(got, want)) {
			t.Errorf("%q is read as %+v, by encoding/json as %+v, %v", value, got, want, err)
		}
		if plain && !ok {
			t.Errorf("%q is not plain", value)
		}
	}
	for _, v := range leaseVectors() {
		same(t, v.value, v.lease.Backend != BackendWireGuard)
	}
	rapid.Check(t, func(t *rapid.T) {
		l := genLease().Draw(t, "lease")
		_, value, err := EncodeLease(l)
		if err != nil {
			t.Fatal(err)
		}
		same(t, string(value), l.Backend == BackendVXLAN)
		// Something is another character, left out, or there twice.
		at := rapid.IntRange(0, len(value)-1).Draw(t, "at")
		to := rapid.IntRange(at, min(at+30, len(value))).Draw(t, "to")
		with := rapid.SampledFrom([]string{"", " ", "0", "01", "-1", "4294967296", `\n`, `\u0041`, "\xff", "\x7f", "é", `"`, `""`, "{", "}", ",", "null", "[]", `,"VNI":7`, `"Weft":{}`}).Draw(t, "with")
		same(t, string(value[:at])+with+string(value[to:]), false)
		same(t, string(value[:to])+string(value[at:]), false)
	})
}

// An address that looks ordinary is in no special range, nor is a prefix that
// has it.
func TestOrdinaryAddressesAreNotSpecial(t *testing.T) {
	for b := range 256 {
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{byte(b), 1}), netip.AddrFrom16([16]byte{byte(b), 1})} {
			p := netip.PrefixFrom(a, 8).Masked()
			for _, s := range specials() {
				if ordinary(a) && s.prefix.Overlaps(p) {
					t.Errorf("%v looks ordinary, and overlaps %v", p, s.prefix)
				}
			}
		}
	}
}

func BenchmarkDecodeLease(b *testing.B) {
	v := leaseVectors()[7]
	value := []byte(v.value)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeLease(v.key, value); err != nil {
			b.Fatal(err)
		}
	}
}
