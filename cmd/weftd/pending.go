// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"

	"weft.dev/weft/backend"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// What follows stands in for what package backend is about to have.

type hostSpec struct {
	Networks, Own []netip.Prefix
	Devices       []string
	Bridge        string
	Underlays     []overlay.Underlay
}

type attachment struct {
	Host       string
	Index      int
	Addrs      []netip.Addr
	Unreadable error
}

func probeHost(ctx context.Context, _ hostSpec) ([]subnet.Problem, error) { return backend.Probe(ctx) }

func attachments(context.Context, string) ([]attachment, error) {
	return nil, errors.New("pods cannot be listed yet")
}

func deleteVeth(context.Context, string, int) error { return errors.New("not yet") }
