// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

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

func listed(rev int64, kvs ...*mvccpb.KeyValue) listing {
	l := listing{rev: rev}
	for _, kv := range kvs {
		l.records = append(l.records, readRecord(prefix, kv))
	}
	slices.SortFunc(l.records, func(a, b record) int { return strings.Compare(a.key, b.key) })
	return l
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
		"other node with our instance":       {stored("n2", "i1", a), node("n1", "i1", b), foreign}, // a copied disk, renamed as it should be
		"renamed":                            {stored("n0", "i1", a), node("n1", "i1", a), own},
		"renamed, one address the same":      {stored("n0", "i1", a, six), node("n1", "i1", b, six), foreign},
		"renamed, without instance":          {stored("n0", "", a), node("n1", "", a), foreign},
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
		"renamed": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(node("n0", "i1", "192.0.2.1"), "10.42.7.0/24"), 5, 1)},
			subnets: []string{"10.42.7.0/24"}, entry: "10.42.7.0-24"},
		"renamed, both there": {cfg: one, want: me, kvs: []*mvccpb.KeyValue{kv(t, at(node("n0", "i1", "192.0.2.1"), "10.42.7.0/24"), 5, 1), kv(t, at(me, "10.42.8.0/24"), 6, 2)},
			subnets: []string{"10.42.8.0/24"}, entry: "10.42.8.0-24", drop: []string{"10.42.7.0-24"}},
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
			p, err := planFor(newTable(prefix, listed(10, c.kvs...)), c.cfg, c.want, func(int) int { return 0 })
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
	full := newTable(prefix, listed(10, &mvccpb.KeyValue{Key: []byte(prefix + "10.42.0.0-20"), Value: []byte("junk")}))
	if _, err := planFor(full, cfg, me, nil); !errors.Is(err, subnet.ErrExhausted) {
		t.Errorf("error %v, want ErrExhausted", err)
	}
	clone := newTable(prefix, listed(10, kv(t, at(node("n1", "i2", "192.0.2.2"), "10.42.1.0/24"), 5, 1)))
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
		return &mvccpb.KeyValue{Key: []byte(prefix + "10.42.7.0-24"), Value: []byte("junk"), ModRevision: 5, Lease: lease}
	}
	const held0, held7 = 0, 7
	const before = 3 // an older revision than that of our last write, 4
	renamed := at(node("n0", "i1", "192.0.2.1"), "10.42.7.0/24")
	for name, c := range map[string]struct {
		held   int64
		stored *mvccpb.KeyValue
		is     state
		lost   bool
	}{
		"from a backup":                        {held7, kv(t, mine, before, 8), restored, false},
		"from a backup, with another value":    {held7, kv(t, edited, before, 8), restored, false},
		"from a backup, before it moved":       {held7, kv(t, moved, before, 8), restored, false},
		"from a backup, before it was renamed": {held7, kv(t, renamed, before, 8), restored, false},
		"from a backup, before it was set up":  {held7, kv(t, fresh, before, 8), restored, false},
		"from a backup, when flannel had it":   {held7, kv(t, plain, before, 8), restored, false},
		"from a backup, of a reservation now":  {held0, kv(t, mine, before, 8), restored, false},
		"from a backup, then a reservation":    {held7, kv(t, moved, before, 0), adopted, false},
		"from a backup, under our lease":       {held7, kv(t, mine, before, 7), intact, false},
		"from a backup, another node's":        {held7, kv(t, other, before, 8), intact, true},
		"intact":                               {held7, kv(t, mine, 5, 7), intact, false},
		"intact reservation":                   {held0, kv(t, mine, 5, 0), intact, false},
		"absent":                               {held7, nil, absent, false},
		"altered":                              {held7, kv(t, edited, 5, 7), altered, false},
		"altered reservation":                  {held0, kv(t, edited, 5, 0), altered, false},
		"made a reservation":                   {held7, kv(t, mine, 5, 0), adopted, false},
		"made a reservation, altered":          {held7, kv(t, edited, 5, 0), adopted, false},
		"made a reservation by address":        {held7, kv(t, plain, 5, 0), adopted, false},
		"junk under our etcd lease":            {held7, junk(7), altered, false},
		"junk without etcd lease":              {held7, junk(0), altered, false},
		"junk over a reservation":              {held0, junk(0), altered, false},
		"junk under another etcd lease":        {held7, junk(8), intact, true},
		"same value, another etcd lease":       {held7, kv(t, mine, 5, 8), intact, true},
		"another node":                         {held7, kv(t, other, 5, 8), intact, true},
		"another node's reservation":           {held7, kv(t, other, 5, 0), intact, true},
		"another node under our lease":         {held7, kv(t, other, 5, 7), intact, true},
		"clone with our instance":              {held7, kv(t, moved, 5, 0), intact, true},
		"host set up anew":                     {held7, kv(t, fresh, 5, 0), intact, true},
		"reservation for another address":      {held7, kv(t, elsewhere, 5, 0), intact, true},
		"flannel wrote over a reservation":     {held0, kv(t, plain, 5, 9), intact, true},
	} {
		key, value, err := subnet.EncodeLease(mine)
		if err != nil {
			t.Fatal(err)
		}
		h := &held{lease: mine, key: prefix + key, value: value, etcd: clientv3.LeaseID(c.held), wrote: before + 1}
		got, err := s.judge(h, c.stored)
		if got != c.is || (err != nil) != c.lost || c.lost && !errors.Is(err, subnet.ErrConflict) {
			t.Errorf("%s: %d, %v; want %d, lost %t", name, got, err, c.is, c.lost)
		}
	}
}

