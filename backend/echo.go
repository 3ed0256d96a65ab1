// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// echoTime is how long, at most twice over, an event is awaited. The kernel
// sends it while it handles the request.
const echoTime = time.Second

// echoes knows which events our own requests cause where the kernel does not
// say it: those of routes, and of neighbours that come, carry the port of the
// socket that asked; those of neighbours that go (neigh_cleanup_and_release,
// net/core/neighbour.c) and of the VXLAN driver's FDB entries (vxlan_fdb_notify,
// drivers/net/vxlan/vxlan_core.c) do not. Each is taken for an echo once. Where
// somebody makes the very same change at the same moment, one of the two events
// is still news.
type echoes struct {
	mu      sync.Mutex
	turned  time.Time
	newer   map[echo]bool
	earlier map[echo]bool // expected before turned
}

// echo is what the event of an entry says.
type echo struct {
	dev  int32      // index
	mac  subnet.MAC // zero for a neighbour
	addr netip.Addr // destination of an FDB entry, or the neighbour
	gone bool
}

// echoOf returns the event that a change on the device with an index will
// cause without saying who asked. ok is false where there is none.
func echoOf(c overlay.Change, index int) (e echo, ok bool) {
	e = echo{dev: int32(index), gone: c.Op == overlay.Delete}
	switch entry := c.Entry.(type) {
	case overlay.FDB:
		e.mac, e.addr, ok = entry.MAC, entry.Dst, true
	case overlay.Neigh:
		e.addr, ok = entry.IP, e.gone
	}
	return e, ok
}

// expect notes that e is about to be caused.
func (s *echoes) expect(e echo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	if s.newer == nil {
		s.newer = map[echo]bool{}
	}
	s.newer[e] = true
}

// hear reports whether e was expected, and expects it no more. It also serves
// for what was not caused after all.
func (s *echoes) hear(e echo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	known := s.newer[e] || s.earlier[e]
	delete(s.newer, e)
	delete(s.earlier, e)
	return known
}

// turn drops what did not come in time: it may have been lost, or nobody
// listens.
func (s *echoes) turn() {
	switch age := time.Since(s.turned); {
	case age > 2*echoTime:
		s.newer, s.earlier, s.turned = nil, nil, time.Now()
	case age > echoTime:
		s.newer, s.earlier, s.turned = nil, s.newer, time.Now()
	}
}

// isEcho reports whether the event of a neighbour or FDB entry comes of a
// request of k's. data begins with struct ndmsg (linux/neighbour.h).
func (k *Kernel) isEcho(gone bool, data []byte) bool {
	index, ok := indexAt(data, 4)
	if !ok || len(data) < unix.SizeofNdMsg {
		return false
	}
	fdb := data[0] == unix.AF_BRIDGE
	e := echo{dev: index, gone: gone}
	for typ, val := range attrs(data[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_LLADDR:
			if fdb && copy(e.mac[:], val) != len(val) {
				return false
			}
		case unix.NDA_DST:
			e.addr, _ = netip.AddrFromSlice(val)
		case unix.NDA_MASTER, unix.NDA_VLAN, unix.NDA_PORT, unix.NDA_VNI, unix.NDA_SRC_VNI:
			return false // not an entry that we make
		}
	}
	return (fdb || gone) && k.echoes.hear(e)
}
