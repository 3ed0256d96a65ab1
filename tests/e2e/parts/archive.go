// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A rootfs is the content of an image: regular files and links, by their path
// in it without a leading slash. Directories follow from these.
type rootfs struct {
	files map[string]file
}

// A file is one entry: a copy of a file here, a text, or a symbolic link.
type file struct {
	from string
	text string
	link string
	mode int64
}

func (r *rootfs) add(name string, f file) {
	if r.files == nil {
		r.files = map[string]file{}
	}
	if f.mode == 0 {
		f.mode = 0o755
	}
	r.files[strings.TrimPrefix(name, "/")] = f
}

// An image is a rootfs with what runs in it and the names it is known by.
type image struct {
	rootfs
	entrypoint []string
	cmd        []string // its arguments when the pod names none
	names      []string
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// descriptor points to a blob (OCI image specification, descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// write packs the image as an OCI archive of one layer, not compressed: it is
// read once, from a disk. Times are zero, so that equal content gives an equal
// archive.
func (i image) write(to string) (err error) {
	layer, err := os.CreateTemp(filepath.Dir(to), "layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	h := sha256.New()
	if err := i.rootfs.tar(io.MultiWriter(layer, h)); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	blobs := map[string][]byte{}
	l := descriptor{MediaType: ociLayer, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: size}
	index, err := i.describe(l, blobs)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	blobs["index.json"] = index
	for _, name := range sortedKeys(blobs) {
		if err := putBytes(w, name, blobs[name]); err != nil {
			return err
		}
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := putReader(w, blobPath(l.Digest), 0o644, size, layer); err != nil {
		return err
	}
	return w.Close()
}

// describe adds configuration and manifest to blobs and returns the index.
func (i image) describe(layer descriptor, blobs map[string][]byte) ([]byte, error) {
	config, err := blob(blobs, ociConfig, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Entrypoint": i.entrypoint,
			"Cmd":        i.cmd,
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := blob(blobs, ociManifest, map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "config": config, "layers": []descriptor{layer},
	})
	if err != nil {
		return nil, err
	}
	manifest.Platform = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	var manifests []descriptor
	for _, n := range i.names {
		d := manifest
		d.Annotations = map[string]string{"io.containerd.image.name": n, "org.opencontainers.image.ref.name": n[strings.LastIndexByte(n, ':')+1:]}
		manifests = append(manifests, d)
	}
	return json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": manifests})
}

// blob encodes v and adds it to blobs.
func blob(blobs map[string][]byte, mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(b)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(b))}
	blobs[blobPath(d.Digest)] = b
	return d, nil
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// tar writes all files, each directory before what is in it.
func (r rootfs) tar(out io.Writer) error {
	w := tar.NewWriter(out)
	made := map[string]bool{".": true}
	for _, name := range sortedKeys(r.files) {
		if err := makeDirs(w, made, path.Dir(name)); err != nil {
			return err
		}
		f := r.files[name]
		if err := f.put(w, name); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	for _, name := range []string{"tmp", "proc", "sys", "dev"} {
		if err := makeDirs(w, made, name); err != nil {
			return err
		}
	}
	return w.Close()
}

func makeDirs(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := makeDirs(w, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	mode := int64(0o755)
	if dir == "tmp" {
		mode = 0o1777
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode, Format: tar.FormatPAX})
}

func (f file) put(w *tar.Writer, name string) error {
	switch {
	case f.link != "":
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.link, Mode: 0o777, Format: tar.FormatPAX})
	case f.from == "":
		return putReader(w, name, f.mode, int64(len(f.text)), strings.NewReader(f.text))
	}
	in, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	return putReader(w, name, f.mode, st.Size(), in)
}

func putBytes(w *tar.Writer, name string, b []byte) error {
	return putReader(w, name, 0o644, int64(len(b)), bytes.NewReader(b))
}

func putReader(w *tar.Writer, name string, mode, size int64, in io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.Copy(w, in)
	return err
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
