// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"maps"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/policy"
)

// races is how often a pod becomes known, and is no more, while packets come.
const races = 2000

// A packet's way through the rules may begin before a change and end after it.
// A pod that becomes known isolated gets nothing through, not even that packet,
// whose flow would be let pass from then on.
func TestPacketsThatMeetAChange(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	without := walled()
	with := clone(without)
	pod4, pod6 := addr("10.42.1.9"), addr("fd42:0:0:1::9")
	for _, d := range policy.Directions() {
		with.Classes[d] = maps.Clone(without.Classes[d])
		with.Classes[d][pod4], with.Classes[d][pod6] = 7, 7
	}
	with.Known[pod4], with.Known[pod6] = true, true
	if _, err := p.Sync(t.Context(), without, lease()); err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	for _, k := range []policy.Packet{
		{Src: addr("1.0.0.1"), Dst: pod4}, {Src: pod4, Dst: addr("1.0.0.1")},
		{Src: addr("2001:db8::1"), Dst: pod6}, {Src: pod6, Dst: addr("2001:db8::1")},
	} {
		k.Proto, k.Port = policy.UDP, 7
		typ := unix.ETH_P_IP
		if k.Src.Is6() {
			typ = unix.ETH_P_IPV6
		}
		frames = append(frames, append(be([]byte(macRouter+macElse), typ), ip(k, append(transport(k, 40000), "12345678"...))...))
	}
	var sent atomic.Int64
	var end atomic.Bool
	var flood sync.WaitGroup
	flood.Go(func() {
		for !end.Load() {
			for _, f := range frames {
				_, _ = unix.Write(w.in, f) // a full queue is as good
				sent.Add(1)
			}
		}
	})
	for range races {
		for _, table := range []*policy.Table{with, without} {
			if _, err := p.Update(t.Context(), table, lease()); err != nil {
				t.Fatal(err)
			}
		}
	}
	end.Store(true)
	flood.Wait()
	passed := 0
	for buf := make([]byte, 4096); ; {
		n, from, err := unix.Recvfrom(w.out, buf, 0)
		if err != nil {
			break
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING && n > 8 && string(buf[n-8:n]) == "12345678" {
			passed++
		}
	}
	t.Logf("%d changes, %d packets", 2*races, sent.Load())
	if passed > 0 {
		t.Errorf("%d packets of %d passed from or to a pod that may neither send nor receive", passed, sent.Load())
	}
}
