// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"weft.dev/weft/backend"
	"weft.dev/weft/subnet"
)

type (
	hostSpec   = backend.ProbeSpec
	attachment = backend.Attachment
)

func probeHost(ctx context.Context, spec hostSpec) ([]subnet.Problem, error) {
	return backend.Probe(ctx, spec)
}

func attachments(ctx context.Context, bridge string) ([]attachment, error) {
	return backend.Attachments(ctx, bridge)
}

func deleteVeth(ctx context.Context, name string, index int) error {
	return backend.DeleteVeth(ctx, name, index)
}
