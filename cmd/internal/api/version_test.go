// SPDX-License-Identifier: Apache-2.0

package api

import (
	"runtime/debug"
	"testing"
)

func TestVersionIsTheModulesOrUnknown(t *testing.T) {
	for have, want := range map[string]string{
		"v1.2.3": "v1.2.3", "v0.0.0-20260101000000-0123456789ab+dirty": "v0.0.0-20260101000000-0123456789ab+dirty",
		"(devel)": "unknown", "": "unknown",
	} {
		info := &debug.BuildInfo{}
		info.Main.Version = have
		if got := versionOf(info); got != want {
			t.Errorf("built as %q: %q, want %q", have, got, want)
		}
	}
}
