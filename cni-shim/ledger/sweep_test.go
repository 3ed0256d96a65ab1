// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestEachKind sweeps a node with one attachment of each kind, twice: the
// first sweep frees what it should, the second finds nothing.
func TestEachKind(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t, t.TempDir())
			defer w.close()
			other := w.pod().stamp(Added, w.boot).alloc()
			other.port(other.addr)
			p := k.make(w.pod())
			before := [3]bool{}
			before[0], before[1], before[2] = p.has()
			r := w.sweep()
			after := [3]bool{}
			after[0], after[1], after[2] = p.has()
			if k.fate != leaked {
				if before != after || r.Freed != nil {
					t.Errorf("had state, address, veth %v, has %v; freed %v", before, after, r.Freed)
				}
			} else if after != [3]bool{} || len(r.Freed) != 1 || r.Freed[0].Why != k.why {
				t.Errorf("has state, address, veth %v; freed %+v, want because %q", after, r.Freed, k.why)
			}
			want := Report{Alive: 1}
			switch k.fate {
			case alive:
				want.Alive++
			case busy:
				want.Busy++
			case undecided:
				want.Undecided = []Entry{{Key: p.key}}
			}
			if r.Alive != want.Alive || r.Busy != want.Busy || len(r.Undecided) != len(want.Undecided) || r.Outside != nil {
				t.Errorf("report %+v", r)
			}
			if again := w.sweep(); again.Freed != nil {
				t.Errorf("the next sweep frees %v", again.Freed)
			}
			if s, a, v := other.has(); !s || !a || !v {
				t.Error("the other pod lost something")
			}
		})
	}
}

// TestAliveIsNeverFreed mixes attachments of all kinds with what is not ours,
// and sweeps with veths that cannot be deleted: nothing that lives or is at
// work loses anything, nothing foreign changes, and one sweep without failures
// frees all the rest.
func TestAliveIsNeverFreed(t *testing.T) {
	all := kinds()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "weft-ledger-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := newWorld(t, dir)
		defer w.close()
		foreign := w.strew()
		mix := rapid.SliceOfN(rapid.IntRange(0, len(all)-1), 1, 40).Draw(rt, "kinds")
		pods, had, blind := make([]*pod, len(mix)), make([][3]bool, len(mix)), false
		for i, n := range mix {
			pods[i] = all[n].make(w.pod())
			had[i][0], had[i][1], had[i][2] = pods[i].has()
			blind = blind || all[n].blind
		}
		for _, v := range w.veths {
			if rapid.IntRange(0, 9).Draw(rt, "fails") == 0 {
				w.fails[v.Name] = true
			}
		}
		r, err := w.open().Sweep(t.Context(), w, nil, later())
		w.check(rt, pods, had, mix, blind, true)
		if failed := len(w.fails) > 0; err != nil && !failed {
			rt.Fatal(err)
		}
		for _, e := range r.Freed {
			if e.Why == "" {
				rt.Errorf("%v is freed for no reason", e)
			}
		}
		clear(w.fails)
		if _, err := w.open().Sweep(t.Context(), w, nil, later()); err != nil {
			rt.Fatal(err)
		}
		w.check(rt, pods, had, mix, blind, false)
		for path, content := range foreign {
			if got, err := os.ReadFile(path); err != nil || string(got) != content {
				rt.Errorf("%s: %q, %v; was %q", path, got, err, content)
			}
		}
	})
}

// check looks at every pod after a sweep. partial says that some veths could
// not be deleted, so that what is leaked may be left, but not an address of a
// veth that still is there.
func (w *world) check(rt *rapid.T, pods []*pod, had [][3]bool, mix []int, blind, partial bool) {
	kinds := kinds()
	for i, p := range pods {
		k := kinds[mix[i]]
		state, alloc, veth := p.has()
		wantState, wantAlloc, wantVeth := had[i][0], had[i][1], had[i][2]
		switch {
		case k.fate != leaked || k.why == Unknown && blind:
			if state != wantState || alloc != wantAlloc || veth != wantVeth {
				rt.Errorf("%s %s: state, address, veth %v %v %v, want %v %v %v", p.key, k.name, state, alloc, veth, wantState, wantAlloc, wantVeth)
			}
		case partial && w.fails[p.veth()]:
			if veth != wantVeth || alloc != wantAlloc {
				rt.Errorf("%s %s: its address is free, its veth is not", p.key, k.name)
			}
		case state || alloc || veth:
			rt.Errorf("%s %s: state, address, veth %v %v %v are left", p.key, k.name, state, alloc, veth)
		}
	}
}

