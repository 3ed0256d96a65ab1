// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

// Edges are logged, levels are not; a new detail is no edge.
func TestBoardLogsEdges(t *testing.T) {
	var out bytes.Buffer
	b := &board{log: newLogger(parse(t, nil), &out)}
	p := func(detail string) subnet.Problem {
		return subnet.Problem{Kind: "ForwardingOff", Object: "net.ipv4.ip_forward", Detail: detail}
	}
	b.set(partHost, p("it is 0"))
	b.set(partHost, p("it is still 0"))
	b.set(partConfig, subnet.Problem{Kind: "ConfigInvalid", Object: "/weft/network/config", Detail: "x"})
	if n := strings.Count(out.String(), "ForwardingOff"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, out.String())
	}
	if all := b.all(); len(all) != 2 || all[0].Kind != "ConfigInvalid" || all[1].Detail != "it is still 0" {
		t.Errorf("all: %v", all)
	}
	b.set(partHost)
	b.set(partHost)
	if n := strings.Count(out.String(), "ForwardingOff net.ipv4.ip_forward: solved"); n != 1 || len(b.all()) != 1 {
		t.Errorf("solved %d times, %v left:\n%s", n, b.all(), out.String())
	}
}
