// SPDX-License-Identifier: Apache-2.0

// Package kubetest runs a real kube-apiserver for tests, on an etcd of its own
// and without the rest of Kubernetes: Nodes are what a test creates. The binary
// is built from the module k8s.io/kubernetes into the user's cache, once.
package kubetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// What is built. The staging modules are v0 where Kubernetes is v1.
const (
	Version        = "v1.37.2"
	stagingVersion = "v0.37.2"
	apiserver      = "k8s.io/kubernetes/cmd/kube-apiserver"
)

// Dir is where the build and its results are.
func Dir() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "weft", "kubernetes-"+Version), err
}

// Path is the binary, whether it is there or not: the one that the environment
// names, which another harness may have built, or ours.
func Path() (string, error) {
	if path := os.Getenv("WEFT_KUBE_APISERVER"); path != "" {
		return path, nil
	}
	dir, err := Dir()
	return filepath.Join(dir, "bin", "kube-apiserver"), err
}

// Build makes the binary unless it is there. Cold it takes several minutes.
func Build(ctx context.Context, progress func(string)) error {
	path, err := Path()
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	dir, err := Dir()
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(filepath.Dir(path), 0o755)); err != nil {
		return err
	}
	progress("module k8s.io/kubernetes " + Version)
	if err := writeModule(ctx, dir); err != nil {
		return err
	}
	progress("its dependencies")
	if _, err := run(ctx, dir, "go", "get", apiserver+"@"+Version); err != nil {
		return err
	}
	progress("kube-apiserver (several minutes)")
	const at = "k8s.io/component-base/version"
	tmp := path + ".new"
	if _, err := run(ctx, dir, "go", "build", "-trimpath", "-o", tmp,
		"-ldflags", "-s -w -X "+at+".gitVersion="+Version+" -X "+at+".gitMajor=1 -X "+at+".gitMinor=37", apiserver); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// writeModule makes a module in dir that replaces Kubernetes' staging modules,
// which its own go.mod takes from its source tree, by their releases.
func writeModule(ctx context.Context, dir string) error {
	out, err := run(ctx, dir, "go", "mod", "download", "-json", "k8s.io/kubernetes@"+Version)
	if err != nil {
		return err
	}
	var m struct{ GoMod string }
	if err := json.Unmarshal(out, &m); err != nil {
		return err
	}
	text, err := os.ReadFile(m.GoMod)
	if err != nil {
		return err
	}
	staged := regexp.MustCompile(`(?m)^\s*(k8s\.io/\S+) => \./staging/`).FindAllStringSubmatch(string(text), -1)
	if len(staged) < 20 {
		return fmt.Errorf("%s names %d staging modules; the build is not made for it", m.GoMod, len(staged))
	}
	lines := []string{"module weft.dev/kubernetes", "", "go 1.26.0", ""}
	for _, s := range staged {
		lines = append(lines, fmt.Sprintf("replace %s => %[1]s %s", s[1], stagingVersion))
	}
	return os.WriteFile(filepath.Join(dir, "go.mod"), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// run runs a command in dir and returns what it prints.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}
