// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// spec is all that an image follows from.
type spec struct {
	root, name, arch  string
	version, revision string
	created           time.Time
}

// labels are OCI's own (image-spec, annotations.md). They go on the image's
// configuration, where `crictl inspecti` shows them, and on its manifest.
func (s spec) labels() map[string]string {
	out := map[string]string{
		"org.opencontainers.image.title":       "weft",
		"org.opencontainers.image.description": "VXLAN overlay network for Kubernetes: agent, command line and CNI plugins",
		"org.opencontainers.image.source":      "https://weft.dev/weft",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     s.version,
		"org.opencontainers.image.created":     s.created.Format(time.RFC3339),
	}
	if s.revision != "" { // unknown outside a repository
		out["org.opencontainers.image.revision"] = s.revision
	}
	return out
}

// build makes the image. It has a layer for each directory directly below the
// root, in the order of their names, so that what changes seldom is
// fetched once.
func build(s spec) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	dirs, err := os.ReadDir(s.root)
	if err != nil {
		return nil, err
	}
	var adds []mutate.Addendum
	for _, d := range dirs {
		data, err := pack(filepath.Join(s.root, d.Name()))
		if err != nil {
			return nil, fmt.Errorf("pack layer %s: %w", d.Name(), err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		adds = append(adds, mutate.Addendum{Layer: layer, MediaType: types.OCILayer,
			History: v1.History{CreatedBy: "weft: make image, " + d.Name(), Created: v1.Time{Time: s.created}}})
	}
	if len(adds) == 0 {
		return nil, fmt.Errorf("nothing to pack in %s", s.root)
	}
	if img, err = mutate.Append(img, adds...); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", s.arch, v1.Time{Time: s.created}
	config.Config = v1.Config{
		Entrypoint: []string{"/bin/weftd"},
		Env:        []string{"PATH=/bin"},
		// Root, for what CAP_NET_ADMIN needs: Kubernetes gives capabilities to
		// no other user. The manifests take all others away.
		User:   "0:0",
		Labels: s.labels(),
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	annotated, ok := mutate.Annotations(img, s.labels()).(v1.Image)
	if !ok {
		return nil, errors.New("bug: an annotated image is no image")
	}
	return annotated, nil
}

// pack returns dir as a tar archive of which only names, contents and whether
// a file can be executed depend on dir: not its owner, times or umask.
func pack(dir string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	// In lexical order.
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: name, Format: tar.FormatPAX, Mode: 0o644}
		switch {
		case d.IsDir():
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, name+"/", 0o755
			return w.WriteHeader(h)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is neither file nor directory", path)
		case info.Mode()&0o111 != 0:
			h.Mode = 0o755
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	return buf.Bytes(), errors.Join(err, w.Close())
}

// write makes the image and writes it to out as an OCI archive, under names
// that containerd and others look for. It returns the image's digest.
func write(out string, s spec) (v1.Hash, error) {
	img, err := build(s)
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return v1.Hash{}, err
	}
	tag := s.name[strings.LastIndex(s.name, ":")+1:]
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
		MediaType: types.OCIManifestSchema1,
		Platform:  &v1.Platform{OS: "linux", Architecture: s.arch},
		Annotations: map[string]string{
			"io.containerd.image.name":          s.name, // ctr, nerdctl, docker load
			"org.opencontainers.image.ref.name": tag,    // OCI's, for skopeo and podman
		},
	}})
	dir, err := os.MkdirTemp(filepath.Dir(out), ".image-*")
	if err != nil {
		return v1.Hash{}, err
	}
	defer os.RemoveAll(dir)
	if _, err := layout.Write(dir, index); err != nil {
		return v1.Hash{}, fmt.Errorf("write the image: %w", err)
	}
	archive, err := pack(dir)
	if err != nil {
		return v1.Hash{}, err
	}
	// Beside it first: whoever imports it meanwhile gets the one before.
	whole := filepath.Join(dir, "archive")
	if err := os.WriteFile(whole, archive, 0o644); err != nil {
		return v1.Hash{}, err
	}
	return digest, os.Rename(whole, out)
}
