// SPDX-License-Identifier: Apache-2.0

// Package docs holds the tests that keep the documentation true: commands,
// flags, files and links that it names are there, and what it quotes is what
// the programs print.
package docs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/doccmd"
)

const root = "../.."

// documents are those that a reader follows; the others (decisions, changes,
// what benches write) are records.
func documents(t *testing.T) []string {
	t.Helper()
	out := []string{"README.md", "README.zh-CN.md", "CONTRIBUTING.md", "dist/README.md"}
	all, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(all) < 8 {
		t.Fatalf("%d documents, %v; the test looks at the wrong place", len(all), err)
	}
	for _, path := range all {
		out = append(out, "docs/"+filepath.Base(path))
	}
	return out
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func blocks(t *testing.T, path string) []doccmd.Block {
	t.Helper()
	out, err := doccmd.Read(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// inline returns the code spans of a document that are in no block. One may
// reach over the end of a line.
func inline(t *testing.T, path string) []string {
	t.Helper()
	doc := regexp.MustCompile("(?ms)^ *```.*?^ *```+$").ReplaceAllString(text(t, path), "")
	var out []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(doc, -1) {
		out = append(out, strings.ReplaceAll(m[1], "\n", " "))
	}
	return out
}

// commands returns the simple commands of a document, in blocks and in code
// spans, as words. Quotes are taken away, which is enough to see flags.
func commands(t *testing.T, path string) [][]string {
	t.Helper()
	var lines []string
	for _, b := range blocks(t, path) {
		if b.Mark != doccmd.Printed && (b.Lang == "sh" || b.Lang == "") {
			lines = append(lines, strings.Split(strings.ReplaceAll(b.Text, "\\\n", " "), "\n")...)
		}
	}
	lines = append(lines, inline(t, path)...)
	var out [][]string
	for _, l := range lines {
		l, _, _ = strings.Cut(l, " #")
		for _, part := range regexp.MustCompile(`&&|\|\|?|;|\$\(`).Split(l, -1) {
			words := strings.Fields(strings.NewReplacer(`'`, "", `"`, "", ")", "").Replace(part))
			if len(words) > 0 {
				out = append(out, words)
			}
		}
	}
	return out
}

// after returns the words of a command behind a program, wherever it stands
// (`kubectl exec ... -- weft status`).
func after(words []string, program string) ([]string, bool) {
	i := slices.Index(words, program)
	if i < 0 {
		return nil, false
	}
	return words[i+1:], true
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func flagName(word string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	return name
}

// foreignFlags are those of other programs that stand alone in the prose.
func foreignFlags() []string {
	return []string{
		"flannel-backend", "disable-network-policy", "cluster-cidr", "pod-network-cidr", "allocate-node-cidrs", "node-ip", "node-labels", // k3s, kubeadm, controller manager, kubelet
		"family", "proxy", "network", "focus", "suite", "cases", "long", "helm", // weft-e2e
		"nodes", "etcd", "keep", // weft-lab
		"from", "to", // weftd install-cni
		"kube-subnet-mgr", "iptables-resync", // flanneld
	}
}

func TestFlags(t *testing.T) {
	flags := map[string]bool{"help": true}
	for _, m := range regexp.MustCompile(`(?m)^ +--([a-z0-9-]+)`).FindAllStringSubmatch(run(t, "go", "run", "./cmd/weftd", "--help")+run(t, "go", "run", "./cmd/weftd", "install-cni", "--help"), -1) {
		flags[m[1]] = true
	}
	if !flags["cleanup"] || !flags["to"] {
		t.Fatalf("flags of weftd: %v", flags)
	}
	n := 0
	for _, path := range documents(t) {
		for _, words := range commands(t, path) {
			args, ok := after(words, "weftd")
			alone := strings.HasPrefix(words[0], "--")
			if !ok && !alone {
				continue
			}
			if alone {
				args = words
			}
			for _, w := range args {
				if !strings.HasPrefix(w, "--") || w == "--" {
					continue
				}
				n++
				if !flags[flagName(w)] && !(alone && slices.Contains(foreignFlags(), flagName(w))) {
					t.Errorf("%s: weftd has no flag %s (in %q)", path, w, words)
				}
			}
		}
		for _, m := range regexp.MustCompile(`args: \[(--[^]]+)\]`).FindAllStringSubmatch(text(t, path), -1) {
			for _, w := range strings.Split(m[1], ", ") {
				if !flags[flagName(w)] {
					t.Errorf("%s: weftd has no flag %s", path, w)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("%d flags in the documents; the test looks at the wrong place", n)
	}
}

func TestSubcommands(t *testing.T) {
	help := run(t, "go", "run", "./cmd/weft", "--help")
	n := 0
	for _, path := range documents(t) {
		for _, words := range commands(t, path) {
			args, ok := after(words, "weft")
			if !ok || len(args) == 0 || words[0] == "helm" || words[0] == "ConfigMap" || !regexp.MustCompile(`^[a-z]+$`).MatchString(args[0]) {
				continue
			}
			n++
			if !regexp.MustCompile(`(?m)^  ` + args[0] + ` `).MatchString(help) {
				t.Errorf("%s: weft has no command %q (in %q)", path, args[0], words)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d commands of weft in the documents; the test looks at the wrong place", n)
	}
}

func TestMakeTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)*):`).FindAllStringSubmatch(text(t, "Makefile"), -1) {
		for _, name := range strings.Fields(m[1]) {
			targets[name] = true
		}
	}
	n := 0
	for _, path := range documents(t) {
		for _, words := range commands(t, path) {
			if words[0] != "make" {
				continue
			}
			for _, w := range words[1:] {
				if !regexp.MustCompile(`^[a-z][a-z0-9-]*$`).MatchString(w) {
					break // a variable, maybe of several words
				}
				n++
				if !targets[w] {
					t.Errorf("%s: there is no `make %s`", path, w)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("%d targets in the documents; the test looks at the wrong place", n)
	}
}

// TestFiles looks for what commands and prose name in the repository. bin/ is
// what is built there.
func TestFiles(t *testing.T) {
	ours := regexp.MustCompile(`^(cmd|cni-shim|backend|internal|overlay|policy|subnet|dist|docs|tests)(/[\w.-]+)+/?$`)
	n := 0
	for _, path := range documents(t) {
		for _, words := range commands(t, path) {
			for _, w := range words {
				if !ours.MatchString(w) || regexp.MustCompile(`\.[A-Z]`).MatchString(w) { // a name in Go
					continue
				}
				n++
				if _, err := os.Stat(filepath.Join(root, w)); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("%d files in the documents; the test looks at the wrong place", n)
	}
}

// anchor is how a heading is named in links.
func anchor(heading string) string {
	s := strings.ToLower(strings.NewReplacer("`", "", "*", "").Replace(strings.TrimSpace(heading)))
	s = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(s, "")
	return strings.ReplaceAll(s, " ", "-")
}

func TestLinks(t *testing.T) {
	headings := regexp.MustCompile(`(?m)^#+ (.*)$`)
	n := 0
	for _, path := range append(documents(t), "CHANGELOG.md") {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text(t, path), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			file, fragment, _ := strings.Cut(m[1], "#")
			to := filepath.Join(filepath.Dir(path), file)
			if file == "" {
				to = path
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: link %s: %v", path, m[1], err)
				continue
			}
			if fragment == "" {
				continue
			}
			found := false
			for _, h := range headings.FindAllStringSubmatch(text(t, to), -1) {
				found = found || anchor(h[1]) == fragment
			}
			if !found {
				t.Errorf("%s: link %s: there is no such heading", path, m[1])
			}
		}
	}
	if n < 30 {
		t.Errorf("%d links in the documents; the test looks at the wrong place", n)
	}
}

// TestBlocks parses what is in code blocks.
func TestBlocks(t *testing.T) {
	for _, path := range documents(t) {
		for _, b := range blocks(t, path) {
			var err error
			switch b.Lang {
			case "yaml":
				err = parseYAML(b.Text)
			case "json":
				err = json.Unmarshal([]byte(b.Text), new(any))
			case "sh":
				err = parseShell(b.Text)
			case "", "text":
				if b.Name() != "" {
					err = errors.New("commands for tests want ```sh")
				}
			default:
				err = fmt.Errorf("language %q: want sh, yaml, json, text or none", b.Lang)
			}
			if err != nil {
				t.Errorf("%s, line %d: %v", path, b.Line, err)
			}
		}
	}
}

// TestMarksAreFollowed looks for each block that says it is tested in what the
// tests of the cluster follow.
func TestMarksAreFollowed(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "tests/e2e/cases/*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the cases of tests/e2e: %d files, %v", len(files), err)
	}
	followed := map[string]bool{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range regexp.MustCompile(`follow\(.*"(docs/[a-z-]+\.md)"(.*)\)|remove\(.*\)`).FindAllStringSubmatch(string(src), -1) {
			doc := cmp.Or(call[1], "docs/uninstall.md")
			for _, name := range regexp.MustCompile(`"([a-z-]+)"`).FindAllStringSubmatch(call[0], -1) {
				followed[doc+" "+name[1]] = true
			}
		}
	}
	n := 0
	for _, path := range documents(t) {
		for _, b := range blocks(t, path) {
			if b.Name() == "" {
				continue
			}
			if n++; !followed[path+" "+b.Name()] {
				t.Errorf("%s, line %d: nothing follows what is marked test: %s", path, b.Line, b.Name())
			}
		}
	}
	if n < 10 {
		t.Errorf("%d blocks are marked; the test looks at the wrong place", n)
	}
}

func parseYAML(doc string) error {
	for part := range strings.SplitSeq(doc, "\n---\n") {
		var obj map[string]any
		if err := yaml.UnmarshalStrict([]byte(part), &obj); err != nil {
			return err
		}
	}
	return nil
}

// heredoc is a document in a script; its delimiter is a word in capitals.
var heredoc = regexp.MustCompile(`(?s)<<-?([A-Z]+)\n(.*?)\n([A-Z]+)\n`)

// patch is JSON in single quotes.
var patch = regexp.MustCompile(`'(\{"[^']*\})'`)

func parseShell(script string) error {
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %s", err, bytes.TrimSpace(out))
	}
	for _, m := range heredoc.FindAllStringSubmatch(script, -1) {
		if err := parseYAML(m[2]); err != nil {
			return err
		}
	}
	for _, m := range patch.FindAllStringSubmatch(script, -1) {
		if err := json.Unmarshal([]byte(m[1]), new(any)); err != nil {
			return fmt.Errorf("%s: %w", m[1], err)
		}
	}
	return nil
}

// TestValues resolves what documents call a value of the chart.
func TestValues(t *testing.T) {
	var values map[string]any
	if err := yaml.Unmarshal([]byte(text(t, "dist/chart/weft/values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	dotted := regexp.MustCompile(`^([a-z][A-Za-z]*)((?:\.[a-z][A-Za-z]*)+)(?:=.*)?$`)
	n := 0
	check := func(path, name string) {
		n++
		if _, ok := resolve(values, name); !ok {
			t.Errorf("%s: %s is no value of the chart", path, name)
		}
	}
	for _, path := range documents(t) {
		for _, words := range commands(t, path) {
			for i, w := range words {
				if i > 0 && strings.HasPrefix(words[i-1], "--set") {
					name, _, _ := strings.Cut(w, "=")
					// A map of the user's own has any key.
					if top, _, _ := strings.Cut(name, "."); top == "nodeSelector" {
						name = top
					}
					check(path, name)
				}
			}
			if m := dotted.FindStringSubmatch(words[0]); m != nil && len(words) == 1 {
				if _, ours := values[m[1]]; ours {
					check(path, m[1]+m[2])
				}
			}
		}
	}
	_, table, _ := strings.Cut(text(t, "docs/install.md"), "| value | when |")
	for row := range strings.SplitSeq(table, "\n") {
		cells := strings.Split(row, "|")
		if len(cells) < 3 {
			if n > 0 && !strings.HasPrefix(row, "|") && row != "" {
				break
			}
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			check("docs/install.md", m[1])
		}
	}
	if n < 20 {
		t.Errorf("%d values in the documents; the test looks at the wrong place", n)
	}
}

func resolve(values map[string]any, name string) (any, bool) {
	head, rest, more := strings.Cut(name, ".")
	v, ok := values[head]
	if !ok || !more {
		return v, ok
	}
	in, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	return resolve(in, rest)
}

func TestImageName(t *testing.T) {
	var chart struct{ AppVersion string }
	if err := yaml.Unmarshal([]byte(text(t, "dist/chart/weft/Chart.yaml")), &chart); err != nil || chart.AppVersion == "" {
		t.Fatalf("%+v, %v", chart, err)
	}
	n := 0
	for _, path := range documents(t) {
		for _, m := range regexp.MustCompile(`weft\.dev/weft:(\S+)`).FindAllStringSubmatch(text(t, path), -1) {
			n++
			if m[1] != chart.AppVersion {
				t.Errorf("%s: image %s, the chart's is %s", path, m[0], chart.AppVersion)
			}
		}
	}
	if n == 0 {
		t.Error("no document names the image; the test looks at the wrong place")
	}
}

// The policies that docs/policy.md shows are those that are tested, by the
// compiler's tests and on a cluster.
func TestExamplesOfPolicies(t *testing.T) {
	want := text(t, "policy/testdata/examples.yaml")
	if text(t, "tests/e2e/cases/testdata/examples.yaml") != want {
		t.Error("tests/e2e/cases/testdata/examples.yaml is another than policy/testdata/examples.yaml")
	}
	if !strings.Contains(text(t, "docs/policy.md"), "```yaml\n"+want+"```\n") {
		t.Error("docs/policy.md does not show policy/testdata/examples.yaml")
	}
}

// TestUninstallRemovesAllAnnotations compares the command with the code.
func TestUninstallRemovesAllAnnotations(t *testing.T) {
	script, err := doccmd.Commands(root+"/docs/uninstall.md", "uninstall-annotations")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, w := range strings.Fields(script) {
		if name, ok := strings.CutSuffix(w, "-"); ok {
			have = append(have, name)
		}
	}
	names, err := subnet.AnnotationNames("weft.dev")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(have)
	want := slices.Sorted(slices.Values(names.Published))
	if !slices.Equal(have, want) {
		t.Errorf("%q\nwant %q", have, want)
	}
}

// TestUninstallKnowsAllDirectories compares the pods that clean up with the
// manifest's: what agents write must be mounted.
func TestUninstallKnowsAllDirectories(t *testing.T) {
	script, err := doccmd.Commands(root+"/docs/uninstall.md", "uninstall-nodes")
	if err != nil {
		t.Fatal(err)
	}
	stays := []string{"/opt/cni/bin", "/var/lib/weft"}
	mounts := regexp.MustCompile(`hostPath: (\{path: (\S+), .*\})`).FindAllStringSubmatch(text(t, "dist/manifests/weft.yaml"), -1)
	if len(mounts) < 5 {
		t.Fatalf("%q; the test looks at the wrong place", mounts)
	}
	for _, m := range mounts {
		if !slices.Contains(stays, m[2]) && !strings.Contains(script, m[1]) {
			t.Errorf("%s is not mounted as agents have it", m[2])
		}
	}
}

// The Chinese README says the same as the English one, with the same commands.
func TestTranslation(t *testing.T) {
	const en, zh = "README.md", "README.zh-CN.md"
	strip := func(list []doccmd.Block) (out []doccmd.Block) {
		for _, b := range list {
			b.Line = 0
			out = append(out, b)
		}
		return out
	}
	a, b := strip(blocks(t, en)), strip(blocks(t, zh))
	if len(a) < 5 {
		t.Fatalf("%d code blocks; the test looks at the wrong place", len(a))
	}
	if !slices.Equal(a, b) {
		t.Errorf("code blocks differ:\n%+v\n%+v", a, b)
	}
	shape := func(path string) []string {
		return regexp.MustCompile(`(?m)^(#+|- \*\*|\*\*)`).FindAllString(text(t, path), -1)
	}
	if x, y := shape(en), shape(zh); !slices.Equal(x, y) {
		t.Errorf("headings and points differ:\n%q\n%q", x, y)
	}
	links := func(path string) []string {
		var out []string
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text(t, path), -1) {
			if m[1] != en && m[1] != zh {
				out = append(out, m[1])
			}
		}
		return out
	}
	if x, y := links(en), links(zh); !slices.Equal(x, y) {
		t.Errorf("links differ:\n%q\n%q", x, y)
	}
	if !strings.Contains(text(t, en), "]("+zh+")") || !strings.Contains(text(t, zh), "]("+en+")") {
		t.Error("they do not link to each other")
	}
}

// sources calls f with each Go file of the product.
func sources(t *testing.T, f func(path string, src []byte)) {
	t.Helper()
	n := 0
	for _, dir := range []string{"cmd", "cni-shim", "backend", "internal", "overlay", "policy", "subnet"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			src, err := io.ReadAll(file)
			n++
			f(path, src)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 50 {
		t.Fatalf("%d files; the test looks at the wrong place", n)
	}
}
