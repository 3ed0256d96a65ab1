// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet"
)

const prefix = "/weft/network/subnets/"

func config(t *testing.T, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text), "test", subnet.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// node returns the lease of a node with one path for each underlay.
func node(name, instance string, underlays ...string) subnet.Lease {
	l := subnet.Lease{Node: name, Instance: instance, Backend: subnet.BackendVXLAN}
	for _, u := range underlays {
		l.Paths = append(l.Paths, subnet.Path{Underlay: netip.MustParseAddr(u), MAC: subnet.MAC{2, 0, 0, 0, 0, 1}, VNI: 1})
	}
	return l
}

func at(l subnet.Lease, subnets ...string) subnet.Lease {
	l = l.Clone()
	for i, s := range subnets {
		l.Paths[i].Subnet = netip.MustParsePrefix(s)
	}
	return l
}

// kv encodes l as etcd returns it: created and changed at revision rev.
func kv(t *testing.T, l subnet.Lease, rev, lease int64) *mvccpb.KeyValue {
	t.Helper()
	key, value, err := subnet.EncodeLease(l)
	if err != nil {
		t.Fatal(err)
	}
	return &mvccpb.KeyValue{Key: []byte(prefix + key), Value: value, CreateRevision: rev, ModRevision: rev, Lease: lease}
}

func listing(rev int64, kvs ...*mvccpb.KeyValue) *clientv3.GetResponse {
	return &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev}, Kvs: kvs}
}

func TestStanding(t *testing.T) {
	const a, b, six = "192.0.2.1", "192.0.2.2", "2001:db8::1"
	stored := func(n, i string, u ...string) subnet.Lease {
		return at(node(n, i, u...), []string{"10.42.1.0/24", "fd42::/64"}[:len(u)]...)
	}
	for name, c := range map[string]struct {
		stored, want subnet.Lease
		is           standing
	}{
		"same node and instance":             {stored("n1", "i1", a), node("n1", "i1", a), own},
		"same, moved":                        {stored("n1", "i1", a), node("n1", "i1", b), own},
		"stored without instance":            {stored("n1", "", a), node("n1", "i1", b), own},
		"wanted without instance":            {stored("n1", "i1", a), node("n1", "", b), own},
		"set up anew at the address":         {stored("n1", "i1", a), node("n1", "i2", a), own},
		"set up anew, one address the same":  {stored("n1", "i1", a, six), node("n1", "i2", b, six), own},
		"clone":                              {stored("n1", "i1", a), node("n1", "i2", b), rival},
		"clone of another family":            {stored("n1", "i1", a), node("n1", "i2", six), rival},
		"other node at our address":          {stored("n2", "i2", a), node("n1", "i1", a), foreign},
		"other node with our instance":       {stored("n2", "i1", a), node("n1", "i1", b), foreign},
		"flannel at our address":             {stored("", "", a), node("n1", "i1", a), own},
		"flannel elsewhere":                  {stored("", "", a), node("n1", "i1", b), foreign},
		"flannel at both":                    {stored("", "", a, six), node("n1", "i1", a, six), own},
		"flannel at one, other in the other": {stored("", "", a, six), node("n1", "i1", b, six), foreign},
		"flannel at one, none in the other":  {stored("", "", a), node("n1", "i1", a, six), own},
		"flannel of another family":          {stored("", "", a), node("n1", "i1", six), foreign},
	} {
		if got := standingOf(c.stored, c.want); got != c.is {
			t.Errorf("%s: %d, want %d", name, got, c.is)
		}
	}
}

