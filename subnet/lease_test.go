// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"net/netip"
	"reflect"
	"testing"
)

// change makes v, a field of a lease or path, differ from what it is.
func change(t *testing.T, v reflect.Value) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = x.Next()
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(x.Addr().Next(), x.Bits())
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Array, reflect.Slice:
		change(t, v.Index(0))
	case reflect.Struct:
		change(t, v.Field(0))
	default:
		t.Fatalf("a field of kind %v: teach this test and Lease.Equal about it", v.Kind())
	}
}

func fullLease() Lease {
	path := Path{Subnet: netip.MustParsePrefix("10.244.1.0/24"), Underlay: netip.MustParseAddr("192.168.10.2"),
		MAC: MAC{2, 0, 0, 0, 0, 1}, VNI: 1, Key: "k", Port: 51820}
	return Lease{Node: "n", Instance: "i", Backend: BackendVXLAN, Paths: []Path{path}, Sources: addrs("10.0.0.7")}
}

// Equal must notice every field: one that is added later and forgotten there
// would make peers keep an old endpoint.
func TestLeaseEqualCoversEveryField(t *testing.T) {
	if l := fullLease(); !l.Equal(l.Clone()) {
		t.Fatal("a lease differs from its clone")
	}
	differ := func(name string, edit func(*Lease)) {
		a, b := fullLease(), fullLease()
		edit(&b)
		if reflect.DeepEqual(a, b) {
			t.Fatalf("%s was not changed", name)
		}
		if a.Equal(b) || b.Equal(a) {
			t.Errorf("Lease.Equal does not see %s", name)
		}
	}
	for i := range reflect.TypeFor[Lease]().NumField() {
		name := "Lease." + reflect.TypeFor[Lease]().Field(i).Name
		differ(name, func(l *Lease) { change(t, reflect.ValueOf(l).Elem().Field(i)) })
	}
	for i := range reflect.TypeFor[Path]().NumField() {
		name := "Path." + reflect.TypeFor[Path]().Field(i).Name
		differ(name, func(l *Lease) { change(t, reflect.ValueOf(&l.Paths[0]).Elem().Field(i)) })
	}
	differ("a further path", func(l *Lease) { l.Paths = append(l.Paths, l.Paths[0]) })
	differ("a missing path", func(l *Lease) { l.Paths = nil })
	differ("a further source", func(l *Lease) { l.Sources = append(l.Sources, l.Sources[0].Next()) })
	differ("a missing source", func(l *Lease) { l.Sources = nil })
}

// Clone must share nothing: each reference field of a lease is followed.
func TestLeaseCloneSharesNothing(t *testing.T) {
	for i := range reflect.TypeFor[Lease]().NumField() {
		l := fullLease()
		c := l.Clone()
		change(t, reflect.ValueOf(&c).Elem().Field(i))
		if !reflect.DeepEqual(l, fullLease()) {
			t.Errorf("changing %s of a clone changes the lease", reflect.TypeFor[Lease]().Field(i).Name)
		}
	}
}

func TestComparable(t *testing.T) {
	for _, typ := range []reflect.Type{reflect.TypeFor[Path](), reflect.TypeFor[Network](),
		reflect.TypeFor[BackendConfig](), reflect.TypeFor[Problem]()} {
		if !typ.Comparable() {
			t.Errorf("%v is documented as comparable and is not", typ)
		}
	}
}

func TestLeasePathAndVTEP(t *testing.T) {
	l := fullLease()
	six := l.Paths[0]
	six.Subnet = netip.MustParsePrefix("fd00:10:244:1::/64")
	l.Paths = append(l.Paths, six) // IPv6 pods over the IPv4 underlay
	if p, ok := l.Path(IPv6); !ok || p != six {
		t.Errorf("Path(IPv6) = %v, %v", p, ok)
	}
	if p, ok := l.VTEP(IPv4); !ok || p != l.Paths[0] {
		t.Errorf("VTEP(IPv4) = %v, %v", p, ok)
	}
	if p, ok := l.VTEP(IPv6); ok {
		t.Errorf("VTEP(IPv6) = %v, want none", p)
	}
}

// The first octets of SHA-256 over network, NUL, the VNI as four octets big
// endian, the family's version number and the node's name. Changing them
// would give every node a new MAC on upgrade.
func TestDeriveMACFrozen(t *testing.T) {
	for _, v := range []struct {
		network, node string
		vni           uint32
		f             Family
		want          string
	}{
		{"kubernetes", "node-1", 1, IPv4, "e2:cf:75:b8:60:58"},
		{"/weft/network", "node-1", 1, IPv6, "9a:f2:b8:c7:37:57"},
		{"/weft/network", "worker.example.org", maxVNI, IPv4, "62:c2:73:f6:33:b3"},
	} {
		if got := DeriveMAC(v.network, v.vni, v.f, v.node).String(); got != v.want {
			t.Errorf("DeriveMAC(%q, %d, %v, %q) = %s, want %s", v.network, v.vni, v.f, v.node, got, v.want)
		}
	}
}

func TestDeriveMACIsLocalUnicastAndDistinct(t *testing.T) {
	seen := map[MAC]bool{}
	for _, network := range []string{"a", "ab", ""} {
		for _, node := range []string{"", "b", "bc", "c"} {
			for vni := range uint32(50) {
				for _, f := range Families() {
					m := DeriveMAC(network, vni, f, node)
					if !m.IsUnicast() || m[0]&2 == 0 {
						t.Fatalf("%v is not a locally administered unicast address", m)
					}
					if seen[m] {
						t.Fatalf("%v was given twice", m)
					}
					seen[m] = true
				}
			}
		}
	}
}

func TestMAC(t *testing.T) {
	m, err := ParseMAC("0A:58:c0:00:02:01")
	if err != nil || m.String() != "0a:58:c0:00:02:01" {
		t.Errorf("got %v, %v", m, err)
	}
	for _, s := range []string{"", "0a:58", "0a:58:c0:00:02:01:02:03", "zz:58:c0:00:02:01"} {
		_, err := ParseMAC(s)
		wantError(t, err, "MAC", "want")
	}
	if (MAC{}).IsUnicast() || (MAC{1}).IsUnicast() || !(MAC{2}).IsUnicast() {
		t.Error("IsUnicast: want no for zero and group addresses, yes for others")
	}
}

func TestFamily(t *testing.T) {
	for text, want := range map[string]Family{"10.0.0.1": IPv4, "::ffff:10.0.0.1": IPv4, "fd00::1": IPv6} {
		if got := FamilyOf(netip.MustParseAddr(text)); got != want || got.Other() == want {
			t.Errorf("FamilyOf(%s) = %v, want %v", text, got, want)
		}
	}
	if f := FamilyOf(netip.Addr{}); f != 0 || f.String() != "no family" {
		t.Errorf("no address is of family %v", f)
	}
	if IPv4.String() != "IPv4" || IPv6.String() != "IPv6" || Families() != [2]Family{IPv4, IPv6} {
		t.Error("names or order of the families have changed")
	}
}
