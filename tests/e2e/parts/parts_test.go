// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The linker is told the version in the form that each project wants.
func TestLinkerFlags(t *testing.T) {
	for _, m := range catalogue() {
		got := m.link("v1.37.2")
		if strings.Contains(got, "%!") || strings.Contains(got, "EXTRA") {
			t.Errorf("%s: %s", m.name, got)
		}
		if m.name == "kubernetes" && !strings.HasSuffix(got, "gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37") {
			t.Errorf("%s: %s", m.name, got)
		}
	}
}

// Every module of the catalogue is there and pins the version that counts.
func TestModulesArePinned(t *testing.T) {
	for _, m := range catalogue() {
		mod, err := os.ReadFile(filepath.Join("modules", m.name, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(mod), m.of+" v") {
			t.Errorf("%s/go.mod does not pin %s", m.name, m.of)
		}
		sum, err := os.ReadFile(filepath.Join("modules", m.name, "go.sum"))
		if err != nil || !strings.Contains(string(sum), m.of+" v") {
			t.Errorf("%s/go.sum lacks %s: %v", m.name, m.of, err)
		}
	}
}

// A program is found by its name and built alone; a name that is none says
// what there is.
func TestProgramByName(t *testing.T) {
	m, p, err := find("kube-apiserver")
	if err != nil || m.name != "kubernetes" || p.pkg != "k8s.io/kubernetes/cmd/kube-apiserver" {
		t.Errorf("%s of %s, %v", p.pkg, m.name, err)
	}
	c, err := Open(t.TempDir(), ".", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Programs(t.Context(), "apiserver"); err == nil || !strings.Contains(err.Error(), `"apiserver"`) || !strings.Contains(err.Error(), "kube-apiserver") {
		t.Errorf("%v does not name what there is", err)
	}
}

// A file appears whole or not at all, and is made once.
func TestPlace(t *testing.T) {
	c, err := Open(t.TempDir(), ".", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.dir, "dir", "file")
	failed := errors.New("interrupted")
	err = c.place(t.Context(), path, func(temporary string) error {
		if err := os.WriteFile(temporary, []byte("ha"), 0o644); err != nil {
			t.Fatal(err)
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("error %v, want %v", err, failed)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for i := range 2 {
		err = c.place(t.Context(), path, func(temporary string) error {
			if i > 0 {
				t.Error("made twice")
			}
			return os.WriteFile(temporary, []byte("half"), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A cache where nodes could not see it is refused, by name.
func TestOpenRefusesWhatNodesHide(t *testing.T) {
	if _, err := Open("/run/cache", ".", io.Discard); err == nil || !strings.Contains(err.Error(), "/run") {
		t.Errorf("%v, want a mention of /run", err)
	}
}

// Our images stand for those of the suite by their base name.
func TestSuits(t *testing.T) {
	for _, c := range []struct {
		ours, suites string
		want         bool
	}{
		{"agnhost", "registry.k8s.io/e2e-test-images/agnhost:2.66.1", true},
		{"agnhost", "registry.k8s.io/e2e-test-images/busybox:1.37.0-2", true},
		{"agnhost", "registry.k8s.io/e2e-test-images/nginx:1.15-4", false},
		{"pause", "registry.k8s.io/pause:3.10.2", true},
		{"pause", "registry.k8s.io/e2e-test-images/agnhost:2.66.1", false},
	} {
		if got := suits(c.ours, c.suites); got != c.want {
			t.Errorf("%s for %s: %t, want %t", c.ours, c.suites, got, c.want)
		}
	}
}

// An archive is a consistent OCI image: each blob has the digest that is its
// name, directories come before their content, and equal images are equal.
func TestArchive(t *testing.T) {
	img := image{entrypoint: []string{"/a/b"}, names: []string{"x.example/one:1", "x.example/two:2"}}
	img.add("/a/b", file{text: "#!/bin/sh\n"})
	img.add("bin/sh", file{link: "/a/b"})
	img.add("doc", file{from: "doc.go", mode: 0o644})
	dir := t.TempDir()
	var sums [2][32]byte
	for i := range sums {
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := img.write(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(b)
	}
	if sums[0] != sums[1] {
		t.Error("two archives of one image differ")
	}
	blobs := readTar(t, filepath.Join(dir, "a"))
	for name, text := range blobs {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256([]byte(text)); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("blob %s has digest %x", digest, sum)
			}
		}
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal([]byte(blobs["index.json"]), &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 2 || index.Manifests[1].Annotations["io.containerd.image.name"] != "x.example/two:2" {
		t.Errorf("index %+v", index)
	}
	var manifest struct{ Layers []descriptor }
	if err := json.Unmarshal([]byte(blobs[blobPath(index.Manifests[0].Digest)]), &manifest); err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(dir, "layer")
	if err := os.WriteFile(layer, []byte(blobs[blobPath(manifest.Layers[0].Digest)]), 0o644); err != nil {
		t.Fatal(err)
	}
	files := readTar(t, layer)
	if files["a/b"] != "#!/bin/sh\n" || files["bin/sh"] != "-> /a/b" || !strings.HasPrefix(files["doc"], "// SPDX") {
		t.Errorf("layer %q", files)
	}
}

// readTar returns the content of all files, by name.
func readTar(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if dir := filepath.Dir(h.Name); h.Typeflag != tar.TypeDir && strings.HasPrefix(h.Name, "a/") && out[dir+"/"] != "dir" {
			t.Errorf("%s comes before its directory", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			out[h.Name] = "dir"
		case tar.TypeSymlink:
			out[h.Name] = "-> " + h.Linkname
		default:
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			out[h.Name] = string(b)
		}
	}
}
