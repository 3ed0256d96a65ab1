// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"weft.dev/weft/internal/nshost"
)

func TestGolden(t *testing.T) {
	for name, change := range map[string]func(*node){
		"bind":  func(*node) {},
		"peers": func(p *node) { p.Guard = GuardPeers },
		"open":  func(p *node) { p.opens() },
		"open-ipv6-no-guard": func(p *node) {
			p.opens()
			p.Guard, p.Networks[0] = GuardOff, netip.MustParsePrefix("10.42.0.0/16")
		},
		"off":      func(p *node) { p.Guard, p.Masquerade = GuardOff, false },
		"one-ipv4": func(p *node) { p.Networks[1], p.Subnets[1], p.Lengths = netip.Prefix{}, netip.Prefix{}, p.Lengths[:1] },
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			change(&p)
			nshost.Golden(t, name+".golden", Diff(Desired{Table: Ruleset(p.Params), Elements: Elements(p, peers()[:1])}, Content{}).String())
		})
	}
	t.Run("delta", func(t *testing.T) {
		p := params().WithLengths(peers())
		have := Desired{Ruleset(p.Params), Elements(p, peers()[:3])}.Content()
		want := Desired{Ruleset(p.Params), Elements(p, peers()[1:])}
		nshost.Golden(t, "delta.golden", Diff(want, have).String())
	})
	t.Run("open-delta", func(t *testing.T) {
		p := params().WithLengths(peers())
		p.opens()
		have := Desired{Ruleset(p.Params), Elements(p, peers()[:3])}.Content()
		want := Desired{Ruleset(p.Params), Elements(p, peers()[1:])}
		nshost.Golden(t, "open-delta.golden", Diff(want, have).String())
	})
}

// messages feeds a batch to the readers of dumps, which see the same
// attributes.
func messages(t Table, batch []message) (Content, error) {
	have := newContent()
	have.Elements = map[Element]struct{}{}
	var errs []error
	for _, m := range batch {
		errs = append(errs, have.read(t, m.typ, m.body))
	}
	have.sizes = nil
	return have, errors.Join(errs...)
}

// read gives one message to its reader.
func (c *Content) read(t Table, typ uint16, body []byte) error {
	switch typ {
	case unix.NFT_MSG_NEWTABLE:
		return c.readTable(t, body)
	case unix.NFT_MSG_NEWCHAIN:
		return c.readChain(t, body)
	case unix.NFT_MSG_NEWRULE:
		r, name, err := readRule(t, body)
		ch := c.Chains[name]
		ch.Rules = append(ch.Rules, r)
		c.Chains[name] = ch
		return err
	case unix.NFT_MSG_NEWSET:
		return c.readSet(t, body)
	case unix.NFT_MSG_NEWOBJ:
		return c.readObject(t, body)
	case unix.NFT_MSG_NEWFLOWTABLE:
		return c.readFlowtable(t, body)
	case unix.NFT_MSG_NEWSETELEM:
		var keys keyList
		err := readElements(t, body, &keys)
		f, _, _ := fields(t, body)
		keys.each(func(key []byte) {
			c.Elements[Element{Set: text(f[unix.NFTA_SET_ELEM_LIST_SET]), Key: string(key)}] = struct{}{}
		})
		return err
	}
	return nil
}

func TestDecodingInvertsEncoding(t *testing.T) {
	for _, guard := range []Guard{GuardBind, GuardPeers, GuardOff} {
		p := params()
		p.Guard = guard
		if guard != GuardPeers {
			p.opens()
		}
		want := Weft(p, peers())
		got, err := messages(want.Table, Diff(want, Content{}).batch())
		if err != nil || !reflect.DeepEqual(got, want.Content()) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", guard, err, got, want.Content())
		}
		if plan := Diff(want, got); !plan.Empty() {
			t.Errorf("%s: still to do\n%s", guard, plan)
		}
		if other, err := messages(Table{Family: Bridge, Name: TableName}, Diff(want, Content{}).batch()); err != nil || other.Present || len(other.Elements) != 0 {
			t.Errorf("a dump of bridge weft picked up inet weft: %+v, %v", other, err)
		}
	}
}

