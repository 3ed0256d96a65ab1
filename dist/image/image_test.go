// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const chartDir = "../chart/weft"

// tree lays out files to pack, with the given times.
func tree(t *testing.T, when time.Time) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{
		"10-plugins/bin/cni/bridge": "bridge", "20-weft/bin/weftd": "weftd", "20-weft/bin/cni/weft": "shim", "20-weft/LICENSE": "text",
	} {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o700)
		if strings.HasSuffix(path, "LICENSE") {
			mode = 0o600
		}
		if err := errors.Join(os.WriteFile(full, []byte(text), mode), os.Chtimes(full, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func packTree(t *testing.T, root string, more ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	args := append([]string{"--root", root, "--chart", chartDir, "--revision", "abc", "--created", "1700000000", "-o", out}, more...)
	if err := run(args, func(string) string { return "" }, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The archive depends on what is packed, not on when and where.
func TestSameTreeSameBytes(t *testing.T) {
	a := packTree(t, tree(t, time.Unix(1, 0)))
	b := packTree(t, tree(t, time.Unix(1_000_000_000, 0)))
	if !bytes.Equal(a, b) {
		t.Error("two packings of one tree differ")
	}
	other := tree(t, time.Unix(1, 0))
	if err := os.WriteFile(filepath.Join(other, "20-weft/bin/weftd"), []byte("weftD"), 0o755); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, packTree(t, other)) {
		t.Error("another tree gives the same bytes")
	}
	if bytes.Equal(a, packTree(t, tree(t, time.Unix(1, 0)), "--arch", "arm64")) {
		t.Error("another architecture gives the same bytes")
	}
}

// imported imports an archive with containerd's own code, as `ctr images
// import` and kubelet's image store do.
func imported(t *testing.T, data []byte) (ref string, m ocispec.Manifest, img ocispec.Image, files map[string]*tar.Header) {
	t.Helper()
	ctx := context.Background()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	top, err := archive.ImportIndex(ctx, store, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	load(t, store, top, &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("%d images in the archive", len(index.Manifests))
	}
	ref = index.Manifests[0].Annotations[images.AnnotationImageName]
	m, err = images.Manifest(ctx, store, index.Manifests[0], platforms.All)
	if err != nil {
		t.Fatal(err)
	}
	load(t, store, m.Config, &img)
	files = map[string]*tar.Header{}
	for _, l := range m.Layers {
		layerFiles(t, store, l, files)
	}
	return ref, m, img, files
}

func load(t *testing.T, store content.Store, d ocispec.Descriptor, into any) {
	t.Helper()
	b, err := content.ReadBlob(context.Background(), store, d)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestContainerdTakesIt(t *testing.T) {
	ref, m, img, files := imported(t, packTree(t, tree(t, time.Now())))
	name, version, err := chartImage(chartDir)
	if err != nil || ref != name {
		t.Errorf("imported as %q, want %q (%v)", ref, name, err)
	}
	if img.OS != "linux" || img.Architecture != "amd64" || img.Config.User != "0:0" || !slices.Equal(img.Config.Entrypoint, []string{"/bin/weftd"}) {
		t.Errorf("configuration: %+v", img)
	}
	for key, want := range map[string]string{"revision": "abc", "licenses": "Apache-2.0", "version": version, "created": "2023-11-14T22:13:20Z"} {
		key = "org.opencontainers.image." + key
		if img.Config.Labels[key] != want || m.Annotations[key] != want {
			t.Errorf("%s: label %q, annotation %q, want %q", key, img.Config.Labels[key], m.Annotations[key], want)
		}
	}
	want := map[string]int64{"bin/": 0o755, "bin/cni/": 0o755, "bin/cni/bridge": 0o755, "bin/weftd": 0o755, "bin/cni/weft": 0o755, "LICENSE": 0o644}
	for path, h := range files {
		if h.Mode != want[path] || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s: %+v, want mode %o", path, h, want[path])
		}
	}
	if len(files) != len(want) {
		t.Errorf("files %v, want %v", files, want)
	}
}

func layerFiles(t *testing.T, store content.Store, d ocispec.Descriptor, into map[string]*tar.Header) {
	t.Helper()
	b, err := content.ReadBlob(context.Background(), store, d)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		into[h.Name] = h
	}
}

// The Dockerfile cannot ask the chart; this does.
func TestDockerfileSaysTheSame(t *testing.T) {
	data, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	name, version, err := chartImage(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-t " + name + " .", "image.version=" + version + "\n", "golang:1.26 "} {
		if !strings.Contains(string(data), want) {
			t.Errorf("dist/Dockerfile has no %q", want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for want, args := range map[string][]string{
		`architecture "mips"`: {"--arch", "mips"},
		`commit "today"`:      {"--created", "today"},
		"--chart names":       {"--chart", "/nowhere"},
		"nothing to pack":     {"--chart", chartDir, "--root", t.TempDir(), "-o", filepath.Join(t.TempDir(), "x")},
	} {
		err := run(args, func(string) string { return "" }, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}
