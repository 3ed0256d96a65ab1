// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"weft.dev/weft/tests/bench/data"
	"weft.dev/weft/tests/netlab"
)

// TestDataPath sends real traffic of every kind through every variant, with
// few rounds and few peers: all of it arrives, and nothing is off by so much
// that something else must have been measured. Times are not judged.
func TestDataPath(t *testing.T) {
	bin, err := netlab.FindBin("")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	rows, err := data.Request{Pairs: 2, Peers: 10, BinDir: bin}.Launch(t.Context(), &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	kinds := map[string]bool{}
	for _, r := range rows {
		if r.N != 2 || r.Group == "" || r.Name == "" {
			t.Errorf("%+v", r)
		}
		if strings.Contains(r.Group, "CPU time") { // samples of 0.3 s have 10 ms ticks, and others work too
			continue
		}
		if r.Value <= 0 || r.Unit == "x" && (r.Value < 0.02 || r.Value > 50) {
			t.Errorf("%s, %s: %v %s", r.Group, r.Name, r.Value, r.Unit)
		}
		kinds[r.Group] = true
	}
	// In two families: streams on three wires; two figures of round trips, and
	// connections, with and without kube-proxy; packets.
	if len(kinds) != 2*(3+2*3+1) {
		t.Errorf("%d groups of figures: %v", len(kinds), kinds)
	}
}