// TestAnyFiles: files of any name and content in both directories are swept
// without harm to a living pod, nor to a file that host-local and the plugin
// would not have written.
func TestAnyFiles(t *testing.T) {
	name := rapid.OneOf(rapid.StringMatching(`[a-c0-9.:\-]{1,20}`), rapid.StringMatching(`10\.42\.1\.[0-9]{1,3}`),
		rapid.SampledFrom([]string{"c1:eth0.lock", "c1:eth0.new", "c1", "lock", "fd00::1"}))
	content := rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 50), rapid.Map(rapid.SampledFrom([]string{
		"c1\r\neth0", "c1", "c9\r\neth0", "", savedConf, `{"name":"weft","type":"bridge","` + StampKey + `":{"phase":"adding","boot":"this-boot","netnsID":1}}`,
		`{"name":"weft","type":"bridge","ipam":{"type":"host-local"},"` + StampKey + `":{"phase":"deleting","boot":"this-boot","netnsID":1,"ports":["veth00000001"]}}`,
	}), func(s string) []byte { return []byte(s) }))
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "weft-ledger-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := newWorld(t, dir)
		p := w.pod().stamp(Added, w.boot).alloc()
		p.port(p.addr)
		written := map[string]bool{} // what the plugins could have written
		for range rapid.IntRange(1, 8).Draw(rt, "files") {
			file, into := name.Draw(rt, "name"), rapid.SampledFrom([]string{w.states(), w.states() + "/" + flightDir, w.networks() + "/weft"}).Draw(rt, "into")
			path := filepath.Join(into, file)
			if _, err := os.Stat(path); err == nil || filepath.Base(path) != file {
				continue
			}
			data := content.Draw(rt, "content")
			put(t, path, string(data))
			_, key := ParseKey(strings.TrimSuffix(strings.TrimSuffix(file, lockSuffix), newSuffix))
			_, addr := parseAddr(file)
			written[path] = key && into != w.networks()+"/weft" || addr && into == w.networks()+"/weft"
		}
		if _, err := w.open().Sweep(t.Context(), w, nil, later()); err != nil {
			rt.Fatal(err)
		}
		if s, a, v := p.has(); !s || !a || !v {
			rt.Errorf("the living pod has state, address, veth %v %v %v", s, a, v)
		}
		for path, ours := range written {
			if _, err := os.Stat(path); err != nil && !ours {
				rt.Errorf("%s is gone", path)
			}
		}
	})
}

// strew puts down what is not ours to touch and returns it.
func (w *world) strew() map[string]string {
	const id = "0123456789abcdef"
	foreign := map[string]string{
		w.states() + "/" + id: `{"name":"cbr0","type":"bridge"}`, // flannel's own state
		w.states() + "/" + id + ":eth0": `{"name":"other","type":"bridge","ipam":{"type":"host-local"},"` + StampKey +
			`":{"phase":"adding","boot":"boot-before"}}`,
		w.states() + "/notes.txt":                          "x",
		w.states() + "/a:b:c":                              "x",
		w.states() + "/" + flightDir + "/README":           "x",
		w.networks() + "/weft/lock":                        "",
		w.networks() + "/weft/last_reserved_ip.0":          "10.42.1.7",
		w.networks() + "/weft/last_reserved_ip.1":          "junk",
		w.networks() + "/weft/10.42.1.250":                 "reserved by bob",
		w.networks() + "/weft/10.42.1.250.bak":             "",
		w.networks() + "/weft/010.42.1.1":                  "",
		w.networks() + "/other/10.42.1.9":                  id + "\r\neth0",
		w.networks() + "/other/10.42.1.10":                 "",
		w.dir + "/netns":                                   "",
		w.networks() + "/weft/sub/10.42.1.77":              "",
		w.networks() + "/weft/fd00::1%eth0":                "",
		w.states() + "/" + strings.Repeat("x", 201) + ":e": savedConf,
	}
	for path, content := range foreign {
		put(w.t, path, content)
	}
	return foreign
}

// TestRebootFreesAll: what was alive when the machine went down is dead when
// it comes up, at once and whatever the clock says.
func TestRebootFreesAll(t *testing.T) {
	w := newWorld(t, t.TempDir())
	for range 30 {
		p := w.pod().stamp(Added, w.boot).alloc()
		p.port(p.addr)
	}
	if r := w.sweep(); r.Alive != 30 || r.Freed != nil {
		t.Fatalf("before: %+v", r)
	}
	w.boot, w.veths = "next-boot", nil
	put(t, w.dir+"/boot_id", w.boot)
	r, err := w.open().Sweep(t.Context(), w, nil, time.Unix(0, 0))
	if err != nil || len(r.Freed) != 30 {
		t.Errorf("after: %+v, %v", r, err)
	}
	if got := files(t, w.dir); !slices.Equal(got, []string{"boot_id", "networks/weft/lock"}) {
		t.Errorf("left %v", got)
	}
}

