// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// world is a node: directories of its own and a kernel that is a list.
type world struct {
	t     testing.TB
	dir   string
	boot  string
	veths []Veth
	fails map[string]bool // names of veths that cannot be deleted
	locks []*Lock         // of calls at work
	next  int
}

func newWorld(t testing.TB, dir string) *world {
	w := &world{t: t, dir: dir, boot: "this-boot", fails: map[string]bool{}}
	put(t, dir+"/boot_id", w.boot+"\n")
	return w
}

func (w *world) states() string   { return filepath.Join(w.dir, "weft") }
func (w *world) networks() string { return filepath.Join(w.dir, "networks") }

func (w *world) open() *Ledger {
	w.t.Helper()
	l, err := Open(Options{Network: "weft", StateDir: w.states(), AllocDir: w.networks(), BootID: w.dir + "/boot_id"})
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// later is when everything without a stamp is old enough.
func later() time.Time { return time.Now().Add(time.Hour) }

func (w *world) sweep() Report {
	w.t.Helper()
	r, err := w.open().Sweep(w.t.Context(), w, []netip.Prefix{netip.MustParsePrefix("10.42.1.1/24")}, later())
	if err != nil {
		w.t.Error(err)
	}
	return r
}

// Veths implements Kernel.
func (w *world) Veths(context.Context) ([]Veth, error) { return slices.Clone(w.veths), nil }

// DeleteVeth implements Kernel.
func (w *world) DeleteVeth(_ context.Context, name string, index int) error {
	if w.fails[name] {
		return errors.New("operation not permitted")
	}
	w.veths = slices.DeleteFunc(w.veths, func(v Veth) bool { return v.Name == name && v.Index == index })
	return nil
}

// pod is an attachment in the making.
type pod struct {
	w    *world
	n    int
	key  Key
	addr netip.Addr
	conf string
}

func (w *world) pod() *pod {
	w.next++
	return &pod{w, w.next, Key{fmt.Sprintf("c%d", w.next), "eth0"}, netip.AddrFrom4([4]byte{10, 42, 1, byte(w.next + 1)}), savedConf}
}

func (p *pod) veth() string { return fmt.Sprintf("veth%08x", p.n) }

// stamp gives p a state. Added ones name their veth.
func (p *pod) stamp(ph Phase, boot string) *pod {
	id := p.n
	s := Stamp{Phase: ph, Boot: boot, NetnsID: &id}
	if ph == Added {
		s.Ports, s.Addrs = []string{p.veth()}, []netip.Addr{p.addr}
	}
	data, err := Encode([]byte(p.conf), s)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return p.state(string(data))
}

func (p *pod) state(content string) *pod {
	put(p.w.t, stateAt(p.w.t, p.w.states(), p.key).Path(), content)
	return p
}

// alloc gives p its address in host-local.
func (p *pod) alloc() *pod {
	put(p.w.t, filepath.Join(p.w.networks(), "weft", p.addr.String()), p.key.ContainerID+"\r\n"+p.key.IfName)
	return p
}

// port gives p a veth on the bridge, with addresses inside.
func (p *pod) port(addrs ...netip.Addr) *pod {
	id := p.n
	p.w.veths = append(p.w.veths, Veth{Name: p.veth(), Index: 100 + p.n, Netns: &id, Port: true,
		Addrs: append([]netip.Addr{netip.MustParseAddr("fe80::1")}, addrs...)})
	return p
}

// bare gives p a veth that is on no bridge yet.
func (p *pod) bare() *pod {
	p.port()
	v := &p.w.veths[len(p.w.veths)-1]
	v.Port, v.Bare = false, true
	return p
}

// lock is a call at work on p.
func (p *pod) lock() *pod {
	l, err := LockAttachment(p.w.t.Context(), p.w.states(), p.key)
	if err != nil {
		p.w.t.Fatal(err)
	}
	p.w.locks = append(p.w.locks, l)
	return p
}

func (w *world) close() {
	for _, l := range w.locks {
		l.Unlock()
	}
	w.locks = nil
}

// has reports which of p's traces are there: state, address, veth.
func (p *pod) has() (state, alloc, veth bool) {
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	return there(stateAt(p.w.t, p.w.states(), p.key).Path()), there(filepath.Join(p.w.networks(), "weft", p.addr.String())),
		slices.ContainsFunc(p.w.veths, func(v Veth) bool { return v.Name == p.veth() })
}

// kind is a way for an attachment to be.
type kind struct {
	name  string
	make  func(*pod) *pod
	fate  verdict // of a sweep
	blind bool    // leaves a port of which nobody knows whose it is
	why   Reason
}

// kinds lists every stage at which a call can be killed, and all that looks
// similar and lives.
func kinds() []kind {
	unstamped := func(p *pod) *pod { return p.state(p.conf).alloc() }
	return []kind{
		{"alive", func(p *pod) *pod { return p.stamp(Added, p.w.boot).alloc().port(p.addr) }, alive, false, ""},
		{"alive, removed its address", func(p *pod) *pod { return p.stamp(Added, p.w.boot).alloc().port() }, alive, false, ""},
		{"alive, taken off the bridge", func(p *pod) *pod { return p.stamp(Added, p.w.boot).alloc().bare() }, alive, false, ""},
		{"alive, its veth was renamed", func(p *pod) *pod {
			p.stamp(Added, p.w.boot).alloc().port(p.addr)
			p.w.veths[len(p.w.veths)-1].Name = fmt.Sprintf("pod%d", p.n)
			return p
		}, alive, false, ""},
		{"alive, a call died before its lock's file went", func(p *pod) *pod {
			put(p.w.t, filepath.Join(p.w.states(), flightDir, p.key.String()+lockSuffix), "")
			return p.stamp(Added, p.w.boot).alloc().port(p.addr)
		}, alive, false, ""},
		{"alive, of an older version", func(p *pod) *pod { return unstamped(p).port(p.addr) }, alive, false, ""},
		{"alive, of another plugin", func(p *pod) *pod { return p.alloc().port(p.addr) }, alive, false, ""},
		{"alive, of another plugin, removed its address", func(p *pod) *pod { return p.alloc().port() }, undecided, true, ""},
		{"alive, of a later version", func(p *pod) *pod { return p.stamp("resting", p.w.boot).alloc() }, alive, false, ""},
		{"alive, by another delegate", func(p *pod) *pod {
			p.conf = `{"name":"weft","type":"ptp","ipam":{"type":"host-local"}}`
			return p.stamp(Adding, p.w.boot).alloc()
		}, alive, false, ""},
		{"alive, on another bridge", func(p *pod) *pod {
			p.conf = `{"name":"weft","type":"bridge","bridge":"br7","ipam":{"type":"host-local"}}`
			return p.stamp(Added, p.w.boot).alloc()
		}, alive, false, ""},
		{"alive, by another IPAM", func(p *pod) *pod {
			p.conf = `{"name":"weft","type":"bridge","ipam":{"type":"dhcp"}}`
			return p.stamp(Added, p.w.boot)
		}, alive, false, ""},
		{"another IPAM, another boot", func(p *pod) *pod {
			p.conf = `{"name":"weft","type":"bridge","ipam":{"type":"dhcp"}}`
			return p.stamp(Added, "boot-before")
		}, undecided, false, ""},
		{"another boot, yet its address is seen", func(p *pod) *pod { return p.stamp(Added, "boot-before").alloc().port(p.addr) }, undecided, false, ""},

		{"ADD at work, no state yet", func(p *pod) *pod { return p.lock() }, busy, false, ""},
		{"ADD at work, no veth yet", func(p *pod) *pod { return p.lock().stamp(Adding, p.w.boot) }, busy, false, ""},
		{"ADD at work, with an address", func(p *pod) *pod { return p.lock().stamp(Adding, p.w.boot).alloc().port() }, busy, false, ""},
		{"ADD at work, finished", func(p *pod) *pod { return p.lock().stamp(Added, p.w.boot).alloc() }, busy, false, ""},
		{"DEL at work", func(p *pod) *pod { return p.lock().stamp(Deleting, p.w.boot).alloc().port(p.addr) }, busy, false, ""},
		{"DEL at work, without a state", func(p *pod) *pod { return p.lock().alloc() }, busy, false, ""},
		{"ADD at work after a reboot", func(p *pod) *pod { return p.lock().stamp(Added, "boot-before").alloc() }, busy, false, ""},

		{"ADD killed before the state", func(p *pod) *pod {
			put(p.w.t, filepath.Join(p.w.states(), flightDir, p.key.String()+newSuffix), "{")
			put(p.w.t, filepath.Join(p.w.states(), flightDir, p.key.String()+lockSuffix), "")
			return p
		}, leaked, false, AddKilled},
		{"ADD killed before the veth", func(p *pod) *pod { return p.stamp(Adding, p.w.boot) }, leaked, false, AddKilled},
		{"ADD killed before the bridge", func(p *pod) *pod { return p.stamp(Adding, p.w.boot).bare() }, leaked, false, AddKilled},
		{"ADD killed before the address", func(p *pod) *pod { return p.stamp(Adding, p.w.boot).port() }, leaked, false, AddKilled},
		{"ADD killed with an address", func(p *pod) *pod { return p.stamp(Adding, p.w.boot).alloc().port() }, leaked, false, AddKilled},
		{"ADD killed with the pod set up", func(p *pod) *pod { return p.stamp(Adding, p.w.boot).alloc().port(p.addr) }, leaked, false, AddKilled},
		{"ADD killed, pod gone", func(p *pod) *pod { return p.stamp(Adding, p.w.boot).alloc() }, leaked, false, AddKilled},
		{"DEL killed early", func(p *pod) *pod { return p.stamp(Deleting, p.w.boot).alloc().port(p.addr) }, leaked, false, DelKilled},
		{"DEL killed after the veth", func(p *pod) *pod { return p.stamp(Deleting, p.w.boot).alloc() }, leaked, false, DelKilled},
		{"DEL killed after the address", func(p *pod) *pod { return p.stamp(Deleting, p.w.boot) }, leaked, false, DelKilled},
		{"DEL lost", func(p *pod) *pod { return p.stamp(Added, p.w.boot).alloc() }, leaked, false, VethGone},
		{"another boot", func(p *pod) *pod { return p.stamp(Added, "boot-before").alloc() }, leaked, false, OtherBoot},
		{"another boot, ADD killed", func(p *pod) *pod { return p.stamp(Adding, "boot-before").alloc() }, leaked, false, OtherBoot},
		{"another boot, another bridge", func(p *pod) *pod {
			p.conf = `{"name":"weft","type":"bridge","bridge":"br7","ipam":{"type":"host-local"}}`
			return p.stamp(Added, "boot-before").alloc()
		}, leaked, false, OtherBoot},
		{"reservation killed", func(p *pod) *pod {
			put(p.w.t, filepath.Join(p.w.networks(), "weft", p.addr.String()), "")
			return p
		}, leaked, false, TornRecord},
		{"an older version's, gone", unstamped, leaked, false, Unknown},
		{"another plugin's, gone", func(p *pod) *pod { return p.alloc() }, leaked, false, Unknown},
		{"an old host-local's, gone", func(p *pod) *pod {
			put(p.w.t, filepath.Join(p.w.networks(), "weft", p.addr.String()), p.key.ContainerID)
			return p
		}, leaked, false, Unknown},
		{"torn by a power failure", func(p *pod) *pod { return p.state("").alloc() }, leaked, false, Unknown},
	}
}

// brokenKernel cannot list its veths.
type brokenKernel struct{ *world }

// Veths implements Kernel.
func (brokenKernel) Veths(context.Context) ([]Veth, error) {
	return nil, errors.New("netlink dump interrupted")
}

// forgetful leaves all veths out of one list.
type forgetful struct {
	*world
	forget, n int
}

// Veths implements Kernel.
func (f *forgetful) Veths(ctx context.Context) ([]Veth, error) {
	f.n++
	if f.n == f.forget+1 {
		return nil, nil
	}
	return f.world.Veths(ctx)
}
