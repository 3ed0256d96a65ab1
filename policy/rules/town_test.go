// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/policy"
)

// town is a router with pods on veth pairs: "a" and "b", clients, and "c", which
// answers TCP and UDP at ports 80 and 81. Each pod is what its name says: of
// that class and that identity.
type town struct {
	t      testing.TB
	router *nshost.Host
	pods   map[string]*nshost.Host
	conn   *nft.Conn
	p      *Programmer
	table  *policy.Table
}

// classes and identities of the town's pods.
const (
	classA policy.Class    = 0xa
	classC policy.Class    = 0xc
	isA    policy.Identity = 0x1a
	isB    policy.Identity = 0x1b
	isC    policy.Identity = 0x1c
)

func lease() []netip.Prefix { return prefixes("10.42.1.0/24", "fd42:0:0:1::/64") }

// at returns a pod's address of the family of like.
func at(pod, like string) netip.Addr {
	n := pod[0] - 'a' + 10
	if addr(like).Is6() {
		return netip.AddrFrom16([16]byte{0xfd, 0x42, 7: 1, 15: n})
	}
	return netip.AddrFrom4([4]byte{10, 42, 1, n})
}

const (
	v4 = "0.0.0.0"
	v6 = "::"
)

func newTown(t testing.TB) *town {
	w := &town{t: t, router: nshost.New(t), pods: map[string]*nshost.Host{}}
	w.router.Sysctl("1", "ipv4/ip_forward", "ipv6/conf/all/forwarding")
	w.router.Sysctl("0", "ipv4/conf/all/send_redirects", "ipv4/conf/default/send_redirects", "ipv4/conf/all/rp_filter")
	for _, name := range []string{"a", "b", "c"} {
		pod := nshost.New(t)
		w.pods[name] = pod
		w.router.Link(name+"0", pod, "eth0")
		mac := "02:00:00:00:00:0" + name
		pod.Run("ip link set eth0 address " + mac)
		w.router.Run("ip link set " + name + "0 address 02:00:00:00:00:01")
		for like, gateway := range map[string]string{v4: "169.254.1.1", v6: "fe80::1"} {
			a := at(name, like).String()
			pod.Run("ip addr add " + a + " dev eth0" + map[string]string{v6: " nodad"}[like])
			// Of b's streams it is told what they repeat: a packet that was dropped,
			// and none that a busy machine was late with.
			pod.Run("ip route add " + gateway + " dev eth0\nip route add default via " + gateway + " dev eth0 onlink" + map[string]string{"b": " rto_min 30s"}[name])
			pod.Run("ip neigh add " + gateway + " lladdr 02:00:00:00:00:01 dev eth0 nud permanent")
			w.router.Run("ip route add " + a + " dev " + name + "0")
			w.router.Run("ip neigh add " + a + " lladdr " + mac + " dev " + name + "0 nud permanent")
		}
	}
	for _, port := range []int{80, 81} {
		w.serve("c", port)
	}
	w.conn = dial(w.t, w.router)
	w.p = NewProgrammer(w.conn, params())
	w.table = w.open()
	return w
}

// open is a table in which c is isolated in Ingress, and a in Egress, and all
// clients may go to port 80 of c by TCP, and a to no more than that.
func (w *town) open() *policy.Table {
	t := &policy.Table{Known: map[netip.Addr]bool{}, Classes: [2]map[netip.Addr]policy.Class{{}, {}}, Identities: map[netip.Addr]policy.Identity{}}
	for _, like := range []string{v4, v6} {
		for name, id := range map[string]policy.Identity{"a": isA, "b": isB, "c": isC} {
			t.Known[at(name, like)], t.Identities[at(name, like)] = true, id
		}
		t.Classes[policy.Ingress][at("c", like)] = classC
		t.Classes[policy.Egress][at("a", like)] = classA
	}
	t.Pairs = map[policy.Pair]policy.PortSet{}
	for _, p := range []policy.Pair{{Direction: policy.Egress, Class: classA, Identity: isC}, {Direction: policy.Ingress, Class: classC, Identity: isA}, {Direction: policy.Ingress, Class: classC, Identity: isB}} {
		t.Pairs[p] = setOf(p)
	}
	t.Rows = map[policy.Row]bool{rowOf(policy.Egress, classA, isC, 80): true, rowOf(policy.Ingress, classC, isA, 80): true, rowOf(policy.Ingress, classC, isB, 80): true}
	return t
}