// What stands in the way of a key that is to be taken back.
func TestObstacles(t *testing.T) {
	mine := at(node("n1", "i1", "192.0.2.1"), "10.42.7.0/24")
	there := func(name, instance, u, sub string, rev, lease int64) *mvccpb.KeyValue {
		return kv(t, at(node(name, instance, u), sub), rev, lease)
	}
	const before, after = 3, 5
	for name, c := range map[string]struct {
		kvs         []*mvccpb.KeyValue
		drop        int
		older, twin bool
		by          string
	}{
		"nothing":                      {},
		"others":                       {kvs: []*mvccpb.KeyValue{there("n2", "i2", "192.0.2.2", "10.42.8.0/24", before, 1)}},
		"own from a backup":            {kvs: []*mvccpb.KeyValue{there("n1", "i1", "192.0.2.1", "10.42.8.0/24", before, 1)}, drop: 1},
		"own from a backup, overlap":   {kvs: []*mvccpb.KeyValue{there("n1", "i1", "192.0.2.1", "10.42.6.0/23", before, 1)}, drop: 1},
		"other name from a backup":     {kvs: []*mvccpb.KeyValue{there("n0", "i1", "192.0.2.1", "10.42.8.0/24", before, 1)}, drop: 1},
		"other instance from a backup": {kvs: []*mvccpb.KeyValue{there("n1", "i0", "192.0.2.1", "10.42.8.0/24", before, 1)}, drop: 1},
		"reservation for us":           {kvs: []*mvccpb.KeyValue{there("", "", "192.0.2.1", "10.42.8.0/24", before, 0)}},
		"overlap from a backup":        {kvs: []*mvccpb.KeyValue{there("n2", "i2", "192.0.2.2", "10.42.6.0/23", before, 1)}, by: "10.42.6.0-23", older: true},
		"clone from a backup":          {kvs: []*mvccpb.KeyValue{there("n1", "i9", "192.0.2.9", "10.42.8.0/24", before, 1)}, by: "10.42.8.0-24", older: true},
		"overlap":                      {kvs: []*mvccpb.KeyValue{there("n2", "i2", "192.0.2.2", "10.42.7.128/25", after, 1)}, by: "10.42.7.128-25"},
		"own name elsewhere":           {kvs: []*mvccpb.KeyValue{there("n1", "i1", "192.0.2.1", "10.42.8.0/24", after, 1)}, by: "10.42.8.0-24", twin: true},
		"the newer settles it": {kvs: []*mvccpb.KeyValue{there("n2", "i2", "192.0.2.2", "10.42.7.0/25", before, 1),
			there("n3", "i3", "192.0.2.3", "10.42.7.128/25", after, 1)}, by: "10.42.7.128-25"},
	} {
		h := &held{lease: mine, key: prefix + "10.42.7.0-24", wrote: 4}
		drop, err := h.obstacles(newTable(prefix, listed(10, c.kvs...)))
		var lost *lostError
		if errors.As(err, &lost) != (c.by != "") || len(drop) != c.drop {
			t.Errorf("%s: %d to drop, error %v", name, len(drop), err)
			continue
		}
		if lost != nil && (lost.by.key != prefix+c.by || lost.older != c.older || errors.Is(err, subnet.ErrTwin) != c.twin || !errors.Is(err, subnet.ErrConflict)) {
			t.Errorf("%s: %v, older %t, twin %t", name, err, lost.older, errors.Is(err, subnet.ErrTwin))
		}
	}
}

// A loss to something older than what we wrote is borne for a while.
func TestBear(t *testing.T) {
	mine := at(node("n1", "i1", "192.0.2.1"), "10.42.7.0/24")
	h := &held{lease: mine, key: prefix + "10.42.7.0-24", wrote: 4}
	by := readRecord(prefix, kv(t, at(node("n2", "i2", "192.0.2.2"), "10.42.7.0/24"), 3, 1))
	now := time.Now()
	if err := h.bear(&lostError{h: h, by: by}, now); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("a newer one is borne: %v", err)
	}
	old := &lostError{h: h, by: by, older: true}
	for _, d := range []time.Duration{0, time.Second, rewindGrace - 1} {
		if err := h.bear(old, now.Add(d)); !errors.Is(err, errRewound) || errors.Is(err, subnet.ErrConflict) || !strings.Contains(err.Error(), `"n2"`) {
			t.Errorf("after %s: %v", d, err)
		}
	}
	if err := h.bear(old, now.Add(rewindGrace)); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("borne for ever: %v", err)
	}
	if other := errors.New("x"); h.bear(other, now) != other || h.bear(nil, now) != nil {
		t.Error("other errors do not pass")
	}
}
