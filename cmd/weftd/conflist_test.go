// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConflist(t *testing.T) {
	for _, compat := range []bool{false, true} {
		o := parse(t, nil, "--flannel-compat="+map[bool]string{true: "true", false: "false"}[compat])
		var c struct {
			Name        string
			CNIVersion  string
			CNIVersions []string
			Plugins     []map[string]any
		}
		if err := json.Unmarshal(conflist(o), &c); err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{false: "weft", true: "cbr0"}[compat]
		if c.Name != want || c.CNIVersion != "1.0.0" || len(c.CNIVersions) != 4 || c.Plugins[0]["type"] != "weft" {
			t.Errorf("compat %t: %+v", compat, c)
		}
		if d := c.Plugins[0]["delegate"].(map[string]any); d["ipMasq"] != false || d["bridge"] != "cni0" {
			t.Errorf("delegate %v", d)
		}
	}
}

// An operator's own CNI configuration is never overwritten; ours is renewed.
func TestConflistKeepsEdits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net.d", "05-weft.conflist")
	o := parse(t, nil, "--cni-conf="+path)
	write := func() string {
		t.Helper()
		if kept, err := writeConflist(o); err != nil || kept != "" {
			t.Fatal(kept, err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	fresh := write()
	stale := strings.Replace(fresh, "cni0", "cni9", 1)
	for content, want := range map[string]string{stale: fresh, `{"name":"mine"}`: `{"name":"mine"}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := write(); got != want {
			t.Errorf("%q became %q", content, got)
		}
	}
}

// A file that nothing can read is replaced, but only once nobody writes it any
// more, and never without a copy.
func TestDamagedConflistIsReplacedAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "05-weft.conflist")
	o := parse(t, nil, "--cni-conf="+path)
	for _, damaged := range []string{"", `{"name":"weft","plug`, "{}x"} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if kept, err := writeConflist(o); err != nil || kept != "" {
			t.Errorf("%q, just written: %q, %v", damaged, kept, err)
		}
		if b, _ := os.ReadFile(path); string(b) != damaged {
			t.Errorf("%q, just written, became %q", damaged, b)
		}
		long := time.Now().Add(-2 * editTime)
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
		kept, err := writeConflist(o)
		if err != nil || kept != path+".damaged" {
			t.Fatalf("%q: %q, %v", damaged, kept, err)
		}
		if b, err := os.ReadFile(kept); err != nil || string(b) != damaged {
			t.Errorf("the copy of %q is %q: %v", damaged, b, err)
		}
		if b, _ := os.ReadFile(path); string(b) != string(conflist(o)) {
			t.Errorf("%q became %q", damaged, b)
		}
	}
}

// The plugin is told to ask the agent where that enforces policies, and only
// there: it would wait for an answer.
func TestConflistSaysWhetherToAsk(t *testing.T) {
	for store, want := range map[storeKind]bool{storeKube: true, storeEtcd: false} {
		o := parse(t, nil)
		o.Store = store
		if got := strings.Contains(string(conflist(o)), `"onAgentDown": "deny"`); got != want {
			t.Errorf("store %s: asks %t, want %t in\n%s", store, got, want, conflist(o))
		}
	}
}
