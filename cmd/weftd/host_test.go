// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInstanceIDIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := instanceID(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := instanceID(dir)
	if err != nil || second != first || len(first) != 32 {
		t.Errorf("%q, then %q: %v", first, second, err)
	}
	other, err := instanceID(t.TempDir())
	if err != nil || other == first {
		t.Errorf("another directory has %q: %v", other, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instance-id"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := instanceID(dir); err == nil || !strings.Contains(err.Error(), `"torn"`) {
		t.Errorf("a torn file: %v", err)
	}
}