// No two rules of a chain do the same, so a digest tells them apart.
func TestDigestsTellRulesApart(t *testing.T) {
	for _, c := range Weft(params(), peers()).Table.Chains {
		seen := map[Digest]Rule{}
		for _, r := range c.Rules {
			d, err := digest(r.encode())
			if err != nil {
				t.Fatal(err)
			}
			if was, ok := seen[d]; ok {
				t.Errorf("%s: %q and %q have the same digest", c.Name, was, r)
			}
			seen[d] = r
		}
	}
}

// Every message stays below what a 16-bit length can say, and they carry all
// elements.
func TestChunks(t *testing.T) {
	want := Weft(params(), manyPeers(10000))
	n := 0
	for _, m := range Diff(want, Content{}).batch() {
		if len(m.body) > 0xffff {
			t.Errorf("%s: %d bytes", m.what, len(m.body))
		}
		if m.typ == unix.NFT_MSG_NEWSETELEM {
			n++
		}
	}
	got, err := messages(want.Table, Diff(want, Content{}).batch())
	if err != nil || len(got.Elements) != len(want.Elements) || n < 2*len(want.Table.Sets) {
		t.Errorf("%d of %d elements in %d messages, %v", len(got.Elements), len(want.Elements), n, err)
	}
}

// Any two sets of peers: the difference applied to the one gives the other,
// and the rules stay while the prefix lengths do.
func TestDeltaLaw(t *testing.T) {
	pool := append(peers(), manyPeers(12)...)
	rapid.Check(t, func(t *rapid.T) {
		pick := func(name string) []Peer {
			return rapid.SliceOfDistinct(rapid.SampledFrom(pool), func(p Peer) netip.Addr { return p.Outer[0] }).Draw(t, name)
		}
		p := params().WithLengths(pool)
		from, to := Weft(p, pick("from")), Weft(p, pick("to"))
		plan := Diff(to, from.Content())
		if plan.Replace {
			t.Fatalf("peers changed the rules: %q", plan.Why)
		}
		have := from.Content()
		for _, e := range plan.Delete {
			delete(have.Elements, e)
		}
		for _, e := range plan.Add {
			have.Elements[e] = struct{}{}
		}
		if again := Diff(to, have); !again.Empty() {
			t.Fatalf("still to do:\n%s", again)
		}
	})
}

func TestErrorsSayWhatTheKernelSays(t *testing.T) {
	body := binary.NativeEndian.AppendUint32(nil, uint32(0xffffffff-uint32(unix.ENOENT)+1))
	body = append(body, make([]byte, unix.SizeofNlMsghdr)...)
	var a attrs
	a.text(unix.NLMSGERR_ATTR_MSG, "no such thing")
	r := reply{typ: unix.NLMSG_ERROR, flags: unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED, body: append(body, a...)}
	if err := r.err(); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v", err)
	}
	for _, short := range []reply{{typ: unix.NLMSG_ERROR}, {typ: unix.NLMSG_ERROR, body: body[:3]}} {
		if !errors.Is(short.err(), errTruncated) {
			t.Errorf("%+v: %v", short, short.err())
		}
	}
}

// FuzzDump feeds datagrams to everything that reads what the kernel sends.
func FuzzDump(f *testing.F) {
	want := Weft(params(), peers())
	for _, m := range Diff(want, Content{}).batch() {
		f.Add(m.typ, datagram(m))
	}
	f.Add(uint16(unix.NFT_MSG_NEWRULE), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, typ uint16, b []byte) {
		m := Monitor{tables: []Table{want.Table}}
		m.news(b)
		all, err := replies(b)
		if err != nil {
			return
		}
		have := newContent()
		have.Elements = map[Element]struct{}{}
		for _, r := range all {
			_ = r.err()
			r.typ, r.flags = unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS
			_ = r.err()
			_ = have.read(want.Table, typ, r.body)
		}
		have.Present = true
		// Whatever it was, there is a plan, and it can be sent and shown.
		plan := Diff(want, have)
		for _, m := range plan.batch() {
			if len(m.body) > 0xffff {
				t.Fatalf("%s: %d bytes", m.what, len(m.body))
			}
		}
		_ = plan.String()
	})
}

func datagram(m message) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(m.body)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|m.typ)
	b = binary.NativeEndian.AppendUint16(b, 0)
	return append(append(b, make([]byte, 8)...), m.body...)
}
