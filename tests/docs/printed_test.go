// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft.dev/weft/tests/doccmd"
)

// shortest is how many bytes a piece of a message must have to tell that it is
// that message. What is shorter could be put together to anything.
const shortest = 8

// TestPrinted checks that every line in a block that is marked as printed is
// made of texts of the programs, or of the admission policy's. `<...>` stands
// for anything.
func TestPrinted(t *testing.T) {
	known := pieces(t)
	n := 0
	for _, path := range documents(t) {
		for _, b := range blocks(t, path) {
			if b.Mark != doccmd.Printed {
				continue
			}
			for i, line := range strings.Split(strings.TrimSuffix(b.Text, "\n"), "\n") {
				n++
				if left := known.rest(line); left != "" {
					t.Errorf("%s, line %d: nothing prints %q in\n%s", path, b.Line+1+i, left, line)
				}
			}
		}
	}
	if n < 30 {
		t.Errorf("%d printed lines; the test looks at the wrong place", n)
	}
}

// TestKinds checks that every kind of problem is explained.
func TestKinds(t *testing.T) {
	doc := text(t, "docs/not-ready.md")
	kind := regexp.MustCompile(`subnet\.Problem\{\{?Kind: "([A-Za-z]+)"|[a-z]\.problem\("([A-Za-z]+)"|return "([A-Z][A-Za-z]+)", fmt\.`)
	var all []string
	sources(t, func(path string, src []byte) {
		for _, m := range kind.FindAllStringSubmatch(string(src), -1) {
			all = append(all, m[1]+m[2]+m[3])
		}
	})
	slices.Sort(all)
	if all = slices.Compact(all); len(all) < 30 {
		t.Fatalf("%q; the test looks at the wrong place", all)
	}
	for _, k := range all {
		if !strings.Contains(doc, "`"+k+"`") && !strings.Contains(doc, "### "+k) {
			t.Errorf("docs/not-ready.md does not explain %s", k)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| (`[A-Z].*?) \\|").FindAllStringSubmatch(doc, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			name = strings.Trim(name, "`")
			if !slices.Contains(all, name) && !strings.Contains(m[1], "is `") {
				t.Errorf("docs/not-ready.md explains %s, which is no kind of problem", name)
			}
		}
	}
}

// dictionary is what the programs' texts consist of between their verbs.
type dictionary map[string]bool

func pieces(t *testing.T) dictionary {
	t.Helper()
	d := dictionary{}
	sources(t, func(path string, src []byte) {
		file, err := parser.ParseFile(token.NewFileSet(), path, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if s, ok := folded(e); ok {
					d.add(s)
				}
			}
			return true
		})
	})
	// The texts of the admission policy, in quotes of CEL's.
	for _, m := range regexp.MustCompile(`'([^'\n]*)'`).FindAllStringSubmatch(text(t, "dist/manifests/weft.yaml"), -1) {
		d.add(m[1])
	}
	return d
}

// folded returns the value of a literal, or of literals that are added.
func folded(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			return constant.StringVal(constant.MakeFromLiteral(e.Value, token.STRING, 0)), true
		}
	case *ast.BinaryExpr:
		x, ok1 := folded(e.X)
		y, ok2 := folded(e.Y)
		return x + y, ok1 && ok2 && e.Op == token.ADD
	}
	return "", false
}

// verb is one of package fmt's.
var verb = regexp.MustCompile(`%(?:\[\d+\])?[-+# 0]*[\d.]*[a-zA-Z]`)

func (d dictionary) add(s string) {
	for _, p := range verb.Split(s, -1) {
		p = strings.ReplaceAll(p, "%%", "%")
		d[p] = true
		d[strings.TrimPrefix(p, ": ")] = true // a quotation may begin where a wrapped error does
	}
}

// problem begins a line of a problem, with its kind and its object.
var problem = regexp.MustCompile(`^([A-Z][A-Za-z]{7,}) [^:]+: `)

// rest returns what of a line no texts make up, "" when they do.
func (d dictionary) rest(line string) string {
	if m := problem.FindStringSubmatch(line); m != nil && d[m[1]] {
		line = line[len(m[0]):]
	}
	for part := range strings.SplitSeq(placeholder.ReplaceAllString(line, "\x00"), "\x00") {
		// Columns are the terminal's.
		for _, cell := range regexp.MustCompile(`  +`).Split(part, -1) {
			if !d.covers(cell) {
				return cell
			}
		}
	}
	return ""
}

// placeholder stands for what differs.
var placeholder = regexp.MustCompile(`<[a-zA-Z ]+>`)

// covers reports whether s is a row of pieces that are long enough, with
// nothing but punctuation between them. The last may be short.
func (d dictionary) covers(s string) bool {
	if d[strings.TrimSpace(s)] || d[s] {
		return true
	}
	reached := make([]bool, len(s)+1)
	reached[0] = true
	for i := range s {
		if !reached[i] {
			continue
		}
		if strings.ContainsRune(` .,:;'"()[]`, rune(s[i])) {
			reached[i+1] = true
		}
		for j := i + shortest; j <= len(s); j++ {
			reached[j] = reached[j] || d[s[i:j]]
		}
		if i > 0 && d[s[i:]] {
			return true
		}
	}
	return reached[len(s)]
}

// The check would be worth nothing if it let changed texts pass.
func TestPrintedSeesChanges(t *testing.T) {
	d := pieces(t)
	const good = "waiting for a podCIDR of Node <node>: the Node has no podCIDR yet; the controller manager hands them out with --allocate-node-cidrs and --cluster-cidr (kubeadm init --pod-network-cidr)"
	if left := d.rest(good); left != "" {
		t.Fatalf("%q is not covered", left)
	}
	words := strings.Fields(good)
	for i := range words {
		if words[i] == "<node>:" {
			continue
		}
		bad := slices.Clone(words)
		bad[i] += "x"
		if d.rest(strings.Join(bad, " ")) == "" {
			t.Errorf("word %s may be another", strconv.Quote(words[i]))
		}
		if d.rest(strings.Join(slices.Delete(slices.Clone(words), i, i+1), " ")) == "" {
			t.Errorf("word %s may be missing", strconv.Quote(words[i]))
		}
	}
}
