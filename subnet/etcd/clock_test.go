// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"weft.dev/weft/subnet"
)

// jumped returns t as time.Now would have returned it if somebody had set the
// wall clock d ahead before: the wall reading is another, the monotonic one is
// the same. The layout is time.Time's (two flag bits and seconds since 1885
// in the upper half of the first word, when there is a monotonic reading).
func jumped(t time.Time, d time.Duration) time.Time {
	const nsecShift = 30
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall += uint64(int64(d/time.Second)) << nsecShift
	return t
}

// The helper itself: it must move what Unix sees and nothing that Sub sees.
func TestJumped(t *testing.T) {
	now := time.Now()
	for _, d := range clockJumps() {
		j := jumped(now, d)
		if got := j.Unix() - now.Unix(); got != int64(d/time.Second) || j.Sub(now) != 0 {
			t.Fatalf("jump of %s: wall moved by %d s, monotonic by %s", d, got, j.Sub(now))
		}
	}
}

// clockJumps are an hour and a year, either way.
func clockJumps() []time.Duration {
	const year = 365 * 24 * time.Hour
	return []time.Duration{time.Hour, -time.Hour, year, -year}
}

// F16: a wall clock that jumps, forward or back, between the moment that is
// remembered and now changes nothing that is decided from the two. (flannel
// times renewals by the wall clock.)
func TestWallClockJumps(t *testing.T) {
	s, err := New(Options{Endpoints: []string{"127.0.0.1:2379"}, LeaseTTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	for _, d := range append(clockJumps(), 0) {
		// Renewal is due 20 minutes after the last; the look comes first.
		h := &held{etcd: 7, ttl: time.Hour}
		if got := s.nextLook(h, jumped(now.Add(-10*time.Second), d)); got < verifyEvery*9/10 || got > verifyEvery {
			t.Errorf("jump of %s: the next look comes in %s", d, got)
		}
		if got := s.nextLook(h, jumped(now.Add(-20*time.Minute), d)); got != 0 {
			t.Errorf("jump of %s: a renewal that is due comes in %s", d, got)
		}
		m := &mirror{delivered: true, rev: 9, cluster: 1, rewound: jumped(now, d)}
		if m.admit(1, 8, now.Add(rewindGrace-1)) || !m.admit(1, 8, now.Add(rewindGrace)) {
			t.Errorf("jump of %s: the grace after a restoration is not %s", d, rewindGrace)
		}
		old := &lostError{h: h, older: true}
		h.disputed = jumped(now, d)
		if errors.Is(h.bear(old, now.Add(rewindGrace-1)), subnet.ErrConflict) || !errors.Is(h.bear(old, now.Add(rewindGrace)), subnet.ErrConflict) {
			t.Errorf("jump of %s: a dispute is not borne for %s", d, rewindGrace)
		}
	}
}

// The above shows that what is there is right. This shows that there is
// nothing else: the package never asks a time for its wall reading, nor drops
// the monotonic one, and no time of day comes in from outside.
func TestOnlyMonotonicTime(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	wall := []string{"Unix", "UnixMilli", "UnixMicro", "UnixNano", "UTC", "Local", "In", "Round", "Truncate", "Date", "Format", "AppendFormat",
		"Parse", "ParseInLocation", "Weekday", "YearDay", "Year", "MarshalText", "GobEncode", "MarshalBinary", "AddDate", "ZoneBounds"}
	seen := 0
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, _ := sel.X.(*ast.Ident)
			switch name := sel.Sel.Name; {
			case x != nil && x.Name == "time" && slices.Contains([]string{"Now", "Since", "NewTimer"}, name):
				seen++
			case x != nil && x.Name == "url": // url.Parse
			case slices.Contains(wall, name):
				t.Errorf("%s: %s is of the wall clock", fset.Position(sel.Pos()), name)
			}
			return true
		})
	}
	if seen < 5 {
		t.Errorf("%d uses of the clock found, want more: does this test still look in the right place?", seen)
	}
}
