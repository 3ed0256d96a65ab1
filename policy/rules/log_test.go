// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"context"
	"errors"
	"testing"
	"time"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/denials"
)

// Some of what is refused is copied to who listens, with the direction, and can
// be read.
func TestRefusedPacketsAreLogged(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	if _, err := p.Sync(t.Context(), walled(), lease()); err != nil {
		t.Fatal(err)
	}
	var c *nft.Copies
	w.router.Do(func() (err error) { c, err = nft.ListenCopies(t.Context(), DefaultLogGroup); return err })
	t.Cleanup(func() { _ = c.Close() })
	w.router.Do(func() error {
		if _, err := nft.ListenCopies(t.Context(), DefaultLogGroup); !errors.Is(err, nft.ErrGroupTaken) {
			t.Errorf("a second listener: %v", err)
		}
		return nil
	})
	for _, k := range []policy.Packet{
		{Src: addr("1.0.0.1"), Dst: addr("10.42.1.2"), Proto: policy.UDP, Port: 7},
		{Src: addr("fd42:0:0:1::3"), Dst: addr("2001:db8::1"), Proto: policy.UDP, Port: 7},
	} {
		const perFlood = 100
		for range perFlood {
			w.send(k, transport(k, 40000))
		}
		want := policy.Ingress
		if k.Src.Is6() {
			want = policy.Egress
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		n := 0
		err := c.Watch(ctx, func(copied nft.Copy) {
			d, answer, ours := Denied(copied.Prefix)
			if got, _, ok := denials.Parse(copied.Packet); ours && !answer && d == want && ok && got == k {
				if n++; n == logBurst {
					cancel()
				}
			}
		})
		cancel()
		if n != logBurst || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %d copies of %d packets, want %d: %v", want, n, perFlood, logBurst, err)
		}
	}
}

// An answer in a flow that is refused by now is one, and tells the question.
func TestRefusedAnswersAreLogged(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	table := walled()
	pair := policy.Pair{Direction: policy.Ingress, Class: 1, Identity: policy.Anyone}
	table.Pairs, table.Rows = map[policy.Pair]policy.PortSet{pair: 9}, map[policy.Row]bool{{Set: 9, Proto: policy.UDP, Port: 53}: true}
	if _, err := p.Sync(t.Context(), table, lease()); err != nil {
		t.Fatal(err)
	}
	var c *nft.Copies
	w.router.Do(func() (err error) { c, err = nft.ListenCopies(t.Context(), DefaultLogGroup); return err })
	t.Cleanup(func() { _ = c.Close() })
	k := policy.Packet{Src: addr("1.0.0.1"), Dst: addr("10.42.1.2"), Proto: policy.UDP, Port: 53}
	if !w.verdicts([]policy.Packet{k}, func(k policy.Packet) []byte { return transport(k, 40000) })[0] {
		t.Fatal("the question does not pass")
	}
	table = clone(table)
	clear(table.Pairs)
	if _, err := p.Update(t.Context(), table, lease()); err != nil {
		t.Fatal(err)
	}
	back := policy.Packet{Src: k.Dst, Dst: k.Src, Proto: policy.UDP, Port: 40000}
	w.send(back, transport(back, 53))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := c.Watch(ctx, func(copied nft.Copy) {
		if d, answer, ours := Denied(copied.Prefix); ours {
			_, question, ok := denials.Parse(copied.Packet)
			if !ok || !answer || d != policy.Ingress || question != k {
				t.Errorf("%q of %+v", copied.Prefix, question)
			}
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
