// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A build is a module that is ready to be built from.
type build struct {
	module
	src     string // the module's directory
	dir     string // where its programs go
	version string
	flags   []string
}

// prepare finds out of what version a module's parts are and where they go.
func (c *Cache) prepare(ctx context.Context, m module) (build, error) {
	b := build{module: m, src: filepath.Join(c.modules, m.name)}
	var err error
	if b.version, err = goTool(ctx, b.src, "list", "-m", "-f", "{{.Version}}", m.of); err != nil {
		return b, fmt.Errorf("version of %s: %w", m.of, err)
	}
	compiler, err := goTool(ctx, b.src, "env", "GOVERSION", "GOARCH")
	if err != nil {
		return b, fmt.Errorf("version of Go: %w", err)
	}
	// Nobody debugs them: without DWARF they are compiled and linked sooner.
	b.flags = []string{"-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", "-tags=" + m.tags, "-ldflags=" + m.link(b.version)}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%q\n", compiler, b.flags)
	// go.mod, go.sum, and what code there is.
	err = filepath.WalkDir(b.src, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		h.Write(text) // never fails, hash.Hash
		return err
	})
	if err != nil {
		return b, fmt.Errorf("what %s is built from: %w", m.name, err)
	}
	b.dir = filepath.Join(c.dir, fmt.Sprintf("%s-%s-%s", m.name, b.version, hex.EncodeToString(h.Sum(nil))[:12]))
	return b, nil
}

// buildAll builds the parts of a module that are missing.
func (c *Cache) buildAll(ctx context.Context, b build) error {
	for _, p := range b.parts {
		if err := c.buildPart(ctx, b, p); err != nil {
			return err
		}
	}
	return nil
}

// buildPart builds one part of a module unless it is there.
func (c *Cache) buildPart(ctx context.Context, b build, p part) error {
	start, built := time.Now(), false
	err := c.place(ctx, b.path(p), func(temporary string) error {
		built = true
		c.say("building %s %s (%s, %d of %d)", p.name, b.version, b.name, slices.Index(b.parts, p)+1, len(b.parts))
		verb := []string{"build"}
		if p.test {
			verb = []string{"test", "-c", "-vet=off"}
		}
		args := append(append(verb, b.flags...), "-o", temporary, p.pkg)
		_, err := goTool(ctx, b.src, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("build %s %s: %w", p.name, b.version, err)
	}
	if built {
		c.say("built %s in %.0f s", p.name, time.Since(start).Seconds())
	}
	return nil
}

// path is where a part of the module is, once it is built.
func (b build) path(p part) string { return filepath.Join(b.dir, p.name) }

// goTool runs the go command in dir, without C and without what the caller's
// environment says about modules, and returns what it prints.
func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// The compilers that it starts end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", fmt.Errorf("in %s: go %s: %w: %s", dir, strings.Join(args, " "), err, tail(stderr.String(), 20))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