// TestYoungWithoutState: another plugin's ADD holds no lock of ours.
func TestYoungWithoutState(t *testing.T) {
	w := newWorld(t, t.TempDir())
	p := w.pod().alloc()
	for _, now := range []time.Time{time.Now(), time.Now().Add(9 * time.Minute), time.Now().Add(-time.Hour)} {
		if r, err := w.open().Sweep(t.Context(), w, nil, now); err != nil || r.Freed != nil || len(r.Undecided) != 1 {
			t.Errorf("at %v: %+v, %v", now, r, err)
		}
	}
	if r := w.sweep(); len(r.Freed) != 1 || r.Freed[0].Key != p.key {
		t.Errorf("later: %+v", r)
	}
}

// TestNetnsIDReused: the id of a namespace is given again when it has gone. A
// killed ADD whose pod is gone must not claim the veth of the pod that has the
// id now, at whatever stage that pod is.
func TestNetnsIDReused(t *testing.T) {
	for name, stage := range map[string]func(*pod) *pod{
		"at work": func(p *pod) *pod { return p.lock().stamp(Adding, p.w.boot).port() },
		"bare":    func(p *pod) *pod { return p.lock().stamp(Adding, p.w.boot).bare() },
		"at work again": func(p *pod) *pod {
			p.lock().stamp(Added, p.w.boot).port()
			p.w.veths[0].Name = "vethaabbccdd" // not yet in the stamp
			return p
		},
		"finished":  func(p *pod) *pod { return p.stamp(Added, p.w.boot).alloc().port() },
		"unstamped": func(p *pod) *pod { return p.alloc().port(p.addr) },
	} {
		w := newWorld(t, t.TempDir())
		dead := w.pod().stamp(Adding, w.boot).alloc()
		w.next = 0 // the same id of the namespace
		p := w.pod()
		p.key, p.addr = Key{"living", "eth0"}, p.addr.Next()
		stage(p)
		if r := w.sweep(); len(r.Freed) != 1 || r.Freed[0].Key != dead.key {
			t.Errorf("%s: freed %+v", name, r.Freed)
		}
		if len(w.veths) != 1 {
			t.Errorf("%s: the veth is gone", name)
		}
		w.close()
	}
}

// TestNetnsIDInDeadStamps: a pod that has died without a DEL does not keep the
// id of its namespace from the killed ADD that got it next. (Found by the
// campaign: three veths of 120 calls were left.)
func TestNetnsIDInDeadStamps(t *testing.T) {
	w := newWorld(t, t.TempDir())
	died := w.pod().stamp(Added, w.boot).alloc()
	w.next = 0
	killed := w.pod()
	killed.key, killed.addr = Key{"killed", "eth0"}, killed.addr.Next()
	killed.stamp(Adding, w.boot)
	id := killed.n
	w.veths = append(w.veths, Veth{Name: "vethaabbccdd", Index: 7, Netns: &id, Port: true})
	if r := w.sweep(); len(r.Freed) != 2 || len(w.veths) != 0 {
		t.Errorf("freed %+v, left %+v", r.Freed, w.veths)
	}
	if s, a, _ := died.has(); s || a {
		t.Error("the pod that died is left")
	}
}

// TestForeignVeths: what other plugins and people attach is never deleted,
// even into the namespace of a killed ADD.
func TestForeignVeths(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.7")
	for _, v := range []Veth{
		{Name: "tap0", Port: true},                                    // not the bridge plugin's name
		{Name: "veth0123456", Port: true},                             // Docker's
		{Name: "vethaabbccdd"},                                        // on another bridge
		{Name: "vethaabbccdd", Bare: true, Addrs: []netip.Addr{addr}}, // the ptp plugin's
		{Name: "vethaabbccdd", Port: true, Unreadable: true},
	} {
		w := newWorld(t, t.TempDir())
		p := w.pod().stamp(Adding, w.boot).alloc()
		id := p.n
		v.Netns, v.Index = &id, 7
		w.veths = append(w.veths, v)
		r := w.sweep()
		if len(w.veths) != 1 {
			t.Errorf("%+v is deleted", v)
		}
		if freed := len(r.Freed) == 1; freed == v.Unreadable {
			t.Errorf("%+v: freed %v, undecided %v", v, r.Freed, r.Undecided)
		}
	}
}

