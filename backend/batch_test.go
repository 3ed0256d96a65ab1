// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// badOnes returns changes that the kernel, or weft itself, refuses, each with
// a word of the error it makes. Number n of each kind differs from the others.
func badOnes(n int) map[string]overlay.Change {
	b := byte(n)
	dst := func(third byte) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 65, third, 0}), 24)
	}
	r := overlay.Route{Dev: "weft.1", Dst: dst(b), Via: dst(b).Addr(), Metric: 1024, Onlink: true, Proto: overlay.RouteProtocol}
	stray, held := r, r
	stray.Src = ip("203.0.113.9") // no address of ours
	held.Dst = prefix("100.66.0.0/24")
	held.Via = held.Dst.Addr()
	return map[string]overlay.Change{
		"invalid argument":          add(stray),
		"the route on u0":           add(held),
		"address family not suppor": add(overlay.FDB{Dev: "weft.1", MAC: subnet.MAC{2, 0, 0, 0, 9, b}, Dst: ip("fd00::9")}),
		"not one that weft was":     add(overlay.Neigh{Dev: "u0", IP: dst(b).Addr(), MAC: mac(b)}),
	}
}

// TestBatchFindsTheBadOnes: however bad entries are spread among good ones,
// each is named once, and all others are in the kernel.
func TestBatchFindsTheBadOnes(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip route add 100.66.0.0/24 via 10.0.0.9 dev u0 metric 1024")
	k := newKernel(t, "weft.1")
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 20 {
		want := manyPeers(1 + rng.IntN(2*batchMost))
		good := overlay.Diff(want, state())[1:] // without the link
		mustApply(t, k, add(link(subnet.IPv4)))
		changes, words := slices.Clone(good), map[string]int{}
		for range rng.IntN(10) {
			for word, c := range badOnes(len(changes)) {
				words[word]++
				changes = slices.Insert(changes, rng.IntN(len(changes)+1), c)
			}
		}
		// What is there already, and what is not there to be deleted, is well.
		changes = append(changes, good[rng.IntN(len(good))])
		changes = append(changes, del(overlay.Neigh{Dev: "weft.1", IP: ip("100.127.0.1"), MAC: mac(7)}))
		err := k.Apply(t.Context(), changes)
		text, n := fmt.Sprint(err), 0
		for word, times := range words {
			n += times
			if got := strings.Count(text, word); got != times {
				t.Fatalf("seed %d round %d: %q %d times, want %d:\n%v", seed, round, word, got, times, err)
			}
		}
		if err != nil && strings.Count(text, "\n")+1 != n {
			t.Fatalf("seed %d round %d: want %d errors:\n%v", seed, round, n, err)
		}
		wantState(t, k, want)
		mustApply(t, k, del(link(subnet.IPv4)))
	}
}

// TestBatchOfAFailedSocket: what the kernel did not answer has the socket's
// error, and nothing passes for done.
func TestBatchOfAFailedSocket(t *testing.T) {
	enterNetns(t)
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]*nl.NetlinkRequest, 3)
	for i := range requests {
		requests[i] = neighRequest(overlay.Neigh{IP: ip("10.0.0.7"), MAC: mac(7)}, 4711, false)
	}
	for _, err := range c.batch(t.Context(), requests) {
		wantErr(t, err, "no such device")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range c.batch(ctx, requests) {
		wantErr(t, err, "context canceled")
	}
	c.close()
	for _, err := range c.batch(t.Context(), requests) {
		wantErr(t, err, "bad file descriptor")
	}
}

// TestBatchEndsWithItsContext: one error counts what was not made.
func TestBatchEndsWithItsContext(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	k := newKernel(t, "weft.1")
	mustApply(t, k, add(link(subnet.IPv4)))
	changes := overlay.Diff(manyPeers(5000), state())[1:] // takes some 50 ms
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	err := k.Apply(ctx, changes)
	if err == nil {
		t.Fatal("all was made in spite of the context")
	}
	var left, total int
	last := err.Error()[strings.LastIndex(err.Error(), "\n")+1:]
	if n, scanErr := fmt.Sscanf(last, "%d of %d changes not made", &left, &total); n != 2 || total != len(changes) {
		t.Fatalf("%v: %v", err, scanErr)
	}
	have := mustDump(t, k)
	if made := len(have.FDB) + len(have.Neighs) + len(have.Routes); made < total-left-batchMost || made > total-left {
		t.Errorf("%d entries are there, %d of %d are said not to be", made, left, total)
	}
}
