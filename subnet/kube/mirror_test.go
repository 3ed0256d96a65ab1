// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/weft/subnet"
)

// clock is a time that moves only when it is told to.
type clock struct{ now time.Time }

func newClock() *clock               { return &clock{time.Unix(1_000_000, 0)} }
func (c *clock) time() time.Time     { return c.now }
func (c *clock) add(d time.Duration) { c.now = c.now.Add(d) }

// leaseOf is node i's lease, of one family.
func leaseOf(i int) subnet.Lease {
	return subnet.Lease{Node: fmt.Sprint("n", i), Instance: fmt.Sprint("id", i), Backend: subnet.BackendVXLAN, Paths: []subnet.Path{{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
		Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), MAC: subnet.MAC{2, 0, 0, 0, 0, byte(i)}, VNI: 1,
	}}}
}

// weftNode is the metadata of a Node that weft's agent has annotated with l.
func weftNode(t testing.TB, l subnet.Lease) *metav1.PartialObjectMetadata {
	t.Helper()
	ann, err := subnet.EncodeNode(subnet.Domain, l)
	if err != nil {
		t.Fatal(err)
	}
	return metaOf(l.Node, ann)
}

func flannelNode(t testing.TB, l subnet.Lease) *metav1.PartialObjectMetadata {
	t.Helper()
	ann, err := subnet.EncodeAnnotations(subnet.FlannelAnnotationPrefix, l)
	if err != nil {
		t.Fatal(err)
	}
	return metaOf(l.Node, ann)
}

func metaOf(name string, ann map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1", Annotations: ann}}
}

func testMirror(t testing.TB, o Options) (*mirror, *clock) {
	t.Helper()
	o.Node, o.NetConf = "n1", "/nowhere"
	o, err := o.complete()
	if err != nil {
		t.Fatal(err)
	}
	ds, err := newDialects(o)
	if err != nil {
		t.Fatal(err)
	}
	c := newClock()
	return newMirror(ds, c.time), c
}

func list(nodes ...*metav1.PartialObjectMetadata) []any {
	var out []any
	for _, n := range nodes {
		out = append(out, n)
	}
	return out
}

// next returns the snapshot that is due; it fails when there is none.
func next(t testing.TB, m *mirror) subnet.Snapshot {
	t.Helper()
	s, _, ok := m.snapshot()
	if !ok {
		t.Fatal("there is no snapshot")
	}
	return s
}

func none(t testing.TB, m *mirror, why string) {
	t.Helper()
	if s, _, ok := m.snapshot(); ok {
		t.Errorf("%s makes a snapshot: %+v", why, s)
	}
}