// TestAddressElsewhere: an address that a living pod has, whether or not it is
// its own, is not free when the attachment that holds it is half done.
func TestAddressElsewhere(t *testing.T) {
	for _, ph := range []Phase{Adding, Deleting} {
		w := newWorld(t, t.TempDir())
		half := w.pod().stamp(ph, w.boot).alloc()
		living := w.pod().stamp(Added, w.boot).alloc()
		living.port(living.addr, half.addr)
		if r := w.sweep(); r.Freed != nil || len(r.Undecided) != 1 || len(w.veths) != 1 {
			t.Errorf("%s: %+v, veths %v", ph, r, w.veths)
		}
	}
}

// TestOtherVethsDoNotBlind: only a port of the bridge can be a pod's that
// nobody knows.
func TestOtherVethsDoNotBlind(t *testing.T) {
	w := newWorld(t, t.TempDir())
	w.pod().alloc()
	w.veths = append(w.veths, Veth{Name: "veth0123456", Index: 7}, Veth{Name: "cali0", Index: 8, Bare: true})
	if r := w.sweep(); len(r.Freed) != 1 {
		t.Errorf("%+v", r)
	}
}

// TestPodsOfAnotherBridge: what is on a bridge of another name is never deleted,
// and its addresses are no pod's that is gone.
func TestPodsOfAnotherBridge(t *testing.T) {
	w := newWorld(t, t.TempDir())
	flannels, dead := w.pod().alloc(), w.pod().alloc()
	killed := w.pod().stamp(Adding, w.boot).alloc()
	w.veths = append(w.veths, Veth{Name: "veth0123456", Index: 7, Addrs: []netip.Addr{flannels.addr}},
		Veth{Name: "veth1234567", Index: 8, Addrs: []netip.Addr{killed.addr}})
	r := w.sweep()
	var freed []Key
	for _, e := range r.Freed {
		freed = append(freed, e.Key)
	}
	if !slices.Contains(freed, dead.key) || slices.Contains(freed, flannels.key) {
		t.Errorf("%+v", r)
	}
	if len(w.veths) != 2 {
		t.Errorf("veths %+v are left, want both", w.veths)
	}
}

// TestLooksTwice: what the kernel leaves out of one list is not gone.
func TestLooksTwice(t *testing.T) {
	w := newWorld(t, t.TempDir())
	p := w.pod().stamp(Added, w.boot).alloc()
	p.port(p.addr)
	for skip := range 2 {
		r, err := w.open().Sweep(t.Context(), &forgetful{world: w, forget: skip}, nil, later())
		if err != nil || r.Freed != nil {
			t.Errorf("list %d is empty: %+v, %v", skip, r, err)
		}
	}
}

// TestOutsideTheLease: living pods with an address of an earlier lease are
// reported, with the addresses that are wrong.
func TestOutsideTheLease(t *testing.T) {
	w := newWorld(t, t.TempDir())
	in, out := w.pod(), w.pod()
	out.addr = netip.MustParseAddr("10.42.9.9")
	for _, p := range []*pod{in, out} {
		p.stamp(Added, w.boot).alloc().port(p.addr)
	}
	gone := w.pod()
	gone.addr = netip.MustParseAddr("10.42.9.10")
	gone.stamp(Added, w.boot).alloc()
	r := w.sweep()
	if want := []Entry{{Key: out.key, Addrs: []netip.Addr{out.addr}}}; !reflect.DeepEqual(r.Outside, want) {
		t.Errorf("outside %+v, want %+v", r.Outside, want)
	}
	if len(r.Freed) != 1 || r.Freed[0].Key != gone.key {
		t.Errorf("freed %+v", r.Freed)
	}
	if r, err := w.open().Sweep(t.Context(), w, nil, later()); err != nil || r.Outside != nil {
		t.Errorf("without a lease: %+v, %v", r, err)
	}
}

// TestOwnDirectory: a state names host-local's directory when it is not the
// default.
func TestOwnDirectory(t *testing.T) {
	w := newWorld(t, t.TempDir())
	p := w.pod()
	p.conf = `{"name":"weft","type":"bridge","ipam":{"type":"host-local","dataDir":"` + w.dir + `/ipam"}}`
	p.stamp(Added, w.boot)
	put(t, w.dir+"/ipam/weft/10.42.1.77", p.key.ContainerID+"\r\neth0")
	put(t, w.dir+"/ipam/other/10.42.1.77", p.key.ContainerID+"\r\neth0")
	if r := w.sweep(); len(r.Freed) != 1 || len(r.Freed[0].Addrs) != 1 {
		t.Errorf("freed %+v", r.Freed)
	}
	if got := files(t, w.dir+"/ipam"); !slices.Equal(got, []string{"other/10.42.1.77", "weft/lock"}) {
		t.Errorf("left %v", got)
	}
}

