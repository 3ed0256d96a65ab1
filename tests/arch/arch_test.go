// SPDX-License-Identifier: Apache-2.0

// Package arch holds the tests that keep the shape of the code: who may
// import whom, what every file and package must carry, and what none may do.
package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "weft.dev/weft"
)

// imports says which of the product's own packages each may import. A package
// that is not listed fails the test: its place must be decided here.
func imports() map[string][]string {
	return map[string][]string{
		"subnet":              nil,
		"internal/waiting":    nil,
		"internal/nshost":     nil, // of no package's code: of tests only
		"internal/kubeapi":    {"internal/waiting"},
		"subnet/etcd":         {"internal/waiting", "subnet"},
		"subnet/kube":         {"internal/kubeapi", "internal/waiting", "subnet"},
		"subnet/kube/apitest": nil,
		"overlay":             {"subnet"},
		"backend":             {"backend/nft", "backend/offload", "overlay", "subnet"},
		"backend/nft":         {"subnet"},
		"backend/offload":     nil,
		"policy":              nil,
		"policy/kube":         {"internal/kubeapi", "internal/waiting", "policy", "subnet"},
		"policy/rules":        {"backend/nft", "policy", "subnet"},
		"policy/guard":        {"backend/nft"},
		"policy/denials":      {"policy"},
		"policy/enforce":      {"backend/nft", "cni-shim/ledger", "policy", "policy/guard", "policy/kube", "policy/rules", "subnet"},
		"cni-shim":            {"cni-shim/ledger", "subnet"},
		"cni-shim/ledger":     nil,
		"cmd/internal/api":    {"subnet"},
		"cmd/weft":            {"cmd/internal/api", "subnet"},
		"cmd/weftd":           {"backend", "backend/nft", "cmd/internal/api", "cni-shim/ledger", "internal/kubeapi", "overlay", "policy", "policy/denials", "policy/enforce", "policy/guard", "policy/kube", "policy/rules", "subnet", "subnet/etcd", "subnet/kube"},
	}
}

// onlyIn says which packages may import modules that tie code to the outside.
func onlyIn() map[string][]string {
	return map[string][]string{
		"github.com/vishvananda/netlink":  {"backend"},
		"github.com/vishvananda/netns":    {"backend"},
		"github.com/mdlayher/netlink":     {"backend/nft"},
		"go.etcd.io/etcd/":                {"subnet/etcd"},
		"k8s.io/":                         {"internal/kubeapi", "policy", "policy/kube", "subnet/kube", "subnet/kube/apitest"},
		"github.com/containernetworking/": {"cni-shim"},
		"github.com/prometheus/":          {"cmd/weftd"},
		// client-go's typed clients bring every API group along, its informers
		// and event clients too: they would be most of the binary.
		"k8s.io/client-go/kubernetes":            {},
		"k8s.io/client-go/informers":             {},
		"os/exec":                                {"internal/nshost"},
		"github.com/containernetworking/plugins": {},
	}
}

type pkg struct {
	ImportPath, Dir, Doc                    string
	GoFiles, Imports, TestImports           []string
	XTestImports, TestGoFiles, XTestGoFiles []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list found %d packages; the test looks at the wrong place", len(all))
	}
	return all
}

func TestImportDirections(t *testing.T) {
	allowed, tied := imports(), onlyIn()
	for _, p := range list(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		ok, known := allowed[name]
		if !known {
			t.Errorf("package %s has no place in the import directions", name)
		}
		for _, imp := range p.Imports {
			if own, isOwn := strings.CutPrefix(imp, module+"/"); isOwn && !slices.Contains(ok, own) {
				t.Errorf("%s imports %s", name, own)
			}
			for prefix, where := range tied {
				if strings.HasPrefix(imp, prefix) && !slices.Contains(where, name) {
					t.Errorf("%s imports %s; only %v may", name, imp, where)
				}
			}
		}
	}
}