// setOf is the ports of one pair alone.
func setOf(p policy.Pair) policy.PortSet {
	return policy.PortSet(uint32(p.Direction)<<30 | uint32(p.Class)<<15 | uint32(p.Identity))
}

func rowOf(d policy.Direction, c policy.Class, id policy.Identity, port uint16) policy.Row {
	return policy.Row{Set: setOf(policy.Pair{Direction: d, Class: c, Identity: id}), Proto: policy.TCP, Port: port}
}

// clone copies what tests change.
func clone(t *policy.Table) *policy.Table {
	c := *t
	c.Known, c.Identities, c.Pairs, c.Rows = maps.Clone(t.Known), maps.Clone(t.Identities), maps.Clone(t.Pairs), maps.Clone(t.Rows)
	c.Classes = [2]map[netip.Addr]policy.Class{maps.Clone(t.Classes[0]), maps.Clone(t.Classes[1])}
	c.Blocks = slices.Clone(t.Blocks)
	return &c
}

// update makes a changed copy of the table the kernel's.
func (w *town) update(change func(*policy.Table)) Report {
	w.t.Helper()
	w.table = clone(w.table)
	change(w.table)
	r, err := w.p.Update(w.t.Context(), w.table, lease())
	if err != nil || r.Unlabelled != nil {
		w.t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// serve echoes TCP at a port of a pod.
func (w *town) serve(pod string, port int) {
	w.t.Helper()
	var l net.Listener
	w.pods[pod].Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprint(":", port))
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(c, c); _ = c.Close() })
			w.t.Cleanup(func() { _ = c.Close() })
		}
	})
	w.t.Cleanup(func() { _ = l.Close() })
}

// mayNot is how long a connection is waited for that may be one that does not
// come about.
const mayNot = 300 * time.Millisecond

// dial connects from a pod; a nil connection is one that did not come about.
func (w *town) dial(pod string, to netip.AddrPort, wait time.Duration) net.Conn {
	w.t.Helper()
	var c net.Conn
	w.pods[pod].Do(func() error {
		var err error
		d := net.Dialer{Timeout: wait}
		if c, err = d.DialContext(w.t.Context(), "tcp", to.String()); err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				return err
			}
			c = nil
		}
		return nil
	})
	if c != nil {
		w.t.Cleanup(func() { _ = c.Close() })
	}
	return c
}

// reaches reports whether a connection comes about soon; only that it does not
// can be asserted so, connects tells that it does.
func (w *town) reaches(pod string, to netip.AddrPort) bool { return w.within(pod, to, mayNot) }

func (w *town) connects(pod string, to netip.AddrPort) bool { return w.within(pod, to, 30*time.Second) }

func (w *town) within(pod string, to netip.AddrPort, wait time.Duration) bool {
	w.t.Helper()
	c := w.dial(pod, to, wait)
	return c != nil && c.Close() == nil
}

func (w *town) counter(name string) int {
	w.t.Helper()
	all, err := w.p.Counters(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return int(all[name].Packets)
}

// stream is a connection on which one byte goes to and fro all the time.
type stream struct {
	conn  net.Conn
	turns atomic.Int64
}

func (w *town) stream(pod string, to netip.AddrPort) *stream {
	w.t.Helper()
	s := &stream{conn: w.dial(pod, to, 30*time.Second)}
	if s.conn == nil {
		w.t.Fatalf("%s does not reach %v", pod, to)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := []byte{1}
		for {
			if _, err := s.conn.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(s.conn, b); err != nil {
				return
			}
			s.turns.Add(1)
			time.Sleep(200 * time.Microsecond)
		}
	})
	w.t.Cleanup(func() { _ = s.conn.Close(); wg.Wait() })
	return s
}

// goesOn waits for more turns.
func (w *town) goesOn(s *stream, n int64) {
	w.t.Helper()
	from := s.turns.Load()
	nshost.Eventually(w.t, "the stream goes on", func() bool { return s.turns.Load() >= from+n })
}

// retransmits is how many segments the sender of a stream had to repeat.
func (w *town) retransmits(s *stream) (n uint32) {
	w.t.Helper()
	raw, err := s.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		w.t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) {
		info, ierr := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err = ierr; err == nil {
			n = info.Total_retrans
		}
	})
	if err := errors.Join(err, cerr); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// nftDiff compares the kernel with what it is to have.
func nftDiff(t testing.TB, w *town) nft.Plan {
	t.Helper()
	return nft.Diff(Desired(params(), w.p.Generation(), w.table, lease()), mustDump(t, w.conn))
}
