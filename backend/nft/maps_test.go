// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"weft.dev/weft/internal/nshost"
	"weft.dev/weft/subnet"
)

// mapsTable has a set of each kind, and a rule with each kind of expression that
// the tables of policies are made of.
func mapsTable() Table {
	from, port := LoadTupleSource(subnet.IPv4, Original), LoadTupleSourcePort(Reply)
	return Table{
		Family: Inet, Name: "weft_maps",
		Sets: []Set{
			{Name: "ports", Fields: []Type{Port}, Interval: true},
			{Name: "marks", Fields: []Type{Port}, Interval: true, Data: Mark},
			{Name: "words", Fields: []Type{Port}, Interval: true, Data: PortWords},
			{Name: "ids", Fields: []Type{IPv4Addr}, Data: Mark},
			{Name: "ids6", Fields: []Type{IPv6Addr}, Data: Mark},
			{Name: "pairs", Fields: []Type{Mark, Mark, Mark}, Data: Mark},
			{Name: "rows", Fields: []Type{Mark, Mark, Protocol, PortWords}},
		},
		Chains: []Chain{{Name: "other"}, {Name: "c", Hook: Forward, Rules: []Rule{
			rule("", StateIs(StateInvalid|StateUntracked), Verdict{Code: Drop}),
			rule("", LabelSet(0), Verdict{Code: Accept}), rule("", LabelSet(127), Verdict{Code: Accept}),
			rule("", AddLabel{0}), rule("", AddLabel{127}),
			rule("", Has{from, "ids"}, Verdict{Goto, "other"}),
			rule("", Has{LoadTupleSource(subnet.IPv4, Reply), "ids"}, Verdict{Goto, "other"}),
			rule("", Has{LoadTupleSource(subnet.IPv6, Reply), "ids6"}, Verdict{Goto, "other"}),
			rule("", Find{[]Part{{Value: MarkOf(1)}, {Load: from, Map: "ids"}, {Load: LoadFlowProtocol()}, {Load: port, Map: "words"}}, "rows"}, Verdict{Code: Return}),
			rule("", Find{[]Part{{}, {}, {}, {Load: port.Masked(4)}}, "rows"}, Verdict{Code: Return}),
			rule("", Find{[]Part{{}, {Key: []Part{{Value: MarkOf(2)}, {}, {Load: from, Map: "ids"}}, Map: "pairs"}, {Load: LoadFlowProtocol()}, {}}, "rows"}, Verdict{Code: Return}),
			rule("", Between{LoadDestPort(), "\x00\x01", "\xff\xff"}, Limit{3, 4}, Log{5010, "prefix"}),
		}}},
	}
}

func TestMapsAreDumpedAsTheyWereSent(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	want := Desired{Table: mapsTable(), Elements: []Element{
		{Set: "ids", Key: "\x0a\x00\x00\x01", Data: MarkOf(7)}, {Set: "ids", Key: "\xff\xff\xff\xff", Data: MarkOf(0)},
		{Set: "ids6", Key: string(addr("::").AsSlice()), Data: MarkOf(8)},
		{Set: "rows", Key: MarkOf(1) + MarkOf(2) + "\x06\x00\x00\x00" + PortWord(80)},
		{Set: "ports", Key: "\x00\x00"}, // all of them
		{Set: "marks", Key: "\x00\x00", End: "\x00\x01", Data: MarkOf(1)}, {Set: "marks", Key: "\x00\x01", End: "\xff\xff", Data: MarkOf(1)},
		{Set: "marks", Key: "\xff\xff", Data: MarkOf(1)},
	}}
	install(t, c, want)
	got, err := messages(want.Table, Diff(want, Content{}).batch())
	got.Elements = want.Content().Elements
	if err != nil || !reflect.DeepEqual(got, want.Content()) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want.Content())
	}
	for _, cmd := range []string{"nft list ruleset", "nft -j list ruleset", "nft list tables"} {
		if out := h.Run(cmd); strings.Contains(out, "rror") || !strings.Contains(out, "weft_maps") {
			t.Errorf("%s:\n%s", cmd, out)
		}
	}
	nshost.Golden(t, "maps.golden", Diff(want, Content{}).String())
	// Another value is another element.
	want.Elements[0].Data = MarkOf(9)
	plan := Diff(want, mustDump(t, c, want.Table))
	if plan.Replace || len(plan.Add) != 1 || len(plan.Delete) != 1 {
		t.Errorf("another value makes\n%s", plan)
	}
	install(t, c, want)
	want.Table.Sets[3].Data = PortWords
	if plan := Diff(want, mustDump(t, c, want.Table)); plan.Replace {
		t.Errorf("types that nft shows alike: %v", plan.Why)
	}
	want.Table.Sets[3].Data = Number
	if plan := Diff(want, mustDump(t, c, want.Table)); !slices.Equal(plan.Why, []string{"set ids altered"}) {
		t.Errorf("a map to something else: %v", plan.Why)
	}
}