func TestProductNeverRequiresTheEtcdServer(t *testing.T) {
	cmd := exec.Command("go", "list", "-m", "all")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	if !strings.Contains(string(out), "go.etcd.io/etcd/client/v3 ") {
		t.Fatal("the list of modules lacks the etcd client; the test looks at the wrong place")
	}
	if strings.Contains(string(out), "go.etcd.io/etcd/server") {
		t.Error("the product's module requires the etcd server")
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range list(t) {
		n := 0
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil && !strings.HasPrefix(file.Doc.Text(), "SPDX") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", p.ImportPath, n)
		}
	}
}

// goFiles calls f for each Go file of the repository.
func goFiles(t *testing.T, f func(path string, src []byte)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "bin" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err == nil {
			n++
			f(strings.TrimPrefix(path, root+"/"), src)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Fatalf("found %d Go files; the test looks at the wrong place", n)
	}
}

func TestEveryFile(t *testing.T) {
	twin := regexp.MustCompile(`(?m)^func (\([^)]*\) )?\w*(V[46]|IPv[46]|[a-z]6)\(`)
	goFiles(t, func(path string, src []byte) {
		text := string(src)
		if !strings.HasPrefix(text, "// SPDX-License-Identifier: Apache-2.0\n") {
			t.Errorf("%s: the first line is not the SPDX line", path)
		}
		if n := strings.Count(text, "\n"); n >= 600 {
			t.Errorf("%s has %d lines; stay under 600", path, n)
		}
		if m := twin.FindString(text); m != "" && !strings.HasSuffix(path, "_test.go") {
			t.Errorf("%s: %q is named for one address family; the family should be a value", path, m)
		}
		if strings.HasSuffix(path, "/main.go") && strings.HasPrefix(path, "cmd/weftd/") && strings.Count(text, "\n") > 60 {
			t.Errorf("%s has more than 60 lines: main only wires", path)
		}
	})
}

// TestProductCode looks at what the syntax tree shows: no init, no exit below
// main packages, no package-level variables but errors and constants in
// disguise, a comment on every exported name.
func TestProductCode(t *testing.T) {
	goFiles(t, func(path string, src []byte) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "tests/") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		isMain := file.Name.Name == "main"
		for _, d := range file.Decls {
			checkDecl(t, path, isMain, d)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "os" && s.Sel.Name == "Exit" && !isMain {
					t.Errorf("%s calls os.Exit below cmd", path)
				}
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && s.Sel.Name == "Sleep" {
					t.Errorf("%s sleeps without a context", path)
				}
			}
			return true
		})
	})
}

func checkDecl(t *testing.T, path string, isMain bool, d ast.Decl) {
	t.Helper()
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.Name == "init" && d.Recv == nil {
			t.Errorf("%s has an init function", path)
		}
		if d.Name.IsExported() && d.Doc == nil && !isMain && exportedReceiver(d) {
			t.Errorf("%s: %s has no comment", path, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					t.Errorf("%s: %s has no comment", path, s.Name.Name)
				}
			case *ast.ValueSpec:
				if d.Tok == token.VAR {
					checkVar(t, path, d, s)
				}
			}
		}
	}
}

// checkVar allows what is a constant in all but syntax: error values, compiled
// expressions, embedded files, and assertions that a type has an interface.
func checkVar(t *testing.T, path string, d *ast.GenDecl, s *ast.ValueSpec) {
	t.Helper()
	if s.Names[0].Name == "_" || (d.Doc != nil && strings.Contains(d.Doc.Text(), "go:embed")) || embedded(d, s) {
		return
	}
	if len(s.Values) == 1 {
		if call, ok := s.Values[0].(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "errors" && sel.Sel.Name == "New" || x.Name == "regexp" && sel.Sel.Name == "MustCompile") {
					return
				}
			}
		}
	}
	t.Errorf("%s: package-level variable %s", path, s.Names[0].Name)
}

func embedded(d *ast.GenDecl, s *ast.ValueSpec) bool {
	for _, g := range []*ast.CommentGroup{d.Doc, s.Doc} {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			if strings.HasPrefix(c.Text, "//go:embed") {
				return true
			}
		}
	}
	return false
}

// exportedReceiver reports whether f is a function, or a method of an
// exported type: only these show in the documentation.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		typ = s.X
	}
	if g, ok := typ.(*ast.IndexExpr); ok {
		typ = g.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}