// TestHostLocalAtWork: an address that was taken by somebody else between the
// look and the release stays his.
func TestHostLocalAtWork(t *testing.T) {
	w := newWorld(t, t.TempDir())
	p := w.pod().stamp(Added, w.boot).alloc()
	w.veths = append(w.veths, Veth{Name: "vethffffffff", Index: 1, Port: true})
	path := filepath.Join(w.networks(), "weft", p.addr.String())
	l := w.open()
	j, err := l.look(t.Context(), w, later())
	if err != nil {
		t.Fatal(err)
	}
	leaked := j.leaked()
	put(t, path, "c9\r\neth0")
	if err := l.settle(t.Context(), w, leaked[0]); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "c9\r\neth0" {
		t.Errorf("the address is %q, %v", got, err)
	}
}

// TestPluginAtWork: an attachment that another call has changed or is changing
// since it was judged is left to that.
func TestPluginAtWork(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.close()
	p := w.pod().stamp(Adding, w.boot).alloc().port()
	l := w.open()
	j, err := l.look(t.Context(), w, later())
	if err != nil {
		t.Fatal(err)
	}
	leaked := j.leaked()
	p.stamp(Added, w.boot)
	if err := l.settle(t.Context(), w, leaked[0]); !errors.Is(err, errMoved) {
		t.Errorf("after ADD: %v", err)
	}
	p.stamp(Adding, w.boot).lock()
	if err := l.settle(t.Context(), w, leaked[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("during ADD: %v", err)
	}
	if s, a, v := p.has(); !s || !a || !v {
		t.Error("it lost something")
	}
}

// TestBrokenLedger: a kernel that cannot be listed and a directory that cannot
// be read stop the sweep, and nothing is freed.
func TestBrokenLedger(t *testing.T) {
	w := newWorld(t, t.TempDir())
	w.pod().stamp(Added, w.boot).alloc()
	before := files(t, w.dir)
	if _, err := w.open().Sweep(t.Context(), brokenKernel{w}, nil, later()); err == nil {
		t.Error("the sweep goes on without a list of veths")
	}
	l := w.open()
	l.o.StateDir = w.dir + "/boot_id"
	if _, err := l.Sweep(t.Context(), w, nil, later()); err == nil {
		t.Error("the sweep goes on without states")
	}
	if got := files(t, w.dir); !slices.Equal(got, before) {
		t.Errorf("files %v, had %v", got, before)
	}
	empty := newWorld(t, t.TempDir())
	if r := empty.sweep(); !reflect.DeepEqual(r, Report{}) {
		t.Errorf("no directories: %+v", r)
	}
	if got := files(t, empty.dir); !slices.Equal(got, []string{"boot_id"}) {
		t.Errorf("a sweep of nothing makes %v", got)
	}
}

// TestRecords lists what GC goes by.
func TestRecords(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.close()
	w.strew()
	w.pod().stamp(Added, w.boot).alloc()
	w.pod().alloc()
	w.pod().lock()
	put(t, w.networks()+"/weft/10.42.1.200", "")
	records, err := w.open().Records(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Record{}
	for _, r := range records {
		got[r.Key.String()] = r
	}
	want := []string{":", "c1:eth0", "c2:eth0", "c3:eth0"}
	if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
		t.Fatalf("records %v, want %v", keys, want)
	}
	if r := got["c1:eth0"]; !r.Stamped || r.Conf == nil || len(r.Addrs) != 1 || r.Busy {
		t.Errorf("finished: %+v", r)
	}
	if r := got["c2:eth0"]; r.Conf != nil || len(r.Addrs) != 1 {
		t.Errorf("without a state: %+v", r)
	}
	if r := got["c3:eth0"]; !r.Busy {
		t.Errorf("at work: %+v", r)
	}
	if err := w.open().ReleaseTorn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.networks() + "/weft/10.42.1.200"); err == nil {
		t.Error("a torn reservation stays")
	}
	if _, err := os.Stat(w.networks() + "/weft/10.42.1.250"); err != nil {
		t.Error("somebody's reservation is gone")
	}
}
