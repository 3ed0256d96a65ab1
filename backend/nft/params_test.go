// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft.dev/weft/subnet"
)

// anyParams draws parameters that pass Check.
func anyParams(t *rapid.T) Params {
	p := Params{
		Guard:      rapid.SampledFrom(guards()).Draw(t, "guard"),
		Masquerade: rapid.Bool().Draw(t, "masquerade"),
		Port:       rapid.Uint16().Draw(t, "port"),
		VNI:        rapid.Uint32Max(0xffffff).Draw(t, "vni"),
	}
	for i, f := range subnet.Families() {
		for _, to := range []*netip.Prefix{&p.Networks[i], &p.Subnets[i]} {
			raw := rapid.SliceOfN(rapid.Byte(), f.Bits()/8, f.Bits()/8).Draw(t, "address")
			bits := rapid.IntRange(-1, f.Bits()).Draw(t, "bits")
			if a, ok := netip.AddrFromSlice(raw); ok && bits >= 0 && !a.Is4In6() {
				*to = netip.PrefixFrom(a, bits).Masked()
			}
		}
		p.Devices[i] = rapid.StringOfN(rapid.RuneFrom([]rune("weft.6-_1")), 0, maxDevice, -1).Draw(t, "device")
		for n := range f.Bits() {
			if rapid.IntRange(0, 9).Draw(t, "length") == 0 {
				p.Lengths = append(p.Lengths, Length{f, n})
			}
		}
	}
	return p
}

// Any parameters can be stored with a table and read back.
func TestParamsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyParams(t)
		if err := p.Check(); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		table := Ruleset(p)
		data := table.userdata()
		if len(data) > 256 { // NFT_USERDATA_MAXLEN, linux/netfilter/nf_tables.h
			t.Fatalf("%d bytes of user data", len(data))
		}
		got, err := Content{Userdata: string(data)}.Params()
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, p)
		}
	})
}

// The largest there are fit.
func TestParamsAtTheirLargest(t *testing.T) {
	p := params().Params
	p.Devices = [2]string{"fifteen-bytes-x", "fifteen-bytes-y"}
	p.Lengths = nil
	for _, f := range subnet.Families() {
		for n := range f.Bits() {
			p.Lengths = append(p.Lengths, Length{f, n})
		}
	}
	if n := len(p.encode()); n > 130 || len(Ruleset(p).userdata()) > 256 {
		t.Errorf("%d bytes, %d of user data", n, len(Ruleset(p).userdata()))
	}
	if got, err := decodeParams(p.encode()); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*Params){
		`guard "strict"`:                  func(p *Params) { p.Guard = "strict" },
		"VNI 16777216":                    func(p *Params) { p.VNI = 1 << 24 },
		`device name "sixteen-bytes-xx"`:  func(p *Params) { p.Devices[1] = "sixteen-bytes-xx" },
		"prefix fd42::/48":                func(p *Params) { p.Networks[0] = p.Networks[1] },
		"prefix 10.42.1.1/24":             func(p *Params) { p.Subnets[0] = netip.MustParsePrefix("10.42.1.1/24") },
		"prefix ::ffff:10.42.0.0/120":     func(p *Params) { p.Networks[1] = netip.MustParsePrefix("::ffff:10.42.0.0/120") },
		"length 32 of IPv4":               func(p *Params) { p.Lengths = []Length{{4, 32}} },
		"length 129 of IPv6":              func(p *Params) { p.Lengths = []Length{{6, 129}} },
		"length -1 of IPv4":               func(p *Params) { p.Lengths = []Length{{4, -1}} },
		"length 24 of no family":          func(p *Params) { p.Lengths = []Length{{5, 24}} },
		"length 24 of IPv4: want":         func(p *Params) { p.Lengths = []Length{{6, 64}, {4, 24}} },
		"length 25 of IPv4: want one of ": func(p *Params) { p.Lengths = []Length{{4, 25}, {4, 25}} },
	} {
		p := params().Params
		change(&p)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
}

// FuzzParams: anybody may write user data. What is read is what weft would
// have written, to the byte, and makes a table.
func FuzzParams(f *testing.F) {
	f.Add(params().encode())
	f.Add(Params{}.encode())
	f.Add([]byte(Ruleset(params().Params).userdata()))
	f.Add([]byte{userParams, 3, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Content{Userdata: string(b)}.Params()
		p, err := decodeParams(b)
		if err != nil {
			if !reflect.DeepEqual(p, Params{}) {
				t.Fatalf("%v, and still %+v", err, p)
			}
			return
		}
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		if again := p.encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which is %x", b, p, again)
		}
		table := Ruleset(p)
		if why := Structure(table, Desired{Table: table}.Content()); len(why) > 0 {
			t.Fatalf("a table differs from itself: %q", why)
		}
	})
}

func TestPortsBesides(t *testing.T) {
	for port, want := range map[uint16][2]uint16{
		0: {1024, 65535}, 1: {1024, 65535}, 1023: {1024, 65535}, 1024: {1025, 65535}, 4789: {4790, 65535}, 8472: {8473, 65535},
		33279: {33280, 65535}, 33280: {1024, 33279}, 40000: {1024, 39999}, 65535: {1024, 65534},
	} {
		if got := besides(port); got != want {
			t.Errorf("besides %d: %v, want %v", port, got, want)
		}
	}
}
