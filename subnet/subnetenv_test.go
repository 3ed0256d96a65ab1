// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// The files flannel v0.28 writes.
func TestSubnetEnvVectors(t *testing.T) {
	for _, v := range []struct {
		name string
		env  SubnetEnv
		text string
	}{
		{"IPv4, masquerading", SubnetEnv{Networks: prefixes(t, "10.42.0.0/16"), Subnets: prefixes(t, "10.42.1.1/24"), MTU: 1450, IPMasq: true},
			"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
		{"IPv4, not masquerading", SubnetEnv{Networks: prefixes(t, "10.42.0.0/16"), Subnets: prefixes(t, "10.42.1.1/24"), MTU: 1450},
			"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"},
		{"IPv6", SubnetEnv{Networks: prefixes(t, "fd00:42::/48"), Subnets: prefixes(t, "fd00:42:0:1::1/64"), MTU: 1430, IPMasq: true},
			"FLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"},
		{"dual", SubnetEnv{Networks: prefixes(t, "10.42.0.0/16", "fd00:42::/48"), Subnets: prefixes(t, "10.42.1.1/24", "fd00:42:0:1::1/64"), MTU: 8950},
			"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:1::1/64\nFLANNEL_MTU=8950\nFLANNEL_IPMASQ=false\n"},
		{"several networks", SubnetEnv{Networks: prefixes(t, "10.42.0.0/16", "10.52.0.0/16", "fd00:42::/48", "fd00:52::/48"), Subnets: prefixes(t, "10.42.1.1/24", "fd00:42:0:1::1/64"), MTU: 1450, IPMasq: true},
			"FLANNEL_NETWORK=10.42.0.0/16,10.52.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/48,fd00:52::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
	} {
		t.Run(v.name, func(t *testing.T) {
			if got := string(v.env.Encode()); got != v.text {
				t.Errorf("encoded as\n%s; want\n%s", got, v.text)
			}
			got, err := ParseSubnetEnv([]byte(v.text), "test")
			if err != nil || !reflect.DeepEqual(got, v.env) {
				t.Errorf("parsed as\n%+v, %v; want\n%+v", got, err, v.env)
			}
		})
	}
}

func TestParseSubnetEnvTolerates(t *testing.T) {
	want := SubnetEnv{Networks: prefixes(t, "10.42.0.0/16", "fd00:42::/48"),
		Subnets: prefixes(t, "10.42.1.1/24", "fd00:42:0:1::1/64"), MTU: 1450, IPMasq: true}
	text := "# by hand\r\n\r\n  FLANNEL_MTU=1450\nFLANNEL_IPV6_SUBNET=fd00:42:0:1::1/64 \nFLANNEL_IPV6_NETWORK=fd00:42::/48\n" +
		"OTHER=\"x\"\nFLANNEL_NEW=\nFLANNEL_NETWORK=10.42.3.0/16,10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_IPMASQ=true"
	got, err := ParseSubnetEnv([]byte(text), "test")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestParseSubnetEnvRejects(t *testing.T) {
	const net4, sub4, rest = "FLANNEL_NETWORK=10.42.0.0/16\n", "FLANNEL_SUBNET=10.42.1.1/24\n", "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	for _, v := range []struct{ name, text, want string }{
		{"empty", "", "incomplete: FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ missing"},
		{"no MTU", net4 + sub4 + "FLANNEL_IPMASQ=true\n", "incomplete: FLANNEL_MTU missing"},
		{"no IPMASQ", net4 + sub4 + "FLANNEL_MTU=1450\n", "incomplete: FLANNEL_IPMASQ missing"},
		{"no network", sub4 + rest, "want FLANNEL_NETWORK and FLANNEL_SUBNET together"},
		{"no subnet", net4 + rest, "want FLANNEL_NETWORK and FLANNEL_SUBNET together"},
		{"half of IPv6", net4 + sub4 + "FLANNEL_IPV6_SUBNET=fd00::1/64\n" + rest, "want FLANNEL_IPV6_NETWORK and FLANNEL_IPV6_SUBNET together"},
		{"torn name", net4 + "FLANNEL_SUB", `line 2 "FLANNEL_SUB": want NAME=value`},
		{"torn prefix", net4 + "FLANNEL_SUBNET=10.42.1", "line 2: FLANNEL_SUBNET=10.42.1: want an IPv4 prefix like"},
		{"torn boolean", net4 + sub4 + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=tr", "line 4: FLANNEL_IPMASQ=tr: want true or false"},
		{"empty value", net4 + sub4 + "FLANNEL_MTU=\nFLANNEL_IPMASQ=true\n", "line 3: FLANNEL_MTU=: want an integer from 68 to 65535"},
		{"double quotes", `FLANNEL_NETWORK="10.42.0.0/16"` + "\n" + sub4 + rest, "want no quotes: write FLANNEL_NETWORK=10.42.0.0/16"},
		{"single quotes", net4 + sub4 + "FLANNEL_MTU='1450'\n", "want no quotes: write FLANNEL_MTU=1450"},
		{"export", "export " + net4 + sub4 + rest, `line 1 "export FLANNEL_NETWORK=10.42.0.0/16": want NAME=value`},
		{"no name", net4 + sub4 + rest + "=1\n", `line 5 "=1": want NAME=value`},
		{"twice", net4 + sub4 + rest + "FLANNEL_MTU=1400\n", "line 5: FLANNEL_MTU was set on line 3 already"},
		{"small MTU", net4 + sub4 + "FLANNEL_MTU=67\n", "67: want an integer from 68 to 65535"},
		{"large MTU", net4 + sub4 + "FLANNEL_MTU=65536\n", "65536: want an integer from 68 to 65535"},
		{"huge MTU", net4 + sub4 + "FLANNEL_MTU=99999999999999999999\n", "want an integer from 68 to 65535"},
		{"capital boolean", net4 + sub4 + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=True\n", "want true or false"},
		{"wrong family", "FLANNEL_NETWORK=fd00::/48\n", "want an IPv4 prefix"},
		{"wrong family in a list", "FLANNEL_IPV6_NETWORK=fd00::/48,10.0.0.0/8\n", "want an IPv6 prefix"},
		{"mapped", "FLANNEL_IPV6_NETWORK=::ffff:10.0.0.0/104\n", "want an IPv6 prefix"},
		{"empty list element", "FLANNEL_NETWORK=10.0.0.0/8,\n", "want an IPv4 prefix"},
		{"two subnets", net4 + "FLANNEL_SUBNET=10.42.1.1/24,10.42.2.1/24\n", "want an IPv4 prefix"},
		{"large file", strings.Repeat("\n", maxDocument+1), "65537 bytes: want at most 65536"},
	} {
		t.Run(v.name, func(t *testing.T) {
			got, err := ParseSubnetEnv([]byte(v.text), "/run/weft/subnet.env")
			wantError(t, err, "/run/weft/subnet.env: ", v.want)
			if !reflect.DeepEqual(got, SubnetEnv{}) {
				t.Errorf("an error comes with %+v", got)
			}
		})
	}
}

// However the file is cut, the reader says so or reads the truth: only the
// final newline is dispensable.
func TestParseSubnetEnvTorn(t *testing.T) {
	whole := SubnetEnv{Networks: prefixes(t, "10.42.0.0/16", "fd00:42::/48"),
		Subnets: prefixes(t, "10.42.1.1/24", "fd00:42:0:1::1/64"), MTU: 1450, IPMasq: true}
	text := whole.Encode()
	for n := range len(text) - 1 {
		if e, err := ParseSubnetEnv(text[:n], "torn"); err == nil {
			t.Errorf("%q parses as %+v", text[:n], e)
		}
	}
}

func TestWriteAndReadSubnetEnv(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "weft", "subnet.env")
	if _, err := ReadSubnetEnv(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading no file gives %v", err)
	}
	env := SubnetEnv{Networks: prefixes(t, "10.42.0.0/16"), Subnets: prefixes(t, "10.42.1.1/24"), MTU: 1450}
	for _, mtu := range []int{1450, 1400} {
		env.MTU = mtu
		if err := WriteSubnetEnv(path, env); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSubnetEnv(path)
		if err != nil || !reflect.DeepEqual(got, env) {
			t.Errorf("read %+v, %v; want %+v", got, err, env)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v; want 0644 under umask 077", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v; want the file alone", entries, err)
	}
}

func TestWriteSubnetEnvRefuses(t *testing.T) {
	dir := t.TempDir()
	good := SubnetEnv{Networks: prefixes(t, "10.42.0.0/16"), Subnets: prefixes(t, "10.42.1.1/24"), MTU: 1450}
	path := filepath.Join(dir, "subnet.env")
	if err := WriteSubnetEnv(path, good); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.MTU = 0
	wantError(t, WriteSubnetEnv(path, bad), path, "FLANNEL_MTU=0")
	bad = good
	bad.Subnets = prefixes(t, "10.42.1.1/24", "10.42.2.1/24")
	wantError(t, WriteSubnetEnv(path, bad), path, "FLANNEL_SUBNET")
	if got, err := ReadSubnetEnv(path); err != nil || !reflect.DeepEqual(got, good) {
		t.Errorf("the file is %+v, %v after a refusal; want it untouched", got, err)
	}
	wantError(t, WriteSubnetEnv(filepath.Join(path, "below-a-file", "x"), good), "write subnet file", path)
	_, err := ReadSubnetEnv(dir)
	wantError(t, err, "read subnet file", dir)
}

// A reader never sees a half-written file.
func TestWriteSubnetEnvIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	env := SubnetEnv{Networks: prefixes(t, "10.42.0.0/16"), Subnets: prefixes(t, "10.42.1.1/24"), MTU: 1000}
	if err := WriteSubnetEnv(path, env); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 200 && err == nil; i++ {
			next := env
			next.MTU = 1000 + i
			err = WriteSubnetEnv(path, next)
		}
		done <- err
	}()
	for reads := 0; ; reads++ {
		if _, err := ReadSubnetEnv(path); err != nil {
			t.Fatalf("read %d: %v", reads, err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func genSubnetEnv() *rapid.Generator[SubnetEnv] {
	return rapid.Custom(func(t *rapid.T) SubnetEnv {
		e := SubnetEnv{MTU: rapid.IntRange(minPodMTU, maxMTU).Draw(t, "mtu"), IPMasq: rapid.Bool().Draw(t, "masq")}
		for _, f := range genFamilies().Draw(t, "families") {
			same := func(p netip.Prefix) netip.Prefix { return p }
			e.Networks = append(e.Networks, rapid.SliceOfNDistinct(genSubnet(f), 1, 3, same).Draw(t, "networks")...)
			p := genSubnet(f).Draw(t, "subnet")
			e.Subnets = append(e.Subnets, netip.PrefixFrom(p.Addr().Next(), p.Bits()))
		}
		return e
	})
}

// envRoundTrip is the law decode(encode(x)) = x.
func envRoundTrip(t *rapid.T) {
	want := genSubnetEnv().Draw(t, "env")
	got, err := ParseSubnetEnv(want.Encode(), "test")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%s\ngives %+v, %v; want %+v", want.Encode(), got, err, want)
	}
}

func TestSubnetEnvRoundTrip(t *testing.T) { rapid.Check(t, envRoundTrip) }
func FuzzEncodeSubnetEnv(f *testing.F)    { f.Fuzz(rapid.MakeFuzz(envRoundTrip)) }

// FuzzParseSubnetEnv: what parses encodes to a file that parses to the same.
func FuzzParseSubnetEnv(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"))
	f.Add([]byte("FLANNEL_IPV6_NETWORK=fd00::/48,fd01::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\n#\nX=1\nFLANNEL_MTU=+01450\nFLANNEL_IPMASQ=false"))
	f.Add([]byte("FLANNEL_NETWORK=\nFLANNEL_SUB"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseSubnetEnv(data, "fuzz")
		if err != nil {
			return
		}
		again, err := ParseSubnetEnv(e.Encode(), "again")
		if err != nil || !reflect.DeepEqual(e, again) {
			t.Fatalf("%q parses to\n%+v, but %q to\n%+v, %v", data, e, e.Encode(), again, err)
		}
	})
}