func TestPlan(t *testing.T) {
	one := config(t, `{"Network":"10.42.0.0/16"}`)
	both := config(t, `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`)
	me, me2 := node("n1", "i1", "192.0.2.1"), node("n1", "i1", "192.0.2.1", "2001:db8::1")
	other := node("n2", "i2", "192.0.2.2")
	for name, c := range map[string]struct {
		cfg     subnet.Config
		want    subnet.Lease
		kvs     []*mvccpb.KeyValue
		subnets []string
		entry   string // key without prefix
		drop    []string
		fresh   bool
		reserve bool
	}{
		"nothing there": {cfg: one, want: me, subnets: []string{"10.42.1.0/24"}, fresh: true},
		"hint":          {cfg: one, want: at(me, "10.42.9.0/24"), subnets: []string{"10.42.9.0/24"}, fresh: true},
		"hint taken": {cfg: one, want: at(me, "10.42.9.0/24"), kvs: []*mvccpb.KeyValue{kv(t, at(other, "10.42.9.0/24"), 5, 1)},
			subnets: []string{"10.42.1.0/24"}, fresh: true},
		"own": {cfg: one, want: at(me, "10.42.9.0/24"), kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/24"), 5, 1)},
			subnets: []string{"10.42.7.0/24"}, entry: "10.42.7.0-24"},
		"own reservation": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/24"), 5, 0)},
			subnets: []string{"10.42.7.0/24"}, entry: "10.42.7.0-24", reserve: true},
		"own of another length": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/25"), 5, 1)},
			subnets: []string{"10.42.1.0/24"}, entry: "10.42.7.0-25", fresh: true},
		"own, newer of two": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/24"), 5, 1), kv(t, at(me, "10.42.8.0/24"), 6, 2)},
			subnets: []string{"10.42.8.0/24"}, entry: "10.42.8.0-24", drop: []string{"10.42.7.0-24"}},
		"own, older but fitting": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/24"), 5, 1), kv(t, at(me, "10.42.8.0/25"), 6, 2)},
			subnets: []string{"10.42.7.0/24"}, entry: "10.42.7.0-24", drop: []string{"10.42.8.0-25"}},
		"own by address is not dropped": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(node("", "", "192.0.2.1"), "10.42.7.0/24"), 5, 1), kv(t, at(me, "10.42.8.0/24"), 6, 2)},
			subnets: []string{"10.42.8.0/24"}, entry: "10.42.8.0-24"},
		"family added": {cfg: both, want: me2, kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/24"), 5, 1)},
			subnets: []string{"10.42.7.0/24", "fd42:0:0:1::/64"}, entry: "10.42.7.0-24", fresh: true},
		"family dropped": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(me2, "10.42.7.0/24", "fd42:0:0:7::/64"), 5, 1)},
			subnets: []string{"10.42.7.0/24"}, entry: "10.42.7.0-24&fd42:0:0:7::-64", fresh: true},
		"older overlap": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(other, "10.42.7.128/25"), 4, 1), kv(t, at(me, "10.42.7.0/24"), 5, 1)},
			subnets: []string{"10.42.1.0/24"}, entry: "10.42.7.0-24", fresh: true},
		"newer overlap": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(me, "10.42.7.0/24"), 5, 1), kv(t, at(other, "10.42.7.128/25"), 6, 1)},
			subnets: []string{"10.42.7.0/24"}, entry: "10.42.7.0-24"},
		"spelled otherwise": {cfg: config(t, `{"IPv6Network":"fd42::/48"}`), want: node("n1", "i1", "2001:db8::1"),
			kvs:     []*mvccpb.KeyValue{{Key: []byte(prefix + "fd42:0:0:07::0-64"), Value: []byte(`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}`), CreateRevision: 5, ModRevision: 5}},
			subnets: []string{"fd42:0:0:7::/64"}, entry: "fd42:0:0:07::0-64", reserve: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := planFor(newTable(prefix, listing(10, c.kvs...)), c.cfg, c.want, func(int) int { return 0 })
			if err != nil {
				t.Fatal(err)
			}
			var got, drop []string
			for _, path := range p.lease.Paths {
				got = append(got, path.Subnet.String())
			}
			for _, r := range p.drop {
				drop = append(drop, strings.TrimPrefix(r.key, prefix))
			}
			entry := ""
			if p.entry != nil {
				entry = strings.TrimPrefix(p.entry.key, prefix)
			}
			if !slices.Equal(got, c.subnets) || entry != c.entry || !slices.Equal(drop, c.drop) || p.fresh != c.fresh || p.reserved != c.reserve {
				t.Errorf("subnets %v, entry %q, drop %v, fresh %t, reserved %t", got, entry, drop, p.fresh, p.reserved)
			}
			if !p.fresh && p.key != prefix+c.entry {
				t.Errorf("key %s, want the entry's %s", p.key, c.entry)
			}
		})
	}
}

