// SPDX-License-Identifier: Apache-2.0

package doccmd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const doc = "# A\n" + // 1
	"```\nplain\n```\n" + // 2-4
	"<!-- SPDX -->\n" +
	"<!-- test: go-on -->\n" +
	"\n" +
	"```sh\nfor x in a; do\n  echo $x\ndone\n```\n" + // 8-12
	"1. In a list:\n" +
	"   <!-- test: listed -->\n" +
	"   ```sh\n   a\n     b\n   ```\n" + // 15-18
	"<!-- printed -->\n```text\none\n```\n" +
	"<!-- printed -->\n````\n```\n````\n"

func TestParse(t *testing.T) {
	got, err := Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	want := []Block{
		{"", "", 2, "plain\n"},
		{"test: go-on", "sh", 8, "for x in a; do\n  echo $x\ndone\n"},
		{"test: listed", "sh", 15, "a\n  b\n"},
		{"printed", "text", 20, "one\n"},
		{"printed", "", 24, "```\n"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if got[1].Name() != "go-on" || got[0].Name() != "" || got[3].Name() != "" {
		t.Errorf("names %q %q %q", got[0].Name(), got[1].Name(), got[3].Name())
	}
}

func TestParseRefuses(t *testing.T) {
	for want, doc := range map[string]string{
		"line 1: the code block has no end":                              "```\nx\n",
		"line 2: the code block has no end":                              "\n````\nx\n```\n",
		`line 1: mark "test: a": want a code block after it, not line 2`: "<!-- test: a -->\ntext\n```\n```\n",
		`line 1: mark "test: a": want a code block after it, not line 3`: "<!-- test: a -->\n\n<!-- test: b -->\n```\n```\n",
		`line 1: mark "test: a": want a code block after it`:             "<!-- test: a -->\n",
		`line 4: mark "test: a" is on line 1 already`:                    "<!-- test: a -->\n```\n```\n<!-- test: a -->\n```\n```\n",
	} {
		if _, err := Parse(doc); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", doc, err, want)
		}
	}
}

func TestCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Commands(path, "listed"); err != nil || got != "a\n  b\n" {
		t.Errorf("%q, %v", got, err)
	}
	for _, name := range []string{"", "printed", "other"} {
		if got, err := Commands(path, name); err == nil || !strings.Contains(err.Error(), `["go-on" "listed"]`) {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	if _, err := Commands(path+".none", "listed"); !os.IsNotExist(err) {
		t.Error(err)
	}
}