// Any two lists of ranges, which touch or reach to the ends or not: the
// difference turns the one into the other in the kernel, in one transaction.
func TestRangesLaw(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	edges := []int{0, 1, 2, 3, 0x7fff, 0x8000, 0xfffe, 0xffff, 0x10000}
	key := func(n int) string {
		if n > 0xffff {
			return ""
		}
		return string(binary.BigEndian.AppendUint16(nil, uint16(n)))
	}
	rapid.Check(t, func(r *rapid.T) {
		table := mapsTable()
		install(t, c, Desired{Table: table})
		for range 3 {
			want := Desired{Table: table}
			for _, set := range []string{"ports", "marks"} {
				for i := 1; i < len(edges); {
					n := rapid.IntRange(1, len(edges)-i).Draw(r, "edges")
					e := Element{Set: set, Key: key(edges[i-1]), End: key(edges[i+n-1])}
					if set == "marks" {
						e.Data = MarkOf(uint32(rapid.IntRange(1, 2).Draw(r, "mark")))
					}
					if rapid.Bool().Draw(r, "there") {
						want.Elements = append(want.Elements, e)
					}
					i += n
				}
			}
			plan := Diff(want, mustDump(t, c, table))
			if plan.Replace {
				r.Fatalf("ranges changed the rules: %q", plan.Why)
			}
			if err := c.Apply(t.Context(), plan); err != nil {
				r.Fatalf("%v\n%s", err, plan)
			}
			if again := Diff(want, mustDump(t, c, table)); !again.Empty() {
				r.Fatalf("still to do:\n%s\nafter\n%s", again, plan)
			}
		}
	})
}

// What others leave in a set of ranges is read as what it is, and can be undone.
func TestRangesOfOthers(t *testing.T) {
	var l keyList
	for _, e := range []rawElement{
		{key: []byte{9}, isEnd: true}, {key: []byte{5}}, {key: []byte{7}}, {key: []byte{0}, isEnd: true}, {key: []byte{9}}, {key: []byte{8}, isEnd: true},
	} {
		l.add(e.key, nil, e.isEnd)
	}
	var got []string
	for _, e := range l.ranges() {
		got = append(got, fmt.Sprint(e.key, e.end))
	}
	if want := "[[] [0] [5] [] [7] [8] [] [9] [9] []]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
	h := nshost.New(t)
	c := dial(t, h)
	want := Desired{Table: mapsTable(), Elements: []Element{{Set: "ports", Key: "\x00\x50", End: "\x00\x51"}}}
	install(t, c, want)
	h.NFT("add element inet weft_maps ports { 1-79, 443-65535 }\nadd element inet weft_maps marks { 5 : 6 }\nadd element inet weft_maps ids { * : 7 }")
	install(t, c, want)
}

// A plan that is for a generation gone by changes nothing.
func TestPlanOfAnotherGeneration(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	want := Desired{Table: mapsTable()}
	install(t, c, want)
	gen, err := c.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want.Elements = []Element{{Set: "ids", Key: "\x0a\x00\x00\x01", Data: MarkOf(7)}}
	plan := Diff(want, mustDump(t, c, want.Table))
	plan.Since = gen
	h.NFT("add table ip foreign")
	if err := c.Apply(t.Context(), plan); !errors.Is(err, unix.ERESTART) {
		t.Errorf("after another's transaction: %v", err)
	}
	if again := Diff(want, mustDump(t, c, want.Table)); len(again.Add) != 1 {
		t.Errorf("it was applied all the same; still to do:\n%s", again)
	}
	if plan.Since, err = c.Generation(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(t.Context(), plan); err != nil {
		t.Error(err)
	}
}

// Chains get other rules together with the change of elements, or neither.
func TestRewriteIsPartOfTheTransaction(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	was := Desired{Table: mapsTable(), Elements: []Element{{Set: "ids", Key: "\x0a\x00\x00\x01", Data: MarkOf(7)}}}
	install(t, c, was)
	now := Desired{Table: mapsTable()}
	now.Table.Chains[1].Rules = now.Table.Chains[1].Rules[3:]
	plan := Diff(was, was.Content())
	plan.Rewrite = now.Table.Chains[1:]
	if want := "nft flush chain inet weft_maps c\nnft add rule inet weft_maps c ct label set 0x01"; plan.Empty() || !strings.HasPrefix(plan.String(), want) {
		t.Errorf("the plan is\n%s", plan)
	}
	plan.Delete = []Element{{Set: "ids", Key: "\x0a\x00\x00\x02"}}
	if err := c.Apply(t.Context(), plan); !errors.Is(err, unix.ENOENT) {
		t.Errorf("deleting what is not there: %v", err)
	}
	if again := Diff(was, mustDump(t, c, was.Table)); !again.Empty() {
		t.Errorf("a refused plan left something behind:\n%s", again)
	}
	plan.Delete = was.Elements
	if err := c.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	have := mustDump(t, c, now.Table)
	if again := Diff(now, have); !again.Empty() || !Same(now.Table.Chains[1], have.Chains["c"]) || Same(was.Table.Chains[1], have.Chains["c"]) {
		t.Errorf("still to do:\n%s", again)
	}
}

func TestNewExpressionsHaveDigestsOfTheirOwn(t *testing.T) {
	var seen [][]byte
	for _, r := range mapsTable().Chains[1].Rules {
		d, err := digest(r.encode())
		if err != nil || slices.ContainsFunc(seen, func(s []byte) bool { return bytes.Equal(s, d[:]) }) {
			t.Errorf("%s: %x, %v", r, d, err)
		}
		seen = append(seen, d[:])
	}
}