func TestPlanFails(t *testing.T) {
	cfg := config(t, `{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.1.0"}`)
	me := node("n1", "i1", "192.0.2.1")
	full := newTable(prefix, listing(10, &mvccpb.KeyValue{Key: []byte(prefix + "10.42.0.0-20"), Value: []byte("junk")}))
	if _, err := planFor(full, cfg, me, nil); !errors.Is(err, subnet.ErrExhausted) {
		t.Errorf("error %v, want ErrExhausted", err)
	}
	clone := newTable(prefix, listing(10, kv(t, at(node("n1", "i2", "192.0.2.2"), "10.42.1.0/24"), 5, 1)))
	_, err := planFor(clone, cfg, me, nil)
	if !errors.Is(err, subnet.ErrConflict) {
		t.Fatalf("error %v, want ErrConflict", err)
	}
	for _, w := range []string{"i1", "i2", "192.0.2.1", "192.0.2.2", prefix + "10.42.1.0-24"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestJudge(t *testing.T) {
	s, err := New(Options{Endpoints: []string{"127.0.0.1:2379"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mine := at(node("n1", "i1", "192.0.2.1"), "10.42.7.0/24")
	edited := mine.Clone()
	edited.Paths[0].MAC[5]++
	moved := at(node("n1", "i1", "192.0.2.9"), "10.42.7.0/24")
	fresh := at(node("n1", "i2", "192.0.2.1"), "10.42.7.0/24")
	other := at(node("n2", "i2", "192.0.2.2"), "10.42.7.0/24")
	plain, elsewhere := at(node("", "", "192.0.2.1"), "10.42.7.0/24"), at(node("", "", "192.0.2.9"), "10.42.7.0/24")
	junk := func(lease int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte(prefix + "10.42.7.0-24"), Value: []byte("junk"), Lease: lease}
	}
	const held0, held7 = 0, 7
	for name, c := range map[string]struct {
		held   int64
		stored *mvccpb.KeyValue
		is     state
		lost   bool
	}{
		"intact":                           {held7, kv(t, mine, 5, 7), intact, false},
		"intact reservation":               {held0, kv(t, mine, 5, 0), intact, false},
		"absent":                           {held7, nil, absent, false},
		"altered":                          {held7, kv(t, edited, 5, 7), altered, false},
		"altered reservation":              {held0, kv(t, edited, 5, 0), altered, false},
		"made a reservation":               {held7, kv(t, mine, 5, 0), adopted, false},
		"made a reservation, altered":      {held7, kv(t, edited, 5, 0), adopted, false},
		"made a reservation by address":    {held7, kv(t, plain, 5, 0), adopted, false},
		"junk under our etcd lease":        {held7, junk(7), altered, false},
		"junk without etcd lease":          {held7, junk(0), altered, false},
		"junk over a reservation":          {held0, junk(0), altered, false},
		"junk under another etcd lease":    {held7, junk(8), intact, true},
		"same value, another etcd lease":   {held7, kv(t, mine, 5, 8), intact, true},
		"another node":                     {held7, kv(t, other, 5, 8), intact, true},
		"another node's reservation":       {held7, kv(t, other, 5, 0), intact, true},
		"another node under our lease":     {held7, kv(t, other, 5, 7), intact, true},
		"clone with our instance":          {held7, kv(t, moved, 5, 0), intact, true},
		"host set up anew":                 {held7, kv(t, fresh, 5, 0), intact, true},
		"reservation for another address":  {held7, kv(t, elsewhere, 5, 0), intact, true},
		"flannel wrote over a reservation": {held0, kv(t, plain, 5, 9), intact, true},
	} {
		key, value, err := subnet.EncodeLease(mine)
		if err != nil {
			t.Fatal(err)
		}
		h := &held{lease: mine, key: prefix + key, value: value, etcd: clientv3.LeaseID(c.held)}
		got, err := s.judge(h, c.stored)
		if got != c.is || (err != nil) != c.lost || c.lost && !errors.Is(err, subnet.ErrConflict) {
			t.Errorf("%s: %d, %v; want %d, lost %t", name, got, err, c.is, c.lost)
		}
	}
}