// want fails unless s holds exactly these leases, and Problems of these Nodes.
func want(t testing.TB, s subnet.Snapshot, leases []subnet.Lease, problems ...string) {
	t.Helper()
	got := s.Leases.Slice()
	slices.SortFunc(got, func(a, b subnet.Lease) int { return strings.Compare(a.Node, b.Node) })
	if !slices.EqualFunc(got, leases, subnet.Lease.Equal) {
		t.Errorf("leases\n%+v, want\n%+v", got, leases)
	}
	var objects []string
	for _, p := range s.Problems {
		objects = append(objects, p.Object)
	}
	if !slices.Equal(objects, problems) {
		t.Errorf("problems %+v, want of %v", s.Problems, problems)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNothingBeforeTheFirstListing(t *testing.T) {
	m, _ := testMirror(t, Options{})
	must(t, m.Add(weftNode(t, leaseOf(2))))
	none(t, m, "a Node before the listing")
	must(t, m.Replace(nil, "1"))
	want(t, next(t, m), nil)
}

// A heartbeat is a change of a Node's resource version, conditions and
// managedFields; kubelets make one every few seconds.
func TestHeartbeatsMakeNoSnapshot(t *testing.T) {
	m, _ := testMirror(t, Options{})
	n := weftNode(t, leaseOf(2))
	must(t, m.Replace(list(n, metaOf("plain", nil)), "1"))
	want(t, next(t, m), []subnet.Lease{leaseOf(2)})
	for i := range 3 {
		beat := weftNode(t, leaseOf(2))
		beat.ResourceVersion = fmt.Sprint(i + 2)
		beat.Labels = map[string]string{"zone": fmt.Sprint(i)}
		beat.Annotations["node.alpha.kubernetes.io/ttl"] = fmt.Sprint(i)
		beat.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		must(t, m.Update(beat))
		must(t, m.Update(metaOf("plain", map[string]string{"beat": fmt.Sprint(i)})))
		none(t, m, "a heartbeat")
	}
	must(t, m.Replace(list(n, metaOf("plain", nil)), "9"))
	none(t, m, "a listing of the same")
}

func TestTransformerStrips(t *testing.T) {
	m, _ := testMirror(t, Options{})
	n := weftNode(t, leaseOf(2))
	n.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	n.Labels = map[string]string{"a": "b"}
	kept := maps.Clone(n.Annotations)
	n.Annotations["other"] = "x"
	out, err := m.Transformer()(n)
	must(t, err)
	got := out.(*metav1.PartialObjectMetadata)
	if got.ManagedFields != nil || got.Labels != nil || !maps.Equal(got.Annotations, kept) || got.UID != n.UID || got.ResourceVersion != "1" {
		t.Errorf("kept %+v", got)
	}
}

// Whatever somebody writes into one Node's annotations, the others are as they
// were, and it keeps what it had.
func TestJunkConcernsOneNode(t *testing.T) {
	m, _ := testMirror(t, Options{})
	must(t, m.Replace(list(weftNode(t, leaseOf(2)), weftNode(t, leaseOf(3))), "1"))
	next(t, m)
	for i, junk := range []map[string]string{
		{"weft.dev/backend-data": "{"}, {"weft.dev/subnets": "10.244.2.0"}, {"weft.dev/public-ip": "::1"},
		{"weft.dev/public-ip-overwrite": "host"}, {"weft.dev/subnets": strings.Repeat("10.0.0.0/24,", 1<<16)},
	} {
		n := weftNode(t, leaseOf(2))
		maps.Copy(n.Annotations, junk)
		must(t, m.Update(n))
		s := next(t, m)
		want(t, s, []subnet.Lease{leaseOf(2), leaseOf(3)}, "n2")
		if p := s.Problems[0]; p.Kind != "JunkLease" || !strings.Contains(p.Detail, "last good lease is kept") || len(p.Detail) > maxDetail+3 {
			t.Errorf("%d: problem %v", i, p)
		}
	}
	must(t, m.Update(weftNode(t, leaseOf(2))))
	want(t, next(t, m), []subnet.Lease{leaseOf(2), leaseOf(3)})

	fresh := weftNode(t, leaseOf(4))
	fresh.Annotations["weft.dev/subnets"] = "x"
	must(t, m.Add(fresh))
	want(t, next(t, m), []subnet.Lease{leaseOf(2), leaseOf(3)}, "n4")
	must(t, m.Delete(fresh))
	want(t, next(t, m), []subnet.Lease{leaseOf(2), leaseOf(3)})
}

// rancher issues 16440 and 20570: after annotations were wiped, flannel's
// nodes lost their peer until its agent was restarted.
func TestWipedAnnotationsAreWaitedFor(t *testing.T) {
	m, c := testMirror(t, Options{})
	must(t, m.Replace(list(weftNode(t, leaseOf(2)), weftNode(t, leaseOf(3))), "1"))
	next(t, m)
	must(t, m.Update(metaOf("n2", nil)))
	none(t, m, "a wipe")
	c.add(wipeGrace - time.Second)
	if _, again, ok := m.snapshot(); ok || again != time.Second {
		t.Errorf("looked at again in %s, want 1s", again)
	}
	must(t, m.Update(weftNode(t, leaseOf(2))))
	c.add(2 * time.Second)
	none(t, m, "a wipe that is mended")

	must(t, m.Update(metaOf("n2", nil)))
	m.snapshot()
	c.add(wipeGrace)
	want(t, next(t, m), []subnet.Lease{leaseOf(3)})
	must(t, m.Update(weftNode(t, leaseOf(2))))
	want(t, next(t, m), []subnet.Lease{leaseOf(2), leaseOf(3)})
	must(t, m.Delete(metaOf("n2", nil))) // that one is meant
	want(t, next(t, m), []subnet.Lease{leaseOf(3)})
}

// learned makes m know the podCIDRs of all Nodes that it asks for.
func learned(t testing.TB, m *mirror, names ...string) {
	t.Helper()
	if got := m.unread(); !slices.Equal(got, names) {
		t.Errorf("asks for %v, want %v", got, names)
	}
	for _, name := range names {
		var i int
		fmt.Sscanf(name, "n%d", &i)
		if !m.learn(name, types.UID("uid-"+name), []netip.Prefix{leaseOf(i).Paths[0].Subnet}, nil) {
			t.Errorf("%s is not settled", name)
		}
	}
}

// byFlannel is leaseOf as flannel's annotations say it.
func byFlannel(i int) subnet.Lease {
	l := leaseOf(i)
	l.Instance = ""
	return l
}

// Nodes that only flannel has annotated are read once per UID, and the first
// snapshot waits for that: it would take them out of the kernel.
func TestFlannelNodesAreReadOnce(t *testing.T) {
	for name, o := range map[string]Options{"weft": {}, "flannel": {Flannel: true}} {
		t.Run(name, func(t *testing.T) {
			m, _ := testMirror(t, o)
			var told []string
			if !o.Flannel {
				told = []string{"flannel"}
			}
			must(t, m.Replace(list(flannelNode(t, leaseOf(2)), flannelNode(t, leaseOf(3))), "1"))
			none(t, m, "a listing that is not read yet")
			learned(t, m, "n2", "n3")
			want(t, next(t, m), []subnet.Lease{byFlannel(2), byFlannel(3)}, told...)

			moved := leaseOf(2)
			moved.Paths[0].Underlay = netip.MustParseAddr("192.0.2.77")
			must(t, m.Update(flannelNode(t, moved)))
			learned(t, m)
			moved.Instance = ""
			want(t, next(t, m), []subnet.Lease{moved, byFlannel(3)}, told...)

			again := flannelNode(t, leaseOf(3))
			again.UID = "another"
			must(t, m.Update(again))
			none(t, m, "a Node that is to be read")
			if m.learn("n3", "uid-n3", []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}, nil) {
				t.Error("what was read of a Node's predecessor is taken for its own")
			}
			if !m.learn("n3", "another", []netip.Prefix{netip.MustParsePrefix("10.244.8.0/24")}, nil) {
				t.Error("not settled")
			}
			l := byFlannel(3)
			l.Paths[0].Subnet = netip.MustParsePrefix("10.244.8.0/24")
			want(t, next(t, m), []subnet.Lease{moved, l}, told...)
		})
	}
}

// One Node that cannot be read does not keep the others back.
func TestUnreadableFlannelNode(t *testing.T) {
	m, _ := testMirror(t, Options{})
	must(t, m.Replace(list(flannelNode(t, leaseOf(2)), flannelNode(t, leaseOf(3))), "1"))
	if m.learn("n2", "", nil, errors.New("timed out")) {
		t.Error("settled without an answer")
	}
	none(t, m, "half a listing")
	if !m.learn("n3", "uid-n3", []netip.Prefix{leaseOf(3).Paths[0].Subnet}, nil) {
		t.Error("not settled")
	}
	want(t, next(t, m), []subnet.Lease{byFlannel(3)}, "n2", "flannel")
	learned(t, m, "n2")
	want(t, next(t, m), []subnet.Lease{byFlannel(2), byFlannel(3)}, "flannel")
}

// Where a Node has both, what weft's agent says counts; with flannel's dialect
// weft's annotations are not there.
func TestTwoDialectsOnOneNode(t *testing.T) {
	both := func() *metav1.PartialObjectMetadata {
		old := leaseOf(2)
		old.Paths[0].MAC = subnet.MAC{2, 9, 9, 9, 9, 9}
		n := flannelNode(t, old)
		maps.Copy(n.Annotations, weftNode(t, leaseOf(2)).Annotations)
		return n
	}
	m, _ := testMirror(t, Options{})
	must(t, m.Replace(list(both()), "1"))
	want(t, next(t, m), []subnet.Lease{leaseOf(2)})

	m, _ = testMirror(t, Options{Flannel: true})
	must(t, m.Replace(list(both(), weftNode(t, leaseOf(3))), "1"))
	learned(t, m, "n2")
	if got := next(t, m).Leases.Slice(); len(got) != 1 || got[0].Paths[0].MAC != (subnet.MAC{2, 9, 9, 9, 9, 9}) {
		t.Errorf("leases %+v, want what flannel's annotations say", got)
	}
}

// A Node gets weft's annotations beside flannel's while its podCIDR is being
// read: what comes of that is of no use, and takes nothing away a minute later.
func TestAnnotatedWhileItIsRead(t *testing.T) {
	for name, failed := range map[string]error{"read": nil, "unread": errors.New("timed out")} {
		t.Run(name, func(t *testing.T) {
			m, c := testMirror(t, Options{})
			n := flannelNode(t, leaseOf(2))
			must(t, m.Replace(list(n), "1"))
			none(t, m, "a Node that is to be read")
			maps.Copy(n.Annotations, weftNode(t, leaseOf(2)).Annotations)
			must(t, m.Update(n))
			want(t, next(t, m), []subnet.Lease{leaseOf(2)})
			if !m.learn("n2", n.UID, []netip.Prefix{leaseOf(2).Paths[0].Subnet}, failed) {
				t.Error("it is asked for again")
			}
			c.add(2 * wipeGrace)
			none(t, m, "what was read too late")
		})
	}
}

// The same grace where flannel's old annotations are left on the Node, whose
// device nobody has any more; flannel's agent, if it is really back, is heard
// after it.
func TestWipedBesideFlannels(t *testing.T) {
	m, c := testMirror(t, Options{})
	old := leaseOf(2)
	old.Instance, old.Paths[0].MAC = "", subnet.MAC{2, 9, 9, 9, 9, 9}
	both := func() *metav1.PartialObjectMetadata {
		n := flannelNode(t, old)
		maps.Copy(n.Annotations, weftNode(t, leaseOf(2)).Annotations)
		return n
	}
	must(t, m.Replace(list(both()), "1"))
	want(t, next(t, m), []subnet.Lease{leaseOf(2)})
	must(t, m.Update(flannelNode(t, old)))
	learned(t, m)
	none(t, m, "a wipe")
	c.add(wipeGrace - time.Second)
	if _, again, ok := m.snapshot(); ok || again != time.Second {
		t.Errorf("looked at again in %s, want 1s", again)
	}
	must(t, m.Update(both()))
	c.add(2 * time.Second)
	none(t, m, "a wipe that is mended")

	must(t, m.Update(flannelNode(t, old)))
	none(t, m, "a wipe")
	c.add(wipeGrace)
	none(t, m, "a Node that is to be read")
	learned(t, m, "n2")
	want(t, next(t, m), []subnet.Lease{old}, "flannel")
	must(t, m.Update(both()))
	want(t, next(t, m), []subnet.Lease{leaseOf(2)})

	again := flannelNode(t, old) // a Node of the same name, which weft has never had
	again.UID = "another"
	must(t, m.Update(again))
	none(t, m, "a Node that is to be read")
	if !m.learn("n2", "another", []netip.Prefix{old.Paths[0].Subnet}, nil) {
		t.Error("not settled")
	}
	want(t, next(t, m), []subnet.Lease{old}, "flannel")
}

// Peers that only flannel has annotated are one Problem, however many, which
// ends when weft's agents annotate them too or they are gone.
func TestOneWayPeers(t *testing.T) {
	m, _ := testMirror(t, Options{})
	var nodes []*metav1.PartialObjectMetadata
	for i := range 9 {
		nodes = append(nodes, flannelNode(t, leaseOf(i+2)))
	}
	must(t, m.Replace(list(nodes...), "1"))
	for i := range nodes {
		m.learn(fmt.Sprint("n", i+2), nodes[i].UID, []netip.Prefix{leaseOf(i + 2).Paths[0].Subnet}, nil)
	}
	if ps := next(t, m).Problems; len(ps) != 1 || ps[0].Kind != "OneWayPeers" || !strings.Contains(ps[0].Detail, "Nodes n10, n2, n3, n4, n5 and 4 more;") {
		t.Errorf("problems %v", ps)
	}
	for i, n := range nodes[:8] {
		maps.Copy(n.Annotations, weftNode(t, leaseOf(i+2)).Annotations)
		must(t, m.Update(n))
	}
	if ps := next(t, m).Problems; len(ps) != 1 || !strings.Contains(ps[0].Detail, "Nodes n10;") {
		t.Errorf("problems %v", ps)
	}
	must(t, m.Delete(nodes[8]))
	if ps := next(t, m).Problems; len(ps) != 0 {
		t.Errorf("problems %v", ps)
	}
}

// The operator's overwrite of a peer's address counts at once.
func TestPeerOverwrite(t *testing.T) {
	m, _ := testMirror(t, Options{})
	n := weftNode(t, leaseOf(2))
	n.Annotations["weft.dev/public-ip-overwrite"] = "203.0.113.2"
	must(t, m.Replace(list(n), "1"))
	l := leaseOf(2)
	l.Paths[0].Underlay, l.Sources = netip.MustParseAddr("203.0.113.2"), []netip.Addr{leaseOf(2).Paths[0].Underlay}
	want(t, next(t, m), []subnet.Lease{l})
	must(t, m.Update(weftNode(t, leaseOf(2))))
	want(t, next(t, m), []subnet.Lease{leaseOf(2)})
}
